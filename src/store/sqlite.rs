//! x
use super::*;
/// x
pub struct SqliteStore {}
