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
    query::Query,
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
    // A look-up is over sooner than another thread could take it on; a scan may take seconds.
    let (snapshot, found) = if is_lookup(&query, &fenced) {
        reader.query(&query)?
    } else {
        edge.scans.read(move || reader.query(&query)).await?
    };
    let progress = snapshot.progress();
    Ok(QueryResponse {
        records: found.records,
        total_count: i64::try_from(found.total_count).unwrap_or(i64::MAX),
        server_version: progress.server_version,
        record_version: progress.latest_record_version,
    })
}

fn understand(request: QueryRequest) -> Result<Query, Error> {
    let filter = request.filter.as_ref().map(Filter::parse).transpose().map_err(Error::BadFilter)?;
    Ok(Query {
        record_type: request.r#type,
        text: text::lowercase(&request.query),
        filter,
        offset: request.offset.try_into().map_err(|_| Error::Negative("offset"))?,
        limit: request.limit.try_into().map_err(|_| Error::Negative("limit"))?,
    })
}

/// Waits until this node has the version, or long enough: a hint may come from before a Clear and never be reached.
async fn wait_for(edge: &Edge, version: u64) {
    let mut progress = edge.node.progress();
    let reached = progress.wait_for(|progress| progress.latest_record_version >= version);
    let _ = tokio::time::timeout(HINT_WAIT, reached).await;
}

/// Whether indexes bound what has to be read.
fn is_lookup(query: &Query, snapshot: &Snapshot) -> bool {
    let Some(filter) = &query.filter else { return false };
    let indexed = snapshot.options(&query.record_type).map(|options| options.indexable_fields).unwrap_or_default();
    query.text.is_empty() && is_bounded(filter, &indexed)
}

fn is_bounded(filter: &Filter, indexed: &[String]) -> bool {
    match filter {
        Filter::And(all) => all.iter().any(|filter| is_bounded(filter, indexed)),
        Filter::Or(any) => any.iter().all(|filter| is_bounded(filter, indexed)),
        Filter::Not(_) => false,
        Filter::Compare(comparison) => {
            comparison.operator == Operator::Equals
                && match &comparison.field {
                    Field::Id | Field::Cidr => true,
                    Field::Type => false,
                    Field::Path(path) => indexed.contains(&path.join(".")),
                }
        }
    }
}
