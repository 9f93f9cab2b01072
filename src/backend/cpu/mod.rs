//! The processor, on arkworks.
//!
//! Each backend has a pool of threads of its own, so that two proofs side by side keep to their slots.

mod digits;
#[allow(dead_code)] // until the engine above it is merged
mod lanes;
mod msm;
mod quotient;

use std::sync::Arc;

use rayon::ThreadPool;

use super::{Backend, BackendError, Commitments, DeviceInfo, DeviceKind, Footprint, LoadedKey, Progress};
use crate::model::{ProvingKey, StopToken, Witness};
use lanes::{Isa, portable::Portable};
use msm::{Bases, InG1, InG2, Sorted};
use quotient::Constraints;

/// The processor as a device.
pub struct CpuBackend {
    info: DeviceInfo,
    pool: Arc<ThreadPool>,
}

impl CpuBackend {
    /// A backend whose proofs use `threads` threads each (at least one).
    pub fn new(threads: usize) -> Result<Self, BackendError> {
        let threads = threads.max(1);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("prove-{i}"))
            .build()
            .map_err(|e| BackendError::Unavailable { device: "cpu:0".into(), why: e.to_string() })?;
        let info = DeviceInfo {
            kind: DeviceKind::Cpu,
            name: format!("{} ({threads} threads a proof)", std::env::consts::ARCH),
            ordinal: 0,
            threads,
            memory: 0,
        };
        Ok(Self { info, pool: Arc::new(pool) })
    }
}

impl Backend for CpuBackend {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn footprint(&self, key: &ProvingKey) -> Footprint {
        // Points are copied out of the file, matrix entries are not. A proof holds at most three vectors over the domain
        // and its scalars of H, or one set of scalars and what it is sorted into: 6 bytes for each of at most 85
        // windows (17 to 20 on circuits of any size) while it is sorted, 4 afterwards, and 8 more.
        let points = (key.size() - key.sections.coefficients.len()) as u64;
        let domain = u64::from(key.header.domain_size);
        Footprint { resident: points, per_proof: 32 * domain + 128 * u64::from(key.header.n_vars).max(domain) }
    }

    fn load(&self, key: Arc<ProvingKey>) -> Result<Arc<dyn LoadedKey>, BackendError> {
        let s = &key.sections;
        let private = key.header.n_public as usize + 1;
        let isa = Portable;
        let (constraints, queries) = self.pool.install(|| {
            rayon::join(
                || Constraints::index(&key),
                || {
                    let ((a, b1), (b2, (c, h))) = rayon::join(
                        || (Bases::new(isa, &s.a, 0), Bases::new(isa, &s.b1, 0)),
                        || {
                            let c = Bases::new(isa, &s.c, private);
                            (Bases::new(isa, &s.b2, 0), (c, Bases::new(isa, &s.h, 0)))
                        },
                    );
                    (a, b1, b2, c, h)
                },
            )
        });
        let (constraints, (a, b1, b2, c, h)) = (constraints?, queries);
        let (a, b1, b2, c, h) = (a?, b1?, b2?, c?, h?);
        Ok(Arc::new(CpuKey::<Portable> { key: key.clone(), pool: self.pool.clone(), constraints, a, b1, b2, c, h }))
    }
}

/// A key in memory: points decoded, those at infinity dropped.
struct CpuKey<I: Isa> {
    key: Arc<ProvingKey>,
    pool: Arc<ThreadPool>,
    constraints: Constraints,
    a: Bases<I, InG1>,
    b1: Bases<I, InG1>,
    b2: Bases<I, InG2>,
    c: Bases<I, InG1>,
    h: Bases<I, InG1>,
}

impl<I: Isa> LoadedKey for CpuKey<I> {
    fn key(&self) -> &Arc<ProvingKey> {
        &self.key
    }

    fn commit(&self, witness: &Witness, stop: &StopToken, on: &dyn Progress) -> Result<Commitments, BackendError> {
        let expected = self.key.header.n_vars as usize;
        if witness.len() != expected {
            return Err(BackendError::Shape {
                what: "witness values",
                expected: expected as u64,
                got: witness.len() as u64,
            });
        }
        // Shares of the time on a dense circuit, for the progress bar.
        let step = |fraction: f32| match stop.stopped() {
            Some(why) => Err(BackendError::Stopped(why)),
            None => {
                on.report(fraction);
                Ok(())
            }
        };
        self.pool.install(|| {
            let w = witness.values();
            step(0.0)?;
            let sorted = Sorted::new(w);
            let b2 = self.b2.msm(&sorted, stop);
            step(0.3)?;
            let a = self.a.msm(&sorted, stop);
            step(0.45)?;
            let b1 = self.b1.msm(&sorted, stop);
            step(0.55)?;
            let c = self.c.msm(&sorted, stop);
            drop(sorted);
            step(0.7)?;
            let h = self.constraints.quotient(&self.key, w);
            step(0.85)?;
            let h = self.h.msm(&Sorted::new(h.scalars()), stop);
            step(1.0)?;
            Ok(Commitments { a, b1, b2, c, h })
        })
    }
}
