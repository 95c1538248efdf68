//! Queries, and what the interface says they find: each record is held against the filter's JSON by itself.
//!
//! Nothing of it is the store's: neither how filters are read nor how paths are followed. The values at hand are few and
//! plain (`strategies`), so that here text is text and a number a number.

use std::{cmp::Ordering, net::IpAddr};

use databroker_proto::{Record, message_name};
use ipnet::IpNet;
use proptest::{option, prelude::*, sample::select};
use prost::Message as _;
use prost_reflect::{DynamicMessage, MapKey, ReflectMessage as _, Value};
use prost_types::Any;
use serde_json::{Value as Json, json};

use super::{data::opened, model::Model};
use crate::store::{
    query::Query,
    samples,
    strategies::{OPERATORS, TYPES, filter},
    text::lowercase,
};

/// A query, before the store has read it.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    record_type: &'static str,
    text: &'static str,
    filter: Option<Json>,
    offset: usize,
    limit: usize,
}

impl Ask {
    pub(super) fn query(&self) -> Query {
        Query {
            record_type: self.record_type.into(),
            text: lowercase(self.text),
            filter: self.filter.as_ref().map(samples::filter),
            offset: self.offset as u64,
            limit: self.limit as u64,
            ..Query::default()
        }
    }
}

pub(super) fn ask() -> impl Strategy<Value = Ask> {
    let record_type = prop_oneof![4 => select(TYPES.to_vec()), 2 => Just(""), 1 => Just("of no record")];
    let text = prop_oneof![5 => Just(""), 1 => select(vec!["a", "B", "10", "in no record"])];
    let page = prop_oneof![2 => Just((0, usize::MAX)), 1 => (0..4_usize, 0..4_usize)];
    (record_type, text, option::weighted(0.9, filter()), page)
        .prop_map(|(record_type, text, filter, (offset, limit))| Ask { record_type, text, filter, offset, limit })
}

/// Asked of every store, whatever else is: an entry that an index should no longer have, or not yet, shows at once.
pub(super) fn always() -> impl Iterator<Item = Ask> {
    let fields = [
        (TYPES[0], "string_field", ["", "a"]),
        (TYPES[1], "user_id", ["", "a"]),
        (TYPES[2], "fields.name.string_value", ["", "a"]),
        (TYPES[2], "$index", ["10.1.2.3", "10.9.9.9"]),
    ];
    fields.into_iter().flat_map(|(record_type, field, values)| {
        values.map(|value| Ask {
            record_type,
            text: "",
            filter: Some(json!({field: value})),
            offset: 0,
            limit: usize::MAX,
        })
    })
}

impl Model {
    /// What is found: the records of the page, and how many match in all.
    pub(super) fn query(&self, ask: &Ask) -> (Vec<Record>, u64) {
        let of_type = |record: &&Record| ask.record_type.is_empty() || record.r#type == ask.record_type;
        let candidates: Vec<_> = self.live.values().filter(of_type).map(Candidate::new).collect();
        let options = self.options.get(ask.record_type);
        let indexed = options.map_or(&[][..], |options| &options.indexable_fields[..]);
        let scan = Scan { ask, indexed, candidates: &candidates };
        let found: Vec<&Record> =
            candidates.iter().filter(|candidate| scan.finds(candidate)).map(|found| found.record).collect();
        let page = found.iter().skip(ask.offset).take(ask.limit).map(|record| (*record).clone());
        (page.collect(), found.len() as u64)
    }
}

/// A record as queries see it.
struct Candidate<'a> {
    record: &'a Record,
    /// The data under the names of its fields; `None` if it cannot be looked into.
    fields: Option<Json>,
    /// What data that is made of JSON stands for.
    json: Option<Json>,
    network: Option<IpNet>,
}

impl<'a> Candidate<'a> {
    fn new(record: &'a Record) -> Self {
        let data = opened(record.data.as_ref());
        let (fields, json) = (data.as_ref().map(fields_of), data.as_ref().and_then(json_of));
        Self { record, fields, json, network: network_of(record.data.as_ref()) }
    }

