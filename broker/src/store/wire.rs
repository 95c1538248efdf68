//! Reads and writes encoded records without decoding what they hold.
//!
//! A stored record has one canonical form: version, type, id, data, modified_at, deleted_at, then whatever fields this
//! build does not know, as they came. Not here: what is inside `data` (`inspect`, `mask`).

use bytes::{BufMut, Bytes, BytesMut};
use databroker_proto::EncodedRecord;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint, key_len,
    skip_field,
};

use super::keyspace::NAME_BYTES_MAX;

mod field {
    pub(super) const VERSION: u32 = 1;
    pub(super) const TYPE: u32 = 2;
    pub(super) const ID: u32 = 3;
    pub(super) const DATA: u32 = 4;
    pub(super) const MODIFIED_AT: u32 = 5;
    pub(super) const DELETED_AT: u32 = 6;
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Why bytes are not a record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The framing of fields is broken.
    #[error("the record is not a valid message: {0}")]
    Framing(String),
    /// A known field has another wire type than the interface says.
    #[error("field {0} of the record has the wrong wire type")]
    WireType(u32),
    /// Type or id hold bytes that are no text.
    #[error("the record's {0} is not valid UTF-8")]
    NotText(&'static str),
    /// Type or id are too long for a key.
    #[error("the record's {what} has {bytes} bytes, more than {NAME_BYTES_MAX}")]
    TooLong {
        /// Which.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
}

/// An encoded record taken apart; the parts share its bytes where they can.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Given by the store; whatever a client sent.
    pub version: u64,
    /// Valid UTF-8 of at most [`NAME_BYTES_MAX`] bytes.
    pub record_type: Bytes,
    /// Valid UTF-8 of at most [`NAME_BYTES_MAX`] bytes.
    pub id: Bytes,
    /// An encoded `google.protobuf.Any`, not looked into.
    pub data: Option<Bytes>,
    /// Nanoseconds since the Unix epoch; 0 when absent or before it.
    pub modified_at_nanos: u64,
    /// The field is there, whatever it says.
    pub deleted: bool,
    /// Fields of `Record` that this build does not know, keys included.
    pub unknown: Bytes,
}

impl Parts {
    /// About the size of the record.
    pub fn bytes(&self) -> usize {
        self.data.as_ref().map_or(0, Bytes::len) + self.unknown.len() + self.id.len()
    }
}

/// What the store says of a record when it writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The record version.
    pub version: u64,
    /// Nanoseconds since the Unix epoch.
    pub now_nanos: u64,
    /// Whether this is a tombstone.
    pub deleted: bool,
}

/// Takes an encoded record apart.
///
/// # Errors
/// When the bytes are not a record; see [`Error`].
pub fn parse(record: &Bytes) -> Result<Parts, Error> {
    let mut parts = Parts::default();
    let mut rest = record.clone();
    let (mut data, mut unknown) = (Pieces::default(), Pieces::default());
    while !rest.is_empty() {
        let before = rest.clone();
        let (tag, wire_type) = decode_key(&mut rest).map_err(framing)?;
        match tag {
            field::VERSION => parts.version = varint(tag, wire_type, &mut rest)?,
            // The last one counts, but other readers refuse a message in which any of them is no text.
            field::TYPE => {
                parts.record_type = delimited(tag, wire_type, &mut rest)?;
                name("type", &parts.record_type)?;
            }
            field::ID => {
                parts.id = delimited(tag, wire_type, &mut rest)?;
                name("id", &parts.id)?;
            }
            field::DATA => data.add(delimited(tag, wire_type, &mut rest)?),
            field::MODIFIED_AT => parts.modified_at_nanos = timestamp(&delimited(tag, wire_type, &mut rest)?)?,
            field::DELETED_AT => {
                timestamp(&delimited(tag, wire_type, &mut rest)?)?;
                parts.deleted = true;
            }
            _ => {
                skip_field(wire_type, tag, &mut rest, DecodeContext::default()).map_err(framing)?;
                unknown.add(before.slice(..before.len() - rest.len()));
            }
        }
    }
    parts.data = data.joined();
    parts.unknown = unknown.joined().unwrap_or_default();
    Ok(parts)
}

/// Checks that a client's record can be stored.
///
/// # Errors
/// See [`Error`].
pub fn validate(record: &EncodedRecord) -> Result<(), Error> {
    let parts = parse(record.as_bytes())?;
    parts.data.as_ref().map_or(Ok(()), validate_any)
}

