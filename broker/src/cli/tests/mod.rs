//! What the tools promise, against a server that is not ours (see `standin`). Here: how a tool is run, and what holds for
//! all of them.

mod leases;
mod options;
mod records;
mod refusals;
mod sessions;
mod transfer;
mod watching;

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use clap::{CommandFactory as _, Parser};
use databroker_proto::{EncodedRecord, Record};
use parking_lot::Mutex;
use prost_types::Any;
use serde_json::Value;

use super::{
    Command, execute,
    failure::Failure,
    output::{Format, Output, OutputArgs},
    standin::{Standin, key},
};

#[derive(Parser)]
#[command(name = "databroker")]
struct Line {
    #[command(subcommand)]
    command: Command,
}

/// What a tool printed; shared, so that it can be read while the tool runs.
#[derive(Clone, Default)]
pub(super) struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    pub(super) fn text(&self) -> String {
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

#[test]
fn the_command_line_is_well_formed() {
    Line::command().debug_assert();
    for line in [&["options", "list", "--address", "x"][..], &["options", "--address", "x", "list"]] {
        assert!(Line::try_parse_from(std::iter::once("databroker").chain(line.iter().copied())).is_ok());
    }
}

#[test]
fn help_names_the_exit_codes() {
    let help = Line::command().find_subcommand_mut("get").unwrap().render_long_help().to_string();
    assert!(help.contains("4 secret or certificate refused"), "{help}");
    assert!(matches!(OutputArgs::default().output, Format::Table));
}
