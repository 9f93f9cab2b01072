//! Loading a circuit's key on a device. A load that does not finish is the device's fault, as is a proof that does not.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::device::Device;
use super::failure::AttemptError;
use crate::backend::{BackendError, LoadedKey};
use crate::model::FailureClass;
use crate::registry::{ReadyCircuit, Registry, RegistryError};

/// Lowest expected rate of loading a key, in bytes per second: its file may have to be read from a slow disk.
const BYTES_A_SECOND: usize = 16 << 20;

/// Loads the key, unless the device has it. If that takes longer than `patience` from the device's turn on, extended by
/// the key's size, the device hangs, and is out of use until the call has returned. That must be noticed even if the
/// caller stops waiting, so the load continues in a task.
pub(super) async fn load(
    registry: &Registry,
    device: &Arc<Device>,
    circuit: &Arc<ReadyCircuit>,
    patience: Duration,
) -> Result<Arc<dyn LoadedKey>, AttemptError> {
    if device.is_cpu() {
        // The CPU may be slow, but does not hang.
        return judge(device, circuit, registry.load(&device.backend, circuit).await);
    }
    // Before the turn, which may take long to come.
    if let Err(too_large) = registry.check_fits(device.backend.as_ref(), circuit) {
        return judge(device, circuit, Err(too_large));
    }
    let patience = patience + Duration::from_secs((circuit.key.size() / BYTES_A_SECOND) as u64);
    let (answer, answered) = oneshot::channel();
    let asked = device;
    let (registry, device, circuit) = (registry.clone(), device.clone(), circuit.clone());
    tokio::spawn(async move {
        let loaded = registry.has_loaded(device.backend.as_ref(), circuit.content.zkey);
        let _turn = if loaded { None } else { device.capacity.turn().await };
        let mut loading = std::pin::pin!(registry.load(&device.backend, &circuit));
        match tokio::time::timeout(patience, &mut loading).await {
            // The caller may have stopped waiting.
            Ok(loaded) => drop(answer.send(judge(&device, &circuit, loaded))),
            Err(_) => {
                let why =
                    format!("{} hangs: a key was not loaded within {:.0} s", device.label, patience.as_secs_f64());
                device.take_out_of_use(&why, patience);
                let _ = answer.send(Err(AttemptError::failed(FailureClass::Device, why)));
                let _ = loading.await;
                device.batcher.open();
            }
        }
    });
    tokio::select! {
        biased;
        answered = answered => answered.unwrap_or_else(|_| {
            Err(AttemptError::failed(FailureClass::Device, "the load of a key ended without an answer; see the log"))
        }),
        // Another call found that the device hangs.
        why = asked.batcher.closed() => Err(AttemptError::failed(FailureClass::Device, why)),
    }
}

/// Records the result for the device.
fn judge(
    device: &Device,
    circuit: &ReadyCircuit,
    loaded: Result<Arc<dyn LoadedKey>, RegistryError>,
) -> Result<Arc<dyn LoadedKey>, AttemptError> {
    let ended = match loaded {
        Ok(loaded) => return Ok(loaded),
        Err(e @ (RegistryError::Backend(BackendError::OutOfMemory { .. }) | RegistryError::TooLarge { .. })) => {
            device.lacked_memory(Duration::ZERO);
            if let RegistryError::TooLarge { .. } = e {
                device.note_too_large(circuit.content.zkey);
            }
            return Err(e.into());
        }
        Err(e) => AttemptError::from(e),
    };
    if let AttemptError::Failed(error) = &ended {
        device.failed(error.class, Duration::ZERO);
    }
    Err(ended)
}
