//! x
use crate::model::{Proof, PublicInputs};
/// x
pub fn solidity(_p: &Proof, _public: &PublicInputs) -> String {
    todo!()
}
