//! x
use super::FormatError;
use crate::model::Witness;
/// x
pub fn parse(_file: &[u8]) -> Result<Witness, FormatError> {
    todo!()
}
/// x
pub fn write(_w: &Witness, _out: &mut dyn std::io::Write) -> std::io::Result<()> {
    todo!()
}
