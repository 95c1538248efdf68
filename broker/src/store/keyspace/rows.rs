//! Keys and values of what is not a record: leases, services, answers, metadata.

use bytes::Bytes;

use super::super::codec::{self, KeyReader, KeyWriter};

/// `seg(name)`: leases. A segment, because an empty name is a name, and an empty key is none.
pub fn lease(name: &str) -> Bytes {
    KeyWriter::new().seg(name).finish()
}

/// `u32 kind, endpoint`: registry.
pub fn service(kind: i32, endpoint: &str) -> Bytes {
    // Negative kinds are not of the interface, but a client may send them: the sign bit is flipped so that order holds.
    KeyWriter::new().u32(kind.cast_unsigned() ^ 0x8000_0000).tail(endpoint.as_bytes())
}

/// The kind and endpoint in a [`service`] key.
pub fn read_service(key: &[u8]) -> Result<(i32, Bytes), codec::Error> {
    let mut reader = KeyReader::new(key);
    let kind = (reader.u32()? ^ 0x8000_0000).cast_signed();
    Ok((kind, Bytes::copy_from_slice(reader.tail())))
}

/// A count or a time.
pub fn number(value: u64) -> Bytes {
    KeyWriter::new().u64(value).finish()
}

/// The value of a [`number`].
pub fn read_number(value: &[u8]) -> Result<u64, codec::Error> {
    KeyReader::new(value).u64()
}

/// Names of the values in `Metadata`.
pub mod metadata {
    /// Encoded `State`.
    pub const STATE: &[u8] = b"state";
    /// Encoded `Cluster`.
    pub const CLUSTER: &[u8] = b"cluster";
    /// Encoded `StoredMembership`.
    pub const MEMBERSHIP: &[u8] = b"membership";
}
