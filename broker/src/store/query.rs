//! Answers queries: by index where one helps, else by a scan.

use databroker_proto::EncodedRecord;

use super::filter::Filter;

/// A query as the edge understood it.
#[derive(Clone, Debug)]
pub struct Query {
    /// `""`: all types.
    pub record_type: String,
    /// Free text, any case; `""` matches everything.
    pub text: String,
    /// Absent: every record of the type.
    pub filter: Option<Filter>,
    /// How many matches to leave out at the start.
    pub offset: u64,
    /// How many to return at most. 0 returns none.
    pub limit: u64,
}

/// What a query found, in (type, id) order.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The requested page.
    pub records: Vec<EncodedRecord>,
    /// How many match in all.
    pub total_count: u64,
}
