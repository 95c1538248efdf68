//! What the tools promise, against a server that is not ours (see `standin`).

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use clap::{CommandFactory as _, Parser};
use databroker_proto::{EncodedRecord, Record, databroker::Options};
use parking_lot::Mutex;
use prost_types::{Any, Timestamp};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::transport::Identity;

use super::{
    Command, execute,
    failure::Failure,
    output::{Format, Output, OutputArgs},
    standin::{Standin, Store, key},
};

#[derive(Parser)]
#[command(name = "databroker")]
struct Line {
    #[command(subcommand)]
    command: Command,
}

/// What a tool printed; shared, so that it can be read while the tool runs.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }

    async fn wait_for(&self, text: &str) {
        wait_until(&format!("{text:?} is printed"), || self.text().contains(text)).await;
    }
}

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn run_line(line: &[&str], printed: Printed) -> Result<(), Failure> {
    let line = Line::try_parse_from(std::iter::once("databroker").chain(line.iter().copied())).unwrap();
    let open = move |args: OutputArgs| Output::new(args.output, printed);
    execute(line.command, Line::command(), open).await
}

/// Runs a tool against a server with the right secret.
async fn tool(server: &Standin, line: &[&str]) -> Result<String, Failure> {
    let printed = Printed::default();
    let (address, secret) = (server.address.to_string(), key().to_base64());
    let line: Vec<_> = line.iter().copied().chain(["--address", &address, "--shared-secret", &secret]).collect();
    run_line(&line, printed.clone()).await?;
    Ok(printed.text())
}

async fn tool_json(server: &Standin, line: &[&str]) -> Value {
    let line: Vec<_> = line.iter().copied().chain(["-o", "json"]).collect();
    serde_json::from_str(&tool(server, &line).await.unwrap()).unwrap()
}

