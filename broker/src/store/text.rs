//! (to come)
use super::inspect::Descriptors;
/// (to come)
pub fn matches(_: &Descriptors, _: &[u8], _: &str) -> bool {
    false
}
