//! The one place where what went wrong becomes a gRPC status: codes and texts are those clients of the interface know.
//!
//! Not here: logging it (`calls`).

use std::collections::HashMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use tonic::{Code, Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    node::{self, route::Rejection},
    store::{
        self,
        command::{Reason, Rejected},
        filter,
        keyspace::NAME_BYTES_MAX,
        wire,
    },
};

/// The domain of machine-readable reasons.
const DOMAIN: &str = "pomerium.com";

/// Why a request is not answered as asked.
#[derive(Debug)]
pub(super) enum Error {
    /// The request carries no token.
    NoToken,
    /// The token proves nothing.
    BadToken,
    /// AcquireLease: somebody else holds it.
    LeaseTaken,
    /// RenewLease: somebody else holds it.
    LeaseLost,
    /// Get: there is none.
    NoRecord,
    /// GetOptions: none are set.
    NoOptions,
    /// Options belong to a type, and none was given.
    NoOptionsType,
    /// Query: the filter cannot be understood.
    BadFilter(filter::Error),
    /// Query: the named number is below zero.
    Negative(&'static str),
    /// Put, Patch: the record at this place in the request cannot be stored.
    BadRecord(usize, wire::Error),
    /// The stream belongs to records that were cleared, or to another server.
    ServerVersion,
    /// The changes after the stream's position are no longer kept.
    RecordVersion,
    /// The client did not read its stream, and what the stream would have sent is gone.
    Stalled,
    /// The broker is stopping.
    Closing,
    /// The client's deadline has passed.
    TooLate,
    /// Sync, SyncLatest: no record can have a type of so many bytes.
    TypeTooLong(usize),
    /// Registry: the request names more kinds than this.
    TooManyKinds(usize),
    /// As many streams as allowed are open.
    TooManyStreams,
    /// The request is for a node of another role.
    OtherNode(Rejection),
    /// The requests on their way in leave no room for this one.
    IntakeFull,
    /// The large answers that are not taken by their clients yet leave no room for this one.
    OutflowFull,
    /// The client did not read a large answer, and what was left of it is gone.
    Unread,
    /// The store refused the command.
    Rejected(Rejected),
    /// The node could not place the request.
    Node(node::Error),
    /// The store could not be read.
    Store(store::Error),
    /// The thread that read the store was lost.
    ReadLost,
    /// The store's answer does not belong to the command.
    ForeignAnswer,
}

impl From<node::Error> for Error {
    fn from(error: node::Error) -> Self {
        Self::Node(error)
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl Error {
    /// As the end of an answer that has begun.
    pub(super) fn into_trailers(self) -> Frame<Bytes> {
        let (head, _) = Status::from(self).into_http::<Body>().into_parts();
        Frame::trailers(head.headers)
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let plain = |code, text: &str| Self::new(code, text);
        match error {
            Error::NoToken => plain(Code::Unauthenticated, "unauthenticated"),
            Error::BadToken => plain(Code::Unauthenticated, "invalid JWT"),
            Error::LeaseTaken => plain(Code::AlreadyExists, "lease is already taken"),
            Error::LeaseLost => plain(Code::AlreadyExists, "lease no longer held"),
            Error::NoRecord => plain(Code::NotFound, "record not found"),
            Error::NoOptions => plain(Code::NotFound, "no such options for databroker record"),
            Error::NoOptionsType => plain(Code::InvalidArgument, "options req type is empty"),
            Error::BadFilter(error) => plain(Code::InvalidArgument, &format!("invalid query filter: {error}")),
            Error::Negative(number) => plain(Code::InvalidArgument, &format!("{number} must not be negative")),
            Error::BadRecord(index, error) => plain(Code::InvalidArgument, &format!("invalid record {index}: {error}")),
            Error::ServerVersion => plain(Code::Aborted, "invalid server version"),
            Error::RecordVersion => plain(Code::Aborted, "invalid record version"),
            // Streams go on where they were, or begin again by themselves: ABORTED would make clients drop all they have.
            Error::Stalled => plain(Code::Unavailable, "the stream was not read for too long"),
            Error::Unread => plain(Code::Unavailable, "the answer was not read for too long"),
            // CANCELLED would stop some clients for ever.
            Error::Closing => plain(Code::Unavailable, "the server is shutting down"),
            Error::TooLate => plain(
                Code::DeadlineExceeded,
                "context deadline exceeded; if this was a write, it may still take effect",
            ),
            Error::TypeTooLong(bytes) => {
                plain(Code::InvalidArgument, &format!("the type has {bytes} bytes, more than {NAME_BYTES_MAX}"))
            }
            Error::TooManyKinds(max) => {
                plain(Code::InvalidArgument, &format!("a request may name {max} kinds of services at most"))
            }
            Error::TooManyStreams => plain(Code::ResourceExhausted, "too many streams are open"),
            Error::OtherNode(Rejection::NotLeader) => not_leader(),
            Error::OtherNode(Rejection::UnknownMode) => {
                with_reason(Code::InvalidArgument, "UNKNOWN_CLUSTER_REQUEST_MODE", "unknown cluster request mode")
            }
            Error::IntakeFull => plain(
                Code::ResourceExhausted,
                "too many large requests are being received: try again later, or send fewer records at once",
            ),
            Error::OutflowFull => plain(
                Code::ResourceExhausted,
                "too many large answers wait for their clients: try again later, or ask for less at once; if this was a \
                 write, it has taken effect",
            ),
            Error::Rejected(rejected) => refused(&rejected),
            Error::Node(error) => unplaced(&error),
            Error::Store(error @ store::Error::AnswerTooLarge) => plain(Code::ResourceExhausted, &error.to_string()),
            Error::Store(error) => plain(Code::Internal, &error.to_string()),
            Error::ReadLost => plain(Code::Internal, "reading the store was interrupted"),
            Error::ForeignAnswer => plain(Code::Internal, "the store's answer does not belong to the request"),
        }
    }
}

/// A message over the bound is refused by the decoder with OUT_OF_RANGE, which nothing else here answers with. Clients
/// know it as RESOURCE_EXHAUSTED.
pub(super) fn name_as_clients_know(headers: &mut HeaderMap) {
    let out_of_range = HeaderValue::from(Code::OutOfRange as i32);
    if headers.get(Status::GRPC_STATUS) == Some(&out_of_range) {
        headers.insert(Status::GRPC_STATUS, HeaderValue::from(Code::ResourceExhausted as i32));
    }
}

fn refused(rejected: &Rejected) -> Status {
    match rejected.reason() {
        Reason::NotInitialized => not_initialized(),
        Reason::InvalidRecord
        | Reason::InvalidMask
        | Reason::UnknownType
        | Reason::TypeMismatch
        | Reason::InvalidData => Status::new(Code::InvalidArgument, &rejected.detail),
        Reason::AlreadyInitialized => Status::new(Code::FailedPrecondition, &rejected.detail),
        Reason::Removed | Reason::Busy => Status::new(Code::Unavailable, &rejected.detail),
        // Neither is told to a request that was proposed once, by the node that still waits for it.
        Reason::Unspecified | Reason::Settled => Status::new(Code::Internal, &rejected.detail),
    }
}

/// All of these are UNAVAILABLE: any other code makes clients take a session they cannot look up for one that ended.
/// Only what needs a newer release is told so, for nobody who asks for that looks up sessions with it.
fn unplaced(error: &node::Error) -> Status {
    match error {
        node::Error::NotInitialized => not_initialized(),
        node::Error::NoLeader => with_reason(Code::Unavailable, "CLUSTER_HAS_NO_LEADER", "cluster has no leader"),
        node::Error::NotLeader => not_leader(),
        node::Error::ShuttingDown => Error::Closing.into(),
        node::Error::TooEarly { .. } => {
            with_reason(Code::FailedPrecondition, "CLUSTER_NOT_UPGRADED", &error.to_string())
        }
        node::Error::Full(full) => with_reason(Code::ResourceExhausted, "DISK_FULL", &full.to_string()),
        node::Error::Overloaded => with_reason(Code::Unavailable, "NODE_OVERLOADED", &error.to_string()),
        node::Error::Failed { .. } => with_reason(Code::Unavailable, "NODE_FAILED", &error.to_string()),
    }
}

fn not_leader() -> Status {
    let text = "request cannot be handled because the node is not the leader";
    with_reason(Code::FailedPrecondition, "NODE_IS_NOT_LEADER", text)
}

fn not_initialized() -> Status {
    with_reason(Code::Unavailable, "NOT_INITIALIZED", "not initialized")
}

fn with_reason(code: Code, reason: &str, text: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, format!("{reason}: {text}"), details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_texts_are_those_that_clients_know() {
        let failed = || node::Error::Failed { reason: "disk".into() };
        let mask = Rejected { reason: Reason::InvalidMask.into(), detail: "no such field".into() };
        for (error, code, text) in [
            (Error::NoToken, Code::Unauthenticated, "unauthenticated"),
            (Error::BadToken, Code::Unauthenticated, "invalid JWT"),
            (Error::LeaseTaken, Code::AlreadyExists, "lease is already taken"),
            (Error::LeaseLost, Code::AlreadyExists, "lease no longer held"),
            (Error::NoRecord, Code::NotFound, "record not found"),
            (Error::NoOptions, Code::NotFound, "no such options for databroker record"),
            (Error::NoOptionsType, Code::InvalidArgument, "options req type is empty"),
            (Error::ServerVersion, Code::Aborted, "invalid server version"),
            (Error::RecordVersion, Code::Aborted, "invalid record version"),
            (Error::Closing, Code::Unavailable, "the server is shutting down"),
            (Error::TooManyStreams, Code::ResourceExhausted, "too many streams are open"),
            (Error::Node(node::Error::ShuttingDown), Code::Unavailable, "the server is shutting down"),
            (Error::Node(failed()), Code::Unavailable, "NODE_FAILED: the node has failed: disk"),
            (Error::Stalled, Code::Unavailable, "the stream was not read for too long"),
            (Error::TypeTooLong(9000), Code::InvalidArgument, "the type has 9000 bytes, more than 8192"),
            (Error::Node(node::Error::NoLeader), Code::Unavailable, "CLUSTER_HAS_NO_LEADER: cluster has no leader"),
            (Error::Node(node::Error::NotInitialized), Code::Unavailable, "NOT_INITIALIZED: not initialized"),
            (Error::Rejected(mask), Code::InvalidArgument, "no such field"),
        ] {
            let status = Status::from(error);
            assert_eq!((status.code(), status.message()), (code, text));
        }
    }

    #[test]
    fn cluster_errors_carry_their_reason_for_programs() {
        let status = Status::from(Error::Node(node::Error::NoLeader));
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("CLUSTER_HAS_NO_LEADER", "pomerium.com"));
    }
}
