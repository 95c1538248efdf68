//! `export`: all records and options of a server, into a file that any server can take in again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal as _, Seek as _, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use databroker_proto::{
    EncodedRecord,
    databroker::{Options, SyncLatestRequest, TypedOptions, Versions, sync_latest_response::Response},
};

use super::{
    connect::{ConnectArgs, Connection},
    decode,
    dump::{DumpError, FORMAT, Header, OptionsLine, Parts, Reader, Writer},
    failure::Failure,
    options,
    output::notice,
    progress::Progress,
    record::fields,
    records,
};

/// How often an export begins anew when the store changes under it in a way that a file cannot show.
const ATTEMPTS: usize = 3;

/// Write all records and options into a file.
#[derive(Debug, clap::Args)]
pub struct Export {
    /// Where to: a file (readable by its owner only, replaced when complete), or `-` for standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
    /// Put each record's readable form beside its bytes (not read on import)
    #[arg(long)]
    pub decoded: bool,
    /// Compare what an interrupted export left of this file with what the server sends, and go on after it if nothing was
    /// written meanwhile; else begin anew
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Export {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let to_stdout = self.output.as_os_str() == "-";
        if to_stdout && io::stdout().is_terminal() {
            return Err(Failure::Usage("give a file with --output: records are not for a terminal".to_owned()));
        }
        if to_stdout && self.resume {
            return Err(Failure::Usage("--resume needs a file (--output)".to_owned()));
        }
        let connection = self.connect.connect().await?;
        match to_stdout {
            true => self.to_stdout(&connection).await,
            false => self.to_file(&connection).await,
        }
    }

    async fn to_stdout(&self, connection: &Connection) -> Result<(), Failure> {
        let header = self.header(connection).await?;
        let writer = Writer::new(io::stdout(), &header).map_err(|error| written(&self.output, error))?;
        match self.contents(connection, writer, &header).await {
            Ok((mut stdout, summary)) => {
                stdout.flush().map_err(Failure::output)?;
                notice(&summary);
                Ok(())
            }
            Err(Unfinished::Failed(failure)) => Err(failure),
            // Nothing can be taken back from a pipe; without its end the export is refused by every import.
            Err(Unfinished::Cleared | Unfinished::Stale) => {
                Err(Failure::Failed("the server was cleared meanwhile".to_owned()))
            }
        }
    }

    async fn to_file(&self, connection: &Connection) -> Result<(), Failure> {
        let partial = partial(&self.output);
        let mut resume = self.resume;
        for _ in 0..ATTEMPTS {
            let header = self.header(connection).await?;
            let begun = if resume { resumed(&partial, &header) } else { None };
            let writer = match begun {
                Some(writer) => writer,
                None => {
                    if resume {
                        notice("there is nothing to go on with: starting from the beginning");
                    }
                    create(&partial, &header)?
                }
            };
            resume = false;
            match self.contents(connection, writer, &header).await {
                Ok((file, summary)) => {
                    publish(file, &partial, &self.output)?;
                    notice(&summary);
                    return Ok(());
                }
                Err(Unfinished::Failed(failure)) => return Err(failure),
                Err(Unfinished::Stale) => {
                    notice("the store has changed since the interruption: starting from the beginning");
                }
                Err(Unfinished::Cleared) => notice("the server was cleared meanwhile: starting from the beginning"),
            }
        }
        Err(Failure::Failed(format!("the store was cleared {ATTEMPTS} times during the export")))
    }

    async fn header(&self, connection: &Connection) -> Result<Header, Failure> {
        let info = connection.call(connection.records().server_info(())).await?;
        Ok(Header {
            databroker_export: FORMAT,
            server_version: info.server_version.to_string(),
            record_version: info.latest_record_version,
            decoded: self.decoded,
        })
    }

