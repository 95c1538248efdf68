//! What a client may conclude from what it has seen, whichever nodes it asks.

use std::time::Duration;

use databroker_proto::databroker::{GetRequest, PutRequest, SyncRequest, sync_response};
use rand::RngExt as _;

use crate::{
    clients::{TYPE, record},
    rounds, seeded,
    trial::{Trial, addresses},
};

/// Events that each stream is followed for, per round.
const EVENTS: usize = 200;

/// An event seen on any node's stream is found by Get on any other node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_seen_on_one_node_is_found_by_get_on_every_other() {
    let mut random = seeded("events and reads");
    let trial = Trial::start().await;
    let addresses = addresses(&trial.cluster);
    for round in 0..rounds(20) {
        let seen_on = round % 3;
        let (mut stream_client, mut checked) = (addresses.client(seen_on), 0);
        let info = stream_client.server_info(()).await.unwrap().into_inner();
        let request = SyncRequest {
            server_version: info.server_version,
            record_version: info.latest_record_version,
            r#type: TYPE.into(),
            wait: Some(true),
        };
        let mut events = stream_client.sync(request).await.unwrap().into_inner();
        let mut others: Vec<_> = (0..3).filter(|node| *node != seen_on).map(|node| addresses.client(node)).collect();
        while checked < EVENTS {
            let event = tokio::time::timeout(Duration::from_secs(20), events.message()).await.expect("events come");
            let message = event.unwrap().expect("the stream goes on");
            let Some(sync_response::Response::Record(event)) = message.response else { continue };
            let event = event.to_record().unwrap();
            let other = random.random_range(0..others.len());
            let request = GetRequest { r#type: event.r#type.clone(), id: event.id.clone() };
            let found = others[other].get(request).await.unwrap().into_inner().record.unwrap().to_record().unwrap();
            assert!(found.version >= event.version, "{} after {} was seen", found.version, event.version);
            checked += 1;
        }
        println!("{checked} events seen on node {seen_on} were found on the others");
    }
    trial.judge("events and reads").await;
}

/// A write that one node has acknowledged is found by Get on any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_acknowledged_by_one_node_is_found_by_get_on_every_other() {
    seeded("writes and reads");
    let trial = Trial::start().await;
    let addresses = addresses(&trial.cluster);
    let mut clients: Vec<_> = (0..3).map(|node| addresses.client(node)).collect();
    for count in 0..rounds(20) * 50 {
        let text = format!("round {count}");
        let put = PutRequest { records: vec![record("read-your-writes", &text).into()] };
        let put = clients[count % 3].put(put).await.unwrap().into_inner();
        let written = put.records[0].to_record().unwrap().version;
        for other in [1, 2] {
            let request = GetRequest { r#type: TYPE.into(), id: "read-your-writes".into() };
            let found = clients[(count + other) % 3].get(request).await.unwrap().into_inner();
            assert_eq!(found.record.unwrap().to_record().unwrap().version, written);
        }
    }
    trial.judge("writes and reads").await;
}
