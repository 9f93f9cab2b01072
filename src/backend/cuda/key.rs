//! A proving key on a device, and its five products.

#![allow(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};

use super::super::{BackendError, Commitments, Footprint, LoadedKey, Progress};
use super::driver::{Driver, Stream};
use super::memory::Buffer;
use super::msm::{self, Bases, InG1, InG2, Index, Needs, Plan, Sums};
use super::quotient::{self, Constraints};
use crate::model::{G1_BYTES, ProvingKey, StopToken, Witness};

/// The share of a device's memory that multiples of one key's points may take: such that two of the largest keys, with all
/// else that they need, stay in the half that is for keys.
const TABLE_SHARE: u64 = 6;

/// Multiples of each point that a device with `memory` bytes keeps.
fn multiples(key: &ProvingKey, memory: u64) -> u64 {
    let s = &key.sections;
    let points = s.a.len() + s.b1.len() + s.b2.len() + s.c.len() + s.h.len();
    memory / TABLE_SHARE / (points as u64).max(1)
}

/// Plans for A, B, C and H with so many bases each.
struct Plans {
    a: Plan,
    b: Plan,
    c: Plan,
    h: Plan,
}

impl Plans {
    fn new(driver: &dyn Driver, [a, b, c, h]: [u64; 4], multiples: u64) -> Self {
        let plan = |n| Plan::new::<InG1>(driver, n, multiples);
        // B is summed in both groups, of which G2 takes three times as long.
        Self { a: plan(a), b: Plan::new::<InG2>(driver, b, multiples), c: plan(c), h: plan(h) }
    }

    /// Memory for the multiplications with the witness, one after the other, and for that of H beside them.
    fn needs(&self, driver: &dyn Driver, [a, b, c, h]: [u64; 4]) -> [Needs; 2] {
        let needs = Needs::of::<InG1>(driver, a, &self.a).or(Needs::of::<InG1>(driver, b, &self.b));
        let needs = needs.or(Needs::of::<InG2>(driver, b, &self.b)).or(Needs::of::<InG1>(driver, c, &self.c));
        [needs, Needs::of::<InG1>(driver, h, &self.h)]
    }
}

/// What a key needs of the device, within a few per cent: as if every wire had a point in every section.
pub(super) fn footprint(driver: &dyn Driver, key: &ProvingKey) -> Footprint {
    let s = &key.sections;
    let memory = driver.properties().memory;
    let counts = [s.a.len(), s.b1.len(), s.c.len(), s.h.len()].map(|bytes| (bytes / G1_BYTES) as u64);
    let plans = Plans::new(driver, counts, multiples(key, memory));
    let [a, b, c, h] = counts;
    let tables = Bases::<InG1>::bytes(a, &plans.a)
        + Bases::<InG1>::bytes(b, &plans.b)
        + Bases::<InG2>::bytes(b, &plans.b)
        + Bases::<InG1>::bytes(c, &plans.c)
        + Bases::<InG1>::bytes(h, &plans.h);
    let indices = 4 * (a + b + c + h);
    Footprint {
        resident: tables + indices + Constraints::resident(key),
        per_proof: plans.needs(driver, counts).iter().map(Needs::bytes).sum::<u64>()
            + Constraints::per_proof(key)
            + msm::SCALAR_BYTES * u64::from(key.header.n_vars),
    }
}

/// A key whose points, with their multiples, and matrices lie on a device.
pub(super) struct CudaKey {
    driver: Arc<dyn Driver>,
    key: Arc<ProvingKey>,
    constraints: Constraints,
    needs: Needs,
    needs_beside: Needs,
    in_a: Index,
    in_b: Index,
    in_c: Index,
    in_h: Index,
    a: Bases<InG1>,
    b1: Bases<InG1>,
    b2: Bases<InG2>,
    c: Bases<InG1>,
    h: Bases<InG1>,
    /// Memory of proofs that have ended, for the next.
    idle: Mutex<Vec<Slot>>,
}

