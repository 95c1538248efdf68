//! `watch`: follows changes, and goes on by itself after a break.

use std::time::Duration;

use databroker_proto::{
    EncodedRecord, Record,
    databroker::{SyncLatestRequest, SyncRequest, sync_latest_response, sync_response::Response},
};
use owo_colors::AnsiColors;
use prost_types::Timestamp;
use tokio::time::sleep;
use tonic::Code;

use super::{
    Ask,
    connect::Connection,
    duration::short,
    failure::Failure,
    output::{Output, notice, printable, short_type},
    record::{RecordJson, fields},
    types::{self, ExactArgs},
};

/// The pause after a break: doubled with each break in a row, from the first to the second.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Follow changes as they happen.
#[derive(Debug, clap::Args)]
pub struct Watch {
    /// Only records of this type, in full or short; all types if left out
    #[arg(default_value = "", hide_default_value = true)]
    pub r#type: String,
    /// Show the changes after this record version first
    #[arg(long, value_name = "VERSION", conflicts_with = "all")]
    pub from: Option<u64>,
    /// Show all records first
    #[arg(long)]
    pub all: bool,
    /// End when the present is reached
    #[arg(long)]
    pub no_follow: bool,
    #[command(flatten)]
    exact: ExactArgs,
}

impl Ask for Watch {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        let r#type = types::resolve(connection, &self.r#type, self.exact).await?;
        let start = if self.all { Start::All } else { self.from.map_or(Start::Now, Start::After) };
        let wait = !self.no_follow;
        let mut watcher = Watcher { connection, r#type, wait, position: None, begun: false, moved: false };
        let mut start = start;
        let mut pause = PAUSE_FIRST;
        loop {
            watcher.moved = false;
            let failure = match watcher.follow(start, output).await {
                Ok(()) if self.no_follow => return Ok(()),
                Ok(()) => None,
                Err(failure) => Some(failure),
            };
            if watcher.moved {
                pause = PAUSE_FIRST;
            }
            match failure {
                Some(failure) if failure.code() == Some(Code::Aborted) => {
                    watcher.position = None;
                    start = watcher.start_over(start).await;
                }
                // A watch that never began is not worth waiting for: the person is still there to read why.
                Some(failure) if !watcher.begun || !is_break(&failure) => return Err(failure),
                Some(failure) => notice(&format!("{failure}: will try again in {}", short(pause))),
                None => notice(&format!("the server ended the stream: will try again in {}", short(pause))),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// Where to begin when there is no position to go on from.
#[derive(Clone, Copy)]
enum Start {
    Now,
    After(u64),
    All,
}

/// A place in a server's history.
#[derive(Clone, Copy)]
struct Position {
    server_version: u64,
    record_version: u64,
}

struct Watcher<'a> {
    connection: &'a Connection,
    r#type: String,
    wait: bool,
    /// None before the first stream, and when starting over.
    position: Option<Position>,
    /// Whether a server was ever asked for a stream. It stays so when starting over.
    begun: bool,
    /// Whether anything came since the last break.
    moved: bool,
}

impl Watcher<'_> {
    /// Shows changes until the stream ends.
    async fn follow(&mut self, start: Start, output: &mut Output) -> Result<(), Failure> {
        let mut position = match self.position {
            Some(position) => position,
            None => self.begin(start, output).await?,
        };
        let request = SyncRequest {
            server_version: position.server_version,
            record_version: position.record_version,
            r#type: self.r#type.clone(),
            wait: Some(self.wait),
        };
        // Not bounded in time: some servers send the headers with the first change. Keepalive finds a dead connection.
        (self.position, self.begun) = (Some(position), true);
        let refused = |status| self.connection.refused(status);
        let mut stream = self.connection.records().sync(request).await.map_err(refused)?.into_inner();
        while let Some(frame) = stream.message().await.map_err(|status| self.connection.refused(status))? {
            self.moved = true;
            let Some(Response::Record(encoded)) = frame.response else { continue };
            let record = fields(&encoded)?;
            position.record_version = record.version;
            print(output, &record)?;
            self.position = Some(position);
        }
        Ok(())
    }

    async fn begin(&self, start: Start, output: &mut Output) -> Result<Position, Failure> {
        let info = self.connection.call(self.connection.records().server_info(())).await?;
        let after = |record_version| Position { server_version: info.server_version, record_version };
        match start {
            Start::Now => Ok(after(info.latest_record_version)),
            Start::After(version) => Ok(after(version)),
            Start::All => self.show_all(output).await,
        }
    }

    async fn show_all(&self, output: &mut Output) -> Result<Position, Failure> {
        let request = SyncLatestRequest { r#type: self.r#type.clone() };
        let mut stream = self.connection.open(self.connection.records().sync_latest(request)).await?;
        let mut position = None;
        while let Some(frame) = self.connection.next(&mut stream).await? {
            match frame.response {
                Some(sync_latest_response::Response::Record(encoded)) => print_encoded(output, &encoded)?,
                Some(sync_latest_response::Response::Versions(versions)) => {
                    position = Some(Position {
                        server_version: versions.server_version,
                        record_version: versions.latest_record_version,
                    });
                }
                _ => {}
            }
        }
        position.ok_or_else(|| Failure::Failed("the server ended the stream before its versions".to_owned()))
    }

    /// Says that changes may have been missed, and chooses where to begin again.
    async fn start_over(&self, start: Start) -> Start {
        let earliest = match self.connection.call(self.connection.records().server_info(())).await {
            Ok(info) => info.earliest_record_version,
            Err(_) => 0,
        };
        match start {
            Start::All => {
                notice("the server cannot tell what changed since: starting over with all records");
                Start::All
            }
            Start::After(version) if earliest > version.saturating_add(1) => {
                notice(&format!("the server no longer knows what changed before version {earliest}: starting there"));
                Start::After(earliest - 1)
            }
            _ => {
                notice("the server cannot tell what changed since: some changes may be missing; going on from now");
                Start::Now
            }
        }
    }
}

/// Whether it is worth trying again: the server or the connection is away, not the request wrong.
fn is_break(failure: &Failure) -> bool {
    match failure.code() {
        Some(code) => !matches!(
            code,
            Code::InvalidArgument
                | Code::Unauthenticated
                | Code::PermissionDenied
                | Code::Unimplemented
                | Code::NotFound
        ),
        None => matches!(failure, Failure::Connect { .. } | Failure::NoAnswer { .. }),
    }
}

fn print_encoded(output: &mut Output, encoded: &EncodedRecord) -> Result<(), Failure> {
    print(output, &fields(encoded)?)
}

fn print(output: &mut Output, record: &Record) -> Result<(), Failure> {
    let view = RecordJson::new(record);
    if !output.for_people() {
        return output.stream_value(&view);
    }
    let (mark, colour) = match record.deleted_at {
        Some(_) => ("del", AnsiColors::Red),
        None => ("put", AnsiColors::Green),
    };
    let line = format!(
        "{}  {}  {}  {}  {}  {}",
        output.paint(&clock(record.modified_at.as_ref()), AnsiColors::BrightBlack),
        output.paint(mark, colour),
        output.paint(&format!("v{}", record.version), AnsiColors::BrightBlack),
        output.paint(&short_type(&record.r#type), AnsiColors::Cyan),
        printable(&record.id),
        output.summary(view.data.as_ref()),
    );
    output.line(&line)
}

/// The time of day, UTC: `12:34:56Z`.
fn clock(time: Option<&Timestamp>) -> String {
    time.map_or_else(
        || "--:--:--Z".to_owned(),
        |time| {
            let second = time.seconds.rem_euclid(86_400);
            format!("{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
        },
    )
}