/// Stored data is sent to every client as it is, and one that does not decode would break all their streams.
fn validate_any(any: &Bytes) -> Result<(), Error> {
    let mut rest = any.clone();
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).map_err(framing)?;
        match tag {
            1 => {
                let type_url = delimited(tag, wire_type, &mut rest)?;
                std::str::from_utf8(&type_url).map_err(|_| Error::NotText("type URL"))?;
            }
            2 => _ = delimited(tag, wire_type, &mut rest)?,
            _ => skip_field(wire_type, tag, &mut rest, DecodeContext::default()).map_err(framing)?,
        }
    }
    Ok(())
}

/// The canonical form of a record with the store's stamp.
pub fn assemble(parts: &Parts, stamp: Stamp) -> Bytes {
    let Parts { version: _, record_type, id, data, modified_at_nanos: _, deleted: _, unknown } = parts;
    let room = record_type.len() + id.len() + data.as_ref().map_or(0, Bytes::len) + unknown.len() + 64;
    let mut out = BytesMut::with_capacity(room);
    if stamp.version != 0 {
        encode_key(field::VERSION, WireType::Varint, &mut out);
        encode_varint(stamp.version, &mut out);
    }
    put_text(field::TYPE, record_type, &mut out);
    put_text(field::ID, id, &mut out);
    if let Some(data) = data {
        put_delimited(field::DATA, data, &mut out);
    }
    put_timestamp(field::MODIFIED_AT, stamp.now_nanos, &mut out);
    if stamp.deleted {
        put_timestamp(field::DELETED_AT, stamp.now_nanos, &mut out);
    }
    out.put_slice(unknown);
    out.freeze()
}

fn framing(error: prost::DecodeError) -> Error {
    Error::Framing(error.to_string())
}

fn varint(tag: u32, wire_type: WireType, rest: &mut Bytes) -> Result<u64, Error> {
    if wire_type != WireType::Varint {
        return Err(Error::WireType(tag));
    }
    decode_varint(rest).map_err(framing)
}

fn delimited(tag: u32, wire_type: WireType, rest: &mut Bytes) -> Result<Bytes, Error> {
    if wire_type != WireType::LengthDelimited {
        return Err(Error::WireType(tag));
    }
    let length = decode_varint(rest).map_err(framing)?;
    match usize::try_from(length) {
        Ok(length) if length <= rest.len() => Ok(rest.split_to(length)),
        _ => Err(Error::Framing(format!("field {tag} is longer than the message"))),
    }
}

/// What a field was sent as, in one piece or many: a message field that occurs twice means the two merged, and merging is
/// joining their bytes. One piece is shared; many are copied once each, however many there are.
#[derive(Default)]
struct Pieces {
    first: Option<Bytes>,
    all: BytesMut,
}

impl Pieces {
    fn add(&mut self, piece: Bytes) {
        match &self.first {
            None => self.first = Some(piece),
            Some(first) => {
                if self.all.is_empty() {
                    self.all.put_slice(first);
                }
                self.all.put_slice(&piece);
            }
        }
    }

    fn joined(self) -> Option<Bytes> {
        if self.all.is_empty() { self.first } else { Some(self.all.freeze()) }
    }
}

fn timestamp(message: &Bytes) -> Result<u64, Error> {
    let timestamp = <prost_types::Timestamp as prost::Message>::decode(&message[..]).map_err(framing)?;
    let seconds = u64::try_from(timestamp.seconds).unwrap_or(0);
    let nanos = u64::try_from(timestamp.nanos).unwrap_or(0);
    Ok(seconds.saturating_mul(NANOS_PER_SECOND).saturating_add(nanos))
}

fn name(what: &'static str, bytes: &[u8]) -> Result<(), Error> {
    if bytes.len() > NAME_BYTES_MAX {
        return Err(Error::TooLong { what, bytes: bytes.len() });
    }
    std::str::from_utf8(bytes).map(|_| ()).map_err(|_| Error::NotText(what))
}

fn put_text(tag: u32, text: &[u8], out: &mut BytesMut) {
    if !text.is_empty() {
        put_delimited(tag, text, out);
    }
}

fn put_delimited(tag: u32, bytes: &[u8], out: &mut BytesMut) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.put_slice(bytes);
}

