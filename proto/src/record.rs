//! One record, in two forms: the bytes it has on the wire, and its fields.
//!
//! The server stores and streams the bytes as they are: a record is encoded once, and what this build does not know
//! (fields, types) survives. Clients and tools decode the fields.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field},
};

/// A `databroker.Record` as its encoded bytes. Cloning shares them.
///
/// It takes the place of `Record` in the generated messages, so requests keep every byte the client sent, and responses
/// send stored bytes without encoding them again. Only the framing of fields is checked here, not what they hold. Numbers
/// that were written with more bytes than they need come back with as many as they need.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct EncodedRecord(Bytes);

impl EncodedRecord {
    /// Takes bytes that are an encoded `databroker.Record`; they are not checked.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// The encoded record.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The encoded record, without a copy.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// The record's fields.
    ///
    /// # Errors
    /// When the bytes are not a `databroker.Record`.
    pub fn to_record(&self) -> Result<Record, DecodeError> {
        Record::decode(self.0.clone())
    }
}

impl From<&Record> for EncodedRecord {
    fn from(record: &Record) -> Self {
        Self(record.encode_to_vec().into())
    }
}

impl From<Record> for EncodedRecord {
    fn from(record: Record) -> Self {
        Self::from(&record)
    }
}

impl std::fmt::Debug for EncodedRecord {
    // Record data is private to its owner: only the size is ever printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EncodedRecord({} bytes)", self.0.len())
    }
}

impl Message for EncodedRecord {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        let mut out = match std::mem::take(&mut self.0).try_into_mut() {
            Ok(unshared) => unshared,
            Err(shared) => BytesMut::from(&shared[..]),
        };
        let result = copy_field(tag, wire_type, buf, ctx, GROUPS_MAX, &mut out);
        self.0 = out.freeze();
        result
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// Groups inside each other: as many as the library follows messages.
const GROUPS_MAX: u32 = 100;

fn copy_field(
    tag: u32,
    wire_type: WireType,
    buf: &mut impl Buf,
    ctx: DecodeContext,
    groups_left: u32,
    out: &mut BytesMut,
) -> Result<(), DecodeError> {
    let length = match wire_type {
        WireType::Varint => {
            let value = decode_varint(buf)?;
            encode_key(tag, wire_type, out);
            encode_varint(value, out);
            return Ok(());
        }
        WireType::StartGroup if groups_left > 0 => return copy_group(tag, buf, ctx, groups_left - 1, out),
        WireType::StartGroup => return malformed(),
        // Of no group that has begun: the library says so.
        WireType::EndGroup => return skip_field(wire_type, tag, buf, ctx),
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        WireType::LengthDelimited => decode_varint(buf)?,
    };
    let length = match usize::try_from(length) {
        Ok(length) if length <= buf.remaining() => length,
        _ => return malformed(),
    };
    encode_key(tag, wire_type, out);
    if wire_type == WireType::LengthDelimited {
        encode_varint(length as u64, out);
    }
    out.put(buf.take(length));
    Ok(())
}

/// A group, which is a message between two keys (a wire type no longer in use).
fn copy_group(
    tag: u32,
    buf: &mut impl Buf,
    ctx: DecodeContext,
    groups_left: u32,
    out: &mut BytesMut,
) -> Result<(), DecodeError> {
    encode_key(tag, WireType::StartGroup, out);
    loop {
        let (inner, wire_type) = decode_key(buf)?;
        if wire_type == WireType::EndGroup {
            encode_key(inner, wire_type, out);
            return if inner == tag { Ok(()) } else { malformed() };
        }
        copy_field(inner, wire_type, buf, ctx.clone(), groups_left, out)?;
    }
}

/// Fails always: the library's own error for a truncated message, which has no public constructor.
fn malformed() -> Result<(), DecodeError> {
    decode_varint(&mut Bytes::new()).map(|_| ())
}

/// A `databroker.Record`'s fields.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    /// Given by the store: rises with every change of any record, starts at 1.
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// Usually the type URL of `data`, but any text will do.
    #[prost(string, tag = "2")]
    pub r#type: String,
    /// Unique among the records of its type.
    #[prost(string, tag = "3")]
    pub id: String,
    /// What the client stores.
    #[prost(message, optional, tag = "4")]
    pub data: Option<prost_types::Any>,
    /// Given by the store: when this version was written.
    #[prost(message, optional, tag = "5")]
    pub modified_at: Option<prost_types::Timestamp>,
    /// In a request: delete this record. On a stream: this record was deleted.
    #[prost(message, optional, tag = "6")]
    pub deleted_at: Option<prost_types::Timestamp>,
}

impl prost::Name for Record {
    const NAME: &'static str = "Record";
    const PACKAGE: &'static str = "databroker";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::databroker::PutRequest;

    fn record() -> Record {
        Record {
            version: 7,
            r#type: "t".into(),
            id: "a\0b".into(),
            data: Some(prost_types::Any { type_url: "x/y".into(), value: vec![0, 1, 2] }),
            modified_at: None,
            deleted_at: Some(prost_types::Timestamp { seconds: 1, nanos: 2 }),
        }
    }

    #[test]
    fn a_record_keeps_its_bytes_through_a_request() {
        let mut bytes = record().encode_to_vec();
        // Field 2000, which no version of the interface has.
        prost::encoding::string::encode(2000, &"kept".to_owned(), &mut bytes);
        let request = PutRequest { records: vec![EncodedRecord::from_bytes(bytes.clone())] };
        let decoded = PutRequest::decode(request.encode_to_vec().as_slice()).unwrap();
        assert_eq!(decoded.records[0].as_bytes(), &bytes);
        assert_eq!(decoded.records[0].to_record().unwrap(), record());
    }

    #[test]
    fn groups_that_nobody_knows_are_kept_and_broken_ones_refused() {
        let through = |unknown: &[u8]| {
            let record = EncodedRecord::from_bytes([&record().encode_to_vec(), unknown].concat());
            let request = PutRequest { records: vec![record.clone()] };
            (PutRequest::decode(request.encode_to_vec().as_slice()).map(|mut put| put.records.remove(0)), record)
        };
        // Field 10: a group with a number, and a group with a text in it.
        let (decoded, record) = through(&[0x53, 0x08, 0x07, 0x5b, 0x12, 0x01, b'x', 0x5c, 0x54]);
        assert_eq!(decoded.unwrap(), record);
        let deep = [vec![0x53; 101], vec![0x54; 101]].concat();
        for broken in [&[0x53][..], &[0x54], &[0x53, 0x5c], &[0x53, 0x08], &deep] {
            assert!(through(broken).0.is_err(), "{broken:?}");
        }
        assert!(through(&[vec![0x53; 100], vec![0x54; 100]].concat()).0.is_ok());
    }

    #[test]
    fn a_truncated_record_is_an_error() {
        let bytes = record().encode_to_vec();
        for end in 1..bytes.len() {
            let _ = EncodedRecord::decode(&bytes[..end]);
        }
        assert!(EncodedRecord::decode(&[0x22, 0xff, 0xff, 0xff, 0xff, 0x0f, 1][..]).is_err());
    }
}
