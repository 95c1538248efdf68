//! What the options of a type mean for its records, and the options every store starts with.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use bytes::Bytes;
use databroker_proto::{TYPE_URL_PREFIX, databroker::Options};
use prost::Message as _;

/// The options of one type, read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TypeRules {
    /// As the client gave them.
    pub options: Options,
    /// Indexed field paths, each once, sorted.
    pub fields: Vec<String>,
    /// How long a record lives after its last change, in nanoseconds; only positive ones count.
    pub ttl_nanos: Option<u64>,
}

impl TypeRules {
    /// Reads encoded options.
    pub fn decode(bytes: Bytes) -> Result<Self, prost::DecodeError> {
        Options::decode(bytes).map(Self::from)
    }

    /// Whether records of the type are also kept by age: a capacity or a ttl must find the oldest.
    pub fn by_age(&self) -> bool {
        self.options.capacity.is_some() || self.ttl_nanos.is_some()
    }
}

impl From<Options> for TypeRules {
    fn from(options: Options) -> Self {
        let mut fields = options.indexable_fields.clone();
        fields.sort_unstable();
        fields.dedup();
        let ttl_nanos = options.ttl.as_ref().and_then(|ttl| {
            let nanos = i128::from(ttl.seconds) * 1_000_000_000 + i128::from(ttl.nanos);
            (nanos > 0).then(|| u64::try_from(nanos).unwrap_or(u64::MAX))
        });
        Self { options, fields, ttl_nanos }
    }
}

/// The rules of all types that have options. Cloning is cheap; readers keep the ones of their snapshot.
#[derive(Clone, Debug, Default)]
pub struct Rules(Arc<BTreeMap<Bytes, Arc<TypeRules>>>);

impl Rules {
    /// The rules of one type.
    pub fn get(&self, record_type: &[u8]) -> Option<&Arc<TypeRules>> {
        self.0.get(record_type)
    }

    /// All of them, in type order, but beginning after this type.
    pub fn iter_after(&self, record_type: &Bytes) -> impl Iterator<Item = (&Bytes, &Arc<TypeRules>)> {
        let after = self.0.range::<Bytes, _>((Bound::Excluded(record_type), Bound::Unbounded));
        after.chain(self.0.range::<Bytes, _>(..=record_type))
    }

    pub(in super::super) fn insert(&mut self, record_type: Bytes, rules: TypeRules) {
        Arc::make_mut(&mut self.0).insert(record_type, Arc::new(rules));
    }

    pub(super) fn remove(&mut self, record_type: &[u8]) {
        Arc::make_mut(&mut self.0).remove(record_type);
    }
}

/// The options a store begins with, and returns to at Clear.
pub(super) fn defaults() -> Vec<(String, Options)> {
    const QUARTER_HOUR: i64 = 15 * 60;
    let entry = |name: &str, capacity: Option<u64>, fields: &[&str], ttl: Option<i64>| {
        let options = Options {
            capacity,
            indexable_fields: fields.iter().map(|field| (*field).to_owned()).collect(),
            ttl: ttl.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        };
        (format!("{TYPE_URL_PREFIX}{name}"), options)
    };
    vec![
        entry("session.SessionBindingRequest", Some(50_000), &["key"], Some(QUARTER_HOUR)),
        entry("session.SessionBinding", None, &["session_id", "user_id"], None),
        entry("session.IdentityBinding", None, &["user_id"], None),
        entry("oauth21.UpstreamMCPToken", None, &["user_id", "route_id"], None),
        entry("oauth21.PendingUpstreamAuth", None, &["state_id"], Some(QUARTER_HOUR)),
    ]
}
