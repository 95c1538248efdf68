use std::path::Path;

use databroker_proto::internal::{Put, Sweep};

use super::*;
use crate::store::command::outcome;

fn options(folder: &Path) -> Options {
    let timers = crate::raft::Timers { heartbeat_ms: 50, election_ms_min: 150, election_ms_max: 200 };
    Options { timers, ..Options::new(Storage::Folder(folder.into())) }
}

/// An encoded record of a type the store knows nothing about.
fn record(id: &str) -> bytes::Bytes {
    use prost::Message as _;
    let record = databroker_proto::Record { r#type: "t".into(), id: id.into(), ..Default::default() };
    record.encode_to_vec().into()
}

fn put(id: &str) -> Kind {
    Kind::Put(Put { records: vec![record(id)] })
}

fn first_version(answer: &Answer) -> u64 {
    match answer.outcome.kind.as_ref() {
        Some(outcome::Kind::Written(written)) => written.runs[0].first,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_fresh_node_answers_and_remembers() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::open(options(folder.path())).await.unwrap();
    assert_eq!(first_version(&node.propose(put("a")).await.unwrap()), 1);
    assert_eq!(first_version(&node.propose(put("b")).await.unwrap()), 2);
    let snapshot = node.fence().await.unwrap();
    assert!(snapshot.get("t", "b").unwrap().is_some());
    node.shutdown().await;
}
