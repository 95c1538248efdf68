//! Replication as metrics: roles, logs, followers, clocks, requests that wait, stores on their way.
//!
//! Labels are few: names of members, of which a cluster has a handful. Not here: the numbers (`node::replication`).

use std::{fmt, time::Duration};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use super::SECONDS;
use crate::{
    node::{Node, Part, Status},
    raft::Direction,
};

/// What is noted as it happens.
#[derive(Debug)]
pub(super) struct Happened {
    fence_seconds: Histogram,
    sent: Transfers,
    received: Transfers,
}

#[derive(Debug, Default)]
struct Transfers {
    under_way: Gauge,
    bytes: Counter,
}

impl Default for Happened {
    fn default() -> Self {
        Self { fence_seconds: Histogram::new(SECONDS), sent: Transfers::default(), received: Transfers::default() }
    }
}

impl Happened {
    pub(super) fn fenced(&self, took: Duration) {
        self.fence_seconds.observe(took.as_secs_f64());
    }

    fn transfers(&self, direction: Direction) -> &Transfers {
        match direction {
            Direction::Sent => &self.sent,
            Direction::Received => &self.received,
        }
    }

    pub(super) fn transfer_began(&self, direction: Direction) {
        self.transfers(direction).under_way.inc();
    }

    pub(super) fn transfer_moved(&self, direction: Direction, bytes: usize) {
        self.transfers(direction).bytes.inc_by(bytes as u64);
    }

    pub(super) fn transfer_ended(&self, direction: Direction) {
        self.transfers(direction).under_way.dec();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let Self { fence_seconds, sent, received } = self;
        let help = "How long reads waited until this node had everything acknowledged before them, in seconds";
        registry.register("raft_fence_seconds", help, fence_seconds.clone());
        let help = "Stores under way to peers";
        registry.register("raft_snapshots_sending", help, sent.under_way.clone());
        let help = "Stores under way from peers";
        registry.register("raft_snapshots_receiving", help, received.under_way.clone());
        let help = "Rows of stores that were sent to peers";
        registry.register_with_unit("raft_snapshot_sent", help, Unit::Bytes, sent.bytes.clone());
        let help = "Rows of stores that came from peers";
        registry.register_with_unit("raft_snapshot_received", help, Unit::Bytes, received.bytes.clone());
    }
}

/// Writes what the node says of this moment.
pub(super) fn encode(node: &Node, status: &Status, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let now = node.replication();
    let mut gauge = |name: &str, help: &str, value: u64| {
        let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
    };
    gauge("raft_has_leader", "1 if this node knows who leads", now.has_leader.into())?;
    gauge("raft_term", "The current term", status.term)?;
    gauge("raft_voters", "Voting nodes", status.voters as u64)?;
    gauge("raft_log_index_last", "The last index in the log", status.last_log_index.unwrap_or_default())?;
    gauge("raft_log_index_committed", "The last committed index", status.committed_index.unwrap_or_default())?;
    gauge("raft_log_index_applied", "The last applied index", status.applied_index.unwrap_or_default())?;
    let synced = status.synced_index.unwrap_or_default();
    gauge("raft_log_index_synced", "The last index that the store has on the disk for certain", synced)?;
    gauge(
        "raft_log_index_purged",
        "The last index that is gone from the log",
        status.purged_index.unwrap_or_default(),
    )?;
    let help = "The command version that the cluster uses";
    gauge("raft_command_version", help, now.command_version.into())?;
    let help = "The newest command version that this build knows";
    gauge("raft_command_version_known", help, now.command_version_known.into())?;
    gauge("raft_requests", "Requests under way on this node that have to be logged", now.requests as u64)?;
    let help = "Requests that wait because nobody leads, or leadership is handed over";
    gauge("raft_requests_held", help, now.requests_held as u64)?;
    if let Some(reached) = now.shape_reached {
        let help = "On the leader: 1 if the voters are those that were asked for, and nothing is left to do";
        gauge("raft_shape_reached", help, reached.into())?;
    }
    let changes = ConstCounter::new(now.leader_changes);
    let help = "How often this node saw another leader, or the same in a new term";
    changes.encode(encoder.encode_descriptor("raft_leader_changes", help, None, changes.metric_type())?)?;
    seconds(encoder, "raft_quorum_ack_age", "On the leader: since a majority last answered it", now.quorum_ack_age)?;
    let help = "The longest that a write was held in the last change of leader that held one";
    seconds(encoder, "raft_failover_write_gap", help, now.write_gap)?;

    let kind = ConstGauge::new(0i64).metric_type();
    let mut roles = encoder.encode_descriptor("raft_role", "1 for what this node is in its cluster", None, kind)?;
    for part in Part::ALL {
        let is = ConstGauge::new(i64::from(part == now.part));
        is.encode(roles.encode_family(&[("role", part.name())])?)?;
    }
    let help = "On the leader: entries that a member is behind";
    let mut lags = encoder.encode_descriptor("raft_follower_lag_entries", help, None, kind)?;
    for (follower, lag) in &now.lag_entries {
        let lag = ConstGauge::new(i64::try_from(*lag).unwrap_or(i64::MAX));
        lag.encode(lags.encode_family(&[("follower", follower.as_str())])?)?;
    }
    let help = "How far the clock of another node is ahead of this one's; behind is below zero";
    let mut clocks = encoder.encode_descriptor("raft_peer_clock_ahead", help, Some(&Unit::Seconds), kind)?;
    for (peer, ahead) in &now.clocks_ahead_millis {
        let ahead = ConstGauge::new(*ahead as f64 / 1e3);
        ahead.encode(clocks.encode_family(&[("peer", peer.as_str())])?)?;
    }
    Ok(())
}

/// A length of time, where there is one.
fn seconds(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: Option<Duration>) -> fmt::Result {
    let Some(value) = value else { return Ok(()) };
    let gauge = ConstGauge::new(value.as_secs_f64());
    gauge.encode(encoder.encode_descriptor(name, help, Some(&Unit::Seconds), gauge.metric_type())?)
}
