//! Read fences: how a read knows that it will see everything acknowledged before it began.
//!
//! All reads that wait share one question to the leader. Those that come while it is under way wait for the next one,
//! for an index asked for before they began may be too low for them.

use std::time::Duration;

use databroker_proto::internal::{ReadIndexRequest, peer_reply, peer_request};
use tokio::sync::{mpsc, oneshot};

use super::outbound::Outbound;
use crate::raft::{NodeId, Refusal, Replica, Role, runtime::Runtime};

/// Reads that may wait for a fence. More are held up in [`super::Node::fence`], up to the hold time.
pub(super) const WAITING_MAX: usize = 4096;

/// How long to wait before the leader is asked again.
const RETRY: Duration = Duration::from_millis(10);

/// How long the leader may take to answer: it looks at its lease, and touches no disk.
const PATIENCE: Duration = Duration::from_secs(1);

/// Told when the store here has applied what the fence demands.
pub(super) type Waiter = oneshot::Sender<()>;

/// Asks on behalf of all that wait, until the node ends.
pub(super) async fn run<R: Runtime>(replica: Replica<R>, outbound: Outbound<R>, mut incoming: mpsc::Receiver<Waiter>) {
    let mut waiting = Vec::new();
    while incoming.recv_many(&mut waiting, WAITING_MAX).await > 0 {
        if reach(&replica, &outbound, &mut waiting).await.is_err() {
            return;
        }
        // A reader that gave up needs no word.
        for waiter in waiting.drain(..) {
            waiter.send(()).ok();
        }
    }
}

/// Returns once this node has applied all that was committed anywhere when it asked, or when nobody waits any longer.
async fn reach<R: Runtime>(
    replica: &Replica<R>,
    outbound: &Outbound<R>,
    waiting: &mut Vec<Waiter>,
) -> Result<(), Refusal> {
    while !waiting.is_empty() {
        let passed = tokio::select! {
            passed = pass(replica, outbound) => passed,
            () = abandoned(waiting) => return Ok(()),
        };
        match passed {
            Ok(()) => return Ok(()),
            Err(Refusal::Stopped) => return Err(Refusal::Stopped),
            Err(Refusal::NotLeader { .. } | Refusal::Busy | Refusal::Unknown) => tokio::time::sleep(RETRY).await,
        }
        waiting.retain(|waiter| !waiter.is_closed());
    }
    Ok(())
}

/// Asks once, and waits until this node has applied what it was told. That may never happen once another leads: what the
/// last leader named need not have been committed.
async fn pass<R: Runtime>(replica: &Replica<R>, outbound: &Outbound<R>) -> Result<(), Refusal> {
    let (mut role, mut progress) = (replica.role().clone(), replica.progress());
    let asked = office(&role.borrow());
    let index = read_index(replica, outbound).await?;
    tokio::select! {
        reached = progress.wait_for(|now| now.applied.is_some_and(|applied| applied.index >= index)) => {
            reached.map(drop).map_err(|_| Refusal::Stopped)
        }
        moved = role.wait_for(|role| office(role) != asked) => {
            Err(if moved.is_ok() { Refusal::Unknown } else { Refusal::Stopped })
        }
    }
}

/// Who leads, and since when.
fn office(role: &Role) -> (u64, Option<NodeId>) {
    (role.term, role.leader)
}

/// Returns once nobody waits any longer.
async fn abandoned(waiting: &mut [Waiter]) {
    for waiter in waiting {
        waiter.closed().await;
    }
}

/// This node's own word if it leads, else the leader's.
async fn read_index<R: Runtime>(replica: &Replica<R>, outbound: &Outbound<R>) -> Result<u64, Refusal> {
    let Some(leader) = outbound.leader_elsewhere() else { return replica.read_index().await };
    let kind = peer_request::Kind::ReadIndex(ReadIndexRequest {});
    match outbound.ask_leader(leader, kind, PATIENCE).await? {
        peer_reply::Kind::ReadIndex(reply) => Ok(reply.index),
        _ => Err(Refusal::Unknown),
    }
}
