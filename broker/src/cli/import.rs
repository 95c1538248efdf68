//! `import`: takes the file of an `export` into a server.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use databroker_proto::{
    EncodedRecord,
    databroker::{PutRequest, ServerInfoResponse},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tonic::Code;

use super::{
    connect::{ConnectArgs, Connection},
    dump::{DumpError, Line, OptionsLine, Reader},
    failure::Failure,
    options,
    output::{Output, OutputArgs, notice, printable},
    progress::Progress,
};

/// A batch's size in bytes: servers take 4 MiB, and a batch is one fsync. A larger record goes alone.
const BATCH_BYTES_MAX: usize = 960 << 10;

/// A batch's size in records, so that one batch does not hold up other writers for long.
const BATCH_RECORDS_MAX: usize = 2_000;

/// Batches that await their answers: enough to keep a server busy, and no more than 4 MiB in memory.
const IN_FLIGHT_MAX: usize = 4;

/// How often a batch is tried again while the server is away, with pauses doubling from the first to the last.
const RETRIES_MAX: u32 = 8;
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How often the place reached is written down.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// Put all records and options of an export into a server.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// The file
    pub file: PathBuf,
    /// Only prove the file whole and count what is in it; no server is asked
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Import {
    pub(super) async fn run(&self, open: impl FnOnce(OutputArgs) -> Output) -> Result<(), Failure> {
        let output = &mut open(self.output);
        let inventory = Inventory::of(&self.file)?;
        if self.dry_run {
            return inventory.print(output);
        }
        let connection = self.connect.connect().await?;
        let before = connection.call(connection.records().server_info(())).await?;
        let took = self.send(&connection, &inventory, before.server_version).await?;
        let after = connection.call(connection.records().server_info(())).await?;
        same_store(before.server_version, after.server_version)?;
        self.report(output, &inventory, &after, &took)
    }

    async fn send(
        &self,
        connection: &Connection,
        inventory: &Inventory,
        server_version: u64,
    ) -> Result<String, Failure> {
        for line in &inventory.options {
            let options = line.options.to_options().map_err(Failure::Failed)?;
            options::set(connection, &line.r#type, options).await?;
        }
        let mut reader = Reader::open(&self.file).map_err(|error| read(&self.file, error))?;
        let mut place = Place::load(&self.file, inventory, server_version);
        if place.records > 0 {
            notice(&format!("going on after {} records that the server acknowledged before", place.records));
            reader.seek(place.offset).map_err(|error| read(&self.file, error))?;
        }
        let mut progress = Progress::new("imported", Some(inventory.records), place.records);
        let in_flight = if inventory.ascending { IN_FLIGHT_MAX } else { 1 };
        let batches = Batches { reader, done: false, held: None };
        let mut acknowledged = stream::iter(batches)
            .map(|batch| async { put(connection, batch.map_err(|error| read(&self.file, error))?).await })
            .buffered(in_flight);
        let mut saved = Instant::now();
        loop {
            let batch = match acknowledged.try_next().await {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                Err(failure) => {
                    place.save(&self.file);
                    return Err(failure);
                }
            };
            if let Err(failure) = same_store(server_version, batch.server_version) {
                // What was acknowledged before is gone: there is no place to go on from.
                Place::forget(&self.file);
                return Err(failure);
            }
            progress.add(batch.records);
            place.records += batch.records;
            place.offset = batch.end;
            if saved.elapsed() >= SAVE_INTERVAL {
                place.save(&self.file);
                saved = Instant::now();
            }
        }
        Place::forget(&self.file);
        Ok(progress.finish())
    }

    fn report(
        &self,
        output: &mut Output,
        inventory: &Inventory,
        after: &ServerInfoResponse,
        took: &str,
    ) -> Result<(), Failure> {
        if !output.for_people() {
            return output.value(&ImportJson {
                records: inventory.records,
                types_with_options: inventory.options.len(),
                server_version: after.server_version.to_string(),
                latest_record_version: after.latest_record_version,
            });
        }
        output.line(&format!(
            "imported {} records of {} types and the options of {} types {took}",
            inventory.records,
            inventory.by_type.len(),
            inventory.options.len()
        ))?;
        output.line(&format!(
            "the records have new versions: up to {} of server version {}",
            after.latest_record_version, after.server_version
        ))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ImportJson {
    records: u64,
    types_with_options: usize,
    server_version: String,
    latest_record_version: u64,
}

/// What is in a file that was proved whole.
struct Inventory {
    by_type: BTreeMap<String, u64>,
    options: Vec<OptionsLine>,
    records: u64,
    /// Whether records are in strict order: then none comes twice, and batches may overtake each other.
    ascending: bool,
    sha256: String,
}

impl Inventory {
    fn of(file: &Path) -> Result<Self, Failure> {
        let failed = |error| read(file, error);
        let mut reader = Reader::open(file).map_err(failed)?;
        let mut by_type = BTreeMap::<String, u64>::new();
        let mut options = Vec::new();
        let mut ascending = true;
        let mut last: Option<(String, String)> = None;
        let end = reader
            .check(|line| match line {
                Line::Record(parts) => {
                    let key = (parts.r#type.clone(), parts.id.clone());
                    ascending &= last.as_ref().is_none_or(|last| *last < key);
                    *by_type.entry(key.0.clone()).or_default() += 1;
                    last = Some(key);
                }
                Line::Options(line) => options.push(line.clone()),
                Line::End(_) => {}
            })
            .map_err(failed)?;
        Ok(Self { by_type, options, records: end.records, ascending, sha256: end.sha256 })
    }

    fn print(self, output: &mut Output) -> Result<(), Failure> {
        if !output.for_people() {
            return output.value(&serde_json::json!({
                "records": self.records,
                "types": self.by_type,
                "typesWithOptions": self.options.iter().map(|line| &line.r#type).collect::<Vec<_>>(),
            }));
        }
        let rows = self.by_type.iter().map(|(r#type, count)| vec![printable(r#type).into(), count.to_string().into()]);
        output.table(&["TYPE", "RECORDS"], rows.collect(), "no records")?;
        output.line(&format!("the file is whole: {} records, options of {} types", self.records, self.options.len()))
    }
}

/// Records that are put in one call.
struct Batch {
    put: PutRequest,
    bytes: usize,
    records: u64,
    /// Where in the file the next record begins.
    end: u64,
}

/// Cuts a file into batches.
struct Batches<R> {
    reader: Reader<R>,
    done: bool,
    /// The record that did not fit into the last batch, and where the one after it begins.
    held: Option<(EncodedRecord, u64)>,
}

impl<R: std::io::Read> Batches<R> {
    fn next_record(&mut self) -> Result<Option<(EncodedRecord, u64)>, DumpError> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        loop {
            match self.reader.line()? {
                Line::Record(parts) => return Ok(Some((parts.join(), self.reader.offset()))),
                Line::Options(_) => {}
                Line::End(_) => return Ok(None),
            }
        }
    }

    fn next_batch(&mut self) -> Result<Option<Batch>, DumpError> {
        let mut batch = Batch { put: PutRequest::default(), bytes: 0, records: 0, end: self.reader.offset() };
        while batch.put.records.len() < BATCH_RECORDS_MAX {
            let Some((record, end)) = self.next_record()? else {
                self.done = true;
                break;
            };
            // Its key and length in the request take a few bytes more.
            let bytes = record.encoded_len() + 16;
            if batch.bytes + bytes > BATCH_BYTES_MAX && batch.records > 0 {
                self.held = Some((record, end));
                break;
            }
            batch.put.records.push(record);
            batch.bytes += bytes;
            batch.records += 1;
            batch.end = end;
        }
        Ok((batch.records > 0).then_some(batch))
    }
}

impl<R: std::io::Read> Iterator for Batches<R> {
    type Item = Result<Batch, DumpError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let batch = self.next_batch();
        self.done |= batch.is_err();
        batch.transpose()
    }
}

/// A batch that the server has.
struct Acknowledged {
    server_version: u64,
    records: u64,
    end: u64,
}

/// Whether the server still has what it acknowledged since the import began. Some servers do not tell their version with
/// each answer: 0 says nothing.
fn same_store(begun: u64, now: u64) -> Result<(), Failure> {
    if begun == now || begun == 0 || now == 0 {
        return Ok(());
    }
    Err(Failure::Failed("the server was cleared or began anew while records were imported: run it again".to_owned()))
}

/// Puts a batch, again and again while the server is away: a put of the same records twice is as good as once.
async fn put(connection: &Connection, batch: Batch) -> Result<Acknowledged, Failure> {
    let mut pause = PAUSE_FIRST;
    let mut retries = 0;
    loop {
        match connection.call(connection.records().put(batch.put.clone())).await {
            Ok(response) => {
                let server_version = response.server_version;
                return Ok(Acknowledged { server_version, records: batch.records, end: batch.end });
            }
            Err(failure) if retries < RETRIES_MAX && is_away(&failure) => {
                retries += 1;
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            Err(failure) => {
                name_refused(&batch);
                return Err(failure);
            }
        }
    }
}

fn is_away(failure: &Failure) -> bool {
    matches!(failure, Failure::NoAnswer { .. } | Failure::Connect { .. })
        || matches!(failure.code(), Some(Code::Unavailable | Code::DeadlineExceeded | Code::Aborted))
        || failure.is_broken_connection()
}

/// Which records a server refuses: its answer does not say.
fn name_refused(batch: &Batch) {
    let first = batch.put.records.first().and_then(|record| record.to_record().ok()).unwrap_or_default();
    let (count, bytes) = (batch.records, batch.bytes);
    let key = format!("{:?} of type {:?}", printable(&first.id), printable(&first.r#type));
    notice(&format!("the server does not take {count} records ({bytes} bytes) that begin with {key}"));
}

/// How far an import came: in a file beside the one that is imported.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Place {
    /// Of the imported file.
    sha256: String,
    /// Of the server that took it in.
    server_version: String,
    records: u64,
    offset: u64,
}

impl Place {
    fn load(file: &Path, inventory: &Inventory, server_version: u64) -> Self {
        let start = Self {
            sha256: inventory.sha256.clone(),
            server_version: server_version.to_string(),
            records: 0,
            offset: 0,
        };
        let saved = fs::read(Self::path(file)).ok().and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        match saved {
            Some(saved) if saved.sha256 == start.sha256 && saved.server_version == start.server_version => saved,
            _ => start,
        }
    }

    /// Under another name first: half a place would be worse than an old one. Without a place to write, an import can
    /// only begin anew, which is no reason to end it.
    fn save(&self, file: &Path) {
        let path = Self::path(file);
        let unfinished = path.with_extension("progress.new");
        let write = || {
            fs::write(&unfinished, serde_json::to_vec(self)?)?;
            fs::rename(&unfinished, &path)
        };
        if let Err(error) = write() {
            notice(&format!("cannot write {}: {error}; the import goes on", path.display()));
        }
    }

    fn forget(file: &Path) {
        // Left behind it does no harm: the next import would find all done.
        let _ = fs::remove_file(Self::path(file));
    }

    fn path(file: &Path) -> PathBuf {
        let mut name = file.as_os_str().to_owned();
        name.push(".progress");
        PathBuf::from(name)
    }
}

fn read(file: &Path, error: DumpError) -> Failure {
    match error {
        DumpError::Io(source) => Failure::Read { file: file.to_owned(), source },
        other => Failure::Failed(format!("cannot import {}: {other}", file.display())),
    }
}
