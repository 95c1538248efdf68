//! (to come)
use super::engine::{Error, View};
/// (to come)
pub fn dump(_: &dyn View) -> Result<String, Error> {
    Ok(String::new())
}
