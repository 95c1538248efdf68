//! A leader that takes no more says so, and not that another leads.
//!
//! Not here: what may be forwarded (`node::forward`).

use databroker_proto::internal::{Command, ForwardRequest, Identity, peer_reply};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_room_is_busy_and_no_other_leader_is_looked_for() {
    let mut cluster = Cluster::of_none();
    let node = cluster.start("a", COMMAND_VERSION).await.unwrap();
    node.init(None).await.unwrap();
    let request = |patience_ms| {
        let identity = Some(Identity { origin: 7, request: 1, settled: 1 });
        ForwardRequest { commands: vec![Command { identity, kind: Some(put("x")) }], patience_ms }
    };
    let all = u32::try_from(REQUESTS_MAX).unwrap();
    let taken = node.shared.request_room.clone().acquire_many_owned(all).await.unwrap();
    let busy = node.answer_forward(7, request(50)).await.unwrap();
    assert!(matches!(&busy, peer_reply::Kind::Busy(busy) if busy.reason.contains("too many requests")), "{busy:?}");
    drop(taken);
    let taken = node.answer_forward(7, request(5000)).await.unwrap();
    assert!(matches!(taken, peer_reply::Kind::Forward(_)), "{taken:?}");
    drop(node);
    cluster.end().await;
}
