//! (to come)
use super::engine::Engine;
/// (to come)
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct Error {}
/// (to come)
pub fn run(_: &dyn Engine) -> Result<(), Error> {
    Ok(())
}
