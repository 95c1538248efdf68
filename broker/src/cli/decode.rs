//! A record's data as JSON and back, by the descriptors of the record types this build knows.
//!
//! The JSON is protobuf's own, with field names as in the .proto files, because filters name fields so:
//! - a known type: `{"@type": URL, field: …}`; the well-known types of `google.protobuf`: `{"@type": URL, "value": …}`;
//! - an unknown type: `{"@type": URL, "value": "<base64>"}`;
//! - where that form would lose something (unknown fields, data that does not decode, or lies in too many wrappers), the
//!   member `"@bytes"` holds the whole data as base64 and, on the way back, counts alone.

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use databroker_proto::{RECORDS_DESCRIPTOR_SET, message_name};
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, ReflectMessage as _, SerializeOptions,
    Value as Field,
};
use prost_types::Any;
use serde_json::{Map, Value};

const TYPE: &str = "@type";
const BYTES: &str = "@bytes";
const VALUE: &str = "value";

/// How many times data may be packed into other data to be shown as fields. A message's own depth is bounded when it is
/// decoded, but each `Any` in it begins anew, and whoever wrote the record must not choose how deep a tool's stack grows.
const WRAPPERS_MAX: usize = 4;

/// Why JSON is not a record's data.
#[derive(Debug, thiserror::Error)]
pub enum MalformedData {
    /// It is not an object with a type.
    #[error("data must be an object with a string member \"@type\"")]
    NoType,
    /// The base64 is none.
    #[error(
        "{member:?} of data of type {type_url:?} must be a string of base64 (this build does not know the fields of the type)"
    )]
    NotBase64 {
        /// `value` or `@bytes`.
        member: &'static str,
        /// The data's type.
        type_url: String,
    },
    /// The members are not the type's fields.
    #[error("data is not a {message}: {source}")]
    Fields {
        /// The type's name.
        message: String,
        /// Why not.
        source: serde_json::Error,
    },
}

/// The record types of this build, and those of `google.protobuf`. The set is a constant of this build and a test reads
/// from it; without it most types would merely be unknown.
static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(RECORDS_DESCRIPTOR_SET).unwrap_or_else(|_| DescriptorPool::global()));

/// Whether this build knows the message of this full name.
pub fn knows(message: &str) -> bool {
    POOL.get_message_by_name(message).is_some()
}

/// The full names of the record types of this build: top-level messages only, sorted.
pub fn known_messages() -> Vec<String> {
    let mut names: Vec<_> = POOL
        .all_messages()
        .filter(|message| message.parent_message().is_none() && !is_well_known(message))
        .map(|message| message.full_name().to_owned())
        .collect();
    names.sort();
    names
}

/// The data as JSON; every data has one.
pub fn to_json(data: &Any) -> Value {
    let mut object = match POOL.get_message_by_name(message_name(&data.type_url)) {
        Some(descriptor) => known_to_json(descriptor, &data.value),
        None => Map::from_iter([(VALUE.to_owned(), base64(&data.value))]),
    };
    object.insert(TYPE.to_owned(), Value::String(data.type_url.clone()));
    Value::Object(object)
}

/// Reads what [`to_json`] writes.
///
/// # Errors
/// When it is not of that shape.
pub fn from_json(json: Value) -> Result<Any, MalformedData> {
    let Value::Object(mut object) = json else { return Err(MalformedData::NoType) };
    let Some(Value::String(type_url)) = object.remove(TYPE) else { return Err(MalformedData::NoType) };
    let value = if let Some(bytes) = object.get(BYTES) {
        from_base64(BYTES, bytes, &type_url)?
    } else if let Some(descriptor) = POOL.get_message_by_name(message_name(&type_url)) {
        known_from_json(descriptor, object)?
    } else {
        from_base64(VALUE, object.get(VALUE).unwrap_or(&Value::Null), &type_url)?
    };
    Ok(Any { type_url, value })
}