    /// What an index has: the text at the path, `""` if nothing is there, and nothing for what is no text.
    fn indexed(&self, path: &str) -> Option<String> {
        match at(self.fields.as_ref()?, path) {
            None => Some(String::new()),
            Some(Json::String(text)) => Some(text.clone()),
            Some(_) => None,
        }
    }

    /// What a scan sees: the value at the path, or the elements of the list.
    fn leaves(&self, path: &str) -> Vec<Json> {
        match [&self.fields, &self.json].into_iter().flatten().find_map(|json| at(json, path)) {
            None => Vec::new(),
            Some(Json::Array(elements)) => elements.clone(),
            Some(value) => vec![value.clone()],
        }
    }
}

/// A path leads through objects, and through nothing else.
fn at<'a>(json: &'a Json, path: &str) -> Option<&'a Json> {
    path.split('.').try_fold(json, |json, name| json.as_object()?.get(name))
}

/// What is populated, by field name. What has no text is an empty object.
fn fields_of(message: &DynamicMessage) -> Json {
    Json::Object(message.fields().map(|(field, value)| (field.name().to_owned(), json_value(value))).collect())
}

fn json_value(value: &Value) -> Json {
    match value {
        Value::Bool(value) => json!(value),
        Value::I64(number) => json!(number),
        Value::I32(number) | Value::EnumNumber(number) => json!(number),
        Value::F64(number) => json!(number),
        Value::String(text) => json!(text),
        Value::Message(message) => fields_of(message),
        Value::List(elements) => elements.iter().map(json_value).collect(),
        Value::Map(entries) => {
            let name = |key: &MapKey| key.as_str().unwrap_or_default().to_owned();
            Json::Object(entries.iter().map(|(key, value)| (name(key), json_value(value))).collect())
        }
        _ => json!({}),
    }
}

fn json_of(message: &DynamicMessage) -> Option<Json> {
    let is_json = matches!(message.descriptor().full_name(), "google.protobuf.Struct" | "google.protobuf.Value");
    is_json.then(|| serde_json::to_value(message).unwrap())
}

fn network_of(data: Option<&Any>) -> Option<IpNet> {
    let any = data?;
    if message_name(&any.type_url) == "google.protobuf.Any" {
        return network_of(Some(&Any::decode(&any.value[..]).ok()?));
    }
    let json = json_of(&opened(data)?)?;
    let network: IpNet = json["$index"]["cidr"].as_str()?.parse().ok()?;
    Some(network.trunc())
}

/// One query of the records of its type.
struct Scan<'a> {
    ask: &'a Ask,
    /// The fields that the type is indexed by.
    indexed: &'a [String],
    candidates: &'a [Candidate<'a>],
}

