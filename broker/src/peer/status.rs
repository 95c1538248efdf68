//! What errors between members look like as gRPC statuses, in both directions. The only place that knows.

use std::error::Error as _;

use tonic::{Code, Status};

use super::{AdminError, BrokenOff, Refused};
use crate::raft::transport::CallError;

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let code = match refused {
            Refused::OtherCluster { .. } | Refused::OtherNode { .. } | Refused::Unable { .. } => {
                Code::FailedPrecondition
            }
            Refused::OtherName { .. } => Code::PermissionDenied,
            Refused::Unknown => Code::Unimplemented,
            Refused::Malformed { .. } => Code::InvalidArgument,
            Refused::Closing => Code::Unavailable,
        };
        Self::new(code, refused.to_string())
    }
}

impl From<AdminError> for Status {
    fn from(error: AdminError) -> Self {
        let code = match error {
            AdminError::NotInitialized | AdminError::AlreadyInitialized { .. } | AdminError::Unable { .. } => {
                Code::FailedPrecondition
            }
            AdminError::Invalid { .. } => Code::InvalidArgument,
            AdminError::NoLeader | AdminError::Closing => Code::Unavailable,
            AdminError::Failed { .. } => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

impl From<Status> for BrokenOff {
    fn from(status: Status) -> Self {
        Self { reason: status.message().to_owned() }
    }
}

/// The caller is known, but may not do that.
pub(super) fn forbidden(who: &str) -> Status {
    Status::new(Code::PermissionDenied, format!("{who} may not call this"))
}

/// What a status that came from `peer`, or from the connection to it, means.
pub(super) fn call_error(peer: String, status: &Status) -> CallError {
    let reason = match status.source() {
        Some(source) => innermost(source),
        None => status.message().to_owned(),
    };
    match status.code() {
        Code::DeadlineExceeded => CallError::TimedOut { peer },
        Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::Unauthenticated
        | Code::Unimplemented
            if status.source().is_none() =>
        {
            CallError::Refused { peer, reason }
        }
        _ => CallError::Unreachable { peer, reason },
    }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    // Bounded because a chain of causes may in theory be a ring.
    for _ in 0..16 {
        let Some(cause) = error.source() else { break };
        error = cause;
    }
    error.to_string()
}