/// JSON as a `google.protobuf.Struct`.
///
/// # Errors
/// When it is not an object.
pub fn to_struct(json: &Value) -> Result<prost_types::Struct, MalformedData> {
    let message = "google.protobuf.Struct";
    let descriptor = POOL.get_message_by_name(message).ok_or(MalformedData::NoType)?;
    let fields = |source| MalformedData::Fields { message: message.to_owned(), source };
    let dynamic = DynamicMessage::deserialize(descriptor, json).map_err(fields)?;
    dynamic.transcode_to().map_err(|error| fields(serde::de::Error::custom(error)))
}

fn known_to_json(descriptor: MessageDescriptor, bytes: &[u8]) -> Map<String, Value> {
    let Ok(message) = DynamicMessage::decode(descriptor.clone(), bytes) else { return all_bytes(bytes) };
    if !is_shallow(&message, WRAPPERS_MAX) {
        return all_bytes(bytes);
    }
    let options = SerializeOptions::new().use_proto_field_name(true);
    let Ok(json) = message.serialize_with_options(serde_json::value::Serializer, &options) else {
        return all_bytes(bytes);
    };
    let mut object = match json {
        Value::Object(object) if !is_well_known(&descriptor) => object,
        value => Map::from_iter([(VALUE.to_owned(), value)]),
    };
    let lossless = known_message(descriptor, object.clone()).is_ok_and(|back| back == message);
    if !lossless {
        object.insert(BYTES.to_owned(), base64(bytes));
    }
    object
}

/// Whether no `Any` in it lies in so many others.
fn is_shallow(message: &DynamicMessage, wrappers_left: usize) -> bool {
    if message.descriptor().full_name() != "google.protobuf.Any" {
        return message.fields().all(|(_, field)| is_shallow_field(field, wrappers_left));
    }
    let Some(wrappers_left) = wrappers_left.checked_sub(1) else { return false };
    let inner = message.transcode_to::<Any>().ok().and_then(|any| {
        let descriptor = POOL.get_message_by_name(message_name(&any.type_url))?;
        DynamicMessage::decode(descriptor, &any.value[..]).ok()
    });
    // What does not decode is not looked into.
    inner.is_none_or(|inner| is_shallow(&inner, wrappers_left))
}

fn is_shallow_field(field: &Field, wrappers_left: usize) -> bool {
    match field {
        Field::Message(message) => is_shallow(message, wrappers_left),
        Field::List(list) => list.iter().all(|item| is_shallow_field(item, wrappers_left)),
        Field::Map(map) => map.values().all(|value| is_shallow_field(value, wrappers_left)),
        _ => true,
    }
}

fn known_from_json(descriptor: MessageDescriptor, object: Map<String, Value>) -> Result<Vec<u8>, MalformedData> {
    let message = descriptor.full_name().to_owned();
    known_message(descriptor, object)
        .map(|message| message.encode_to_vec())
        .map_err(|source| MalformedData::Fields { message, source })
}

fn known_message(
    descriptor: MessageDescriptor,
    mut object: Map<String, Value>,
) -> Result<DynamicMessage, serde_json::Error> {
    let json =
        if is_well_known(&descriptor) { object.remove(VALUE).unwrap_or(Value::Null) } else { Value::Object(object) };
    DynamicMessage::deserialize_with_options(descriptor, json, &DeserializeOptions::new().deny_unknown_fields(true))
}

fn is_well_known(descriptor: &MessageDescriptor) -> bool {
    descriptor.package_name() == "google.protobuf" || descriptor.package_name().starts_with("google.protobuf.")
}

fn all_bytes(bytes: &[u8]) -> Map<String, Value> {
    Map::from_iter([(BYTES.to_owned(), base64(bytes))])
}

fn base64(bytes: &[u8]) -> Value {
    Value::String(STANDARD.encode(bytes))
}