/// What one proof at a time uses. The quotient and its product have a stream to themselves: where one stream's kernels
/// leave multiprocessors idle, the other's run.
struct Slot {
    driver: Arc<dyn Driver>,
    stream: Stream,
    beside: Stream,
    witness: Buffer,
    quotient: quotient::Scratch,
    msm: msm::Scratch,
    msm_beside: msm::Scratch,
    a: Sums<InG1>,
    b1: Sums<InG1>,
    b2: Sums<InG2>,
    c: Sums<InG1>,
    h: Sums<InG1>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.driver.destroy_stream(self.stream);
        self.driver.destroy_stream(self.beside);
    }
}

impl CudaKey {
    /// Brings the key to the device and computes the multiples of its points.
    ///
    /// # Errors
    /// `Shape` if the key does not hold what it says; `OutOfMemory`.
    pub(super) fn new(driver: &Arc<dyn Driver>, key: Arc<ProvingKey>) -> Result<Self, BackendError> {
        let stream = Temporary { driver, stream: driver.create_stream()? };
        Self::on(driver, stream.stream, key)
    }

    fn on(driver: &Arc<dyn Driver>, stream: Stream, key: Arc<ProvingKey>) -> Result<Self, BackendError> {
        super::super::check_lengths(&key)?;
        let s = &key.sections;
        let private = key.header.n_public + 1;
        let constraints = Constraints::index(driver, stream, &key)?;
        let (there_b, there_b2) = (msm::present::<InG1>(&s.b1)?, msm::present::<InG2>(&s.b2)?);
        if there_b != there_b2 {
            // No sound key has wires in B in one group only, but their sums are defined, and the processor has them.
            let why = "the key has points of B that are infinity in one group only, which share no digits".into();
            return Err(BackendError::Unavailable { device: driver.properties().name.clone(), why });
        }
        let index = |points: &[u32], first| Index::new(driver, stream, points, first);
        let in_a = index(&msm::present::<InG1>(&s.a)?, 0)?;
        let in_b = index(&there_b, 0)?;
        let in_c = index(&msm::present::<InG1>(&s.c)?, private)?;
        let in_h = index(&msm::present::<InG1>(&s.h)?, 0)?;
        let counts = [&in_a, &in_b, &in_c, &in_h].map(|index| u64::from(index.len));
        let plans = Plans::new(&**driver, counts, multiples(&key, driver.properties().memory));
        let a = Bases::new(driver, stream, &s.a, &in_a, 0, plans.a)?;
        let b1 = Bases::new(driver, stream, &s.b1, &in_b, 0, plans.b)?;
        let b2 = Bases::new(driver, stream, &s.b2, &in_b, 0, plans.b)?;
        let c = Bases::new(driver, stream, &s.c, &in_c, private, plans.c)?;
        let h = Bases::new(driver, stream, &s.h, &in_h, 0, plans.h)?;
        driver.synchronize(stream)?;
        let [needs, needs_beside] = plans.needs(&**driver, counts);
        let (driver, idle) = (driver.clone(), Mutex::default());
        Ok(Self { driver, key, constraints, needs, needs_beside, in_a, in_b, in_c, in_h, a, b1, b2, c, h, idle })
    }

