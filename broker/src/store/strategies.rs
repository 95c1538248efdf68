//! Records and filters at random, of few names and values, so that they meet; a failure is made small by proptest.
//!
//! Records of a type mostly hold the same kind of data, so that patches fit what they find. Not here: messages of every
//! known type (`samples`).

use databroker_proto::Record;
use proptest::{
    collection::vec,
    option::of as maybe,
    prelude::*,
    sample::{select, subsequence},
};
use prost::Message as _;
use prost_types::{Any, Timestamp};
use serde_json::{Value as Json, json};

use super::samples;

pub(super) const TEST_URL: &str = "type.googleapis.com/test.Test";

/// The types that mostly hold Tests, Sessions and Structs, in this order.
pub(super) const TYPES: [&str; 3] = [TEST_URL, "nul\0in\0type", "nul"];

const IDS: [&str; 4] = ["", "a", "a\0b", "b"];

const TEXTS: [&str; 7] = ["", "a", "a\0b", "b", "Ab", "9", "10"];

/// As records have them. The last two are none.
const NETWORKS: [&str; 7] =
    ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/16", "10.1.2.0/24", "2001:db8::/32", "10.1.0.0", "10.1.0.0/33"];

/// As queries look for them.
const ADDRESSES: [&str; 9] = [
    "10.1.2.3",
    "10.1.0.0/16",
    "10.9.9.9",
    "10.0.0.0/7",
    "2001:db8::1",
    "::ffff:10.1.2.3",
    "11.0.0.1",
    "no address",
    "",
];

/// Fields that types are indexed by at times: texts, and what is none.
const INDEXABLE: [&str; 8] = [
    "string_field",
    "proto_field.another_string_field",
    "user_id",
    "id_token.subject",
    "audience",
    "refresh_disabled",
    "fields.name.string_value",
    "fields.na\0me.string_value",
];

/// Fields that are never indexed.
const OTHER_FIELDS: [&str; 11] = [
    "proto_field",
    "id_token",
    "id_token.expires_at.seconds",
    "impersonate_session_id",
    "name",
    "na\0me",
    "tags",
    "in",
    "in.ner",
    "$index.cidr",
    "none",
];

/// Every operator that compares, in each of its spellings.
pub(super) const OPERATORS: [&str; 22] = [
    "=",
    "==",
    "$eq",
    "$equals",
    "$is",
    "$isAnyOf",
    "!=",
    "$doesNotEqual",
    ">",
    ">=",
    "<",
    "<=",
    "$after",
    "$before",
    "$onOrAfter",
    "$onOrBefore",
    "$contains",
    "$doesNotContain",
    "$startsWith",
    "$endsWith",
    "$isEmpty",
    "$isNotEmpty",
];

/// What the data of a record is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Data {
    Test,
    Session,
    /// A Struct, at times as a Value or in one more Any.
    Struct,
    /// Nothing that can be looked into: absent, unknown, broken.
    Opaque,
}

impl Data {
    fn record_type(self) -> &'static str {
        match self {
            Self::Test | Self::Opaque => TYPES[0],
            Self::Session => TYPES[1],
            Self::Struct => TYPES[2],
        }
    }

    fn values(self) -> BoxedStrategy<Option<Any>> {
        match self {
            Self::Test => test().boxed(),
            Self::Session => session().boxed(),
            Self::Struct => structure().boxed(),
            Self::Opaque => opaque().boxed(),
        }
    }
}

/// A kind of data.
pub(super) fn data() -> impl Strategy<Value = Data> {
    prop_oneof![4 => Just(Data::Test), 4 => Just(Data::Session), 4 => Just(Data::Struct), 1 => Just(Data::Opaque)]
}

/// A record as clients send it, mostly with this kind of data.
pub(super) fn record(mostly: Data) -> impl Strategy<Value = Record> {
    let record_type = prop_oneof![4 => Just(mostly.record_type()), 1 => select(TYPES.to_vec())];
    let values = prop_oneof![9 => Just(mostly), 1 => data()].prop_flat_map(Data::values);
    (record_type, select(IDS.to_vec()), values, prop::bool::weighted(0.2)).prop_map(
        |(record_type, id, data, deleted)| Record {
            version: 99,
            r#type: record_type.into(),
            id: id.into(),
            data,
            modified_at: None,
            deleted_at: deleted.then(Timestamp::default),
        },
    )
}

/// The records of one request.
pub(super) fn batch() -> impl Strategy<Value = Vec<Record>> {
    vec(data().prop_flat_map(record), 0..4)
}

/// The fields that a type is indexed by.
pub(super) fn indexed() -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(INDEXABLE.to_vec(), 0..=INDEXABLE.len())
}

fn text() -> impl Strategy<Value = Json> {
    select(TEXTS.to_vec()).prop_map(Json::from)
}

fn texts() -> impl Strategy<Value = Json> {
    vec(text(), 0..3).prop_map(Json::from)
}

/// The members that are there.
fn object<const N: usize>(members: [(&str, Option<Json>); N]) -> Json {
    Json::Object(members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect())
}

fn packed(type_name: &str, json: Json) -> Option<Any> {
    Some(Any::decode(&*samples::any(type_name, json)).unwrap())
}

