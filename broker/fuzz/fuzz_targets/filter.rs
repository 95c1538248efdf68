//! Query filters: any struct either is refused or can be held against any record.
#![no_main]

use std::sync::LazyLock;

use databroker::store::{
    filter::{Filter, Subject},
    inspect::Descriptors,
};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use prost_types::{ListValue, Struct, Value, value::Kind};

static DESCRIPTORS: LazyLock<Descriptors> = LazyLock::new(|| Descriptors::builtin().expect("built in"));

/// JSON is what the fuzzer mutates into filters most easily.
fn from_json(json: serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(value),
        serde_json::Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        serde_json::Value::String(value) => Kind::StringValue(value),
        serde_json::Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(from_json).collect() })
        }
        serde_json::Value::Object(values) => Kind::StructValue(struct_of(values)),
    };
    Value { kind: Some(kind) }
}

fn struct_of(values: serde_json::Map<String, serde_json::Value>) -> Struct {
    Struct { fields: values.into_iter().map(|(key, value)| (key, from_json(value))).collect() }
}

fuzz_target!(|input: (bool, &[u8], &[u8])| {
    let (encoded, bytes, data) = input;
    let filter = if encoded { Struct::decode(bytes).ok() } else { serde_json::from_slice(bytes).ok().map(struct_of) };
    let Some(filter) = filter else { return };
    if let Ok(filter) = Filter::parse(&filter) {
        let subject = Subject::new("type.googleapis.com/session.Session", "id", data, &DESCRIPTORS);
        let matches = filter.matches(&subject);
        assert_eq!(Filter::Not(Box::new(filter)).matches(&subject), !matches);
    }
});
