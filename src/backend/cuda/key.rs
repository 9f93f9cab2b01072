//! A proving key on a device, and its five MSMs.

#![allow(unsafe_code)]

use std::sync::{Arc, MutexGuard};

use super::super::{BackendError, Commitments, Footprint, LoadedKey, Progress};
use super::driver::{Driver, Stream};
use super::idle::{IdlePool, IdleSlots};
use super::msm::{self, Bases, InG1, InG2, Index};
use super::quotient::Constraints;
use super::slot::{Plans, Slot};
use crate::model::{G1_BYTES, ProvingKey, StopToken, Witness, locked};

/// Share of a device's memory, as a divisor, that multiples of one key's points may take: small enough for two of the
/// largest keys, with everything else they need, to stay in the half that is for keys.
const TABLE_SHARE: u64 = 6;
/// Concurrent batches whose memory stays with a key: as many as the worker runs.
const BATCHES: usize = 2;
/// Share of a device's memory, as a divisor, that bounds the memory kept in this way if batches have several proofs.
const KEPT_SHARE: u64 = 64;

/// Returns the number of multiples of each point that a device with `memory` bytes keeps.
fn multiples(key: &ProvingKey, memory: u64) -> u64 {
    let s = &key.sections;
    let points = s.a.len() + s.b1.len() + s.b2.len() + s.c.len() + s.h.len();
    memory / TABLE_SHARE / (points as u64).max(1)
}

/// Returns the number of concurrent proofs at which a device is best for keys of this size, because the kernels of
/// small proofs leave most of it idle, and the number of proofs whose memory is kept for the next ones.
fn proofs(driver: &dyn Driver, key: &ProvingKey, per_proof: u64) -> (usize, usize) {
    let best = match key.header.domain_size.max(key.header.n_vars) {
        ..=0x1000 => 8,
        0x1001..=0x4000 => 4,
        0x4001..=0x1_0000 => 2,
        _ => 1,
    };
    let in_share = |share| (driver.properties().memory / share / per_proof.max(1)) as usize;
    // Of very large proofs, only one at a time fits alongside the keys.
    let least = BATCHES.min(in_share(2)).max(1);
    let batch = best.min(in_share(KEPT_SHARE) / BATCHES).max(1);
    (batch, if batch > 1 { BATCHES * batch } else { least })
}

/// Returns plans as if every wire had a point in every section: all that is known of a key before its
/// points are examined.
fn plans_of_all(driver: &dyn Driver, key: &ProvingKey) -> Plans {
    let s = &key.sections;
    let counts = [s.a.len(), s.b1.len(), s.c.len(), s.h.len()].map(|bytes| (bytes / G1_BYTES) as u64);
    Plans::new(driver, counts, multiples(key, driver.properties().memory))
}

/// Returns whether proofs with this key may be launched as one CUDA graph.
pub(super) fn runs_apart(driver: &dyn Driver, key: &ProvingKey) -> bool {
    plans_of_all(driver, key).apart
}

/// Returns what a key needs on the device, as if every wire had a point in every section, which is the most that points
/// take, and with an estimate for its matrices ([`Constraints::resident`]).
pub(super) fn footprint(driver: &dyn Driver, key: &ProvingKey) -> Footprint {
    let plans = plans_of_all(driver, key);
    let indices = 4 * plans.counts.iter().sum::<u64>();
    let per_proof = per_proof(driver, key, &plans);
    // For large proofs, the half of the device that is for proofs has the memory of all but one.
    let kept = match proofs(driver, key, per_proof) {
        (1, _) => 1,
        (_, kept) => kept as u32,
    };
    Footprint { resident: plans.tables() + indices + Constraints::resident(key), per_proof, proof_buffers_kept: kept }
}

fn per_proof(driver: &dyn Driver, key: &ProvingKey, plans: &Plans) -> u64 {
    plans.layout(driver, key.header.n_vars.into()).bytes() + Constraints::per_proof(key)
}

