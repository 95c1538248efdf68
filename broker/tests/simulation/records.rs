//! The records that simulated clients write: sessions whose user is a value that is written once and never again, and
//! with claims, a map, which must not be encoded again.
//!
//! Not here: who writes them (`clients`).

use std::collections::BTreeMap;

use bytes::Bytes;
use databroker::store::command::Kind;
use databroker_proto::{Record, internal};
use prost::Message;

/// Type and id.
pub type Key = (String, String);

/// Types in use.
pub const TYPES: [&str; 2] = ["type.googleapis.com/session.Session", "sessions of another type"];

const SESSION_URL: &str = "type.googleapis.com/session.Session";

/// The part of `session.Session` that matters here.
#[derive(Clone, PartialEq, Message)]
struct Session {
    #[prost(string, tag = "3")]
    user_id: String,
    #[prost(btree_map = "string, message", tag = "9")]
    claims: BTreeMap<String, Claim>,
}

#[derive(Clone, PartialEq, Message)]
struct Claim {}

/// So many that no two hash maps have them in the same order.
const CLAIMS: usize = 12;

fn session(value: &str, claims: usize) -> prost_types::Any {
    let claims = (0..claims).map(|claim| (format!("claim-{claim}"), Claim {})).collect();
    let session = Session { user_id: value.into(), claims };
    prost_types::Any { type_url: SESSION_URL.into(), value: session.encode_to_vec() }
}

fn record(key: &Key, data: Option<prost_types::Any>) -> Record {
    Record { r#type: key.0.clone(), id: key.1.clone(), data, ..Record::default() }
}

/// Writes a value to a record.
pub fn put(key: &Key, value: &str) -> Kind {
    let record = record(key, Some(session(value, CLAIMS)));
    Kind::Put(internal::Put { records: vec![record.encode_to_vec().into()] })
}

/// Deletes a record.
pub fn delete(key: &Key) -> Kind {
    let deleted = Record { deleted_at: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }), ..record(key, None) };
    Kind::Put(internal::Put { records: vec![deleted.encode_to_vec().into()] })
}

/// Writes a value into a record, if there is one.
pub fn patch(key: &Key, value: &str) -> Kind {
    let record = record(key, Some(session(value, 0)));
    Kind::Patch(internal::Patch { records: vec![record.encode_to_vec().into()], paths: vec!["user_id".into()] })
}

/// Takes, keeps or gives up a lease.
pub fn lease(name: &str, id: &str, ttl_nanos: i64) -> Kind {
    Kind::Lease(internal::Lease { name: name.into(), id: id.into(), ttl_nanos })
}

pub fn key_of(record: &Record) -> Key {
    (record.r#type.clone(), record.id.clone())
}

/// The value in a record.
pub fn value_of(record: &Record) -> Option<String> {
    let session = Session::decode(Bytes::from(record.data.clone()?.value)).ok()?;
    Some(session.user_id)
}