fn put_timestamp(tag: u32, nanos: u64, out: &mut BytesMut) {
    let (seconds, nanos) = (nanos / NANOS_PER_SECOND, nanos % NANOS_PER_SECOND);
    let mut length = 0;
    for (tag, value) in [(1, seconds), (2, nanos)] {
        length += if value == 0 { 0 } else { key_len(tag) + encoded_len_varint(value) };
    }
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
    for (tag, value) in [(1, seconds), (2, nanos)] {
        if value != 0 {
            encode_key(tag, WireType::Varint, out);
            encode_varint(value, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use databroker_proto::Record;
    use prost::Message as _;

    use super::*;

    fn sample() -> Record {
        Record {
            version: 9,
            r#type: "t\0x".into(),
            id: "i".into(),
            data: Some(prost_types::Any { type_url: "u/n".into(), value: vec![1, 2, 3] }),
            modified_at: Some(prost_types::Timestamp { seconds: 12, nanos: 34 }),
            deleted_at: None,
        }
    }

    #[test]
    fn data_that_no_client_can_decode_is_refused() {
        for data in [&[0x22, 1, 0][..], &[0x22, 3, 0x0a, 1, 0xff], &[0x22, 2, 0x12, 9]] {
            assert!(validate(&EncodedRecord::from_bytes(data.to_vec())).is_err(), "{data:?}");
        }
        assert_eq!(validate(&EncodedRecord::from_bytes(vec![0x22, 3, 0x0a, 1, b't'])), Ok(()));
    }

    #[test]
    fn a_record_gets_the_stores_stamp_and_keeps_unknown_fields() {
        let mut bytes = sample().encode_to_vec();
        prost::encoding::uint64::encode(77, &5, &mut bytes);
        let parts = parse(&bytes.into()).unwrap();
        assert_eq!(parts.modified_at_nanos, 12 * NANOS_PER_SECOND + 34);
        let stored = assemble(&parts, Stamp { version: 10, now_nanos: 5 * NANOS_PER_SECOND + 7, deleted: true });
        let at = Some(prost_types::Timestamp { seconds: 5, nanos: 7 });
        let expected = Record { version: 10, modified_at: at, deleted_at: at, ..sample() };
        assert_eq!(Record::decode(&stored[..]).unwrap(), expected);
        let again = parse(&stored).unwrap();
        assert_eq!(again.unknown, parts.unknown);
        assert!(again.deleted && !again.unknown.is_empty());
    }

    #[test]
    fn data_sent_in_two_pieces_is_one_message() {
        let mut bytes = Record { data: None, ..sample() }.encode_to_vec();
        prost::encoding::message::encode(4, &prost_types::Any { type_url: "u/n".into(), value: vec![] }, &mut bytes);
        prost::encoding::message::encode(4, &prost_types::Any { type_url: String::new(), value: vec![1] }, &mut bytes);
        let stored = assemble(&parse(&bytes.into()).unwrap(), Stamp { version: 1, now_nanos: 0, deleted: false });
        let data = Record::decode(&stored[..]).unwrap().data.unwrap();
        assert_eq!((data.type_url.as_str(), &data.value[..]), ("u/n", &[1][..]));
    }

    #[test]
    fn a_million_unknown_fields_are_read_in_one_pass() {
        // Fields 15, varint 1: two bytes each. Copying what came before for each of them would take minutes.
        let bytes: Bytes = [0x78, 1].repeat(1_000_000).into();
        let started = std::time::Instant::now();
        assert_eq!(parse(&bytes).unwrap().unknown, bytes);
        let data: Bytes = [0x22, 1, 0].repeat(1_000_000).into();
        assert_eq!(parse(&data).unwrap().data.unwrap().len(), 1_000_000);
        assert!(started.elapsed() < std::time::Duration::from_secs(20));
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_an_error_or_a_record() {
        let bytes = sample().encode_to_vec();
        for end in 0..bytes.len() {
            let _ = parse(&Bytes::copy_from_slice(&bytes[..end]));
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0xff;
            let _ = parse(&flipped.into());
        }
        assert_eq!(parse(&Bytes::from_static(b"\x12\x01\xff")), Err(Error::NotText("type")));
        assert_eq!(parse(&Bytes::from_static(b"\x1a\x01\xff\x1a\x01a")), Err(Error::NotText("id")));
        assert_eq!(parse(&Bytes::from_static(b"\x10\x01")), Err(Error::WireType(2)));
    }
}