fn record(r#type: &str, id: &str, data: &[u8]) -> EncodedRecord {
    let data = Some(Any { type_url: "type.googleapis.com/test.Test".into(), value: data.to_vec() });
    EncodedRecord::from(Record { r#type: r#type.into(), id: id.into(), data, ..Default::default() })
}

const TEST: &str = "type.googleapis.com/test.Test";

// === One record ===

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

// === What goes wrong ===

#[tokio::test]
async fn a_wrong_secret_is_exit_code_4() {
    let server = Standin::start().await;
    let (address, secret) = (server.address.to_string(), "A".repeat(43) + "=");
    let error = run_line(&["types", "--address", &address, "--shared-secret", &secret], Printed::default()).await;
    let error = error.unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    assert!(error.to_string().contains("--shared-secret-file"), "{error}");
}

#[tokio::test]
async fn no_server_is_exit_code_5_and_asks_whether_it_runs() {
    let server = Standin::start().await;
    let address = server.address;
    server.stop().await;
    let line = ["info", "--address", &address.to_string(), "--shared-secret", &key().to_base64()];
    let error = run_line(&line, Printed::default()).await.unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
    assert!(error.to_string().contains("databroker serve"), "{error}");
}

fn certificate() -> (Identity, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    (Identity::from_pem(made.cert.pem(), made.signing_key.serialize_pem()), made.cert.pem())
}

async fn tls_error(line: &[&str]) -> Failure {
    let secret = key().to_base64();
    let line: Vec<_> = ["types", "--shared-secret", &secret].iter().chain(line).copied().collect();
    run_line(&line, Printed::default()).await.unwrap_err()
}

#[tokio::test]
async fn a_mismatch_of_tls_is_explained_both_ways() {
    let folder = TempDir::new().unwrap();
    let (identity, pem) = certificate();
    let ca_file = folder.path().join("ca.pem");
    fs::write(&ca_file, pem).unwrap();
    let ca_file = ca_file.to_str().unwrap();
    let (plain, tls) = (Standin::start().await, Standin::start_tls(identity).await);

    let error = tls_error(&["--address", &format!("https://{}", plain.address), "--ca-file", ca_file]).await;
    assert!(error.to_string().contains("does not speak TLS: use http://"), "{error}");
    assert_eq!(error.exit_code(), 5);

    let error = tls_error(&["--address", &format!("http://{}", tls.address)]).await;
    assert!(error.to_string().contains(&format!("https://{}", tls.address)), "{error}");
    assert_eq!(error.exit_code(), 5);

    let error = tls_error(&["--address", &format!("https://{}", tls.address), "--ca-file", ca_file]).await;
    assert!(error.to_string().contains("--server-name"), "{error}");

    let (_, other) = certificate();
    let other_file = folder.path().join("other.pem");
    fs::write(&other_file, other).unwrap();
    let address = format!("https://localhost:{}", tls.address.port());
    let error = tls_error(&["--address", &address, "--ca-file", other_file.to_str().unwrap()]).await;
    assert!(error.to_string().contains("--ca-file"), "{error}");

    let address = format!("https://{}", tls.address);
    let secret = key().to_base64();
    let line = [
        "types",
        "--shared-secret",
        &secret,
        "--address",
        &address,
        "--ca-file",
        ca_file,
        "--server-name",
        "localhost",
    ];
    run_line(&line, Printed::default()).await.unwrap();
}

#[tokio::test]
async fn a_missing_secret_is_wrong_usage() {
    let folder = TempDir::new().unwrap();
    let error =
        run_line(&["types", "--data-dir", folder.path().to_str().unwrap()], Printed::default()).await.unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    let error = run_line(&["types", "--shared-secret", "c2hvcnQ=", "--address", "127.0.0.1:1"], Printed::default())
        .await
        .unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(!error.to_string().contains("c2hvcnQ"), "{error}");
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let line = ["types", "--address", &address, "--shared-secret", &key().to_base64(), "--timeout", "200ms"];
    let error = run_line(&line, Printed::default()).await.unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
}

#[test]
fn the_command_line_is_well_formed() {
    Line::command().debug_assert();
    for line in [&["options", "list", "--address", "x"][..], &["options", "--address", "x", "list"]] {
        assert!(Line::try_parse_from(std::iter::once("databroker").chain(line.iter().copied())).is_ok());
    }
}

// === Watching ===

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

// === Options, leases, sessions ===

#[tokio::test]
async fn options_change_one_by_one() {
    let server = Standin::start().await;
    server.store.lock().put(&record(TEST, "1", b""));
    tool(&server, &["options", "set", "test.Test", "--capacity", "5", "--index", "a,b.c"]).await.unwrap();
    tool(&server, &["options", "set", "test.Test", "--ttl", "15m"]).await.unwrap();
    let expected = json!([{"type": TEST, "options": {"capacity": 5, "indexableFields": ["a", "b.c"], "ttl": "900s"}}]);
    assert_eq!(tool_json(&server, &["options", "get", "test.Test"]).await, expected);
    assert_eq!(tool_json(&server, &["options", "list"]).await, expected);
    tool(&server, &["options", "clear", "test.Test"]).await.unwrap();
    assert_eq!(tool(&server, &["options", "get", "test.Test"]).await.unwrap_err().exit_code(), 3);
}

#[tokio::test]
async fn a_lease_is_held_by_one() {
    let server = Standin::start().await;
    let id = tool(&server, &["lease", "acquire", "l"]).await.unwrap();
    let id = id.trim();
    assert_eq!(tool(&server, &["lease", "acquire", "l"]).await.unwrap_err().exit_code(), 1);
    tool(&server, &["lease", "renew", "l", id]).await.unwrap();
    tool(&server, &["lease", "release", "l", id]).await.unwrap();
    tool(&server, &["lease", "acquire", "l"]).await.unwrap();
}

/// `tool` puts its options last, where they would belong to the command.
async fn lease_run(server: &Standin, options: &[&str], script: &str) -> Result<(), Failure> {
    let (address, secret) = (server.address.to_string(), key().to_base64());
    let line = ["lease", "run", "l", "--address", &address, "--shared-secret", &secret];
    let line: Vec<_> = line.iter().chain(options).chain(&["--", "sh", "-c", script]).copied().collect();
    run_line(&line, Printed::default()).await
}

#[tokio::test]
async fn a_command_runs_under_a_lease_that_is_given_back() {
    let server = Standin::start().await;
    lease_run(&server, &[], "exit 0").await.unwrap();
    assert_eq!(lease_run(&server, &[], "exit 3").await.unwrap_err().exit_code(), 3);
    assert!(!server.store.lock().holds_lease("l"));
    server.store.lock().steal_lease("l");
    assert_eq!(lease_run(&server, &["--no-wait"], "exit 0").await.unwrap_err().exit_code(), 1);
}

#[tokio::test]
async fn a_command_is_ended_when_its_lease_is_lost() {
    let server = Standin::start().await;
    let store = Arc::clone(&server.store);
    let thief = tokio::spawn(async move {
        wait_until("the lease is held", || store.lock().holds_lease("l")).await;
        store.lock().steal_lease("l");
    });
    let run = lease_run(&server, &["--duration", "1s"], "sleep 60");
    let error = tokio::time::timeout(Duration::from_secs(20), run).await.expect("the command outlived its lease");
    assert_eq!(error.unwrap_err().exit_code(), 1);
    thief.await.unwrap();
}

/// Encoded `session.Session`: id, user_id, expires_at.
fn session(id: &str, user: &str, expires_in: i64) -> EncodedRecord {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    let mut bytes = Vec::new();
    prost::encoding::string::encode(2, &id.to_owned(), &mut bytes);
    prost::encoding::string::encode(3, &user.to_owned(), &mut bytes);
    prost::encoding::message::encode(4, &Timestamp { seconds: now + expires_in, nanos: 0 }, &mut bytes);
    stored("session.Session", id, bytes)
}

fn user(id: &str, name: &str, email: &str) -> EncodedRecord {
    let mut bytes = Vec::new();
    prost::encoding::string::encode(3, &name.to_owned(), &mut bytes);
    prost::encoding::string::encode(4, &email.to_owned(), &mut bytes);
    stored("user.User", id, bytes)
}

fn stored(message: &str, id: &str, value: Vec<u8>) -> EncodedRecord {
    let type_url = format!("type.googleapis.com/{message}");
    let data = Some(Any { type_url: type_url.clone(), value });
    EncodedRecord::from(Record { r#type: type_url, id: id.into(), data, ..Default::default() })
}

#[tokio::test]
async fn sessions_are_listed_with_their_users_and_revoked_by_id_or_user() {
    let server = Standin::start().await;
    for record in [
        session("aaa-1", "u1", 7200),
        session("aab-2", "u1", -10),
        session("bbb-3", "u2", 60),
        user("u1", "Some One", "one@example.com"),
    ] {
        server.store.lock().put(&record);
    }
    let all = tool_json(&server, &["sessions", "list"]).await;
    assert_eq!(all.as_array().unwrap().len(), 3);
    let active = tool_json(&server, &["sessions", "list", "--active", "--user", "ONE@example.com"]).await;
    assert_eq!(active.as_array().unwrap().len(), 1);
    assert_eq!(
        (&active[0]["id"], &active[0]["name"], &active[0]["ended"]),
        (&json!("aaa-1"), &json!("Some One"), &json!(false))
    );
    let table = tool(&server, &["sessions", "list"]).await.unwrap();
    assert!(table.contains("Some One") && table.contains("one@example.com") && table.contains("ago"), "{table}");

    const SESSION: &str = "type.googleapis.com/session.Session";
    assert_eq!(tool(&server, &["sessions", "revoke", "aa"]).await.unwrap_err().exit_code(), 2);
    tool(&server, &["sessions", "revoke", "bb"]).await.unwrap();
    assert_eq!(server.store.lock().ids(SESSION), ["aaa-1", "aab-2"]);
    tool(&server, &["sessions", "revoke", "--user", "one@example.com"]).await.unwrap();
    assert!(server.store.lock().ids(SESSION).is_empty());
    assert_eq!(tool(&server, &["sessions", "revoke", "--user", "u1"]).await.unwrap_err().exit_code(), 3);
}

// === Export and import ===

/// A store with all that is hard to carry: bytes of all kinds in keys, unknown types and fields, big and absent data.
fn fill(store: &Arc<Mutex<Store>>) {
    let mut store = store.lock();
    store.options.insert(TEST.into(), Options { capacity: Some(5000), ..Default::default() });
    let ttl = Some(prost_types::Duration { seconds: 900, nanos: 5 });
    store.options.insert("a\0b".into(), Options { indexable_fields: vec!["x.y".into()], ttl, capacity: None });
    for number in 0..2500 {
        store.put(&record(TEST, &format!("id-{number:05}"), format!("\x0a\x05{number:05}").as_bytes()));
    }
    store.put(&record("a\0b", "", &[0xff; 300]));
    store.put(&record("a\0b", "\n\"\\é=&%", b""));
    store.put(&record("big", "1", &vec![7; 3 << 20]));
    store.put(&record("big", "2", &vec![8; 900 << 10]));
    store.put(&EncodedRecord::from(Record { r#type: "no data".into(), id: "x".into(), ..Default::default() }));
    let mut unknown = record("unknown", "fields", b"\x0a\xff").as_bytes().to_vec();
    // Field 2000 of the record, and its data a second time.
    prost::encoding::string::encode(2000, &"kept".to_owned(), &mut unknown);
    prost::encoding::bytes::encode(4, &b"\x12\x01z".to_vec(), &mut unknown);
    store.put(&EncodedRecord::from_bytes(unknown));
}

async fn export(server: &Standin, file: &Path, more: &[&str]) -> Result<Vec<u8>, Failure> {
    let line: Vec<_> = ["export", "--output", file.to_str().unwrap()].iter().chain(more).copied().collect();
    tool(server, &line).await?;
    Ok(fs::read(file).unwrap())
}

/// An export without its header.
fn contents(export: &[u8]) -> &[u8] {
    &export[export.iter().position(|byte| *byte == b'\n').unwrap()..]
}

#[tokio::test]
async fn export_import_export_differs_in_the_header_alone() {
    let folder = TempDir::new().unwrap();
    let file = |name: &str| folder.path().join(name);
    let from = Standin::start().await;
    fill(&from.store);
    let first = export(&from, &file("first"), &[]).await.unwrap();
    assert_eq!(export(&from, &file("again"), &[]).await.unwrap(), first, "two exports of one store");
    assert_eq!(fs::metadata(file("first")).unwrap().permissions().mode() & 0o777, 0o600);

    let to = Standin::start_at("127.0.0.1:0".parse().unwrap(), Store::new(99), None).await;
    to.store.lock().put(&record("zz", "moves the versions", b""));
    tool(&to, &["delete", "zz", "moves the versions"]).await.unwrap();
    tool(&to, &["import", file("first").to_str().unwrap()]).await.unwrap();
    let second = export(&to, &file("second"), &[]).await.unwrap();
    assert_ne!(first, second);
    assert!(contents(&first) == contents(&second), "records or options differ");
    assert_eq!(to.store.lock().options, from.store.lock().options);
    assert!(!file("first.progress").exists() && !file("first.partial").exists());
    // 2,500 small records and 4 MiB of big ones, none of them in a call of more than 1 MiB but the one of 3 MiB.
    assert!((4..=8).contains(&to.store.lock().puts), "{}", to.store.lock().puts);
}

#[tokio::test]
async fn the_readable_form_is_not_read_again() {
    let folder = TempDir::new().unwrap();
    let server = Standin::start().await;
    server.store.lock().put(&record(TEST, "1", b"\x0a\x01x"));
    let plain = export(&server, &folder.path().join("plain"), &[]).await.unwrap();
    let decoded = export(&server, &folder.path().join("decoded"), &["--decoded"]).await.unwrap();
    assert!(String::from_utf8(decoded).unwrap().contains(r#""string_field":"x""#));
    server.store.lock().clear();
    tool(&server, &["import", folder.path().join("decoded").to_str().unwrap()]).await.unwrap();
    assert_eq!(contents(&export(&server, &folder.path().join("plain"), &[]).await.unwrap()), contents(&plain));
}

#[tokio::test]
async fn a_file_that_is_cut_or_changed_is_refused_before_anything_is_sent() {
    let folder = TempDir::new().unwrap();
    let server = Standin::start().await;
    for id in ["1", "2", "3"] {
        server.store.lock().put(&record(TEST, id, b"\x0a\x01x"));
    }
    let whole = export(&server, &folder.path().join("whole"), &[]).await.unwrap();
    let puts = server.store.lock().puts;
    let bad = folder.path().join("bad");
    for end in 0..whole.len() {
        fs::write(&bad, &whole[..end]).unwrap();
        assert!(tool(&server, &["import", bad.to_str().unwrap()]).await.is_err(), "cut at {end}");
    }
    let text = String::from_utf8(whole).unwrap();
    for (old, new) in
        [(r#""id":"2""#, r#""id":"4""#), (r#""records":3"#, r#""records":2"#), ("Export\":1", "Export\":2")]
    {
        assert!(text.contains(old));
        fs::write(&bad, text.replace(old, new)).unwrap();
        let error = tool(&server, &["import", bad.to_str().unwrap()]).await.unwrap_err();
        assert_eq!(error.exit_code(), 1, "{error}");
    }
    assert_eq!(server.store.lock().puts, puts);
}

#[tokio::test]
async fn a_dry_run_counts_and_asks_no_server() {
    let folder = TempDir::new().unwrap();
    let server = Standin::start().await;
    fill(&server.store);
    let file = folder.path().join("file");
    export(&server, &file, &[]).await.unwrap();
    let printed = Printed::default();
    run_line(&["import", file.to_str().unwrap(), "--dry-run", "-o", "json"], printed.clone()).await.unwrap();
    let counted: Value = serde_json::from_str(&printed.text()).unwrap();
    assert_eq!((&counted["records"], &counted["types"][TEST]), (&json!(2506), &json!(2500)));
    assert_eq!(counted["typesWithOptions"], json!(["a\0b", TEST]));
}

#[tokio::test]
async fn an_interrupted_export_goes_on_where_it_was() {
    let folder = TempDir::new().unwrap();
    let (file, partial) = (folder.path().join("file"), folder.path().join("file.partial"));
    let server = Standin::start().await;
    fill(&server.store);
    let whole = export(&server, &folder.path().join("whole"), &[]).await.unwrap();
    server.store.lock().latest_left = Some(1000);
    assert_eq!(export(&server, &file, &[]).await.unwrap_err().exit_code(), 5);
    assert!(!file.exists() && partial.exists());
    let half = fs::read(&partial).unwrap();
    assert!(half.len() > 10_000 && whole.starts_with(&half), "{}", half.len());
    assert!(export(&server, &file, &["--resume"]).await.unwrap() == whole);
    // Whatever of it reached the disk.
    for length in [0, 1, 50, 200, half.len() - 1] {
        fs::write(&partial, &half[..length]).unwrap();
        assert!(export(&server, &file, &["--resume"]).await.unwrap() == whole, "cut at {length}");
    }
}

#[tokio::test]
async fn an_interrupted_export_begins_anew_when_the_store_has_changed() {
    let folder = TempDir::new().unwrap();
    let (file, partial) = (folder.path().join("file"), folder.path().join("file.partial"));
    let server = Standin::start().await;
    fill(&server.store);
    let whole = export(&server, &file, &[]).await.unwrap();
    // The same versions, and yet another record: only comparing finds it.
    let changed = String::from_utf8(whole.clone()).unwrap().replacen("id-00000", "id-0000x", 1);
    fs::write(&partial, changed).unwrap();
    assert!(export(&server, &file, &["--resume"]).await.unwrap() == whole);
    server.store.lock().put(&record(TEST, "id-00000", b"\x0a\x01z"));
    fs::write(&partial, &whole[..5000]).unwrap();
    let anew = export(&server, &folder.path().join("anew"), &[]).await.unwrap();
    assert!(export(&server, &file, &["--resume"]).await.unwrap() == anew);
}

#[tokio::test]
async fn an_interrupted_import_goes_on_after_what_was_acknowledged() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    let from = Standin::start().await;
    for number in 0..40 {
        from.store.lock().put(&record(TEST, &format!("{number:02}"), &vec![7; 450 << 10]));
    }
    let whole = export(&from, &file, &[]).await.unwrap();

    let to = Standin::start_at("127.0.0.1:0".parse().unwrap(), Store::new(99), None).await;
    to.store.lock().puts_left = Some(12);
    assert_eq!(tool(&to, &["import", file.to_str().unwrap()]).await.unwrap_err().exit_code(), 1);
    assert_eq!(to.store.lock().puts, 12);

    to.store.lock().puts_left = None;
    tool(&to, &["import", file.to_str().unwrap()]).await.unwrap();
    // 40 records are 20 batches. Those in flight at the interruption may have been taken without an answer.
    let puts = to.store.lock().puts;
    assert!((20..=24).contains(&puts), "{puts}");
    let copy = export(&to, &folder.path().join("copy"), &[]).await.unwrap();
    assert!(contents(&copy) == contents(&whole));

    // What another server acknowledged says nothing about this one.
    to.store.lock().puts_left = Some(12);
    to.store.lock().clear();
    tool(&to, &["import", file.to_str().unwrap()]).await.unwrap_err();
    to.store.lock().puts_left = None;
    to.store.lock().clear();
    tool(&to, &["import", file.to_str().unwrap()]).await.unwrap();
    assert_eq!(to.store.lock().ids(TEST).len(), 40);
}

#[test]
fn help_names_the_exit_codes() {
    let help = Line::command().find_subcommand_mut("get").unwrap().render_long_help().to_string();
    assert!(help.contains("4 shared secret refused"), "{help}");
    assert!(matches!(OutputArgs::default().output, Format::Table));
}
