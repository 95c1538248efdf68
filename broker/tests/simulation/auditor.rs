//! Sits in each process and looks at everything its store publishes, as it is published.
//!
//! Not here: what is wrong about it (`judge`).

use std::sync::Arc;

use databroker::{node::Node, store::Snapshot};
use databroker_proto::EncodedRecord;
use prost::Message as _;

use crate::{runtime::Simulated, world::World};

/// Every so many positions the whole store is hashed and compared with other nodes'.
const HASH_EVERY: u64 = 64;

/// Entries that a log may hold (R12): what is kept, what was not synced yet, and what is written while an append to a
/// follower is under way, for until then the log is not purged.
const LOG_ENTRIES_MAX: u64 = 6000;

/// Watches a node for as long as it lives.
pub async fn watch(world: Arc<World>, host: usize, node: Node<Simulated>) {
    let who = format!("node-{host}");
    let (mut progress, reader) = (node.progress(), node.reader().clone());
    let mut last = reader.progress();
    world.judge.lock().follows(0, last.server_version);
    let mut seen = (last.server_version, last.latest_record_version);
    loop {
        let snapshot = reader.snapshot();
        let now = snapshot.progress();
        if now.applied.map(|applied| applied.index) < last.applied.map(|applied| applied.index) {
            world.violation("R2", format_args!("the store of {who} went back from {last:?} to {now:?}"));
        }
        if now.now_nanos < last.now_nanos {
            world.violation("R3", format_args!("the time of {who} ran back"));
        }
        if last.server_version != now.server_version {
            world.judge.lock().follows(last.server_version, now.server_version);
            seen = (now.server_version, 0);
        }
        look(&world, &who, &snapshot, &mut seen);
        let index = now.applied.map_or(0, |applied| applied.index);
        let hash = index.is_multiple_of(HASH_EVERY).then(|| snapshot.hash().unwrap());
        world.judge.lock().position(&who, now, hash);
        note_removed(&world, &snapshot);
        let status = node.status();
        let kept = status.last_log_index.unwrap_or(0).saturating_sub(status.purged_index.unwrap_or(0));
        if kept > LOG_ENTRIES_MAX {
            world.violation("R12", format_args!("the log of {who} holds {kept} entries"));
        }
        last = now;
        if progress.changed().await.is_err() {
            return;
        }
    }
}

/// Notes all changes after `seen`.
pub fn look(world: &World, who: &str, snapshot: &Snapshot, seen: &mut (u64, u64)) {
    loop {
        let changes = snapshot.changes("", seen.1).unwrap();
        let mut judge = world.judge.lock();
        for record in &changes.records {
            let version = version_of(record);
            judge.see(who, (changes.server_version, version), record.as_bytes());
        }
        seen.1 = seen.1.max(changes.position);
        if changes.complete {
            return;
        }
    }
}

fn note_removed(world: &World, snapshot: &Snapshot) {
    let term = snapshot.progress().applied.map_or(0, |applied| applied.term);
    let mut judge = world.judge.lock();
    for retired in &snapshot.cluster().retired {
        judge.removed(retired.node, term);
    }
}

/// The version of a record, which the store has written first.
pub fn version_of(record: &EncodedRecord) -> u64 {
    /// The rest is not needed.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Versioned {
        #[prost(uint64, tag = "1")]
        version: u64,
    }
    Versioned::decode(record.as_bytes().clone()).map_or(0, |versioned| versioned.version)
}
