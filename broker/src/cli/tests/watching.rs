//! `watch`, across whatever happens to its server.

use std::sync::Arc;

use serde_json::Value;

use super::{Printed, TEST, record, run_line, tool, wait_until};
use crate::cli::{
    failure::Failure,
    standin::{Standin, key},
};

struct Watching {
    printed: Printed,
    task: tokio::task::JoinHandle<Result<(), Failure>>,
}

fn watch(server: &Standin, more: &[&str]) -> Watching {
    let printed = Printed::default();
    let line: Vec<_> =
        ["watch", "-o", "json", "--address", &server.address.to_string(), "--shared-secret", &key().to_base64()]
            .iter()
            .chain(more)
            .map(|word| (*word).to_owned())
            .collect();
    let to = printed.clone();
    let task = tokio::spawn(async move {
        let line: Vec<_> = line.iter().map(String::as_str).collect();
        run_line(&line, to).await
    });
    Watching { printed, task }
}

fn printed_ids(text: &str) -> Vec<String> {
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn watch_shows_each_change_once_across_a_restart() {
    let server = Standin::start().await;
    server.store.lock().put(&record(TEST, "old", b""));
    let watching = watch(&server, &["--from", "0"]);
    watching.printed.wait_for("old").await;
    server.store.lock().put(&record(TEST, "before", b""));
    watching.printed.wait_for("before").await;

    let (address, store) = (server.address, Arc::clone(&server.store));
    server.stop().await;
    store.lock().put(&record(TEST, "meanwhile", b""));
    let server = Standin::start_at(address, store, None).await;
    watching.printed.wait_for("meanwhile").await;
    server.store.lock().put(&record(TEST, "after", b""));
    watching.printed.wait_for("after").await;
    assert_eq!(printed_ids(&watching.printed.text()), ["old", "before", "meanwhile", "after"]);
    watching.task.abort();
}

#[tokio::test]
async fn a_watch_that_has_seen_nothing_yet_outlives_a_restart() {
    let server = Standin::start().await;
    let watching = watch(&server, &[]);
    // The server sends nothing before the first change, not even headers.
    let store = Arc::clone(&server.store);
    wait_until("the watch is there", || store.lock().watchers() == 1).await;
    let address = server.address;
    server.stop().await;
    store.lock().put(&record(TEST, "meanwhile", b""));
    let _server = Standin::start_at(address, store, None).await;
    watching.printed.wait_for("meanwhile").await;
    watching.task.abort();
}

#[tokio::test]
async fn watch_starts_over_when_the_server_was_cleared() {
    let server = Standin::start().await;
    server.store.lock().put(&record(TEST, "old", b""));
    let watching = watch(&server, &["--all"]);
    watching.printed.wait_for("old").await;
    server.store.lock().clear();
    server.store.lock().put(&record(TEST, "new", b""));
    watching.printed.wait_for("new").await;
    assert_eq!(printed_ids(&watching.printed.text()), ["old", "new"]);
    watching.task.abort();
}

#[tokio::test]
async fn watch_goes_on_when_the_server_is_away_right_after_it_was_cleared() {
    let server = Standin::start().await;
    server.store.lock().put(&record(TEST, "old", b""));
    let watching = watch(&server, &["--all"]);
    watching.printed.wait_for("old").await;
    let store = Arc::clone(&server.store);
    wait_until("the watch is there", || store.lock().watchers() == 1).await;
    {
        let mut store = server.store.lock();
        // Both that the watch makes next: for why the stream ended, and for where to begin again.
        store.infos_refused = 2;
        store.clear();
        store.put(&record(TEST, "new", b""));
    }
    watching.printed.wait_for("new").await;
    assert_eq!(printed_ids(&watching.printed.text()), ["old", "new"]);
    assert_eq!(server.store.lock().infos_refused, 0);
    watching.task.abort();
}

#[tokio::test]
async fn watch_from_a_forgotten_version_begins_at_the_earliest() {
    let server = Standin::start().await;
    for id in ["1", "2", "3"] {
        server.store.lock().put(&record(TEST, id, b""));
    }
    server.store.lock().forget(2);
    let watching = watch(&server, &["--from", "0", "--no-follow"]);
    watching.task.await.unwrap().unwrap();
    assert_eq!(printed_ids(&watching.printed.text()), ["3"]);
}

#[tokio::test]
async fn watch_shows_tombstones_and_only_the_wanted_type() {
    let server = Standin::start().await;
    server.store.lock().put(&record(TEST, "1", b"\x0a\x01x"));
    server.store.lock().put(&record("other", "2", b""));
    tool(&server, &["delete", TEST, "1"]).await.unwrap();
    let watching = watch(&server, &["test.Test", "--from", "0", "--no-follow"]);
    watching.task.await.unwrap().unwrap();
    let text = watching.printed.text();
    assert_eq!(printed_ids(&text), ["1", "1"]);
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert!(last["deletedAt"].is_string() && last["data"]["string_field"] == "x", "{last}");
}
