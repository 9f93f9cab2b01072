//! A circuit's key on a device. One that does not get there is the device's fault, as a proof is that does not come back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::device::Device;
use super::failure::Ended;
use crate::backend::{BackendError, LoadedKey};
use crate::model::FailureClass;
use crate::registry::{ReadyCircuit, Registry, RegistryError};

/// Bytes of a key that come to a device in a second at the least, for its file may have to be read from a slow disk.
const BYTES_A_SECOND: usize = 16 << 20;

/// Loads the key, if the device does not have it. Without an answer in `patience` from its turn on, or as much longer as
/// the key is large, the device hangs, and sits out until the call has come back; somebody has to see that, so the wait does
/// not end when the caller's does.
pub(super) async fn load(
    registry: &Registry,
    device: &Arc<Device>,
    circuit: &Arc<ReadyCircuit>,
    patience: Duration,
) -> Result<Arc<dyn LoadedKey>, Ended> {
    if device.is_cpu() {
        // It may be slow, and does not hang.
        return judge(device, circuit, registry.load(&device.backend, circuit).await);
    }
    // Before its turn, which may be long in coming.
    if let Err(too_large) = registry.check_fits(device.backend.as_ref(), circuit) {
        return judge(device, circuit, Err(too_large));
    }
    let patience = patience + Duration::from_secs((circuit.key.size() / BYTES_A_SECOND) as u64);
    let (answer, answered) = oneshot::channel();
    let asked = device;
    let (registry, device, circuit) = (registry.clone(), device.clone(), circuit.clone());
    tokio::spawn(async move {
        let loaded = registry.has_loaded(device.backend.as_ref(), circuit.content.zkey);
        let _turn = if loaded { None } else { device.turn().await };
        let mut loading = std::pin::pin!(registry.load(&device.backend, &circuit));
        match tokio::time::timeout(patience, &mut loading).await {
            // Whoever asked may have stopped waiting.
            Ok(loaded) => drop(answer.send(judge(&device, &circuit, loaded))),
            Err(_) => {
                let why = format!("{} hangs: a key was not there in {:.0} s", device.label, patience.as_secs_f64());
                device.hangs(&why, patience);
                let _ = answer.send(Err(Ended::failed(FailureClass::Device, why)));
                let _ = loading.await;
                device.desk.open();
            }
        }
    });
    tokio::select! {
        biased;
        answered = answered => answered.unwrap_or_else(|_| {
            Err(Ended::failed(FailureClass::Device, "the load of a key ended without an answer; see the log"))
        }),
        // Others found that it hangs.
        why = asked.desk.closed() => Err(Ended::failed(FailureClass::Device, why)),
    }
}

/// Notes how the device did.
fn judge(
    device: &Device,
    circuit: &ReadyCircuit,
    loaded: Result<Arc<dyn LoadedKey>, RegistryError>,
) -> Result<Arc<dyn LoadedKey>, Ended> {
    let ended = match loaded {
        Ok(loaded) => return Ok(loaded),
        Err(e @ (RegistryError::Backend(BackendError::OutOfMemory { .. }) | RegistryError::TooLarge { .. })) => {
            device.lacked_memory(Duration::ZERO);
            if let RegistryError::TooLarge { .. } = e {
                device.is_too_small(circuit.content.zkey);
            }
            return Err(e.into());
        }
        Err(e) => Ended::from(e),
    };
    if let Ended::Failed(error) = &ended {
        device.failed(error.class, Duration::ZERO);
    }
    Err(ended)
}