/// The data of a key that is on a device.
pub(super) struct Resident {
    pub(super) constraints: Constraints,
    pub(super) plans: Plans,
    /// Number of values of a witness.
    pub(super) wires: u64,
    pub(super) in_a: Index,
    pub(super) in_b: Index,
    pub(super) in_c: Index,
    pub(super) in_h: Index,
    pub(super) a: Bases<InG1>,
    pub(super) b1: Bases<InG1>,
    pub(super) b2: Bases<InG2>,
    pub(super) c: Bases<InG1>,
    pub(super) h: Bases<InG1>,
}

impl Resident {
    /// Uploads the key, with plans that take no more memory than `all`, the plans that `footprint` assumes, and with
    /// the MSMs apart or not as in `all`.
    fn new(driver: &Arc<dyn Driver>, stream: Stream, key: &ProvingKey, all: &Plans) -> Result<Self, BackendError> {
        super::super::key::check_points(key)?;
        let s = &key.sections;
        let private = key.header.n_public + 1;
        let constraints = Constraints::index(driver, stream, key)?;
        let (there_b, there_b2) = (msm::present::<InG1>(&s.b1)?, msm::present::<InG2>(&s.b2)?);
        if there_b != there_b2 {
            // No sound key has wires in B in one group only, but their sums are well defined, and
            // the CPU computes them.
            let why = "the key has points of B that are infinity in only one group, so digits cannot be shared".into();
            return Err(BackendError::Unavailable { device: driver.properties().label(), why });
        }
        let index = |points: &[u32], first| Index::new(driver, stream, points, first);
        let in_a = index(&msm::present::<InG1>(&s.a)?, 0)?;
        let in_b = index(&there_b, 0)?;
        let in_c = index(&msm::present::<InG1>(&s.c)?, private)?;
        let in_h = index(&msm::present::<InG1>(&s.h)?, 0)?;
        let counts = [&in_a, &in_b, &in_c, &in_h].map(|index| u64::from(index.len));
        let wires = key.header.n_vars.into();
        let plans = all.of_present(&**driver, counts, multiples(key, driver.properties().memory), wires);
        let a = Bases::new(driver, stream, &s.a, &in_a, 0, plans.a)?;
        let b1 = Bases::new(driver, stream, &s.b1, &in_b, 0, plans.b)?;
        let b2 = Bases::new(driver, stream, &s.b2, &in_b, 0, plans.b)?;
        let c = Bases::new(driver, stream, &s.c, &in_c, private, plans.c)?;
        let h = Bases::new(driver, stream, &s.h, &in_h, 0, plans.h)?;
        driver.synchronize(stream)?;
        Ok(Self { constraints, plans, wires, in_a, in_b, in_c, in_h, a, b1, b2, c, h })
    }

    /// Returns the bytes of all this data.
    fn bytes(&self) -> u64 {
        let indices = [&self.in_a, &self.in_b, &self.in_c, &self.in_h].map(|index| index.wires.bytes());
        let in_g1 = [&self.a, &self.b1, &self.c, &self.h].map(Bases::size);
        self.constraints.bytes() + indices.iter().chain(&in_g1).sum::<u64>() + self.b2.size()
    }
}

/// A key whose points, with their multiples, and matrices are on a device.
pub(super) struct CudaKey {
    driver: Arc<dyn Driver>,
    key: Arc<ProvingKey>,
    /// Memory of finished proofs, for the next ones. Dropped before `resident`, to which its graphs point.
    idle: Arc<IdleSlots>,
    idle_pool: Arc<IdlePool>,
    resident: Resident,
    /// Whether proofs may be launched as one CUDA graph.
    graphs: bool,
    /// Number of concurrent proofs, and number of proofs whose memory is kept.
    batch: usize,
    kept: usize,
}

