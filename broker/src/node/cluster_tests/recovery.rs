//! One node's disk becomes a cluster of its own: nothing that it holds is lost, and the old nodes are strangers.
//!
//! Not here: the tool, and clients (`tests/faults`).

use databroker_proto::internal::{Command, Envelope, HelloRequest, Recover, VoteRequest, peer_request};
use prost::Message as _;

use super::{
    super::recover::{Error as RecoverError, Stopped},
    *,
};

async fn three_with(records: u64) -> Cluster {
    let cluster = Cluster::of([COMMAND_VERSION; 3]).await;
    for index in 0..records {
        cluster.running["a"].propose(put(&index.to_string())).await.unwrap();
    }
    cluster.all_equal().await;
    cluster
}

impl Cluster {
    fn stopped(&self, name: &str) -> Result<Stopped, RecoverError> {
        Stopped::open(&self.folder.path().join(name))
    }

    async fn stop_all(&mut self) {
        for name in ["a", "b", "c"] {
            self.stop(name).await;
        }
    }
}

fn has(node: &Node, id: &str) -> bool {
    node.reader().snapshot().get("t", id).unwrap().is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_goes_on_with_all_it_holds_and_the_old_ones_are_refused() {
    let mut cluster = three_with(40).await;
    let before = cluster.running["c"].status();
    let old_version = cluster.running["c"].reader().progress().server_version;
    assert!(matches!(cluster.stopped("c"), Err(RecoverError::Folder(_))), "a broker runs on it");
    cluster.stop_all().await;
    let stopped = cluster.stopped("c").unwrap();
    let held = stopped.held().unwrap();
    assert_eq!((held.cluster_id.as_str(), held.name.as_str()), (before.cluster_id.as_deref().unwrap(), "c"));
    assert_eq!((held.node_id, held.records, held.record_version), (before.node_id, 40, 40));
    assert_eq!(held.others, ["a", "b"]);
    assert!(held.changed_at.is_some() && held.last_index >= held.applied_index && held.term >= before.term);
    let founding = stopped.recover().unwrap();
    assert_ne!(founding.cluster_id, held.cluster_id);

    let node = cluster.start("c", COMMAND_VERSION).await.unwrap();
    let snapshot = node.fence().await.unwrap();
    assert_eq!(snapshot.cluster_id(), Some(founding.cluster_id.as_str()));
    let version = snapshot.progress().server_version;
    assert!(version == founding.server_version.get() && version != old_version);
    assert_eq!((snapshot.progress().latest_record_version, node.status().voters), (40, 1));
    assert!((0..40).all(|index| has(&node, &index.to_string())));
    let shape = &snapshot.cluster().shape;
    assert!(shape.len() == 1 && shape[0].name == "c" && snapshot.cluster().retired.is_empty(), "{shape:?}");
    node.propose(put("after")).await.unwrap();

    // An old disk comes back, with two votes out of three in its membership.
    let old = cluster.start("a", COMMAND_VERSION).await.unwrap();
    let kind = Some(peer_request::Kind::Hello(HelloRequest { me: Some(old.introduce()) }));
    let hello = node.answer(PeerRequest { envelope: Some(old.shared.replica.envelope(0)), kind }).await;
    assert!(matches!(hello, Err(Refused::Cluster { .. })), "{hello:?}");
    // Both say so: the one that is refused, and the one that refuses.
    let refuses = |node: &Node| node.cluster_status().refusing.iter().any(|it| it.peer == "c");
    cluster.eventually("the old one says who refuses it", |_| refuses(&old)).await;
    assert!(node.shared.strangers.recent().keys().any(|who| who.starts_with("a ")));
    let envelope = Envelope { cluster_id: held.cluster_id, from: 1, to: held.node_id };
    let kind = Some(peer_request::Kind::Vote(VoteRequest::default()));
    let vote = node.answer(PeerRequest { envelope: Some(envelope), kind }).await;
    assert!(matches!(vote, Err(Refused::Cluster { .. })), "{vote:?}");
    drop(old);
    cluster.stop("a").await;
    std::fs::remove_dir_all(cluster.folder.path().join("a")).unwrap();
    std::fs::remove_dir_all(cluster.folder.path().join("b")).unwrap();

    // New ones under the old names, as a person adds them.
    for name in ["a", "b"] {
        cluster.start(name, COMMAND_VERSION).await.unwrap();
    }
    let generation = node.cluster_status().shape_generation;
    assert!(node.set_members(generation, ["a", "b", "c"].map(shaped).into()).await.unwrap().accepted);
    cluster.eventually("there are three voters", |nodes| nodes.iter().all(|node| node.status().voters == 3)).await;
    cluster.all_equal().await;
    assert!(cluster.running.values().all(|node| has(node, "39") && has(node, "after")));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_off_before_the_one_batch_nothing_has_happened_and_it_can_be_repeated() {
    let mut cluster = three_with(5).await;
    cluster.stop_all().await;
    // Looking changes nothing.
    let held = cluster.stopped("b").unwrap().held().unwrap();
    assert_eq!(cluster.stopped("b").unwrap().held().unwrap(), held);
    cluster.stopped("b").unwrap().inner.announce().unwrap();
    for name in ["a", "b", "c"] {
        cluster.start(name, COMMAND_VERSION).await.unwrap();
    }
    let node = cluster.running["b"].clone();
    node.propose(put("before")).await.unwrap();
    assert_eq!(node.fence().await.unwrap().cluster_id(), Some(held.cluster_id.as_str()));
    cluster.all_equal().await;
    drop(node);
    cluster.stop_all().await;

    let first = cluster.stopped("b").unwrap().recover().unwrap();
    // Not started since.
    let held = cluster.stopped("b").unwrap().held().unwrap();
    assert_eq!((held.cluster_id, held.others.len(), held.records), (first.cluster_id.clone(), 0, 6));
    cluster.stopped("b").unwrap().inner.announce().unwrap();
    let again = cluster.stopped("b").unwrap().recover().unwrap();
    assert_ne!(first, again);
    // Broken off once more.
    cluster.stopped("b").unwrap().inner.announce().unwrap();
    let node = cluster.start("b", COMMAND_VERSION).await.unwrap();
    let snapshot = node.fence().await.unwrap();
    assert_eq!(snapshot.cluster_id(), Some(again.cluster_id.as_str()));
    assert_eq!((node.status().voters, has(&node, "4"), has(&node, "before")), (1, true, true));
    node.propose(put("after")).await.unwrap();
    drop((snapshot, node));
    cluster.stop("b").await;
    let node = cluster.start("b", COMMAND_VERSION).await.unwrap();
    assert!(node.fence().await.unwrap().get("t", "after").unwrap().is_some());
    drop(node);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_log_holds_beyond_what_is_committed_is_kept() {
    let mut cluster = three_with(5).await;
    let leads = |name: &&str| cluster.running[*name].role().leads;
    let leader = ["a", "b", "c"].into_iter().find(leads).unwrap();
    let node = cluster.running[leader].clone();
    // Nobody is reached any more; the leader has not noticed yet.
    cluster.hub.running.lock().clear();
    let last = node.status().last_log_index;
    let entry = command::entry(1, vec![Command { identity: None, kind: Some(put("tail")) }]);
    let submitted = node.shared.replica.submit(entry.encode_to_vec().into()).await.unwrap();
    cluster.eventually("it is in the log", |_| node.status().last_log_index > last).await;
    assert!(!has(&node, "tail"));
    drop((node, submitted));
    cluster.stop_all().await;
    let stopped = cluster.stopped(leader).unwrap();
    let held = stopped.held().unwrap();
    assert!(held.last_index > held.applied_index, "{held:?}");
    stopped.recover().unwrap();
    let node = cluster.start(leader, COMMAND_VERSION).await.unwrap();
    node.fence().await.unwrap();
    assert!(has(&node, "tail") && has(&node, "4"));
    drop(node);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_without_a_cluster_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Stopped::open(folder.path()), Err(RecoverError::Nothing { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let options = Options { bootstrap: Bootstrap::Explicit, ..Options::new(Storage::Folder(folder.path().into())) };
    Node::open(options).await.unwrap().shutdown().await;
    let refused = Stopped::open(folder.path()).err().unwrap();
    assert!(refused.to_string().contains("belongs to no cluster"), "{refused}");
}

#[test]
fn nobody_can_ask_for_it_from_outside() {
    assert!(!forward::is_of_a_client(&Kind::Recover(Recover::default())));
}
