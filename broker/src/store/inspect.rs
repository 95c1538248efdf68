//! (to come)
/// (to come)
#[derive(Debug, thiserror::Error)]
pub enum Error {}
/// (to come)
pub struct Descriptors {}
impl Descriptors {
    /// (to come)
    pub fn builtin() -> Result<Self, Error> {
        Ok(Self {})
    }
    /// (to come)
    pub fn index_values(&self, _: &[u8], _: &[String]) -> Option<Vec<(usize, String)>> {
        None
    }
}
