//! What a filter takes to answer: which of its conditions an index answers, and what must be looked up in each record.
//!
//! Not here: reading the records, and what of them is returned.

use std::{cell::OnceCell, collections::HashSet, sync::Arc};

use bytes::Bytes;
use ipnet::IpNet;

use super::{
    super::{
        Error,
        apply::TypeRules,
        cidr::cidr_of,
        filter::{Comparison, Field, Filter, Operator, Subject},
        inspect::Descriptors,
        keyspace::{INDEXED_VALUE_BYTES_MAX, Keyspace, records as keys},
        snapshot::Snapshot,
    },
    CidrHits, Key, Keys, Query,
};

/// How many keys a plan holds, whatever they are from (indexes, or an id times the types): some tens of megabytes, a few
/// times while they are put together. A value with more of them is looked up in each record instead, and no longer
/// bounds which are read: so many would be read one by one that reading the type in order takes about as long.
pub(super) const KEYS_MAX: usize = 100_000;

/// What answering a query takes, as far as its form tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cost {
    /// A few records by id or address: over sooner than another thread could take it on.
    Point,
    /// As many records as an index has under a value, or a page.
    Lookup,
    /// Every record of the type.
    Scan,
}

/// How many records make a [`Cost::Point`] at most.
pub(super) const POINTS_MAX: usize = 16;

/// A page that begins further back is found by reading all that is before it.
const OFFSET_MAX: u64 = 10_000;

/// More records than make a point.
const MANY: usize = POINTS_MAX + 1;

impl Query {
    /// What answering takes. `hits` are from [`CidrHits::look_up_points`].
    pub(in super::super) fn cost(&self, snapshot: &Snapshot, hits: &CidrHits) -> Result<Cost, Error> {
        let Some(filter) = &self.filter else {
            let is_page = self.text.is_empty() && self.offset <= OFFSET_MAX;
            return Ok(if is_page { Cost::Lookup } else { Cost::Scan });
        };
        if !self.text.is_empty() {
            return Ok(Cost::Scan);
        }
        let types = if self.record_type.is_empty() { snapshot.type_names().take(MANY).count() } else { 1 };
        Ok(match (Estimate { snapshot, record_type: &self.record_type, types, hits }).of(filter) {
            (Cost::Point, points) if points > POINTS_MAX => Cost::Lookup,
            (cost, _) => cost,
        })
    }
}

/// What is known beforehand of what a filter finds.
struct Estimate<'a> {
    snapshot: &'a Snapshot,
    record_type: &'a str,
    /// How many types there are for an id, [`MANY`] at most.
    types: usize,
    hits: &'a CidrHits,
}

impl Estimate<'_> {
    /// The cost, and the number of keys that the plan will hold: all parts of a filter are planned, whichever of them
    /// bounds what is read.
    fn of(&self, filter: &Filter) -> (Cost, usize) {
        let each = |filters: &[Filter]| -> (Vec<Cost>, usize) {
            let costs: Vec<(Cost, usize)> = filters.iter().map(|filter| self.of(filter)).collect();
            (costs.iter().map(|(cost, _)| *cost).collect(), costs.iter().map(|(_, points)| points).sum())
        };
        match filter {
            // The cheapest condition bounds what has to be read.
            Filter::And(all) => {
                let (costs, points) = each(all);
                (costs.into_iter().min().unwrap_or(Cost::Point), points)
            }
            Filter::Or(any) => {
                let (costs, points) = each(any);
                (costs.into_iter().max().unwrap_or(Cost::Point), points)
            }
            Filter::Not(child) => (Cost::Scan, self.of(child).1),
            Filter::Compare(comparison) => match Access::to(self.snapshot, self.record_type, comparison) {
                Access::Nothing => (Cost::Point, 1),
                Access::Id(_) => (Cost::Point, self.types.max(1)),
                Access::Address(value) => (Cost::Point, self.around(value)),
                Access::Index(_) => (Cost::Lookup, MANY),
                Access::Unfinished(_) | Access::Record => (Cost::Scan, 1),
            },
        }
    }

    fn around(&self, value: &str) -> usize {
        let Some(network) = self.hits.network(value) else { return 1 };
        self.hits.records(network).map_or(MANY, |keys| keys.len().max(1))
    }
}

