//! Of the commands that another node passes on, each is answered or refused by itself; and a leader that takes no more
//! says so, and not that another leads. Whoever passed them on asks again, and its other clients do not wait for that.
//!
//! Not here: what may be forwarded (`node::forward`), and what the sender makes of each answer (`node::coalesce`).

use databroker_proto::internal::{Command, ForwardRequest, ForwardedAnswer, Identity, forwarded_answer};

use super::*;

/// The node that passes on.
const SENDER: u64 = 7;

/// A cluster of one voter, and a learner that nobody sees.
async fn leader() -> Node {
    let node = Node::open(Options::new(Storage::Memory)).await.unwrap();
    node.shared.replica.add_learner(SENDER, Member::default()).await.unwrap();
    node
}

async fn forward_from(
    node: &Node,
    origin: u64,
    kinds: Vec<Kind>,
    patience_ms: u32,
) -> Result<Vec<ForwardedAnswer>, forward::Unfit> {
    let numbered = (1..).zip(kinds);
    let identity = |request| Some(Identity { origin, request, settled: 1 });
    let commands = numbered.map(|(request, kind)| Command { identity: identity(request), kind: Some(kind) }).collect();
    match node.answer_forward(origin, ForwardRequest { commands, patience_ms }).await? {
        peer_reply::Kind::Forward(reply) => Ok(reply.answers),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_room_is_busy_and_no_other_leader_is_looked_for() {
    let node = leader().await;
    let all = u32::try_from(REQUESTS_MAX).unwrap();
    let taken = node.shared.request_room.clone().acquire_many_owned(all).await.unwrap();
    let busy = forward_from(&node, SENDER, vec![put("x")], 50).await.unwrap().remove(0);
    assert!(matches!(busy.refusal, Some(forwarded_answer::Refusal::Busy(_))), "{busy:?}");
    drop(taken);
    let answered = forward_from(&node, SENDER, vec![put("x")], 5000).await.unwrap().remove(0);
    assert!(answered.outcome.is_some() && answered.refusal.is_none(), "{answered:?}");
    node.shutdown().await;
}

/// So many bytes for so large a record.
fn put_bytes(id: &str, bytes: usize) -> Kind {
    use prost::Message as _;
    let data = prost_types::Any { type_url: "type.googleapis.com/unknown".into(), value: vec![7; bytes] };
    let record = databroker_proto::Record { r#type: "t".into(), id: id.into(), data: Some(data), ..Default::default() };
    Kind::Put(Put { records: vec![record.encode_to_vec().into()] })
}

/// Leaves room for small requests alone.
async fn take_most_room(node: &Node) -> tokio::sync::OwnedSemaphorePermit {
    let most = u32::try_from(REQUEST_BYTES_MAX - 10_000).unwrap();
    node.shared.byte_room.clone().acquire_many_owned(most).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_without_room_holds_up_no_other_of_its_message() {
    let node = leader().await;
    let taken = take_most_room(&node).await;
    let began = Instant::now();
    let answers = forward_from(&node, SENDER, vec![put("x"), put_bytes("y", 20_000)], 60_000).await.unwrap();
    let heard: Vec<_> = answers.into_iter().map(forward::decode).collect();
    assert!(matches!(heard.as_slice(), [Ok(_), Err(Error::Overloaded)]), "{heard:?}");
    assert!(began.elapsed() < Duration::from_secs(20), "it was waited for, for half a minute");
    drop(taken);
    node.shutdown().await;
}

/// As many as may be under way wait for room, each in an entry of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_wait_for_the_leaders_room_leave_the_slots_to_others() {
    let mut cluster = Cluster::of_none();
    for name in ["a", "b", "c"] {
        let options = Options { hold: PATIENCE, ..cluster.options(name, COMMAND_VERSION) };
        let node = Node::open(options).await.unwrap();
        cluster.hub.running.lock().insert(format!("{name}:1"), node.clone());
        cluster.running.insert(name, node);
    }
    cluster.running["a"].init(None).await.unwrap();
    cluster.eventually("there are three voters", |nodes| nodes.iter().all(|node| node.status().voters == 3)).await;
    let (leader, follower) = (cluster.leader().unwrap().clone(), cluster.follower().clone());
    let taken = take_most_room(&leader).await;
    let large: Vec<_> = (0..4).map(|index| put_bytes(&format!("large-{index}"), 600 << 10)).collect();
    let mut waiting: Vec<_> = large.into_iter().map(|kind| Box::pin(follower.propose(kind))).collect();
    for call in &mut waiting {
        assert!(futures::poll!(call).is_pending());
    }
    let began = Instant::now();
    follower.propose(put("small")).await.unwrap();
    assert!(began.elapsed() < PATIENCE / 2, "it waited until the large ones gave up");
    drop(taken);
    for answer in futures::future::join_all(waiting).await {
        answer.unwrap();
    }
    drop((leader, follower));
    cluster.end().await;
}

/// The leader's answer is lost, and the next leader has no space: it refuses before its store is asked, which knows the
/// command.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_took_effect_is_not_said_to_be_refused_by_the_next_leader() {
    let cluster = Cluster::of([COMMAND_VERSION; 3]).await;
    let full = forward::encode(Err(Full { free: 1 }.into()));
    cluster.hub.forwarded.lock().extend([None, Some(full)]);
    cluster.follower().propose(put("x")).await.unwrap();
    let snapshot = cluster.follower().fence().await.unwrap();
    assert!(snapshot.get("t", "x").unwrap().is_some());
    assert_eq!(snapshot.progress().latest_record_version, 1, "and it took effect once");
    drop(snapshot);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_refused_keeps_no_other_from_its_answer() {
    let node = leader().await;
    let too_early = Kind::SetCheckpoint(command::tests::NEXT);
    let answers = forward_from(&node, SENDER, vec![put("x"), too_early, put("y")], 5000).await.unwrap();
    let heard: Vec<_> = answers.into_iter().map(forward::decode).collect();
    assert!(matches!(heard.as_slice(), [Ok(_), Err(Error::TooEarly { .. }), Ok(_)]), "{heard:?}");
    let snapshot = node.fence().await.unwrap();
    assert!(["x", "y"].iter().all(|id| snapshot.get("t", id).unwrap().is_some()));
    drop(snapshot);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_member_passes_nothing_on_and_who_was_one_is_told_so() {
    let node = leader().await;
    let refused = forward_from(&node, SENDER + 1, vec![put("x")], 5000).await;
    assert_eq!(refused.err(), Some(forward::Unfit::Stranger));
    assert!(forward_from(&node, SENDER, vec![put("x")], 5000).await.is_ok(), "a learner is a member");
    node.shared.replica.remove_learners([SENDER].into()).await.unwrap();
    let removed = forward_from(&node, SENDER, vec![put("x")], 5000).await.unwrap().remove(0);
    let Some(command::outcome::Kind::Rejected(why)) = forward::decode(removed).unwrap().outcome.kind else {
        panic!("it is taken");
    };
    assert_eq!(why.reason(), command::Reason::Removed);
    node.shutdown().await;
}
