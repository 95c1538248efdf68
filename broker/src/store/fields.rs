//! Reads the wire format one field at a time: borrowed, bounded, nothing built.
//!
//! Records hold maps, and a decoded map has no order of its own; whatever is decided about a record's data is therefore
//! read from its bytes. Not here: what a field means (`inspect`, `path`, `mask`).

use prost_reflect::{Cardinality, FieldDescriptor, Kind, MessageDescriptor, OneofDescriptor};

/// How deep messages, map entries or groups may lie inside each other: what prost's own decoder allows.
pub(crate) const DEPTH_MAX: usize = 100;

/// How many Anys may be packed into each other: each is decoded anew, so no decoder bounds them.
pub(crate) const WRAPPERS_MAX: usize = 16;

/// The highest field number of the format.
const NUMBER_MAX: u64 = (1 << 29) - 1;

/// The bytes are no message of their type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A field ends after the message does, or a number is too long.
    #[error("a field is cut off or overlong")]
    Framing,
    /// A string field holds other bytes.
    #[error("a string is not valid UTF-8")]
    NotText,
    /// Messages inside messages, more than 100.
    #[error("messages are nested too deeply")]
    TooDeep,
}

/// What a field carries, before its type is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    /// An encoding no longer in use; skipped.
    Group,
}

/// One occurrence of a field.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    pub(crate) number: u32,
    pub(crate) payload: Payload<'a>,
    /// Key and payload as they stand.
    pub(crate) raw: &'a [u8],
}

impl Field<'_> {
    /// The field's descriptor, if the message knows it *and* it has a wire type that fits; else it is an unknown field.
    pub(crate) fn descriptor(&self, message: &MessageDescriptor) -> Option<FieldDescriptor> {
        message.get_field(self.number).filter(|field| fits(field, &self.payload))
    }
}

/// The fields of one message, in wire order. Ends after the first error.
#[derive(Clone)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn read(&mut self) -> Result<Field<'a>, Malformed> {
        let start = self.0;
        let (number, wire_type) = key(&mut self.0)?;
        let payload = match wire_type {
            3 => skip_group(&mut self.0, number)?,
            _ => payload(&mut self.0, wire_type)?,
        };
        let raw = &start[..start.len() - self.0.len()];
        Ok(Field { number, payload, raw })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// Cuts a varint off the front of `bytes`.
pub(crate) fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0u64;
    for (at, &byte) in bytes.iter().take(10).enumerate() {
        // The tenth byte has room for one bit.
        if at == 9 && byte > 1 {
            return Err(Malformed::Framing);
        }
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            *bytes = &bytes[at + 1..];
            return Ok(value);
        }
    }
    Err(Malformed::Framing)
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], Malformed> {
    let length = usize::try_from(length).map_err(|_| Malformed::Framing)?;
    let (taken, rest) = bytes.split_at_checked(length).ok_or(Malformed::Framing)?;
    *bytes = rest;
    Ok(taken)
}

fn key(bytes: &mut &[u8]) -> Result<(u32, u8), Malformed> {
    let key = varint(bytes)?;
    match key >> 3 {
        number @ 1..=NUMBER_MAX => Ok((number as u32, (key & 7) as u8)),
        _ => Err(Malformed::Framing),
    }
}

pub(crate) fn fixed64(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let bytes = take(bytes, 8)?.try_into().map_err(|_| Malformed::Framing)?;
    Ok(u64::from_le_bytes(bytes))
}

pub(crate) fn fixed32(bytes: &mut &[u8]) -> Result<u32, Malformed> {
    let bytes = take(bytes, 4)?.try_into().map_err(|_| Malformed::Framing)?;
    Ok(u32::from_le_bytes(bytes))
}

fn payload<'a>(bytes: &mut &'a [u8], wire_type: u8) -> Result<Payload<'a>, Malformed> {
    Ok(match wire_type {
        0 => Payload::Varint(varint(bytes)?),
        1 => Payload::Fixed64(fixed64(bytes)?),
        2 => {
            let length = varint(bytes)?;
            Payload::Bytes(take(bytes, length)?)
        }
        5 => Payload::Fixed32(fixed32(bytes)?),
        _ => return Err(Malformed::Framing),
    })
}

/// Skips to the end of the group `number`, whose start was read.
fn skip_group(bytes: &mut &[u8], number: u32) -> Result<Payload<'static>, Malformed> {
    let mut open = vec![number];
    while let Some(&innermost) = open.last() {
        match key(bytes)? {
            (_, 3) if open.len() == DEPTH_MAX => return Err(Malformed::TooDeep),
            (number, 3) => open.push(number),
            (number, 4) if number == innermost => {
                open.pop();
            }
            (_, wire_type) => {
                payload(bytes, wire_type)?;
            }
        }
    }
    Ok(Payload::Group)
}

/// The other members of a field's oneof: setting one of them clears the field.
pub(crate) fn siblings(field: &FieldDescriptor) -> Vec<u32> {
    let members = |oneof: OneofDescriptor| oneof.fields().map(|member| member.number()).collect();
    let mut members: Vec<u32> = field.containing_oneof().map(members).unwrap_or_default();
    members.retain(|&number| number != field.number());
    members
}