/// How a comparison is answered: its form and the type's options tell.
enum Access<'a> {
    /// It matches nothing.
    Nothing,
    Id(&'a str),
    Address(&'a str),
    Index(Indexed<'a>),
    /// The index is not complete yet: what it is to have of a record is seen in the record.
    Unfinished(Indexed<'a>),
    Record,
}

impl<'a> Access<'a> {
    fn to(snapshot: &Snapshot, record_type: &'a str, comparison: &'a Comparison) -> Self {
        match (&comparison.field, comparison.operator, comparison.value.as_text()) {
            (Field::Cidr, Operator::Equals, Some(value)) => Self::Address(value),
            (Field::Cidr, ..) => Self::Nothing,
            (Field::Id, Operator::Equals, Some(value)) => Self::Id(value),
            (Field::Path(path), Operator::Equals, Some(value)) => {
                match Indexed::find(snapshot, record_type, path, value) {
                    None => Self::Record,
                    Some(indexed) if indexed.is_complete(snapshot) => Self::Index(indexed),
                    Some(indexed) => Self::Unfinished(indexed),
                }
            }
            _ => Self::Record,
        }
    }
}

/// A value of an indexed field.
pub(super) struct Indexed<'a> {
    record_type: &'a str,
    rules: Arc<TypeRules>,
    /// Which of the type's indexed fields.
    nth: usize,
    value: &'a str,
}

impl<'a> Indexed<'a> {
    fn find(snapshot: &Snapshot, record_type: &'a str, path: &[String], value: &'a str) -> Option<Self> {
        let (rules, path) = (snapshot.rules().get(record_type.as_bytes())?, path.join("."));
        let nth = rules.fields.iter().position(|field| *field == path)?;
        let found = Self { record_type, rules: rules.clone(), nth, value };
        (value.len() <= INDEXED_VALUE_BYTES_MAX).then_some(found)
    }

    fn field(&self) -> &str {
        self.rules.fields.get(self.nth).map_or("", String::as_str)
    }

    fn is_complete(&self, snapshot: &Snapshot) -> bool {
        snapshot.is_indexed_by_field(self.record_type.as_bytes(), self.field())
    }

    /// What the index has under the value, in order.
    fn keys<'s>(&self, snapshot: &'s Snapshot) -> impl Iterator<Item = Result<Key, Error>> + use<'s> {
        let type_bytes = Bytes::copy_from_slice(self.record_type.as_bytes());
        let (of_type, value) = (self.record_type.as_bytes(), self.value.as_bytes());
        let bounds = keys::field_value(snapshot.epoch(), of_type, self.field(), value);
        snapshot.view().range(Keyspace::FieldIndex.space(), bounds).map(move |item| {
            let id = keys::read_field_id(&item?.0)
                .map_err(|error| Error::Damaged { what: format!("a field-index key: {error}") })?;
            Ok((type_bytes.clone(), id))
        })
    }

    /// Whether the index has this record under the value, or will have it.
    fn has(&self, candidate: &Candidate<'_>) -> bool {
        // All values of a plan belong to the same type: thousands of them need the record's only once.
        let values = candidate
            .indexed
            .get_or_init(|| candidate.descriptors.index_values(candidate.data, &self.rules.fields).unwrap_or_default());
        values.iter().any(|(nth, value)| *nth == self.nth && value == self.value)
    }
}

/// A record that may match.
pub(super) struct Candidate<'a> {
    key: &'a Key,
    subject: &'a Subject<'a>,
    data: &'a [u8],
    descriptors: &'a Descriptors,
    /// What the index has of it, once somebody asks.
    indexed: OnceCell<Vec<(usize, String)>>,
    /// The network it speaks of, once somebody asks.
    network: OnceCell<Option<IpNet>>,
}

impl<'a> Candidate<'a> {
    pub(super) fn new(key: &'a Key, subject: &'a Subject<'a>, data: &'a [u8], descriptors: &'a Descriptors) -> Self {
        Self { key, subject, data, descriptors, indexed: OnceCell::new(), network: OnceCell::new() }
    }

    fn network(&self) -> Option<IpNet> {
        *self.network.get_or_init(|| cidr_of(self.data))
    }
}

