//! x
use super::FormatError;
use crate::model::{Proof, PublicInputs, VerificationKey};
/// x
pub fn proof_to_json(_p: &Proof) -> String {
    todo!()
}
/// x
pub fn proof_from_json(_s: &str) -> Result<Proof, FormatError> {
    todo!()
}
/// x
pub fn public_to_json(_p: &PublicInputs) -> String {
    todo!()
}
/// x
pub fn public_from_json(_s: &str) -> Result<PublicInputs, FormatError> {
    todo!()
}
/// x
pub fn vkey_to_json(_k: &VerificationKey) -> String {
    todo!()
}
/// x
pub fn vkey_from_json(_s: &str) -> Result<VerificationKey, FormatError> {
    todo!()
}