/// Whether the payload has a wire type the field can have.
pub(crate) fn fits(field: &FieldDescriptor, payload: &Payload<'_>) -> bool {
    if field.is_group() {
        return false;
    }
    let scalar = match field.kind() {
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => matches!(payload, Payload::Fixed64(_)),
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => matches!(payload, Payload::Fixed32(_)),
        Kind::String | Kind::Bytes | Kind::Message(_) => return matches!(payload, Payload::Bytes(_)),
        _ => matches!(payload, Payload::Varint(_)),
    };
    scalar || (field.cardinality() == Cardinality::Repeated && matches!(payload, Payload::Bytes(_)))
}

/// The elements of a list of numbers that share one length-delimited field.
pub(crate) fn packed<'a>(
    kind: &Kind,
    mut bytes: &'a [u8],
) -> impl Iterator<Item = Result<Payload<'a>, Malformed>> + use<'a> {
    let wire_type = match kind {
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => 1,
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => 5,
        _ => 0,
    };
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let element = payload(&mut bytes, wire_type);
        if element.is_err() {
            bytes = &[];
        }
        Some(element)
    })
}

/// Checks that `bytes` can be decoded as `message`: framing, text, nesting. Fields that the message does not know, or
/// knows with another wire type, may hold anything.
///
/// # Errors
/// See [`Malformed`].
pub(crate) fn check(message: &MessageDescriptor, bytes: &[u8]) -> Result<(), Malformed> {
    check_within(message, bytes, DEPTH_MAX)
}

fn check_within(message: &MessageDescriptor, bytes: &[u8], depth: usize) -> Result<(), Malformed> {
    let depth = depth.checked_sub(1).ok_or(Malformed::TooDeep)?;
    for field in Fields::of(bytes) {
        let field = field?;
        let Payload::Bytes(payload) = field.payload else { continue };
        let Some(known) = field.descriptor(message) else { continue };
        match known.kind() {
            Kind::Message(inner) => check_within(&inner, payload, depth)?,
            Kind::String => text(payload).map(|_| ())?,
            Kind::Bytes => {}
            kind => packed(&kind, payload).try_for_each(|element| element.map(|_| ()))?,
        }
    }
    Ok(())
}

/// The text a string field holds.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed::NotText)
}

/// An encoded `google.protobuf.Any`, taken apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Any<'a> {
    pub(crate) type_url: &'a str,
    pub(crate) value: &'a [u8],
}

impl<'a> Any<'a> {
    pub(crate) const TYPE_URL: u32 = 1;
    pub(crate) const VALUE: u32 = 2;

    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut any = Self::default();
        for field in Fields::of(bytes) {
            match field? {
                Field { number: Self::TYPE_URL, payload: Payload::Bytes(url), .. } => any.type_url = text(url)?,
                Field { number: Self::VALUE, payload: Payload::Bytes(value), .. } => any.value = value,
                _ => {}
            }
        }
        Ok(any)
    }

    /// What is left when Anys packed into each other are unpacked. `None`: broken, or too many of them.
    pub(crate) fn unwrap(bytes: &'a [u8]) -> Option<Self> {
        let mut any = Self::parse(bytes).ok()?;
        for _ in 0..WRAPPERS_MAX {
            if any.message_name() != "google.protobuf.Any" {
                return Some(any);
            }
            any = Self::parse(any.value).ok()?;
        }
        None
    }

    /// The full name of the message inside.
    pub(crate) fn message_name(&self) -> &'a str {
        databroker_proto::message_name(self.type_url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<Field<'_>>, Malformed> {
        Fields::of(bytes).collect()
    }

    #[test]
    fn every_wire_type_is_read_and_keeps_its_bytes() {
        let bytes = b"\x08\x96\x01\x11\x01\0\0\0\0\0\0\0\x1a\x02ab\x25\x02\0\0\0\x2b\x08\x01\x2c";
        let fields = all(bytes).unwrap();
        let payloads: Vec<_> = fields.iter().map(|field| (field.number, field.payload)).collect();
        assert_eq!(
            payloads,
            [
                (1, Payload::Varint(150)),
                (2, Payload::Fixed64(1)),
                (3, Payload::Bytes(b"ab")),
                (4, Payload::Fixed32(2)),
                (5, Payload::Group),
            ]
        );
        assert_eq!(fields.iter().map(|field| field.raw).collect::<Vec<_>>().concat(), bytes);
    }

    #[test]
    fn broken_framing_is_an_error_and_ends_the_iteration() {
        for bytes in [
            &b"\x08"[..],
            b"\x0a\x05ab",
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x00\x01",
            b"\x0c",
            b"\x0e",
            b"\x0b\x0c\x0b",
            b"\x0b\x14",
            b"\x09\x01",
        ] {
            assert_eq!(all(bytes).err(), Some(Malformed::Framing), "{bytes:?}");
            assert!(Fields::of(bytes).take(1000).count() < 10);
        }
    }

    #[test]
    fn groups_nest_only_so_deep() {
        let nested = |depth: usize| [vec![0x0b; depth], vec![0x0c; depth]].concat();
        assert!(all(&nested(DEPTH_MAX)).is_ok());
        assert_eq!(all(&nested(DEPTH_MAX + 1)).err(), Some(Malformed::TooDeep));
        assert_eq!(all(&vec![0x0b; 10 << 20]).err(), Some(Malformed::TooDeep));
    }
}