impl CudaKey {
    /// Uploads the key and computes the multiples of its points.
    ///
    /// # Errors
    /// `Shape` if the key's sections do not fit its header; `OutOfMemory`.
    pub(super) fn new(
        driver: &Arc<dyn Driver>,
        idle_pool: &Arc<IdlePool>,
        key: Arc<ProvingKey>,
        graphs: bool,
    ) -> Result<Self, BackendError> {
        let stream = driver.create_stream()?;
        let all = plans_of_all(&**driver, &key);
        let resident = Resident::new(driver, stream, &key, &all);
        driver.destroy_stream(stream);
        let resident = resident?;
        let (batch, kept) = proofs(&**driver, &key, per_proof(&**driver, &key, &all));
        let (driver, idle, idle_pool) = (driver.clone(), idle_pool.register(), idle_pool.clone());
        Ok(Self { driver, key, idle, idle_pool, resident, graphs, batch, kept })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Slot>> {
        locked(&self.idle)
    }

    /// Returns an idle slot, or a new one, for which idle slots of other keys are freed if memory is short.
    fn slot(&self) -> Result<Slot, BackendError> {
        let idle = self.idle().pop();
        let new = || Slot::new(&self.driver, &self.resident, self.graphs);
        idle.map_or_else(|| self.idle_pool.with_memory(new), Ok)
    }

    /// Takes a slot and begins a proof there.
    fn begin(&self, witness: &Witness, stop: &StopToken) -> Result<Proof<'_>, BackendError> {
        let (expected, got) = (self.resident.wires, witness.len() as u64);
        if got != expected {
            return Err(BackendError::Shape { what: "witness values", expected, got });
        }
        go_on(stop)?;
        let mut slot = self.slot()?;
        let begun = slot.begin(&self.resident, bytes_of(witness), &|| go_on(stop));
        match begun {
            Err(error @ BackendError::OutOfMemory { .. }) => {
                // A slot that cannot be cleared is freed.
                let _ = self.leave(slot, false);
                Err(error)
            }
            begun => Ok(Proof { key: self, slot, begun }),
        }
    }

    /// Clears a slot and keeps it for the next proof. The witness does not stay on the device, whatever the outcome.
    fn leave(&self, mut slot: Slot, whole: bool) -> Result<(), BackendError> {
        slot.clear(whole)?;
        let mut idle = self.idle();
        if idle.len() < self.kept {
            idle.push(slot);
        } else {
            // Frees the slot without making others wait for the lock.
            drop(idle);
            drop(slot);
        }
        Ok(())
    }
}

/// Returns an error if the work should stop.
fn go_on(stop: &StopToken) -> Result<(), BackendError> {
    stop.stopped().map_or(Ok(()), |why| Err(BackendError::Stopped(why)))
}

/// A proof in progress.
struct Proof<'a> {
    key: &'a CudaKey,
    slot: Slot,
    begun: Result<(), BackendError>,
}

impl Proof<'_> {
    /// Waits for the commitments. A stop that arrives after all work has been put into the streams
    /// takes effect only then.
    fn end(self, stop: &StopToken) -> Result<Commitments, BackendError> {
        let Self { key, slot, begun } = self;
        let commitments = begun.and_then(|()| slot.end());
        // After a stop as well: the next proof then finds this memory.
        let left = key.leave(slot, commitments.is_ok());
        let commitments = commitments?;
        left.and_then(|()| go_on(stop)).map(|()| commitments)
    }
}

impl LoadedKey for CudaKey {
    fn key(&self) -> &Arc<ProvingKey> {
        &self.key
    }

    fn resident(&self) -> Option<u64> {
        Some(self.resident.bytes())
    }

    fn commit(&self, witness: &Witness, stop: &StopToken, on: &dyn Progress) -> Result<Commitments, BackendError> {
        on.report(0.0);
        let commitments = self.begin(witness, stop)?.end(stop);
        on.report(1.0);
        commitments
    }

    fn preferred_batch(&self) -> usize {
        self.batch
    }

