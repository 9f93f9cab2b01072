//! x
/// x
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// x
    #[error("{0}")]
    Json(String),
}
/// x
pub struct Inputs {}
impl Inputs {
    /// x
    pub fn parse(_json: &[u8]) -> Result<Self, InputError> {
        todo!()
    }
}
