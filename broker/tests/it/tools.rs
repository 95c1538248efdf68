//! The command-line tools against real brokers. What they promise against any server is tested beside them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser};
use databroker::cli;
use databroker_proto::{
    EncodedRecord, Record,
    databroker::{Options, SetOptionsRequest},
};
use prost_types::Any;
use tempfile::TempDir;

use crate::broker::{Broker, key, put, record, soon};

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: cli::Command,
}

async fn tool(broker: &Broker, line: &[&str]) -> ExitCode {
    let (address, secret) = (broker.addresses.grpc.to_string(), key().to_base64());
    let connection = ["--address", &address, "--shared-secret", &secret];
    let line = Line::parse_from(["databroker"].iter().chain(line).chain(&connection));
    soon(cli::run(line.command, Line::command())).await
}

async fn export(broker: &Broker, file: PathBuf) -> Vec<u8> {
    let code = tool(broker, &["export", "--output", file.to_str().unwrap()]).await;
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS));
    fs::read(file).unwrap()
}

async fn import(broker: &Broker, file: &Path) {
    let code = tool(broker, &["import", file.to_str().unwrap()]).await;
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS));
}

/// An export without its header.
fn contents(export: &[u8]) -> &[u8] {
    &export[export.iter().position(|byte| *byte == b'\n').unwrap()..]
}

/// Records with all that is hard to carry: odd keys, unknown types and fields, absent and large data.
fn odd_records() -> Vec<EncodedRecord> {
    let of = |r#type: &str, id: &str, data| {
        EncodedRecord::from(Record { r#type: r#type.into(), id: id.into(), data, ..Default::default() })
    };
    let any = |type_url: &str, value: &[u8]| Some(Any { type_url: type_url.into(), value: value.into() });
    let mut more = of("more", "fields", any("a/b", &[0xff])).as_bytes().to_vec();
    // Field 2000, which no version of the interface has.
    more.extend([0x82, 0x7d, 4]);
    more.extend(b"kept");
    vec![
        of("a\0b", "c\0", any("", &[])),
        of("a", "x=1&y=%2F", any("example.com/no.Such", &[0xff, 0])),
        of("type.googleapis.com/test.Test", "1", any("type.googleapis.com/test.Test", b"\x0a\x01x\x4a\x01y")),
        of("big", "1", any("a/b", &vec![7; 3 << 20])),
        of("none", "1", None),
        EncodedRecord::from_bytes(more),
    ]
}

#[tokio::test]
async fn a_store_is_the_same_after_export_and_import() {
    let folder = TempDir::new().unwrap();
    let (from, to) = (Broker::start().await, Broker::start().await);
    let client = &mut from.client().await;
    put(client, odd_records()).await;
    put(client, (0..3000).map(|number| record("many", &format!("{number:04}"), "x")).collect()).await;
    let options = Options { capacity: Some(9000), indexable_fields: vec!["a.b".into()], ttl: None };
    client.set_options(SetOptionsRequest { r#type: "many".into(), options: Some(options) }).await.unwrap();

    let first = export(&from, folder.path().join("first")).await;
    assert!(export(&from, folder.path().join("again")).await == first, "two exports of one store differ");
    import(&to, &folder.path().join("first")).await;
    let second = export(&to, folder.path().join("second")).await;
    assert!(first != second, "the header names the store");
    assert!(contents(&first) == contents(&second), "records or options differ");
    from.stop().await;
    to.stop().await;
}