fn test() -> impl Strategy<Value = Option<Any>> {
    (maybe(text()), maybe(maybe(text()))).prop_map(|(text, inner)| {
        let inner = inner.map(|text| object([("anotherStringField", text)]));
        packed("test.Test", object([("stringField", text), ("protoField", inner)]))
    })
}

fn session() -> impl Strategy<Value = Option<Any>> {
    let time = (0..3_u8).prop_map(|second| json!(format!("1970-01-01T00:00:0{second}Z")));
    let id_token = (maybe(text()), maybe(text()), maybe(time)).prop_map(|(issuer, subject, expires_at)| {
        object([("issuer", issuer), ("subject", subject), ("expiresAt", expires_at)])
    });
    let disabled = any::<bool>().prop_map(Json::from);
    (maybe(text()), maybe(id_token), texts(), maybe(disabled), maybe(text())).prop_map(
        |(user_id, id_token, audience, disabled, impersonated)| {
            let members = object([
                ("userId", user_id),
                ("idToken", id_token),
                ("audience", Some(audience)),
                ("refreshDisabled", disabled),
                ("impersonateSessionId", impersonated),
            ]);
            packed("session.Session", members)
        },
    )
}

fn structure() -> impl Strategy<Value = Option<Any>> {
    let network = select(NETWORKS.to_vec()).prop_map(|cidr| json!({"cidr": cidr}));
    let scalar = prop_oneof![4 => text(), 1 => select(vec![json!(null), json!(true), json!(9), json!(10)])];
    let inner = maybe(text()).prop_map(|text| object([("ner", text)]));
    let members = (maybe(network), maybe(scalar), maybe(text()), maybe(texts()), maybe(inner)).prop_map(
        |(network, scalar, text, tags, inner)| {
            object([("$index", network), ("name", scalar), ("na\0me", text), ("tags", tags), ("in", inner)])
        },
    );
    (members, 0..8_u8).prop_map(|(members, form)| match form {
        6 => packed("google.protobuf.Value", members),
        7 => Some(Any {
            type_url: "type.googleapis.com/google.protobuf.Any".into(),
            value: samples::any("google.protobuf.Struct", members),
        }),
        _ => packed("google.protobuf.Struct", members),
    })
}

fn opaque() -> impl Strategy<Value = Option<Any>> {
    let unknown = Any { type_url: "type.example.com/no.such.Type".into(), value: vec![0x0a, 1, b'a'] };
    let broken = Any { type_url: TEST_URL.into(), value: vec![0x0a, 5, b'a'] };
    select(vec![None, Some(unknown), Some(broken)])
}

/// What a field may be compared with.
fn values_of(field: &str) -> BoxedStrategy<Json> {
    let among = |values: &[&'static str]| select(values.to_vec()).prop_map(Json::from);
    match field {
        "id" => among(&IDS).boxed(),
        "type" => among(&TYPES).boxed(),
        "$index" => among(&ADDRESSES).boxed(),
        _ => {
            let others = [json!(null), json!(true), json!(false), json!(9), json!([]), json!(["b"]), json!({})];
            prop_oneof![6 => among(&TEXTS), 1 => among(&NETWORKS), 2 => select(others.to_vec())].boxed()
        }
    }
}

/// A condition at a path, in one of the two spellings of paths.
fn at(path: &str, nested: bool, condition: Json) -> Json {
    let names: Vec<&str> = if nested { path.rsplit('.').collect() } else { vec![path] };
    names.into_iter().fold(condition, |inner, name| json!({name: inner}))
}

fn condition() -> impl Strategy<Value = Json> {
    let field = prop_oneof![
        5 => select(INDEXABLE.to_vec()),
        4 => select(OTHER_FIELDS.to_vec()),
        1 => Just("id"),
        1 => Just("type"),
        2 => Just("$index"),
    ];
    (field, any::<bool>()).prop_flat_map(|(field, nested)| {
        let value = || values_of(field);
        let some = || vec(value(), 0..3);
        let condition = prop_oneof![
            6 => value(),
            6 => (select(OPERATORS.to_vec()), value()).prop_map(|(operator, value)| json!({operator: value})),
            1 => some().prop_map(Json::from),
            1 => some().prop_map(|values| json!({"$isAnyOf": values})),
            1 => some().prop_map(|values| json!({"$and": values})),
            1 => value().prop_map(|value| json!({"$not": value})),
        ];
        condition.prop_map(move |condition| at(field, nested, condition))
    })
}

/// Filters in their JSON form, of every shape the grammar has.
pub(super) fn filter() -> impl Strategy<Value = Json> {
    condition().prop_recursive(3, 12, 3, |inner| {
        let some = || vec(inner.clone(), 0..4);
        prop_oneof![
            2 => some().prop_map(|all| json!({"$and": all})),
            2 => some().prop_map(|any| json!({"$or": any})),
            2 => inner.clone().prop_map(|not| json!({"$not": not})),
            1 => some().prop_map(members_of),
        ]
    })
}

/// One object with the members of all; of those of one name the last.
fn members_of(objects: Vec<Json>) -> Json {
    let members = objects.into_iter().filter_map(|object| match object {
        Json::Object(members) => Some(members),
        _ => None,
    });
    Json::Object(members.flatten().collect())
}
