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
    filter::Filter,
    query::{Cost, Query, Stop},
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
    edge.snapshot(&metadata).await?;
    let reader = edge.node.reader().clone();
    let _gone = StopWhenGone(query.stop.clone());
    let (snapshot, found) = match reader.cost(&query)? {
        Cost::Point => reader.query(&query)?,
        Cost::Lookup => edge.lookups.read(move || reader.query(&query)).await?,
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
