//! Peers that refuse: they are named, and no second cluster is founded beside theirs.
//!
//! Not here: who is refused, and at which layer (`peer::tests`); what becomes of old disks (`recovery`).

use super::*;

/// Refuses every question, as TLS does where the secret is another.
struct Closed;

impl Transport for Closed {
    fn call(&self, to: Peer, _: PeerRequest, _: Duration) -> BoxFuture<'static, Result<PeerReply, CallError>> {
        let refused = CallError::Refused { peer: to.member.name, reason: "unknown authority".into() };
        async { Err(refused) }.boxed()
    }

    fn send_snapshot(
        &self,
        to: Peer,
        _: mpsc::Receiver<SnapshotChunk>,
        _: Duration,
    ) -> BoxFuture<'static, Result<SnapshotReply, CallError>> {
        async { Err(CallError::Refused { peer: to.member.name, reason: "unknown authority".into() }) }.boxed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cluster_is_founded_while_a_peer_refuses_and_the_peer_is_named() {
    let cluster = Cluster::of_none();
    let options = Options { transport: Arc::new(Closed), ..cluster.options("a", COMMAND_VERSION) };
    let node = Node::open(options).await.unwrap();
    let refused = node.init(None).await.unwrap_err();
    assert!(matches!(&refused, AdminError::PeerRefuses { peer, .. } if peer == "b"), "{refused}");
    assert!(refused.to_string().contains("unknown authority"), "{refused}");
    let status = node.cluster_status();
    let refusing: Vec<_> = status.refusing.iter().map(|it| (it.peer.as_str(), it.reason.as_str())).collect();
    assert_eq!(
        (status.cluster_id.as_str(), refusing),
        ("", vec![("b", "unknown authority"), ("c", "unknown authority")])
    );
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster_is_waited_for_by_what_it_says_and_both_know() {
    let mut cluster = Cluster::of_none();
    // Each founded alone, and unaware of the other.
    for name in ["a", "b"] {
        let alone = Options { configured: vec![shaped(name)], ..cluster.options(name, COMMAND_VERSION) };
        let node = Node::open(alone).await.unwrap();
        node.init(Some(format!("of-{name}"))).await.unwrap();
        cluster.hub.0.lock().insert(format!("{name}:1"), node.clone());
        cluster.running.insert(name, node);
    }
    let (a, b) = (cluster.running["a"].clone(), cluster.running["b"].clone());
    assert!(a.set_members(1, ["a", "b"].map(shaped).into()).await.unwrap().accepted);
    let says = |_: &[&Node]| {
        let next = a.cluster_status().next_step;
        next.starts_with("waiting for b, which refuses") && next.contains("cluster of-b")
    };
    cluster.eventually("the leader says why it waits", says).await;
    assert_eq!(a.cluster_status().refusing[0].peer, "b");
    assert_eq!(b.shared.strangers.recent().len(), 1);
    drop((a, b));
    cluster.end().await;
}
