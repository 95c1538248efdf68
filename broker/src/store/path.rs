//! Follows a path of field names through an encoded message.
//!
//! A path names fields by their proto names, and the keys of maps as text. It cannot lead through a list or a scalar.
//! Not here: what is done with what a path leads to (`inspect` for the field index, `filter` for scans).

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use super::{
    fields::{Field, Fields, Malformed, Payload, fits, siblings},
    leaf::Leaf,
};

/// How the well-known types are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As the messages they are.
    Proto,
    /// As what they stand for in JSON as well: a Struct has members, a Timestamp is a time, a ListValue a list.
    Json,
}

/// Receives what a path leads to, in wire order: later news overrides earlier.
pub(crate) trait Target {
    /// The path leads to this one value.
    fn put(&mut self, leaf: Leaf<'_>);
    /// The path leads to a list, and this is one more element.
    fn add(&mut self, leaf: Leaf<'_>);
    /// What the path led to so far is not there.
    fn clear(&mut self);
}

/// Follows `path` from `message`, whose bytes have been checked. A message that lies on the wire in several pieces is
/// seen whole; only a Timestamp, Duration or wrapper at the end of the path is taken from its last piece.
pub(crate) fn follow<S: AsRef<str>>(
    message: &MessageDescriptor,
    bytes: &[u8],
    path: &[S],
    form: Form,
    target: &mut impl Target,
) -> Result<(), Malformed> {
    let Some((name, rest)) = path.split_first() else { return Ok(()) };
    if let Some(wanted) = message.get_field_by_name(name.as_ref()) {
        let displaces = siblings(&wanted);
        for field in Fields::of(bytes) {
            let field = field?;
            if field.number == wanted.number() {
                if fits(&wanted, &field.payload) {
                    arrive(&wanted, field.payload, rest, form, target)?;
                }
            } else if displaces.contains(&field.number) && field.descriptor(message).is_some() {
                target.clear();
            }
        }
    }
    match (form, message.full_name()) {
        (Form::Json, "google.protobuf.Struct") => json::follow_struct(bytes, path, target),
        (Form::Json, "google.protobuf.Value") => json::follow_value(bytes, path, target),
        _ => Ok(()),
    }
}

/// The field the path names is there; `rest` is what follows it.
fn arrive<S: AsRef<str>>(
    field: &FieldDescriptor,
    payload: Payload<'_>,
    rest: &[S],
    form: Form,
    target: &mut impl Target,
) -> Result<(), Malformed> {
    match (field.kind(), payload) {
        (Kind::Message(entry), Payload::Bytes(bytes)) if field.is_map() => enter(&entry, bytes, rest, form, target),
        (kind, payload) if field.is_list() => list(&kind, payload, rest, form, target),
        (Kind::Message(inner), Payload::Bytes(bytes)) => within(&inner, bytes, rest, form, target),
        (kind, payload) if rest.is_empty() => {
            // Without explicit presence a zero is as good as absent.
            if !field.supports_presence() && is_zero(payload) {
                target.clear();
            } else {
                target.put(Leaf::scalar(&kind, payload)?);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

pub(crate) fn is_zero(payload: Payload<'_>) -> bool {
    match payload {
        Payload::Varint(value) | Payload::Fixed64(value) => value == 0,
        Payload::Fixed32(value) => value == 0,
        Payload::Bytes(bytes) => bytes.is_empty(),
        Payload::Group => false,
    }
}

fn within<S: AsRef<str>>(
    message: &MessageDescriptor,
    bytes: &[u8],
    rest: &[S],
    form: Form,
    target: &mut impl Target,
) -> Result<(), Malformed> {
    if !rest.is_empty() {
        return follow(message, bytes, rest, form, target);
    }
    match form {
        Form::Proto => target.put(Leaf::Opaque),
        Form::Json => json::end(message, bytes, target)?,
    }
    Ok(())
}

fn list<S>(
    kind: &Kind,
    payload: Payload<'_>,
    rest: &[S],
    form: Form,
    target: &mut impl Target,
) -> Result<(), Malformed> {
    if !rest.is_empty() {
        return Ok(());
    }
    match (kind, payload) {
        (Kind::Message(inner), Payload::Bytes(bytes)) if form == Form::Json => {
            target.add(json::element(inner, bytes)?);
        }
        (Kind::String | Kind::Bytes | Kind::Message(_), payload) => target.add(Leaf::scalar(kind, payload)?),
        (_, Payload::Bytes(bytes)) => {
            for element in super::fields::packed(kind, bytes) {
                target.add(Leaf::scalar(kind, element?)?);
            }
        }
        _ => target.add(Leaf::scalar(kind, payload)?),
    }
    Ok(())
}

/// One entry of a map: the path's next name is a key.
fn enter<S: AsRef<str>>(
    entry: &MessageDescriptor,
    bytes: &[u8],
    rest: &[S],
    form: Form,
    target: &mut impl Target,
) -> Result<(), Malformed> {
    let Some((wanted, rest)) = rest.split_first() else {
        target.put(Leaf::Opaque);
        return Ok(());
    };
    let (key_field, value_field) = (entry.map_entry_key_field(), entry.map_entry_value_field());
    let mut key = Leaf::default_of(&key_field.kind());
    for field in Fields::of(bytes) {
        let field = field?;
        if field.descriptor(entry).is_some_and(|known| known == key_field) {
            key = Leaf::scalar(&key_field.kind(), field.payload)?;
        }
    }
    if key.text().as_deref() != Some(wanted.as_ref()) {
        return Ok(());
    }
    // A later entry with the same key replaces an earlier one; a value left out is the default.
    target.clear();
    let kind = value_field.kind();
    if rest.is_empty() && !matches!(kind, Kind::Message(_)) {
        target.put(Leaf::default_of(&kind));
    }
    for field in Fields::of(bytes) {
        let field = field?;
        match (&kind, field.payload) {
            _ if field.descriptor(entry).is_none_or(|known| known != value_field) => {}
            (Kind::Message(inner), Payload::Bytes(bytes)) => within(inner, bytes, rest, form, target)?,
            (_, payload) if rest.is_empty() => target.put(Leaf::scalar(&kind, payload)?),
            _ => {}
        }
    }
    Ok(())
}

/// The well-known types as JSON shows them.
mod json {
    use super::{Field, Fields, Kind, Leaf, Malformed, MessageDescriptor, Payload, Target};
    use crate::store::fields;

    // Members of `google.protobuf.Value`.
    const NULL: u32 = 1;
    const NUMBER: u32 = 2;
    const TEXT: u32 = 3;
    const BOOL: u32 = 4;
    const STRUCT: u32 = 5;
    const LIST: u32 = 6;

    pub(super) fn follow_struct<S: AsRef<str>>(
        bytes: &[u8],
        path: &[S],
        target: &mut impl Target,
    ) -> Result<(), Malformed> {
        let Some((name, rest)) = path.split_first() else { return Ok(()) };
        for entry in pieces(bytes, 1) {
            let entry = entry?;
            let key = pieces(entry, 1).last().transpose()?.unwrap_or_default();
            if key != name.as_ref().as_bytes() {
                continue;
            }
            target.clear();
            for value in pieces(entry, 2) {
                let value = value?;
                if rest.is_empty() { end_value(value, target)? } else { follow_value(value, rest, target)? }
            }
        }
        Ok(())
    }

    pub(super) fn follow_value<S: AsRef<str>>(
        bytes: &[u8],
        path: &[S],
        target: &mut impl Target,
    ) -> Result<(), Malformed> {
        // Its last member counts, and leads on only if it is a Struct.
        let mut last = None;
        for field in Fields::of(bytes) {
            let number = field?.number;
            last = if (NULL..=LIST).contains(&number) { Some(number) } else { last };
        }
        if last == Some(STRUCT) {
            pieces(bytes, STRUCT).try_for_each(|members| follow_struct(members?, path, target))?;
        }
        Ok(())
    }

    /// The path ends at a message.
    pub(super) fn end(message: &MessageDescriptor, bytes: &[u8], target: &mut impl Target) -> Result<(), Malformed> {
        match message.full_name() {
            "google.protobuf.Value" => end_value(bytes, target),
            "google.protobuf.ListValue" => end_list(bytes, target),
            _ => {
                target.put(element(message, bytes)?);
                Ok(())
            }
        }
    }

    fn end_list(bytes: &[u8], target: &mut impl Target) -> Result<(), Malformed> {
        for value in pieces(bytes, 1) {
            target.add(scalar_value(value?)?);
        }
        Ok(())
    }

    fn end_value(bytes: &[u8], target: &mut impl Target) -> Result<(), Malformed> {
        for field in Fields::of(bytes) {
            let field = field?;
            if let Field { number: LIST, payload: Payload::Bytes(list), .. } = field {
                target.clear();
                end_list(list, target)?;
            } else if let Some(leaf) = member(&field)? {
                target.put(leaf);
            }
        }
        Ok(())
    }

    /// A message as one value: an element of a list, or the end of a path.
    pub(super) fn element<'a>(message: &MessageDescriptor, bytes: &'a [u8]) -> Result<Leaf<'a>, Malformed> {
        let number = |wanted: u32| -> Result<u64, Malformed> {
            let mut last = 0;
            for field in Fields::of(bytes) {
                let field = field?;
                if let (true, Payload::Varint(value)) = (field.number == wanted, field.payload) {
                    last = value;
                }
            }
            Ok(last)
        };
        Ok(match message.full_name() {
            "google.protobuf.Value" => scalar_value(bytes)?,
            "google.protobuf.Timestamp" => Leaf::time(number(1)? as i64, number(2)? as i32),
            "google.protobuf.Duration" => Leaf::span(number(1)? as i64, number(2)? as i32),
            name if is_wrapper(name) => wrapped(message, bytes)?,
            _ => Leaf::Opaque,
        })
    }

    fn is_wrapper(name: &str) -> bool {
        matches!(
            name.strip_prefix("google.protobuf."),
            Some(
                "DoubleValue"
                    | "FloatValue"
                    | "Int64Value"
                    | "UInt64Value"
                    | "Int32Value"
                    | "UInt32Value"
                    | "BoolValue"
                    | "StringValue"
            )
        )
    }

    fn wrapped<'a>(message: &MessageDescriptor, bytes: &'a [u8]) -> Result<Leaf<'a>, Malformed> {
        let kind = message.get_field(1).map_or(Kind::Bytes, |field| field.kind());
        let mut leaf = Leaf::default_of(&kind);
        for field in Fields::of(bytes) {
            let field = field?;
            if field.descriptor(message).is_some() {
                leaf = Leaf::scalar(&kind, field.payload)?;
            }
        }
        Ok(leaf)
    }

    fn scalar_value(bytes: &[u8]) -> Result<Leaf<'_>, Malformed> {
        let mut leaf = Leaf::Opaque;
        for field in Fields::of(bytes) {
            leaf = member(&field?)?.unwrap_or(leaf);
        }
        Ok(leaf)
    }

    /// What one member of a Value stands for; lists and Structs are opaque here.
    fn member<'a>(field: &Field<'a>) -> Result<Option<Leaf<'a>>, Malformed> {
        Ok(Some(match (field.number, field.payload) {
            (NULL, Payload::Varint(_)) => Leaf::Null,
            (NUMBER, Payload::Fixed64(bits)) => Leaf::Float(f64::from_bits(bits)),
            (TEXT, Payload::Bytes(text)) => Leaf::Text(fields::text(text)?),
            (BOOL, Payload::Varint(value)) => Leaf::Bool(value != 0),
            (STRUCT | LIST, Payload::Bytes(_)) => Leaf::Opaque,
            _ => return Ok(None),
        }))
    }

    fn pieces(bytes: &[u8], number: u32) -> impl Iterator<Item = Result<&[u8], Malformed>> {
        Fields::of(bytes).filter_map(move |field| match field {
            Ok(Field { number: found, payload: Payload::Bytes(bytes), .. }) if found == number => Some(Ok(bytes)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        })
    }
}
