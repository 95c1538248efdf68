//! Of the commands that another node passes on, each is answered or refused by itself; and a leader that takes no more
//! says so, and not that another leads.
//!
//! Not here: what may be forwarded (`node::forward`), and what the sender makes of the answers (`node::coalesce`).

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
