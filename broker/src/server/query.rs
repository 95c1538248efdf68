//! The Query request: from the wire to the store's query, and back.
//!
//! Not here: how a query is answered (`store::query`).

use std::time::Duration;

use databroker_proto::databroker::{QueryRequest, QueryResponse};
use tonic::Request;

use super::{
    edge::{Edge, reads_locally},
    status::Error,
};
use crate::store::{
    Snapshot,
    filter::{Field, Filter, Operator},
    query::{Query, Stop},
    text,
};

/// How long a local read waits for the record version that the client has seen elsewhere.
const HINT_WAIT: Duration = Duration::from_millis(100);

/// Answers a query.
///
/// # Errors
/// When the request makes no sense, or the store cannot be read.
pub(super) async fn answer(edge: &Edge, request: Request<QueryRequest>) -> Result<QueryResponse, Error> {
    let (metadata, _, request) = request.into_parts();
    let hint = request.minimum_record_version_hint.unwrap_or_default();
    let query = understand(request)?;
    if reads_locally(&metadata) {
        wait_for(edge, hint).await;
    }
    let fenced = edge.snapshot(&metadata).await?;
    let reader = edge.node.reader().clone();
    let _gone = StopWhenGone(query.stop.clone());
    let (snapshot, found) = match cost(&query, &fenced) {
        Cost::Point => reader.query(&query)?,
        Cost::Lookup => edge.chunks.read(move || reader.query(&query)).await?,
        Cost::Scan => edge.scans.read(move || reader.query(&query)).await?,
    };
    let progress = snapshot.progress();
    Ok(QueryResponse {
        records: found.records,
        total_count: i64::try_from(found.total_count).unwrap_or(i64::MAX),
        server_version: progress.server_version,
        record_version: progress.latest_record_version,
    })
}

/// Stops the query when its call is over, by an answer or because the client has gone.
struct StopWhenGone(Stop);

impl Drop for StopWhenGone {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn understand(request: QueryRequest) -> Result<Query, Error> {
    let filter = request.filter.as_ref().map(Filter::parse).transpose().map_err(Error::BadFilter)?;
    Ok(Query {
        record_type: request.r#type,
        text: text::lowercase(&request.query),
        filter,
        offset: request.offset.try_into().map_err(|_| Error::Negative("offset"))?,
        limit: request.limit.try_into().map_err(|_| Error::Negative("limit"))?,
        stop: Stop::default(),
    })
}

/// Waits until this node has the version, or long enough: a hint may come from before a Clear and never be reached.
async fn wait_for(edge: &Edge, version: u64) {
    let mut progress = edge.node.progress();
    let reached = progress.wait_for(|progress| progress.latest_record_version >= version);
    let _ = tokio::time::timeout(HINT_WAIT, reached).await;
}

/// What answering a query takes, as far as its form tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cost {
    /// A few records by id or address: over sooner than another thread could take it on.
    Point,
    /// As many records as an index has under a value, or a page.
    Lookup,
    /// Every record of the type.
    Scan,
}

/// How many ids and addresses are looked up in place.
const POINTS_MAX: usize = 16;

fn cost(query: &Query, snapshot: &Snapshot) -> Cost {
    let indexed = snapshot.options(&query.record_type).map(|options| options.indexable_fields).unwrap_or_default();
    match &query.filter {
        _ if !query.text.is_empty() => Cost::Scan,
        None => Cost::Lookup,
        Some(filter) => match cost_of(filter, &indexed) {
            (Cost::Point, points) if points > POINTS_MAX => Cost::Lookup,
            (cost, _) => cost,
        },
    }
}

/// The cost, and the number of values that are looked up.
fn cost_of(filter: &Filter, indexed: &[String]) -> (Cost, usize) {
    let each = |filters: &[Filter]| filters.iter().map(|filter| cost_of(filter, indexed)).collect::<Vec<_>>();
    let points = |costs: &[(Cost, usize)]| costs.iter().map(|(_, points)| points).sum();
    match filter {
        // The cheapest condition bounds what has to be read.
        Filter::And(all) => {
            let costs = each(all);
            (costs.iter().map(|(cost, _)| *cost).min().unwrap_or(Cost::Point), points(&costs))
        }
        Filter::Or(any) => {
            let costs = each(any);
            (costs.iter().map(|(cost, _)| *cost).max().unwrap_or(Cost::Point), points(&costs))
        }
        Filter::Compare(comparison) if comparison.operator == Operator::Equals => match &comparison.field {
            Field::Id | Field::Cidr => (Cost::Point, 1),
            Field::Path(path) if indexed.contains(&path.join(".")) => (Cost::Lookup, 1),
            Field::Path(_) | Field::Type => (Cost::Scan, 1),
        },
        Filter::Not(_) | Filter::Compare(_) => (Cost::Scan, 1),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn cost_of_json(filter: &Value) -> (Cost, usize) {
        fn value(json: &Value) -> prost_types::Value {
            use prost_types::value::Kind;
            prost_types::Value {
                kind: Some(match json {
                    Value::Object(_) => Kind::StructValue(fields(json)),
                    Value::Array(items) => {
                        Kind::ListValue(prost_types::ListValue { values: items.iter().map(value).collect() })
                    }
                    other => Kind::StringValue(other.as_str().unwrap_or_default().to_owned()),
                }),
            }
        }
        fn fields(json: &Value) -> prost_types::Struct {
            let members = json.as_object().into_iter().flatten();
            prost_types::Struct { fields: members.map(|(key, json)| (key.clone(), value(json))).collect() }
        }
        cost_of(&Filter::parse(&fields(filter)).unwrap(), &["key".to_owned()])
    }

    #[test]
    fn only_what_reads_a_few_records_is_answered_in_place() {
        assert_eq!(cost_of_json(&json!({"$or": [{"id": "x"}, {"$index": "x"}]})), (Cost::Point, 2));
        assert_eq!(cost_of_json(&json!({"key": "x"})), (Cost::Lookup, 1));
        assert_eq!(cost_of_json(&json!({"other": "x"})), (Cost::Scan, 1));
        assert_eq!(cost_of_json(&json!({"other": "x", "id": "y"})).0, Cost::Point);
        assert_eq!(cost_of_json(&json!({"$or": [{"other": "x"}, {"id": "y"}]})).0, Cost::Scan);
        assert_eq!(cost_of_json(&json!({"$not": {"id": "y"}})).0, Cost::Scan);
    }
}
