//! A company's directory: many users and groups imported at once, then some of them changed under the eyes of followers.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message as _;
use tokio::time::Instant;

use super::{
    super::failure::Failure,
    drive::Outcome,
    fill::{batches, put_all},
    follow::{Followers, Ledger, versions},
    request::{USER_TYPE, directory_group, directory_user},
    wire::Lanes,
};

/// Puts in flight.
const IMPORTERS: usize = 4;

/// How long the followers may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sizes of a directory and of a change to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Directory {
    /// Users, of about 300 bytes each.
    pub(super) users: u64,
    /// Groups.
    pub(super) groups: u64,
    /// Users changed afterwards, one Put each.
    pub(super) changes: u64,
    /// Streams that follow them.
    pub(super) streams: usize,
}

/// What came of it.
pub(super) struct DirectoryOutcome {
    /// The import.
    pub(super) import: Outcome,
    /// The puts of the changes.
    pub(super) changes: Outcome,
    /// From the first change's departure until every stream had the last one; absent if that took too long.
    pub(super) seen_after: Option<Duration>,
    /// Streams that ended, and why the first did.
    pub(super) failures: (u64, Option<String>),
}

impl Directory {
    /// 300,000 users in 30,000 groups; 1,000 changes seen by the streams of one all-in-one pod.
    pub(super) fn of_a_large_company() -> Self {
        Self { users: 300_000, groups: 30_000, changes: 1000, streams: 14 }
    }

    /// Runs it.
    ///
    /// # Errors
    /// What the server answered.
    pub(super) async fn run(&self, lanes: &Lanes, server: Option<u32>) -> Result<DirectoryOutcome, Failure> {
        let import = put_all(lanes, self.import_requests().into_iter(), IMPORTERS, server).await?;
        let start = versions(lanes).await?;
        let ledger = Arc::new(Ledger::open(start.latest_record_version, 0));
        let followers = Followers::open(lanes, USER_TYPE, start.server_version, self.streams, ledger);
        let requests = self.change_requests();
        let began = Instant::now();
        let changes = put_all(lanes, requests.into_iter(), IMPORTERS, server).await?;
        let last = versions(lanes).await?.latest_record_version;
        let seen = followers.caught_up(last, PATIENCE).await;
        let seen_after = seen.then(|| began.elapsed());
        Ok(DirectoryOutcome { import, changes, seen_after, failures: followers.failures() })
    }

    fn import_requests(&self) -> Vec<(Bytes, u64)> {
        let groups = (0..self.groups).map(directory_group);
        let users = (0..self.users).map(|n| directory_user(n, self.groups, 0));
        let counted =
            |put: databroker_proto::databroker::PutRequest| (put.encode_to_vec().into(), put.records.len() as u64);
        batches(groups.chain(users)).into_iter().map(counted).collect()
    }

    fn change_requests(&self) -> Vec<(Bytes, u64)> {
        let change = |n| databroker_proto::databroker::PutRequest { records: vec![directory_user(n, self.groups, 1)] };
        (0..self.changes.min(self.users)).map(|n| (change(n).encode_to_vec().into(), 1)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_all_its_users_and_groups() {
        let directory = Directory { users: 5000, groups: 500, changes: 10_000, streams: 1 };
        let requests = directory.import_requests();
        assert_eq!(requests.iter().map(|(_, records)| records).sum::<u64>(), 5500);
        assert!(requests.iter().all(|(request, _)| request.len() <= 1 << 20));
        assert_eq!(directory.change_requests().len(), 5000);
    }
}