fn from_base64(member: &'static str, value: &Value, type_url: &str) -> Result<Vec<u8>, MalformedData> {
    let malformed = || MalformedData::NotBase64 { member, type_url: type_url.to_owned() };
    STANDARD.decode(value.as_str().ok_or_else(malformed)?).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn any(type_url: &str, value: &[u8]) -> Any {
        Any { type_url: type_url.to_owned(), value: value.to_vec() }
    }

    const TEST: &str = "type.googleapis.com/test.Test";

    #[track_caller]
    fn reads_as(data: &Any, expected: Value) {
        assert_eq!(to_json(data), expected);
        assert_eq!(&from_json(expected).unwrap(), data);
    }

    #[test]
    fn a_known_type_reads_as_its_fields() {
        reads_as(&any(TEST, b"\x0a\x01x"), json!({"@type": TEST, "string_field": "x"}));
    }

    #[test]
    fn an_unknown_type_reads_as_base64() {
        reads_as(&any("example.com/no.Such", &[0xff, 0]), json!({"@type": "example.com/no.Such", "value": "/wA="}));
        reads_as(&any("", b""), json!({"@type": "", "value": ""}));
    }

    #[test]
    fn a_struct_reads_as_a_value() {
        let url = "type.googleapis.com/google.protobuf.Struct";
        let json = json!({"@type": url, "value": {"a": [1.0, null, "x"]}});
        let data = from_json(json.clone()).unwrap();
        reads_as(&data, json);
    }

    #[test]
    fn unknown_fields_survive_as_bytes_beside_the_known_ones() {
        // Field 9 is not in the descriptor.
        let data = any(TEST, b"\x0a\x01x\x4a\x01y");
        reads_as(&data, json!({"@type": TEST, "string_field": "x", "@bytes": "CgF4SgF5"}));
    }

    #[test]
    fn data_that_does_not_decode_survives_as_bytes() {
        reads_as(&any(TEST, b"\x0a\xff"), json!({"@type": TEST, "@bytes": "Cv8="}));
    }

    fn wrapped(times: usize, data: Any) -> Any {
        let url = "type.googleapis.com/google.protobuf.Any";
        (0..times).fold(data, |inner, _| any(url, &inner.encode_to_vec()))
    }

    #[test]
    fn data_in_too_many_wrappers_survives_as_bytes() {
        let shown = to_json(&wrapped(1, any(TEST, b"\x0a\x01x")));
        assert_eq!(shown["value"], json!({"@type": TEST, "string_field": "x"}));
        for times in [WRAPPERS_MAX + 1, 2_000] {
            let data = wrapped(times, any(TEST, b""));
            reads_as(&data, json!({"@type": data.type_url, "@bytes": base64(&data.value)}));
        }
    }

    #[test]
    fn the_deepest_data_that_is_shown_fits_a_stack() {
        // A list in a value in a list …, as deep as a message may be.
        let deep = (0..49).fold(Vec::new(), |inner, _| {
            let mut list = Vec::new();
            prost::encoding::bytes::encode(6, &inner, &mut list);
            let mut value = Vec::new();
            prost::encoding::bytes::encode(1, &list, &mut value);
            value
        });
        let data = wrapped(WRAPPERS_MAX, any("type.googleapis.com/google.protobuf.ListValue", &deep));
        let json = to_json(&data);
        assert!(json.get(BYTES).is_none(), "it is not shown");
        assert_eq!(from_json(json).unwrap(), data);
    }

    #[test]
    fn a_misspelt_field_is_an_error_that_names_it() {
        let error = from_json(json!({"@type": TEST, "string_feild": "x"})).unwrap_err().to_string();
        assert!(error.contains("string_feild") && error.contains("test.Test"), "{error}");
        assert!(matches!(from_json(json!({"x": 1})), Err(MalformedData::NoType)));
        assert!(matches!(from_json(json!([])), Err(MalformedData::NoType)));
        assert!(matches!(from_json(json!({"@type": "a/b", "x": 1})), Err(MalformedData::NotBase64 { .. })));
    }

    #[test]
    fn the_record_types_of_this_build_are_known() {
        assert!(knows("test.Test") && knows("google.protobuf.Struct") && !knows("no.Such"));
        assert!(known_messages().contains(&"test.Test".to_owned()));
        assert!(!known_messages().iter().any(|name| name.starts_with("google.protobuf")));
    }
}
