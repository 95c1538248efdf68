//! Where a request is answered. Pure.

/// What this node is, as far as requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The only member: it ignores what the request says about clusters.
    Standalone,
    /// The leader of several.
    Leader,
    /// Another than the leader.
    Follower,
}

/// What a request's metadata `pomerium-cluster-request-mode` asks for; its last value counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestMode {
    /// Nothing: the freshest answer, from wherever.
    #[default]
    Default,
    /// What this node has, fresh or not.
    Local,
    /// Only the leader may answer.
    Leader,
    /// A value nobody knows.
    Unknown,
}

impl RequestMode {
    /// Reads a value of the metadata; `None` where there is none.
    pub fn parse(value: Option<&str>) -> Self {
        match value {
            None | Some("" | "default") => Self::Default,
            Some("local") => Self::Local,
            Some("leader") => Self::Leader,
            Some(_) => Self::Unknown,
        }
    }

    /// Whether a read must see everything acknowledged before it began.
    pub fn is_fenced(self) -> bool {
        self != Self::Local
    }
}

/// What a request does to the store. Options are read in every mode; streams read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads.
    Read,
    /// It changes something, leases included.
    Write,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Answered here.
    Local,
    /// Sent on to the leader.
    Leader,
    /// Refused.
    Reject(Rejection),
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// It wants the leader, or wants to write here, and this node does not lead.
    NotLeader,
    /// Its mode is unknown.
    UnknownMode,
}

/// Decides. Reads are answered wherever they arrive, for the fence makes them as fresh as at the leader.
pub fn route(role: Role, mode: RequestMode, access: Access) -> Route {
    match (role, mode, access) {
        // Nobody else could do better: what is asked for does not matter.
        (Role::Standalone | Role::Leader, _, _) => Route::Local,
        (Role::Follower, RequestMode::Unknown, _) => Route::Reject(Rejection::UnknownMode),
        (Role::Follower, RequestMode::Leader, _) | (Role::Follower, RequestMode::Local, Access::Write) => {
            Route::Reject(Rejection::NotLeader)
        }
        (Role::Follower, RequestMode::Default, Access::Write) => Route::Leader,
        (Role::Follower, RequestMode::Default | RequestMode::Local, Access::Read) => Route::Local,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_go_where_the_table_says() {
        use Access::{Read, Write};
        use RequestMode::{Default, Leader, Local, Unknown};
        let not_leader = Route::Reject(Rejection::NotLeader);
        let unknown = Route::Reject(Rejection::UnknownMode);
        let table = [
            (Default, Read, Route::Local, Route::Local, Route::Local),
            (Default, Write, Route::Local, Route::Local, Route::Leader),
            (Local, Read, Route::Local, Route::Local, Route::Local),
            (Local, Write, Route::Local, Route::Local, not_leader),
            (Leader, Read, Route::Local, Route::Local, not_leader),
            (Leader, Write, Route::Local, Route::Local, not_leader),
            (Unknown, Read, Route::Local, Route::Local, unknown),
            (Unknown, Write, Route::Local, Route::Local, unknown),
        ];
        for (mode, access, standalone, leader, follower) in table {
            assert_eq!(route(Role::Standalone, mode, access), standalone, "{mode:?} {access:?}");
            assert_eq!(route(Role::Leader, mode, access), leader, "{mode:?} {access:?}");
            assert_eq!(route(Role::Follower, mode, access), follower, "{mode:?} {access:?}");
        }
    }

    #[test]
    fn only_local_reads_need_no_fence() {
        let modes = [None, Some("default"), Some("local"), Some("leader"), Some("LOCAL")].map(RequestMode::parse);
        assert_eq!(modes.map(RequestMode::is_fenced), [true, true, false, true, true]);
        assert_eq!(modes[4], RequestMode::Unknown);
    }
}
