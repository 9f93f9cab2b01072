//! x
/// x
pub struct MemoryQueue {}
