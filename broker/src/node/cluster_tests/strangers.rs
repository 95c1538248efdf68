//! Peers that refuse: they are named, and no second cluster is founded beside theirs.
//!
//! Not here: who is refused, and at which layer (`peer::tests`); what becomes of old disks (`recovery`).

use databroker_proto::internal::{
    AppendRequest, Envelope, HelloRequest, Introduction, RetireRequest, peer_request::Kind as Asked, snapshot_chunk,
};

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
        cluster.hub.running.lock().insert(format!("{name}:1"), node.clone());
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_speaks_for_its_own_name_only() {
    let cluster = Cluster::of([COMMAND_VERSION; 3]).await;
    let (a, b) = (&cluster.running["a"], &cluster.running["b"]);
    cluster.eventually("it knows the members", |_| a.shared.replica.peer(b.shared.replica.node_id()).is_some()).await;
    let (me, them) = (a.shared.replica.node_id(), b.shared.replica.node_id());
    let ask = async |from: &str, envelope: Envelope, kind| {
        a.answer_from(from, PeerRequest { envelope: Some(envelope), kind: Some(kind) }).await
    };
    let hello =
        |name: &str| Asked::Hello(HelloRequest { me: Some(Introduction { name: name.into(), ..b.introduce() }) });
    let refused = ask("c", b.shared.replica.envelope(0), hello("b")).await;
    assert!(
        matches!(&refused, Err(Refused::Name { says, certified }) if says == "b" && certified == "c"),
        "{refused:?}"
    );
    assert!(ask("b", b.shared.replica.envelope(0), hello("c")).await.is_err());
    assert!(ask("b", b.shared.replica.envelope(0), hello("b")).await.is_ok());

    // Under the id of another member; this would end the node.
    let retire = || Asked::Retire(RetireRequest { node: me });
    let append = || Asked::Append(AppendRequest::default());
    for kind in [retire(), append()] {
        let refused = ask("c", b.shared.replica.envelope(me), kind).await;
        assert!(matches!(refused, Err(Refused::Name { .. })), "{refused:?}");
    }
    let through = ask("b", b.shared.replica.envelope(me), append()).await;
    assert!(matches!(through, Err(Refused::Raft(_))), "it is malformed, and was looked at: {through:?}");
    let chunk = |from| SnapshotChunk {
        envelope: Some(Envelope { from, ..b.shared.replica.envelope(me) }),
        kind: Some(snapshot_chunk::Kind::Rows(Default::default())),
    };
    let install = async |from| a.install_from("c", futures::stream::iter([chunk(from)])).await;
    assert!(matches!(install(them).await, Err(Refused::Name { .. })));
    assert!(matches!(install(them ^ 1).await, Err(Refused::Install(_))), "who is no member may be anybody");
    cluster.end().await;
}
