//! Keys of the live records, and of what finds them by age, field or address.
//!
//! Every key starts with the epoch, which Clear raises: what belongs to an earlier epoch is out of sight at once and is
//! swept away later.

use bytes::{Bytes, BytesMut};
use prost::{
    DecodeError,
    encoding::{decode_varint, encode_varint},
};

use super::super::{
    codec::{self, KeyReader, KeyWriter},
    engine::KeyBounds,
};

/// `epoch seg(type) id`: records, and the CIDR index.
pub fn record(epoch: u32, record_type: &[u8], id: &[u8]) -> Bytes {
    KeyWriter::new().u32(epoch).seg(record_type).tail(id)
}

/// The type and id of a [`record`] key.
pub fn read_record(key: &[u8]) -> Result<(Bytes, Bytes), codec::Error> {
    let mut reader = KeyReader::new(key);
    reader.u32()?;
    let record_type = reader.seg()?;
    Ok((Bytes::copy_from_slice(&record_type), Bytes::copy_from_slice(reader.tail())))
}

/// All records of one type.
pub fn of_type(epoch: u32, record_type: &[u8]) -> KeyBounds {
    codec::prefix_bounds(&KeyWriter::new().u32(epoch).seg(record_type).finish())
}

/// Every key of an epoch.
pub fn all(epoch: u32) -> KeyBounds {
    codec::prefix_bounds(&KeyWriter::new().u32(epoch).finish())
}

/// `epoch seg(type) version`: the age index, and the changes by type.
pub fn by_version(epoch: u32, record_type: &[u8], version: u64) -> Bytes {
    KeyWriter::new().u32(epoch).seg(record_type).u64(version).finish()
}

/// The version in a [`by_version`] key.
pub fn read_by_version(key: &[u8]) -> Result<u64, codec::Error> {
    let mut reader = KeyReader::new(key);
    reader.u32()?;
    reader.seg()?;
    reader.u64()
}

/// `epoch seg(type) seg(path) seg(value) id`: the field index.
pub fn field(epoch: u32, record_type: &[u8], path: &str, value: &[u8], id: &[u8]) -> Bytes {
    KeyWriter::new().u32(epoch).seg(record_type).seg(path.as_bytes()).seg(value).tail(id)
}

/// The ids under one value of a field.
pub fn field_value(epoch: u32, record_type: &[u8], path: &str, value: &[u8]) -> KeyBounds {
    let prefix = KeyWriter::new().u32(epoch).seg(record_type).seg(path.as_bytes()).seg(value).finish();
    codec::prefix_bounds(&prefix)
}

/// All entries of one field.
pub fn field_path(epoch: u32, record_type: &[u8], path: &str) -> KeyBounds {
    codec::prefix_bounds(&KeyWriter::new().u32(epoch).seg(record_type).seg(path.as_bytes()).finish())
}

/// The id in a [`field`] key.
pub fn read_field_id(key: &[u8]) -> Result<Bytes, codec::Error> {
    let mut reader = KeyReader::new(key);
    reader.u32()?;
    for _ in 0..3 {
        reader.seg()?;
    }
    Ok(Bytes::copy_from_slice(reader.tail()))
}

/// `epoch version`: the change log.
pub fn change(epoch: u32, version: u64) -> Bytes {
    KeyWriter::new().u32(epoch).u64(version).finish()
}

/// The version in a [`change`] key.
pub fn read_change(key: &[u8]) -> Result<u64, codec::Error> {
    let mut reader = KeyReader::new(key);
    reader.u32()?;
    reader.u64()
}

/// `epoch type`: counts and options.
pub fn named(epoch: u32, record_type: &[u8]) -> Bytes {
    KeyWriter::new().u32(epoch).tail(record_type)
}

/// The type in a [`named`] key.
pub fn read_named(key: &[u8]) -> Result<Bytes, codec::Error> {
    let mut reader = KeyReader::new(key);
    reader.u32()?;
    Ok(Bytes::copy_from_slice(reader.tail()))
}

/// Rising versions as a value of the changes by type: the first, then the distances, as varints.
pub fn versions(versions: &[u64]) -> Bytes {
    let mut out = BytesMut::with_capacity(versions.len() + 8);
    let mut before = 0;
    for version in versions {
        encode_varint(version.wrapping_sub(before), &mut out);
        before = *version;
    }
    out.freeze()
}

/// The versions in a [`versions`] value.
pub fn read_versions(mut value: &[u8]) -> Result<Vec<u64>, DecodeError> {
    let (mut found, mut before) = (Vec::new(), 0_u64);
    while !value.is_empty() {
        before = before.wrapping_add(decode_varint(&mut value)?);
        found.push(before);
    }
    Ok(found)
}

/// The epoch any of the keys above belongs to.
pub fn read_epoch(key: &[u8]) -> Result<u32, codec::Error> {
    KeyReader::new(key).u32()
}
