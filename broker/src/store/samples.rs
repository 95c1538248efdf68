//! Random messages of known types, and damage to them, for the tests of everything that looks into records.

use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};
use serde_json::json;

use super::inspect::Descriptors;

/// Types that differ in what they are made of: maps, oneofs, optional scalars, lists, recursion.
pub(crate) const TYPES: &[&str] = &[
    "test.Test",
    "session.Session",
    "session.Session.DeviceCredential",
    "session.SessionBindingRequest",
    "pomerium.config.VersionedConfig",
    "pomerium.config.KeyPair",
    "ietf.rfc7591.v1.ClientRegistration",
    "google.protobuf.Value",
    "google.protobuf.Struct",
];

pub(crate) fn descriptors() -> Descriptors {
    static BUILTIN: std::sync::LazyLock<Descriptors> = std::sync::LazyLock::new(|| Descriptors::builtin().unwrap());
    BUILTIN.clone()
}

pub(crate) fn message(name: &str) -> MessageDescriptor {
    descriptors().message(name).unwrap()
}

/// An encoded Any from JSON.
pub(crate) fn any(type_name: &str, mut value: serde_json::Value) -> Vec<u8> {
    let url = format!("type.googleapis.com/{type_name}");
    let wrapped = matches!(type_name, "google.protobuf.Struct" | "google.protobuf.Value" | "google.protobuf.Any");
    if wrapped {
        value = json!({"@type": url, "value": value});
    } else {
        value["@type"] = url.into();
    }
    DynamicMessage::deserialize(message("google.protobuf.Any"), value).unwrap().encode_to_vec()
}

/// An encoded Any as JSON.
pub(crate) fn to_json(any: &[u8]) -> serde_json::Value {
    serde_json::to_value(DynamicMessage::decode(message("google.protobuf.Any"), any).unwrap()).unwrap()
}

pub(crate) fn pack(type_name: &str, value: &[u8]) -> Vec<u8> {
    prost_types::Any { type_url: format!("type.googleapis.com/{type_name}"), value: value.to_vec() }.encode_to_vec()
}

/// A small generator (splitmix64): the seed comes from proptest, which prints it.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn text(&mut self) -> String {
        ["", "a", "b", "Straße", "ΑΣ", "x.y", "10", "İ"][self.below(8)].to_owned()
    }

    pub(crate) fn message(&mut self, descriptor: &MessageDescriptor, depth: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        for field in descriptor.fields() {
            if self.below(2) == 0 {
                let value = self.value(&field, depth);
                message.set_field(&field, value);
            }
        }
        message
    }

    fn value(&mut self, field: &FieldDescriptor, depth: usize) -> Value {
        let count = if depth == 0 { 0 } else { self.below(4) };
        match field.kind() {
            Kind::Message(entry) if field.is_map() => {
                let value = entry.map_entry_value_field();
                Value::Map(
                    (0..count).map(|_| (MapKey::String(self.text()), self.single(&value.kind(), depth - 1))).collect(),
                )
            }
            kind if field.is_list() => Value::List((0..count).map(|_| self.single(&kind, depth - 1)).collect()),
            kind => self.single(&kind, depth.saturating_sub(1)),
        }
    }

    fn single(&mut self, kind: &Kind, depth: usize) -> Value {
        match kind {
            Kind::Message(inner) if depth == 0 => Value::Message(DynamicMessage::new(inner.clone())),
            Kind::Message(inner) => Value::Message(self.message(inner, depth)),
            Kind::String => Value::String(self.text()),
            Kind::Bytes => Value::Bytes(self.text().into_bytes().into()),
            Kind::Bool => Value::Bool(self.below(2) == 0),
            Kind::Enum(_) => Value::EnumNumber(self.below(3) as i32),
            Kind::Double => Value::F64(self.below(3) as f64),
            Kind::Int64 => Value::I64(self.below(3) as i64 - 1),
            Kind::Int32 => Value::I32(self.below(3) as i32 - 1),
            other => panic!("no values of {other:?} here yet"),
        }
    }

    /// An encoding as clients send it; sometimes in two pieces, sometimes with fields no descriptor knows.
    pub(crate) fn encoded(&mut self, descriptor: &MessageDescriptor) -> Vec<u8> {
        let mut bytes = self.message(descriptor, 5).encode_to_vec();
        if self.below(3) == 0 {
            bytes.extend(self.message(descriptor, 5).encode_to_vec());
        }
        if self.below(3) == 0 {
            prost::encoding::uint64::encode(2000, &self.next(), &mut bytes);
        }
        bytes
    }

    /// Some damage: a cut, a flipped byte, noise.
    pub(crate) fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            match self.below(3) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.next() as u8),
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
            }
        }
    }
}

/// Data that has broken decoders before.
pub(crate) fn hostile() -> Vec<Vec<u8>> {
    let nest = |depth: usize, key: u8| {
        let mut bytes = Vec::new();
        for _ in 0..depth {
            let mut outer = vec![key];
            prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
            outer.extend(bytes);
            bytes = outer;
        }
        bytes
    };
    let mut all = vec![
        vec![],
        vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        vec![0xff; 64],
        vec![0x0b; 100_000],
        nest(1000, 0x0a),
        // Value in ListValue in Value …, and Value in Struct in Value ….
        nest(1000, 0x32),
        nest(1000, 0x2a),
        // Empty pieces without end.
        [0x3a, 0x00].repeat(100_000),
        [0x08, 0x00].repeat(100_000),
    ];
    all.extend(
        TYPES.iter().flat_map(|name| all.iter().map(|bytes| pack(name, bytes)).collect::<Vec<_>>()).collect::<Vec<_>>(),
    );
    all
}

/// A filter from its JSON form.
pub(crate) fn filter(json: &serde_json::Value) -> super::filter::Filter {
    super::filter::Filter::parse(&to_struct(json)).unwrap()
}

/// A JSON object as the Struct that stands for it.
pub(crate) fn to_struct(json: &serde_json::Value) -> prost_types::Struct {
    let members = json.as_object().expect("a filter is an object");
    prost_types::Struct { fields: members.iter().map(|(key, value)| (key.clone(), to_value(value))).collect() }
}

fn to_value(json: &serde_json::Value) -> prost_types::Value {
    use prost_types::value::Kind;
    use serde_json::Value;

    let kind = match json {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap()),
        Value::String(value) => Kind::StringValue(value.clone()),
        Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.iter().map(to_value).collect() })
        }
        Value::Object(_) => Kind::StructValue(to_struct(json)),
    };
    prost_types::Value { kind: Some(kind) }
}