    /// Runs as many proofs at once as memory permits, but at most [`preferred_batch`](LoadedKey::preferred_batch);
    /// larger batches are split.
    fn commit_batch(&self, witnesses: &[&Witness], stops: &[&StopToken]) -> Vec<Result<Commitments, BackendError>> {
        if let Err(error) = super::super::check_stops(witnesses, stops) {
            return vec![Err(error); witnesses.len()];
        }
        let mut all = Vec::with_capacity(witnesses.len());
        // Proofs that have begun, and errors of those that could not, in order.
        let mut begun: Vec<(Result<Proof<'_>, BackendError>, &StopToken)> = Vec::new();
        let end = |(proof, stop): (Result<Proof<'_>, _>, &StopToken)| proof.and_then(|proof| proof.end(stop));
        for (witness, stop) in witnesses.iter().zip(stops) {
            if begun.iter().filter(|(proof, _)| proof.is_ok()).count() == self.batch {
                all.extend(begun.drain(..).map(end));
            }
            let mut proof = self.begin(witness, stop);
            if matches!(proof, Err(BackendError::OutOfMemory { .. })) && !begun.is_empty() {
                // The proofs before it give back their memory.
                all.extend(begun.drain(..).map(end));
                proof = self.begin(witness, stop);
            }
            begun.push((proof, *stop));
        }
        all.extend(begun.drain(..).map(end));
        all
    }
}

/// Returns the values of a witness as they lie in memory: in plain form, 32 bytes each, little-endian.
fn bytes_of(witness: &Witness) -> &[u8] {
    const {
        assert!(size_of::<ark_ff::BigInteger256>() == 32 && cfg!(target_endian = "little"));
    }
    let values = witness.values();
    // SAFETY: by the assertion, a value is its four words and nothing else, so that all bytes are initialised; any
    // bytes are valid as `u8`s.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

#[cfg(all(test, feature = "kernels-on-host"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use ark_ff::{PrimeField, UniformRand};
    use ark_std::rand::{SeedableRng, rngs::StdRng};

    use super::super::CudaBackend;
    use super::super::driver::host::{HostDriver, Order};
    use super::super::memory::Buffer;
    use super::super::slot::Launching;
    use super::*;
    use crate::backend::cpu::CpuBackend;
    use crate::backend::{Backend, Quiet, selftest};
    use crate::model::{Fr, StopReason};

    /// Memory of devices on which MSMs run apart, and on which they run together.
    const PLENTY: u64 = 4 << 30;
    const LITTLE: u64 = 24 << 20;

    const WIRES: usize = 70;

    struct Example {
        key: Arc<ProvingKey>,
        witnesses: Vec<Witness>,
        expected: Vec<Commitments>,
    }

    impl Example {
        /// Creates witnesses that differ in all values, with the commitments that the CPU computes.
        fn new(count: usize) -> Self {
            let (key, witness, expected) = selftest::example(WIRES, 5, 64);
            let key = Arc::new(key);
            let on_cpu = CpuBackend::new(1).unwrap().load(key.clone()).unwrap();
            let mut rng = StdRng::seed_from_u64(8);
            let mut any = || Witness::from_canonical((0..WIRES).map(|_| Fr::rand(&mut rng).into_bigint()).collect());
            let (mut witnesses, mut all) = (vec![witness], vec![expected]);
            for _ in 1..count {
                witnesses.push(any());
                all.push(on_cpu.commit(&witnesses[witnesses.len() - 1], &StopToken::new(), &Quiet).unwrap());
            }
            Self { key, witnesses, expected: all }
        }

        fn on(&self, driver: &Arc<HostDriver>, graphs: bool) -> CudaKey {
            self.beside(driver, &Arc::default(), graphs)
        }

        fn beside(&self, driver: &Arc<HostDriver>, idle_pool: &Arc<IdlePool>, graphs: bool) -> CudaKey {
            let driver: Arc<dyn Driver> = driver.clone();
            CudaKey::new(&driver, idle_pool, self.key.clone(), graphs).unwrap()
        }
    }

    fn launching(key: &CudaKey) -> Vec<Launching> {
        key.idle().iter().map(Slot::launching).collect()
    }

    fn driver(order: Order, memory: u64) -> Arc<HostDriver> {
        Arc::new(HostDriver::new(order).with_memory(memory))
    }

    const ORDERS: [Order; 4] = [Order::Ascending, Order::Descending, Order::Random(1), Order::Random(2)];

    #[test]
    fn proofs_one_by_one_and_as_one_launch_in_every_order() {
        let example = Example::new(4);
        let as_one = ORDERS.map(|order| (order, PLENTY, true));
        let others =
            [(Order::Descending, PLENTY, false), (Order::Random(1), PLENTY, false), (Order::Random(2), LITTLE, true)];
        for (number, (order, memory, graphs)) in as_one.into_iter().chain(others).enumerate() {
            let driver = HostDriver::new(order).with_memory(memory);
            // Buffers share one allocation, as on a GPU; otherwise each has guards.
            let driver = Arc::new(if number == 0 { driver.with_suballocation() } else { driver });
            let key = example.on(&driver, graphs);
            let loaded = driver.allocations();
            for (i, (witness, expected)) in example.witnesses.iter().zip(&example.expected).enumerate() {
                let got = key.commit(witness, &StopToken::new(), &Quiet);
                assert_eq!(got.as_ref(), Ok(expected), "proof {i}, {order:?}, {memory}, {graphs}");
                let launching = launching(&key);
                match (graphs && memory == PLENTY, i) {
                    (true, 0) => assert_eq!(launching, [Launching::SinglyAtFirst]),
                    (true, _) => assert!(matches!(launching[..], [Launching::AsGraph(_)]), "{launching:?}"),
                    (false, _) => assert_eq!(launching, [Launching::Singly]),
                }
                // Not even values derived from the witness are left.
                assert!(driver.is_zero_since(loaded), "proof {i} leaves something, {order:?}, {memory}, {graphs}");
            }
            // The same for a proof that is stopped halfway.
            let stopped = StopToken::new();
            let begun = std::cell::Cell::new(0);
            let mut slot = key.slot().unwrap();
            let half = |_: &StopToken| {
                begun.set(begun.get() + 1);
                if begun.get() == 3 { Err(BackendError::Stopped(StopReason::Cancelled)) } else { Ok(()) }
            };
            let done = slot.begin(&key.resident, bytes_of(&example.witnesses[1]), &|| half(&stopped));
            assert_eq!(done.is_err(), !graphs || memory != PLENTY);
            key.leave(slot, false).unwrap();
            assert!(driver.is_zero_since(loaded), "a stopped proof leaves something, {order:?}, {memory}, {graphs}");
            // And for one that is dropped without being ended.
            let proof = key.begin(&example.witnesses[2], &StopToken::new()).unwrap();
            drop(proof);
            assert_eq!(key.commit(&example.witnesses[3], &StopToken::new(), &Quiet).as_ref(), Ok(&example.expected[3]));
            drop(key);
            assert_eq!((driver.used(), driver.fault()), (0, None));
        }
    }

    #[test]
    fn batches_are_their_proofs() {
        let example = Example::new(5);
        for (order, graphs) in [(Order::Random(3), true), (Order::Descending, false)] {
            let driver = driver(order, PLENTY);
            let key = example.on(&driver, graphs);
            assert_eq!((key.preferred_batch(), key.kept), (8, 16));
            let (go, stopped) = (StopToken::new(), StopToken::new());
            stopped.stop(StopReason::Cancelled);
            let short = Witness::from_canonical(example.witnesses[0].values()[1..].to_vec());
            // More than can run at once, among them one that does not fit and one that is stopped.
            let order_of: Vec<usize> = (0..13).map(|i| i * 7 % 5).collect();
            // The second time as one graph.
            for _ in 0..if graphs { 2 } else { 1 } {
                let mut witnesses: Vec<&Witness> = order_of.iter().map(|i| &example.witnesses[*i]).collect();
                let mut expected: Vec<_> = order_of.iter().map(|i| Ok(example.expected[*i].clone())).collect();
                let mut stops = vec![&go; witnesses.len()];
                (witnesses[3], expected[3]) =
                    (&short, Err(BackendError::Shape { what: "witness values", expected: 70, got: 69 }));
                (stops[11], expected[11]) = (&stopped, Err(BackendError::Stopped(StopReason::Cancelled)));
                assert_eq!(key.commit_batch(&witnesses, &stops), expected, "{order:?}");
            }
            assert_eq!(key.idle().len(), 8);
            assert_eq!(key.commit_batch(&[], &[]), []);
            let shape = BackendError::Shape { what: "stop tokens of a batch", expected: 1, got: 0 };
            assert_eq!(key.commit_batch(&[&short], &[]), [Err(shape)]);
        }
    }

    #[test]
    fn a_batch_beyond_the_memory_is_made_in_turns() {
        let example = Example::new(3);
        let host = driver(Order::Random(4), PLENTY);
        let key = example.on(&host, true);
        let stop = StopToken::new();
        key.commit(&example.witnesses[0], &stop, &Quiet).unwrap();
        // What is left is less than a second proof needs.
        let driver: Arc<dyn Driver> = host.clone();
        let filler = Buffer::new(&driver, host.free_memory().unwrap() - 1000).unwrap();
        let witnesses: Vec<&Witness> = example.witnesses.iter().collect();
        let expected: Vec<_> = example.expected.iter().cloned().map(Ok).collect();
        assert_eq!(key.commit_batch(&witnesses, &[&stop; 3]), expected);
        assert_eq!(key.idle().len(), 1);
        // Without any memory at all, each proof gets the error.
        key.idle().clear();
        drop(filler);
        let _filler = Buffer::new(&driver, host.free_memory().unwrap() - 1000).unwrap();
        let all = key.commit_batch(&witnesses, &[&stop; 3]);
        assert!(all.iter().all(|one| matches!(one, Err(BackendError::OutOfMemory { .. }))), "{all:?}");
    }

    #[test]
    fn a_key_without_memory_takes_that_of_other_keys_idle_proofs() {
        let example = Example::new(2);
        let host = driver(Order::Random(5), PLENTY);
        let idle_pool = Arc::default();
        let keys = [(); 2].map(|()| example.beside(&host, &idle_pool, true));
        let commit = |key: usize, i: usize| keys[key].commit(&example.witnesses[i], &StopToken::new(), &Quiet);
        assert_eq!(commit(0, 0).as_ref(), Ok(&example.expected[0]));
        // What is left is less than a proof needs.
        let driver: Arc<dyn Driver> = host.clone();
        let filler = Buffer::new(&driver, host.free_memory().unwrap() - 1000).unwrap();
        assert_eq!(commit(1, 1).as_ref(), Ok(&example.expected[1]));
        assert_eq!((keys[0].idle().len(), keys[1].idle().len()), (0, 1));
        // The memory of a proof in progress is not taken away.
        let proof = keys[1].begin(&example.witnesses[0], &StopToken::new()).unwrap();
        assert!(matches!(commit(0, 0), Err(BackendError::OutOfMemory { .. })));
        assert_eq!(proof.end(&StopToken::new()).as_ref(), Ok(&example.expected[0]));
        drop((keys, filler));
        assert_eq!((host.used(), host.fault()), (0, None));
    }

    #[test]
    fn a_key_is_loaded_into_the_memory_of_other_keys_idle_proofs() {
        let example = Example::new(1);
        let host = driver(Order::Ascending, PLENTY);
        let backend = CudaBackend::new(host.clone());
        let first = backend.load(example.key.clone()).unwrap();
        first.commit(&example.witnesses[0], &StopToken::new(), &Quiet).unwrap();
        // What is left is a little less than the key takes.
        let driver: Arc<dyn Driver> = host.clone();
        let left = first.resident().unwrap() - 1000;
        let _filler = Buffer::new(&driver, host.free_memory().unwrap() - left).unwrap();
        assert!(backend.load(example.key.clone()).is_ok());
    }

    #[test]
    fn as_many_proofs_keep_their_memory_as_it_permits() {
        let (mut key, ..) = selftest::example(WIRES, 5, 64);
        let driver = HostDriver::new(Order::Ascending);
        for (wires, expected) in [(4096, (8, 16)), (4097, (4, 8)), (1 << 15, (2, 4)), (1 << 20, (1, 2))] {
            key.header.n_vars = wires;
            assert_eq!(proofs(&driver, &key, 1), expected);
        }
        key.header.n_vars = 4096;
        let memory = driver.properties().memory;
        for (of_share, expected) in [(16, (8, 16)), (9, (4, 8)), (4, (2, 4)), (2, (1, 2)), (1, (1, 2))] {
            assert_eq!(proofs(&driver, &key, memory / KEPT_SHARE / of_share), expected, "{of_share}");
        }
        assert_eq!(proofs(&driver, &key, memory / 4), (1, 2));
        assert_eq!(proofs(&driver, &key, memory / 3 * 2), (1, 1));
    }

    #[test]
    fn products_run_apart_as_the_footprint_says_whatever_points_are_missing() {
        let (mut key, ..) = selftest::example(WIRES, 5, 64);
        // No wire has a point in A or C.
        for section in [&mut key.sections.a, &mut key.sections.c] {
            *section = vec![0; section.len()].into();
        }
        let key = Arc::new(key);
        let on = |megabytes: u64| HostDriver::new(Order::Ascending).with_memory(megabytes << 20).with_suballocation();
        let of_points = |host: &HostDriver| {
            let counts = [0, WIRES as u64, 0, 64];
            Plans::new(host, counts, multiples(&key, host.properties().memory)).apart
        };
        // By its points they would run apart, by its sections they do not.
        let memory = (1..4096).find(|m| of_points(&on(*m)) && !runs_apart(&on(*m), &key)).unwrap();
        let host = Arc::new(on(memory));
        let driver: Arc<dyn Driver> = host.clone();
        let loaded = CudaKey::new(&driver, &Arc::default(), key.clone(), true).unwrap();
        assert!(!loaded.resident.plans.apart);
        let resident = host.used();
        let slot = loaded.slot().unwrap();
        let (took, per_proof) = (host.used() - resident, footprint(&*host, &key).per_proof);
        assert!(took <= per_proof, "expected {per_proof} at most, got {took}");
        drop(slot);
    }

    /// Before a key is loaded, the size of its factors is only an estimate.
    #[test]
    fn a_key_says_what_it_takes_once_it_is_loaded() {
        let (mut key, ..) = selftest::example(WIRES, 5, 64);
        for long_rows in [false, true] {
            if long_rows {
                let entry = &key.sections.coefficients[..crate::model::ENTRY_BYTES];
                key.sections.coefficients = [&key.sections.coefficients, &entry.repeat(100)[..]].concat().into();
            }
            let key = Arc::new(key.clone());
            let host = Arc::new(HostDriver::new(Order::Ascending));
            let driver: Arc<dyn Driver> = host.clone();
            let loaded = CudaKey::new(&driver, &Arc::default(), key, true).unwrap();
            assert_eq!(loaded.resident(), Some(host.used()));
        }
    }

    #[test]
    fn a_proof_takes_no_more_than_its_footprint() {
        let example = Example::new(1);
        for memory in [PLENTY, LITTLE] {
            let host = Arc::new(HostDriver::new(Order::Ascending).with_memory(memory).with_suballocation());
            let key = example.on(&host, true);
            let (resident, allocations) = (host.used(), host.allocations());
            assert_eq!(key.resident.plans.apart, memory == PLENTY);
            key.commit(&example.witnesses[0], &StopToken::new(), &Quiet).unwrap();
            let per_proof = footprint(&*host, &example.key).per_proof;
            let took = host.used() - resident;
            assert!(took <= per_proof && 2 * took > per_proof, "expected {per_proof} at most, got {took}");
            assert_eq!(host.allocations() - allocations, 1);
        }
    }
}
