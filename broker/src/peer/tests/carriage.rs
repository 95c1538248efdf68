//! What is carried, and what waits for what.

use std::time::Instant;

use bytes::Bytes;
use databroker_proto::internal::{SnapshotChunk, SnapshotEnd, SnapshotRow, SnapshotRows, snapshot_chunk};
use tokio::sync::mpsc;

use super::*;

const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS: usize = 100;

fn chunk() -> SnapshotChunk {
    let row = SnapshotRow { key: Bytes::new(), value: vec![7; CHUNK_BYTES].into() };
    let rows = SnapshotRows { rows: vec![row], ..SnapshotRows::default() };
    SnapshotChunk { envelope: None, kind: Some(snapshot_chunk::Kind::Rows(rows)) }
}

/// A store of 100 MiB. The channel is short: it is full while the peer takes nothing.
fn store() -> mpsc::Receiver<SnapshotChunk> {
    let (give, chunks) = mpsc::channel(1);
    tokio::spawn(async move {
        for _ in 0..CHUNKS {
            if give.send(chunk()).await.is_err() {
                return;
            }
        }
        let end = SnapshotChunk { envelope: None, kind: Some(snapshot_chunk::Kind::End(SnapshotEnd::default())) };
        let _ = give.send(end).await;
    });
    chunks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn urgent_calls_do_not_wait_behind_a_store() {
    let ours = Issuer::new();
    let served = Served::start(&ours.node("a")).await;
    let b = client(&ours.node("b"));
    read(&b, served.peer("a")).await.unwrap();

    let sent = tokio::spawn(b.send_snapshot(served.peer("a"), store(), Duration::from_secs(60)));
    let mut slowest = Duration::ZERO;
    // While half of the store flows, and then while the connection is full and nothing flows.
    for _ in 0..100 {
        let start = Instant::now();
        read(&b, served.peer("a")).await.unwrap();
        slowest = slowest.max(start.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!sent.is_finished(), "the transfer was over before the calls were");
    // Behind the store it would never be answered.
    assert!(slowest < Duration::from_secs(5), "an urgent call took {slowest:?}");
    served.node.second_half.add_permits(1);
    sent.await.unwrap().unwrap();
    served.stop().await;
}

#[tokio::test]
async fn a_transfer_that_stands_still_is_given_up_and_a_slow_sender_is_not() {
    let ours = Issuer::new();
    let served = Served::start(&ours.node("a")).await;
    let b = client(&ours.node("b"));
    let given_up = b.send_snapshot(served.peer("a"), store(), Duration::from_millis(500)).await;
    assert!(matches!(given_up, Err(CallError::TimedOut { .. })), "{given_up:?}");

    let (give, chunks) = mpsc::channel(1);
    let sent = tokio::spawn(b.send_snapshot(served.peer("a"), chunks, Duration::from_secs(2)));
    give.send(chunk()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    give.send(chunk()).await.unwrap();
    drop(give);
    sent.await.unwrap().unwrap();
    served.stop().await;
}

#[tokio::test]
async fn patience_is_kept_and_refusals_are_told_from_silence() {
    let ours = Issuer::new();
    let served = Served::start(&ours.node("a")).await;
    let b = client(&ours.node("b"));
    let silent = b.call(served.peer("a"), hello(), Duration::from_millis(50)).await;
    assert!(matches!(silent, Err(CallError::TimedOut { .. })), "{silent:?}");
    let other = b.call(served.peer("a"), ask(peer_request::Kind::Append(Default::default())), PATIENCE).await;
    assert!(refusal(other).contains("for node 0000000000000001, this is 0000000000000002"));
    let unknown = b.call(served.peer("a"), PeerRequest::default(), PATIENCE).await;
    assert!(refusal(unknown).contains("does not know"));
    let nowhere = b.call(Peer::default(), read_index(), PATIENCE).await;
    assert!(matches!(nowhere, Err(CallError::Unreachable { .. })), "{nowhere:?}");
    served.stop().await;
}

#[tokio::test]
async fn a_peer_that_comes_back_is_reached_again() {
    let ours = Issuer::new();
    let served = Served::start(&ours.node("a")).await;
    let (b, peer) = (client(&ours.node("b")), served.peer("a"));
    read(&b, peer.clone()).await.unwrap();
    let address = served.address.clone();
    served.stop().await;
    let gone = read(&b, peer.clone()).await;
    assert!(matches!(gone, Err(CallError::Unreachable { .. })), "{gone:?}");
    let again = Served::start_at(&address, &ours.node("a")).await;
    read(&b, peer).await.unwrap();
    again.stop().await;
}

#[tokio::test]
async fn what_is_under_way_is_answered_when_the_server_stops() {
    let ours = Issuer::new();
    let served = Served::start(&ours.node("a")).await;
    let (b, node) = (client(&ours.node("b")), served.node.clone());
    let asked = tokio::spawn(b.call(served.peer("a"), hello(), PATIENCE));
    while node.asked_by.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    served.closing.cancel();
    node.hello.add_permits(1);
    asked.await.unwrap().unwrap();
    served.serving.await.unwrap();
}