impl Scan<'_> {
    fn finds(&self, candidate: &Candidate<'_>) -> bool {
        let text = self.ask.text.to_lowercase();
        let has_text = text.is_empty() || candidate.fields.as_ref().is_some_and(|fields| holds(fields, &text));
        has_text && self.ask.filter.as_ref().is_none_or(|filter| self.keeps(candidate, &[], filter))
    }

    /// What stands at a path of the filter: members that must all fit, alternatives, or a value to equal.
    fn keeps(&self, candidate: &Candidate<'_>, path: &[&str], filter: &Json) -> bool {
        match filter {
            Json::Object(members) => {
                !members.is_empty() && members.iter().all(|(key, value)| self.fits(candidate, path, key, value))
            }
            Json::Array(alternatives) => alternatives.iter().any(|filter| self.keeps(candidate, path, filter)),
            value => self.compares(candidate, path, "=", value),
        }
    }

    fn fits(&self, candidate: &Candidate<'_>, path: &[&str], key: &str, value: &Json) -> bool {
        let keeps = |filter: &Json| self.keeps(candidate, path, filter);
        match key {
            "$and" => value.as_array().is_some_and(|all| !all.is_empty() && all.iter().all(keeps)),
            "$or" => value.as_array().is_some_and(|any| any.iter().any(keeps)),
            "$not" => !keeps(value),
            "$isAnyOf" if value.is_array() => keeps(value),
            _ if OPERATORS.contains(&key) => self.compares(candidate, path, key, value),
            _ => self.keeps(candidate, &[path, &[key]].concat(), value),
        }
    }

    fn compares(&self, candidate: &Candidate<'_>, path: &[&str], operator: &str, value: &Json) -> bool {
        let wanted = if value.is_null() { Some(String::new()) } else { text_of(value) };
        let equals = matches!(operator, "=" | "==" | "$eq" | "$equals" | "$is" | "$isAnyOf");
        let field = path.join(".");
        let leaves = match path {
            [] => return false,
            ["$index"] => {
                let network = wanted.filter(|_| equals).and_then(|wanted| self.smallest_around(&wanted));
                return network.is_some() && candidate.network == network;
            }
            ["id"] => vec![json!(candidate.record.id)],
            ["type"] => vec![json!(candidate.record.r#type)],
            _ if equals && self.indexed.contains(&field) => {
                return wanted.is_some() && candidate.indexed(&field) == wanted;
            }
            _ => candidate.leaves(&field),
        };
        are_as_wanted(&leaves, operator, wanted.as_deref())
    }

    /// The smallest network around an address or network that a record of the type speaks of.
    fn smallest_around(&self, value: &str) -> Option<IpNet> {
        let address = || value.parse::<IpAddr>().ok().map(IpNet::from);
        let sought = value.parse::<IpNet>().ok().or_else(address)?;
        let networks = self.candidates.iter().filter_map(|candidate| candidate.network);
        networks.filter(|network| network.contains(&sought)).max_by_key(IpNet::prefix_len)
    }
}

fn text_of(json: &Json) -> Option<String> {
    match json {
        Json::String(text) => Some(text.clone()),
        Json::Bool(value) => Some(value.to_string()),
        Json::Number(number) => Some(number.as_f64()?.to_string()),
        _ => None,
    }
}

fn is_empty(leaf: &Json) -> bool {
    leaf.is_null() || leaf.as_str() == Some("")
}

fn are_as_wanted(leaves: &[Json], operator: &str, wanted: Option<&str>) -> bool {
    if matches!(operator, "$isEmpty" | "$isNotEmpty") {
        // The value `false` turns it round.
        let empty = (operator == "$isEmpty") != (wanted == Some("false"));
        return leaves.iter().all(is_empty) == empty;
    }
    let Some(wanted) = wanted else { return false };
    let any = |test: &dyn Fn(&str) -> bool| leaves.iter().filter_map(text_of).any(|text| test(&text));
    let ordered = |how: fn(Ordering) -> bool| any(&|text| how(compared(text, wanted)));
    match operator {
        "!=" | "$doesNotEqual" => !any(&|text| text == wanted),
        ">" | "$after" => ordered(Ordering::is_gt),
        ">=" | "$onOrAfter" => ordered(Ordering::is_ge),
        "<" | "$before" => ordered(Ordering::is_lt),
        "<=" | "$onOrBefore" => ordered(Ordering::is_le),
        "$contains" => any(&|text| text.contains(wanted)),
        "$doesNotContain" => !any(&|text| text.contains(wanted)),
        "$startsWith" => any(&|text| text.starts_with(wanted)),
        "$endsWith" => any(&|text| text.ends_with(wanted)),
        _ => any(&|text| text == wanted),
    }
}

/// As numbers if both are, else byte by byte.
fn compared(text: &str, wanted: &str) -> Ordering {
    match (text.parse::<f64>(), wanted.parse::<f64>()) {
        (Ok(number), Ok(wanted)) => number.total_cmp(&wanted),
        _ => text.cmp(wanted),
    }
}

/// Whether a string in it, but for the names of members, has the text in any case.
fn holds(json: &Json, text: &str) -> bool {
    match json {
        Json::String(string) => string.to_lowercase().contains(text),
        Json::Array(elements) => elements.iter().any(|element| holds(element, text)),
        Json::Object(members) => members.values().any(|member| holds(member, text)),
        _ => false,
    }
}