    fn slot(&self) -> Result<Slot, BackendError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(slot) = idle {
            return Ok(slot);
        }
        let driver = &self.driver;
        let stream = Temporary { driver, stream: driver.create_stream()? };
        let beside = Temporary { driver, stream: driver.create_stream()? };
        let slot = Slot {
            driver: driver.clone(),
            stream: stream.stream,
            beside: beside.stream,
            witness: Buffer::new(driver, msm::SCALAR_BYTES * u64::from(self.key.header.n_vars))?,
            quotient: quotient::Scratch::new(&self.constraints)?,
            msm: msm::Scratch::new(driver, self.needs)?,
            msm_beside: msm::Scratch::new(driver, self.needs_beside)?,
            a: Sums::new(driver, self.a.plan)?,
            b1: Sums::new(driver, self.b1.plan)?,
            b2: Sums::new(driver, self.b2.plan)?,
            c: Sums::new(driver, self.c.plan)?,
            h: Sums::new(driver, self.h.plan)?,
        };
        // The slot destroys them now.
        std::mem::forget((stream, beside));
        Ok(slot)
    }

    /// Puts the work of a proof into the slot's streams, then waits for its results. A stop that comes when all is put there
    /// is heeded at the end.
    fn commit_in(&self, slot: &Slot, witness: &Witness, stop: &StopToken) -> Result<Commitments, BackendError> {
        let go_on = || stop.stopped().map_or(Ok(()), |why| Err(BackendError::Stopped(why)));
        let Slot { stream, beside, msm, msm_beside, witness: wires, quotient, .. } = slot;
        let (stream, beside) = (*stream, *beside);
        go_on()?;
        wires.upload(stream, 0, bytes_of(witness))?;
        let uploaded = self.driver.record(stream)?;
        let waits = self.driver.wait(beside, uploaded);
        self.driver.destroy_event(uploaded);
        waits?;
        self.constraints.quotient(beside, wires, quotient)?;
        msm_beside.sort(beside, quotient.scalars(), &self.in_h, &self.h.plan)?;
        msm_beside.sum(beside, &self.h, &self.in_h, &slot.h)?;
        go_on()?;
        msm.sort(stream, wires, &self.in_b, &self.b2.plan)?;
        msm.sum(stream, &self.b2, &self.in_b, &slot.b2)?;
        msm.sum(stream, &self.b1, &self.in_b, &slot.b1)?;
        go_on()?;
        msm.sort(stream, wires, &self.in_a, &self.a.plan)?;
        msm.sum(stream, &self.a, &self.in_a, &slot.a)?;
        go_on()?;
        msm.sort(stream, wires, &self.in_c, &self.c.plan)?;
        msm.sum(stream, &self.c, &self.in_c, &slot.c)?;
        let commitments = Commitments {
            b2: slot.b2.read(stream)?,
            b1: slot.b1.read(stream)?,
            a: slot.a.read(stream)?,
            c: slot.c.read(stream)?,
            h: slot.h.read(beside)?,
        };
        go_on()?;
        Ok(commitments)
    }
}

impl LoadedKey for CudaKey {
    fn key(&self) -> &Arc<ProvingKey> {
        &self.key
    }

    fn commit(&self, witness: &Witness, stop: &StopToken, on: &dyn Progress) -> Result<Commitments, BackendError> {
        let (expected, got) = (u64::from(self.key.header.n_vars), witness.len() as u64);
        if got != expected {
            return Err(BackendError::Shape { what: "witness values", expected, got });
        }
        on.report(0.0);
        let slot = self.slot()?;
        let commitments = self.commit_in(&slot, witness, stop);
        // The witness does not stay on the device, whatever came of it.
        let cleared = slot.clear();
        cleared?;
        // Also after a stop: the next proof then finds its memory.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        on.report(1.0);
        commitments
    }
}

impl Slot {
    /// Overwrites what is as secret as the witness.
    fn clear(&self) -> Result<(), BackendError> {
        // Both streams may read the witness, if work was put there before something failed.
        self.driver.synchronize(self.beside)?;
        self.witness.zero(self.stream, 0, self.witness.bytes())?;
        self.msm.clear(self.stream)?;
        self.quotient.clear(self.beside)?;
        self.msm_beside.clear(self.beside)?;
        let [a, b1, c] = [&self.a, &self.b1, &self.c].map(|sums| sums.clear(self.stream));
        a.and(b1).and(c).and(self.b2.clear(self.stream)).and(self.h.clear(self.beside))
    }
}

/// A stream that is destroyed where it goes out of scope.
struct Temporary<'a> {
    driver: &'a Arc<dyn Driver>,
    stream: Stream,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        self.driver.destroy_stream(self.stream);
    }
}

/// The values of a witness as they lie in memory: plain, 32 bytes each, low ones first.
fn bytes_of(witness: &Witness) -> &[u8] {
    const {
        assert!(size_of::<ark_ff::BigInteger256>() == 32 && cfg!(target_endian = "little"));
    }
    let values = witness.values();
    // SAFETY: a value is four words and, by the assertion, nothing else; any bytes are valid as such.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}