    /// Writes all after the header, and sums up.
    async fn contents<W: Write>(
        &self,
        connection: &Connection,
        mut writer: Writer<W>,
        header: &Header,
    ) -> Result<(W, String), Unfinished> {
        let options = options::all(connection).await?;
        for (r#type, options) in &options {
            writer.options(options_line(r#type, options)).map_err(|error| self.failed(error))?;
        }
        // Only for the progress: without it there is none to be foreseen.
        let total = records::count(connection, "").await.ok().and_then(|count| u64::try_from(count).ok());
        let mut progress = Progress::new("exported", total, 0);
        let versions = self.frames(connection, &mut writer, &options, &mut progress).await?;
        let took = progress.finish();
        if versions.server_version.to_string() != header.server_version {
            return Err(Unfinished::Cleared);
        }
        let (to, end) = writer.end().map_err(|error| self.failed(error))?;
        let (records, types, target) = (end.records, end.options, self.output.display());
        Ok((to, format!("exported {records} records and the options of {types} types to {target} {took}")))
    }

    async fn frames<W: Write>(
        &self,
        connection: &Connection,
        writer: &mut Writer<W>,
        known: &[(String, Options)],
        progress: &mut Progress,
    ) -> Result<Versions, Unfinished> {
        let request = SyncLatestRequest { r#type: String::new() };
        let mut stream = connection.open(connection.records().sync_latest(request)).await?;
        let mut versions = None;
        while let Some(frame) = connection.next(&mut stream).await? {
            match frame.response {
                Some(Response::Record(record)) => {
                    self.record(writer, &record)?;
                    progress.add(1);
                }
                // Of a type whose first record came after the options were asked for.
                Some(Response::Options(TypedOptions { type_url, options: Some(options) }))
                    if is_news(known, &type_url, &options) =>
                {
                    writer.options(options_line(&type_url, &options)).map_err(|error| self.failed(error))?;
                }
                Some(Response::Options(_)) | None => {}
                Some(Response::Versions(last)) => versions = Some(last),
            }
        }
        Ok(versions.ok_or_else(|| Failure::Failed("the server ended the stream before its versions".to_owned()))?)
    }

    fn record<W: Write>(&self, writer: &mut Writer<W>, record: &EncodedRecord) -> Result<(), Unfinished> {
        let parts = Parts::split(record)
            .map_err(|error| Failure::Failed(format!("the server sent a malformed record: {error}")))?;
        let decoded = match self.decoded {
            true => fields(record)?.data.as_ref().map(decode::to_json),
            false => None,
        };
        writer.record(&parts, decoded).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: DumpError) -> Unfinished {
        match error {
            DumpError::Stale => Unfinished::Stale,
            error => Unfinished::Failed(written(&self.output, error)),
        }
    }
}

/// Why a file did not come to its end.
enum Unfinished {
    /// What was written before the interruption is not what the server has now.
    Stale,
    /// The store was emptied and begun anew meanwhile.
    Cleared,
    Failed(Failure),
}

impl From<Failure> for Unfinished {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn is_news(known: &[(String, Options)], r#type: &str, options: &Options) -> bool {
    !known.iter().any(|(known_type, known_options)| known_type == r#type && known_options == options)
}

fn options_line(r#type: &str, options: &Options) -> OptionsLine {
    OptionsLine { r#type: r#type.to_owned(), options: options.into() }
}

fn partial(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

fn create(partial: &Path, header: &Header) -> Result<Writer<File>, Failure> {
    let begin = || {
        // An older file may be readable by others.
        match fs::remove_file(partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(partial)?;
        Writer::new(file, header)
    };
    begin().map_err(|error| written(partial, error))
}

/// A writer at the end of what an interrupted export left, if that is of the same store at the same version.
fn resumed(partial: &Path, header: &Header) -> Option<Writer<File>> {
    let reader = Reader::open(partial).ok()?;
    if reader.header() != header {
        return None;
    }
    let (begun, end) = reader.begun();
    let mut file = OpenOptions::new().write(true).open(partial).ok()?;
    file.set_len(end).ok()?;
    file.seek(SeekFrom::Start(end)).ok()?;
    Some(Writer::resume(file, begun))
}

fn publish(file: File, partial: &Path, target: &Path) -> Result<(), Failure> {
    let publish = || {
        file.sync_all()?;
        fs::rename(partial, target)
    };
    publish().map_err(|source| Failure::Write { file: target.to_owned(), source })
}

fn written(file: &Path, error: DumpError) -> Failure {
    match error {
        DumpError::Io(source) if file.as_os_str() == "-" => Failure::output(source),
        DumpError::Io(source) => Failure::Write { file: file.to_owned(), source },
        other => Failure::Failed(format!("cannot write {}: {other}", file.display())),
    }
}
