//! The processor, on arkworks.
//!
//! Each backend has a pool of threads of its own, so that two proofs side by side keep to their slots.

mod digits;
#[allow(dead_code)] // until the engine above it is merged
mod lanes;
mod msm;
mod ntt;
mod quotient;
mod scattered;
mod sparse;

use std::sync::Arc;

use rayon::ThreadPool;

use super::{Backend, BackendError, Commitments, DeviceInfo, DeviceKind, Footprint, LoadedKey, Progress};
use crate::model::{ProvingKey, StopToken, Witness};
use digits::Digits;
use lanes::portable::Portable;
use msm::Query;
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
        // Points are copied out of the file, matrix entries are written anew. A proof holds the quotient's vectors,
        // then the digits of one set of scalars (2 bytes for each of at most 85 windows, 17 to 20 on larger circuits).
        let points = (key.size() - key.sections.coefficients.len()) as u64;
        let digits = 64 * u64::from(key.header.n_vars).max(u64::from(key.header.domain_size));
        Footprint {
            resident: points + Constraints::<Portable>::resident(key),
            per_proof: Constraints::<Portable>::per_proof(key) + digits,
        }
    }

    fn load(&self, key: Arc<ProvingKey>) -> Result<Arc<dyn LoadedKey>, BackendError> {
        let s = &key.sections;
        let private = key.header.n_public as usize + 1;
        let (constraints, queries) = self.pool.install(|| {
            rayon::join(
                || Constraints::index(Portable, &key),
                || {
                    let ((a, b1), (b2, (c, h))) = rayon::join(
                        || (Query::new(&s.a, 0), Query::new(&s.b1, 0)),
                        || {
                            let c = Query::new(&s.c, private);
                            (Query::new(&s.b2, 0), (c, Query::new(&s.h, 0)))
                        },
                    );
                    (a, b1, b2, c, h)
                },
            )
        });
        let (constraints, (a, b1, b2, c, h)) = (constraints?, queries);
        let (a, b1, b2, c, h) = (a?, b1?, b2?, c?, h?);
        Ok(Arc::new(CpuKey { key: key.clone(), pool: self.pool.clone(), constraints, a, b1, b2, c, h }))
    }
}

/// A key in memory: points decoded, those at infinity dropped.
struct CpuKey {
    key: Arc<ProvingKey>,
    pool: Arc<ThreadPool>,
    constraints: Constraints<Portable>,
    a: Query<ark_bn254::g1::Config>,
    b1: Query<ark_bn254::g1::Config>,
    b2: Query<ark_bn254::g2::Config>,
    c: Query<ark_bn254::g1::Config>,
    h: Query<ark_bn254::g1::Config>,
}

impl LoadedKey for CpuKey {
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
            let digits = Digits::new(w);
            let b2 = self.b2.msm(&digits, stop);
            step(0.3)?;
            let a = self.a.msm(&digits, stop);
            step(0.45)?;
            let b1 = self.b1.msm(&digits, stop);
            step(0.55)?;
            let c = self.c.msm(&digits, stop);
            drop(digits);
            step(0.7)?;
            let h = self.constraints.quotient(Portable, w);
            step(0.85)?;
            let h = self.h.msm(&Digits::new(h.scalars()), stop);
            step(1.0)?;
            Ok(Commitments { a, b1, b2, c, h })
        })
    }
}
