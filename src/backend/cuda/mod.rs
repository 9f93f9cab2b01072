//! NVIDIA GPUs, driven with the project's own kernels.
//!
//! Everything stays on the device from the upload of the witness to the download of a few hundred points: the quotient
//! (`quotient`), NTTs (`ntt`) and MSMs (`msm`) put their kernels into streams, for small circuits as one CUDA graph
//! (`slot`), and the host waits only at the end. Several proofs of one circuit run at the same time. The host code
//! drives a [`driver::Driver`], which is NVIDIA's or, for tests, the CPU running the same kernels.

pub mod driver;
mod idle;
mod key;
#[doc(hidden)]
pub mod lab;
mod memory;
mod msm;
mod ntt;
mod quotient;
mod slot;
mod sort;
mod trial;

use std::sync::Arc;

use self::driver::Driver;
use self::idle::IdlePool;
use super::{Backend, BackendError, DeviceInfo, DeviceKind, Footprint, LoadedKey, Plainer};
use crate::model::ProvingKey;

/// The backend for one GPU.
pub struct CudaBackend {
    info: DeviceInfo,
    driver: Arc<dyn Driver>,
    idle_pool: Arc<IdlePool>,
    graphs: bool,
}

impl CudaBackend {
    /// Creates a backend on the driver's device.
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        let p = driver.properties();
        let info = DeviceInfo {
            kind: DeviceKind::Cuda,
            name: p.name.clone(),
            ordinal: p.ordinal,
            threads: 1,
            memory: p.memory,
        };
        Self { info, driver, idle_pool: Arc::default(), graphs: true }
    }

    /// Returns whether proofs with this key may be launched as one CUDA graph, from the second proof
    /// in the same slot on.
    pub fn makes_graphs(&self, key: &ProvingKey) -> bool {
        self.graphs && key::runs_apart(&*self.driver, key)
    }

    /// Returns the same backend without graphs: each kernel is launched by itself.
    pub fn without_graphs(&self) -> Self {
        Self { info: self.info.clone(), driver: self.driver.clone(), idle_pool: self.idle_pool.clone(), graphs: false }
    }
}

impl Backend for CudaBackend {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn footprint(&self, key: &ProvingKey) -> Footprint {
        key::footprint(&*self.driver, key)
    }

    fn load(&self, key: Arc<ProvingKey>) -> Result<Arc<dyn LoadedKey>, BackendError> {
        let load = || key::CudaKey::new(&self.driver, &self.idle_pool, key.clone(), self.graphs);
        Ok(Arc::new(self.idle_pool.with_memory(load)?))
    }

    fn trial(&self) -> Result<(), BackendError> {
        trial::run(self)
    }

    fn plainer(&self) -> Option<Plainer> {
        let (without, setting) = ("with CUDA graphs", "PROVER_CUDA_GRAPHS=off");
        self.graphs.then(|| Plainer { backend: Arc::new(self.without_graphs()), without, setting })
    }
}

#[cfg(all(test, feature = "kernels-on-host"))]
mod tests;