/// A filter with what the indexes say.
pub(super) enum Plan<'a> {
    And(Vec<Plan<'a>>),
    Or(Vec<Plan<'a>>),
    Not(Box<Plan<'a>>),
    /// Exactly these records match.
    Set(Keys),
    /// An index could tell, but with more keys than are held, or later.
    Value(Indexed<'a>),
    /// The address index could tell, but with more keys than are held.
    Network(IpNet),
    /// Only the record can tell.
    Test(&'a Filter),
}

impl<'a> Plan<'a> {
    /// Holds so many keys at most.
    pub(super) fn of(
        snapshot: &Snapshot,
        query: &'a Query,
        filter: &'a Filter,
        hits: &CidrHits,
        keys_max: usize,
    ) -> Result<Self, Error> {
        Planner { snapshot, query, hits, types: None, keys_left: keys_max }.plan(filter)
    }

    /// Keys that all matches are among, if the sets say so.
    pub(super) fn candidates(&self) -> Option<Keys> {
        match self {
            Self::Set(keys) => Some(keys.clone()),
            Self::And(children) => children.iter().filter_map(Self::candidates).reduce(|a, b| {
                let (fewer, more) = if a.len() < b.len() { (a, b) } else { (b, a) };
                fewer.into_iter().filter(|key| more.binary_search(key).is_ok()).collect()
            }),
            Self::Or(children) => {
                let mut all: Keys = children.iter().map(Self::candidates).collect::<Option<Vec<Keys>>>()?.concat();
                all.sort_unstable();
                all.dedup();
                Some(all)
            }
            Self::Not(_) | Self::Value(_) | Self::Network(_) | Self::Test(_) => None,
        }
    }

    pub(super) fn matches(&self, candidate: &Candidate<'_>) -> bool {
        match self {
            Self::And(children) => children.iter().all(|child| child.matches(candidate)),
            Self::Or(children) => children.iter().any(|child| child.matches(candidate)),
            Self::Not(child) => !child.matches(candidate),
            Self::Set(keys) => keys.binary_search(candidate.key).is_ok(),
            Self::Value(indexed) => indexed.has(candidate),
            Self::Network(network) => candidate.network() == Some(*network),
            Self::Test(filter) => filter.matches(candidate.subject),
        }
    }
}

/// The keys of a filter that one index answers alone. All are of live records: an index has no others.
pub(super) fn exact_keys<'s>(
    snapshot: &'s Snapshot,
    record_type: &str,
    filter: &Filter,
    hits: &'s CidrHits,
) -> Option<Box<dyn Iterator<Item = Result<Key, Error>> + 's>> {
    let Filter::Compare(comparison) = filter else { return None };
    match Access::to(snapshot, record_type, comparison) {
        Access::Nothing => Some(Box::new(std::iter::empty())),
        Access::Address(value) => match hits.network(value) {
            None => Some(Box::new(std::iter::empty())),
            Some(network) => Some(Box::new(hits.records(network)?.iter().cloned().map(Ok))),
        },
        Access::Index(indexed) => Some(Box::new(indexed.keys(snapshot))),
        // An id may be anybody's.
        Access::Id(_) | Access::Unfinished(_) | Access::Record => None,
    }
}

struct Planner<'a, 's> {
    snapshot: &'s Snapshot,
    query: &'a Query,
    hits: &'s CidrHits,
    /// The types an id may be of, once they were read; more than may be held are not all here.
    types: Option<Arc<[Bytes]>>,
    /// How many keys may still be held.
    keys_left: usize,
}

impl<'a> Planner<'a, '_> {
    fn plan(&mut self, filter: &'a Filter) -> Result<Plan<'a>, Error> {
        self.query.stop.check()?;
        Ok(match filter {
            // Nothing asked is nothing found.
            Filter::And(children) | Filter::Or(children) if children.is_empty() => Plan::Set(Keys::new()),
            Filter::And(children) => Plan::And(self.each(children)?),
            Filter::Or(children) => Plan::Or(self.each(children)?),
            Filter::Not(child) => Plan::Not(Box::new(self.plan(child)?)),
            Filter::Compare(comparison) => match Access::to(self.snapshot, &self.query.record_type, comparison) {
                Access::Nothing => Plan::Set(Keys::new()),
                Access::Address(value) => self.around(value),
                Access::Id(id) => self.with_id(id)?.map_or(Plan::Test(filter), Plan::Set),
                Access::Index(indexed) => self.look_up(indexed)?,
                Access::Unfinished(indexed) => Plan::Value(indexed),
                Access::Record => Plan::Test(filter),
            },
        })
    }

    /// A condition that stands there again decides nothing more, and its keys would be held once more. So does another
    /// address of the same network.
    fn each(&mut self, children: &'a [Filter]) -> Result<Vec<Plan<'a>>, Error> {
        let (mut seen, mut networks) = (HashSet::new(), HashSet::new());
        let hits = self.hits;
        let mut is_new = |child: &'a Filter| match network_of(child, hits) {
            Some(network) => networks.insert(network),
            None => seen.insert(child),
        };
        children.iter().filter(|child| is_new(child)).map(|child| self.plan(child)).collect()
    }

    /// Takes room for so many keys, if there is.
    fn charge(&mut self, keys: usize) -> bool {
        let left = self.keys_left.checked_sub(keys);
        self.keys_left = left.unwrap_or(self.keys_left);
        left.is_some()
    }

    fn around(&mut self, value: &str) -> Plan<'a> {
        let Some(network) = self.hits.network(value) else { return Plan::Set(Keys::new()) };
        match self.hits.records(network) {
            Some(keys) if self.charge(keys.len()) => Plan::Set(keys.clone()),
            _ => Plan::Network(network),
        }
    }

    /// The id in every type that is asked for, if those are not too many.
    fn with_id(&mut self, id: &str) -> Result<Option<Keys>, Error> {
        let types = self.types()?;
        let id = Bytes::copy_from_slice(id.as_bytes());
        let keys = || types.iter().map(|record_type| (record_type.clone(), id.clone())).collect();
        Ok(self.charge(types.len()).then(keys))
    }

    fn types(&mut self) -> Result<Arc<[Bytes]>, Error> {
        if let Some(types) = &self.types {
            return Ok(types.clone());
        }
        let record_type = &self.query.record_type;
        let types: Arc<[Bytes]> = if record_type.is_empty() {
            // One more than may be held is enough to know that they are too many, now and later.
            self.snapshot.type_names().take(self.keys_left.saturating_add(1)).collect::<Result<_, _>>()?
        } else {
            [Bytes::copy_from_slice(record_type.as_bytes())].into()
        };
        self.types = Some(types.clone());
        Ok(types)
    }

    fn look_up(&mut self, indexed: Indexed<'a>) -> Result<Plan<'a>, Error> {
        let most = self.keys_left.saturating_add(1);
        let keys: Keys = indexed.keys(self.snapshot).take(most).collect::<Result<_, _>>()?;
        Ok(if self.charge(keys.len()) { Plan::Set(keys) } else { Plan::Value(indexed) })
    }
}

/// The network that a condition is about, if it asks for an address that is in one.
fn network_of(filter: &Filter, hits: &CidrHits) -> Option<IpNet> {
    match filter {
        Filter::Compare(Comparison { field: Field::Cidr, operator: Operator::Equals, value }) => {
            hits.network(value.as_text()?)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use databroker_proto::{databroker, internal};
    use prost::Message as _;
    use serde_json::{Value, json};

    use super::{
        super::super::{command::Kind, limits_tests::Log, samples::filter},
        *,
    };

    #[test]
    fn only_what_reads_a_few_records_is_a_point() {
        let mut log = Log::new();
        let options = databroker::Options { indexable_fields: vec!["key".into()], ..Default::default() };
        let options = options.encode_to_vec().into();
        log.apply(Kind::SetOptions(internal::SetOptions { r#type: "t".into(), options }));
        let snapshot = log.store.reader().snapshot();
        let hits = CidrHits::default();
        let estimate = Estimate { snapshot: &snapshot, record_type: "t", types: 1, hits: &hits };
        let of = |json: Value| estimate.of(&filter(&json));
        assert_eq!(of(json!({"$or": [{"id": "x"}, {"$index": "x"}]})), (Cost::Point, 2));
        assert_eq!(of(json!({"key": "x"})), (Cost::Lookup, MANY));
        assert_eq!(of(json!({"other": "x"})), (Cost::Scan, 1));
        assert_eq!(of(json!({"key": "x".repeat(INDEXED_VALUE_BYTES_MAX + 1)})), (Cost::Scan, 1));
        assert_eq!(of(json!({"other": "x", "id": "y"})).0, Cost::Point);
        assert_eq!(of(json!({"$or": [{"other": "x"}, {"id": "y"}]})).0, Cost::Scan);
        assert_eq!(of(json!({"$not": {"id": "y"}})).0, Cost::Scan);
        let query = |count: usize| {
            let ids: Vec<Value> = (0..count).map(|id| json!({"id": id.to_string()})).collect();
            let filter = Some(filter(&json!({"$or": ids})));
            Query { record_type: "t".into(), filter, ..Query::default() }.cost(&snapshot, &hits).unwrap()
        };
        assert_eq!((query(POINTS_MAX), query(POINTS_MAX + 1)), (Cost::Point, Cost::Lookup));
    }
}
