//! `export` and `import`.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use clap::CommandFactory as _;
use databroker_proto::{EncodedRecord, Record, databroker::Options};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Line, Printed, TEST, record, run_line, tool};
use crate::cli::{
    failure::Failure,
    standin::{Standin, Store},
};

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

#[tokio::test]
async fn an_import_fails_when_the_server_is_cleared_meanwhile_and_is_whole_when_run_again() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    let progress = folder.path().join("file.progress");
    let from = Standin::start().await;
    for number in 0..40 {
        from.store.lock().put(&record(TEST, &format!("{number:02}"), &vec![7; 450 << 10]));
    }
    export(&from, &file, &[]).await.unwrap();
    let import = ["import", file.to_str().unwrap()];
    // Of a server that does not tell its version with what it acknowledges, it is seen in the end.
    for tell in [true, false] {
        let to = Standin::start_at("127.0.0.1:0".parse().unwrap(), Store::new(99), None).await;
        to.store.lock().puts_tell_version = tell;
        to.store.lock().puts_left = Some(6);
        tool(&to, &import).await.unwrap_err();
        assert!(progress.exists());

        to.store.lock().puts_left = None;
        to.store.lock().puts_to_clear = Some(6);
        let error = tool(&to, &import).await.unwrap_err();
        assert_eq!(error.exit_code(), 1, "{error}");
        assert!(error.to_string().contains("run it again"), "{error}");
        assert!(to.store.lock().ids(TEST).len() < 40);
        assert!(!progress.exists(), "it tells of records that are gone");

        tool(&to, &import).await.unwrap();
        assert_eq!(to.store.lock().ids(TEST).len(), 40);
    }
}

#[test]
fn help_of_export_says_which_options_are_not_in_the_file() {
    let mut line = Line::command();
    line.build();
    let mut help = |path: &[&str]| {
        let tool = path.iter().fold(&mut line, |tool, name| tool.find_subcommand_mut(name).unwrap());
        tool.render_long_help().to_string().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    // As `options list` says it.
    for path in [&["options", "list"][..], &["export"]] {
        let help = help(path);
        let sentence = "have records or are known to this build (the interface has no list of others)";
        assert!(help.contains(sentence), "{path:?}: {help}");
    }
}
