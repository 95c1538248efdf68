//! (to come)
use super::inspect::Descriptors;
use bytes::Bytes;
/// (to come)
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// (to come)
    #[error("x")]
    UnknownType {},
    /// (to come)
    #[error("x")]
    TypeMismatch {},
    /// (to come)
    #[error("x")]
    AbsentData {},
    /// (to come)
    #[error("x")]
    Undecodable {},
    /// (to come)
    #[error("x")]
    Mask {},
}
/// (to come)
pub fn patch_any(_: &Descriptors, _: &[String], _: &[u8], _: &[u8]) -> Result<Bytes, Error> {
    Err(Error::Mask {})
}
