//! `get`, `put`, `delete`, `query`, and what all tables have in common.

use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::{TEST, record, tool, tool_json};
use crate::cli::standin::Standin;

#[tokio::test]
async fn what_get_prints_put_takes() {
    let server = Standin::start().await;
    server.store.lock().put(&record(TEST, "a\0b&c=d", b"\x0a\x01x\x4a\x01y"));
    server.store.lock().put(&record("no.Such", "é", b"\xff"));
    for (r#type, id) in [(TEST, "a\0b&c=d"), ("no.Such", "é")] {
        let got = tool_json(&server, &["get", r#type, id]).await;
        tool(&server, &["delete", r#type, id]).await.unwrap();
        tool(&server, &["put", &got.to_string()]).await.unwrap();
        let again = tool_json(&server, &["get", r#type, id]).await;
        assert_eq!(again["data"], got["data"]);
        assert_ne!(again["version"], got["version"]);
    }
}

#[tokio::test]
async fn put_takes_the_answer_of_query_from_a_file() {
    let server = Standin::start().await;
    server.store.lock().put(&record(TEST, "1", b"\x0a\x01x"));
    server.store.lock().put(&record(TEST, "2", b"\x0a\x01y"));
    let found = tool_json(&server, &["query", "test.Test"]).await;
    server.store.lock().clear();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("records.json");
    fs::write(&file, found.to_string()).unwrap();
    let put = tool_json(&server, &["put", "-f", file.to_str().unwrap()]).await;
    assert_eq!(put["records"].as_array().unwrap().len(), 2);
    assert_eq!(server.store.lock().ids(TEST), ["1", "2"]);
    assert_eq!(server.store.lock().puts, 1, "all or none");
}

#[tokio::test]
async fn put_takes_all_of_its_input_or_nothing() {
    let server = Standin::start().await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("records.json");
    let one = |id: &str| format!(r#"{{"type": "t", "id": "{id}", "data": {{"@type": "a/b", "value": ""}}}}"#);
    fs::write(&file, format!("{}{}{}", one("first"), " ".repeat(64 << 20), one("last"))).unwrap();
    let error = tool(&server, &["put", "-f", file.to_str().unwrap()]).await.unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    let text = error.to_string();
    assert!(text.contains("64 MiB") && text.contains("`import`"), "{text}");
    assert!(server.store.lock().ids("t").is_empty());
}

#[tokio::test]
async fn query_pages_and_tells_the_total() {
    let server = Standin::start().await;
    for id in ["a", "b", "c", "d"] {
        server.store.lock().put(&record(TEST, id, b""));
    }
    let found = tool_json(&server, &["query", "test.Test", "--offset", "1", "--limit", "2"]).await;
    let ids: Vec<_> = found["records"].as_array().unwrap().iter().map(|record| record["id"].clone()).collect();
    assert_eq!((ids, &found["totalCount"]), (vec![json!("b"), json!("c")], &json!(4)));
    let found = tool_json(&server, &["query", "--filter", r#"{"id":"d"}"#]).await;
    assert_eq!(found["totalCount"], 1);
    let error = tool(&server, &["query", "--filter", "[1]"]).await.unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
}

#[tokio::test]
async fn a_short_type_name_is_completed_unless_told_otherwise() {
    let server = Standin::start().await;
    server.store.lock().put(&record(TEST, "a", b""));
    assert_eq!(tool_json(&server, &["get", "test.Test", "a"]).await["type"], TEST);
    assert_eq!(tool(&server, &["get", "test.Test", "a", "--exact-type"]).await.unwrap_err().exit_code(), 3);
}

#[tokio::test]
async fn deleting_what_is_not_there_is_told() {
    let server = Standin::start().await;
    server.store.lock().put(&record(TEST, "a", b""));
    assert_eq!(tool(&server, &["delete", TEST, "a", "b"]).await.unwrap_err().exit_code(), 3);
    assert_eq!(server.store.lock().ids(TEST), ["a"], "all or none");
    tool(&server, &["delete", TEST, "a", "b", "--ignore-not-found"]).await.unwrap();
    assert!(server.store.lock().ids(TEST).is_empty());
}

#[tokio::test]
async fn people_get_tables_with_short_ids_and_no_control_characters() {
    let server = Standin::start().await;
    server.store.lock().put(&record(TEST, "01234567-89ab-cdef-0123-456789abcdef", b"\x0a\x05\x1b[31m"));
    let table = tool(&server, &["query"]).await.unwrap();
    assert!(
        table.contains("0123456789ab".get(..8).unwrap()) && table.contains('…') && !table.contains('\x1b'),
        "{table}"
    );
    assert!(table.contains("now") || table.contains("ago"), "{table}");
    let wide = tool(&server, &["query", "-o", "wide"]).await.unwrap();
    assert!(wide.contains("01234567-89ab-cdef-0123-456789abcdef"), "{wide}");
    for line in
        [&["types"][..], &["types", "--count"], &["info"], &["get", TEST, "01234567-89ab-cdef-0123-456789abcdef"]]
    {
        let text = tool(&server, line).await.unwrap();
        assert!(text.contains(TEST) && !text.contains('\x1b'), "{text}");
    }
}
