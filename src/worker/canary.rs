//! The canary: a tiny built-in circuit, proved and verified on a device before the device gets jobs.

use std::sync::Arc;

use ark_ff::{Field, One, PrimeField};

use crate::backend::{Backend, Quiet, selftest};
use crate::formats::r1cs::{Constraints, R1cs};
use crate::groth16::{Verifier, prove, setup};
use crate::model::{Fr, ProvingKey, StopToken, Witness};

/// The canary's key. It is made when the worker starts and discarded with it: nobody trusts its proofs.
pub struct Canary {
    key: Arc<ProvingKey>,
    verifier: Verifier,
}

/// Wires: 1, out = x⁸, x, x², x⁴.
const WIRES: u32 = 5;

impl Canary {
    /// Generates the circuit and its key.
    pub fn new() -> Result<Self, setup::SetupError> {
        let one = Fr::one().into_bigint();
        let square = |of: u32, is: u32| [vec![(of, one)], vec![(of, one)], vec![(is, one)]];
        let mut constraints = Constraints { offsets: vec![0], terms: Vec::new() };
        for row in [square(2, 3), square(3, 4), square(4, 1)].into_iter().flatten() {
            constraints.terms.extend(row);
            constraints.offsets.push(constraints.terms.len() as u64);
        }
        let circuit =
            R1cs { n_wires: WIRES, n_pub_out: 1, n_pub_in: 0, n_prv_in: 1, n_labels: u64::from(WIRES), constraints };
        let key = setup::generate(&circuit, &|_| {})?;
        Ok(Self { verifier: Verifier::new(&key.header.vk), key: Arc::new(key) })
    }

    /// Repeats the device's self-test, because the canary's circuit is too small for most of what a device does; then
    /// proves on the device and verifies. The error says why the device is unfit.
    pub fn run(&self, device: &dyn Backend) -> Result<(), String> {
        selftest::run(device).map_err(|e| e.to_string())?;
        let loaded = device.load(self.key.clone()).map_err(|e| e.to_string())?;
        let x = Fr::from(0x6361_6e61_7279_u64);
        let (x2, x4) = (x.square(), x.square().square());
        let values = [Fr::ONE, x4.square(), x, x2, x4].map(|v| v.into_bigint());
        let witness = Witness::from_canonical(values.to_vec());
        for _ in 0..selftest::proofs_per_test(device.device().kind) {
            let proved = prove(loaded.as_ref(), &self.verifier, &witness, &StopToken::new(), &Quiet);
            let proved = proved.map_err(|e| e.to_string())?;
            if !self.verifier.verify(&proved.proof, &proved.public) {
                return Err("the canary's proof does not verify".to_owned());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::cpu::CpuBackend;
    use crate::backend::{BackendError, DeviceInfo, Footprint, LoadedKey};

    #[test]
    fn cpu_canary_passes() {
        Canary::new().unwrap().run(&CpuBackend::new(2).unwrap()).unwrap();
    }

    /// A device that is correct with small keys only.
    struct Shallow(CpuBackend);

    impl Backend for Shallow {
        fn device(&self) -> &DeviceInfo {
            self.0.device()
        }

        fn footprint(&self, key: &ProvingKey) -> Footprint {
            self.0.footprint(key)
        }

        fn load(&self, key: Arc<ProvingKey>) -> Result<Arc<dyn LoadedKey>, BackendError> {
            self.0.load(key)
        }

        fn trial(&self) -> Result<(), BackendError> {
            Err(BackendError::Device { op: "msm_place", code: 719 })
        }
    }

    #[test]
    fn a_device_that_is_right_with_small_keys_alone_fails_its_canary() {
        let shallow = Shallow(CpuBackend::new(1).unwrap());
        let why = "msm_place failed on the device with code 719".to_owned();
        assert_eq!(Canary::new().unwrap().run(&shallow), Err(why));
    }
}
