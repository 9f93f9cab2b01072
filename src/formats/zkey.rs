//! x
use super::FormatError;
use crate::model::ProvingKey;
use bytes::Bytes;
/// x
pub fn parse(_file: Bytes) -> Result<ProvingKey, FormatError> {
    todo!()
}
/// x
pub fn check(_key: &ProvingKey) -> Result<(), FormatError> {
    todo!()
}
/// x
pub fn write(_key: &ProvingKey, _out: &mut dyn std::io::Write) -> std::io::Result<()> {
    todo!()
}
