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
    dump::{DumpError, End, FORMAT, Header, OptionsLine, Parts, Reader, Writer},
    failure::Failure,
    options,
    output::notice,
    progress::Progress,
    record::fields,
    records,
};

/// How often an export begins anew when the store changes under it in a way that a file cannot show.
const ATTEMPTS: usize = 3;

/// Write all records and options into a file, one JSON object a line, in the order of type and id: two exports of the
/// same store are equal byte for byte. Works against any server of the interface.
///
/// A record's data is kept byte for byte, whatever its type. Not in the file: tombstones, leases, the service registry,
/// and each record's version and time of change, which a server gives anew on import.
///
/// While it is written, the file has `.partial` after its name. The records are those of one moment as far as the
/// server's SyncLatest gives that; the header says up to which record version they are complete.
#[derive(Debug, clap::Args)]
pub struct Export {
    /// Where to: a file (readable by its owner only, replaced when complete), or `-` for standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
    /// Put each record's readable form beside its bytes (not read on import)
    #[arg(long)]
    pub decoded: bool,
    /// Go on with an interrupted export of this file, if the server still has exactly what is in it
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
        let begin = |error: DumpError| written(Path::new("-"), error);
        let writer = Writer::new(io::stdout(), &header).map_err(begin)?;
        match self.contents(connection, writer, &header).await? {
            Contents::Whole(mut stdout, end, took) => {
                stdout.flush().map_err(Failure::output)?;
                notice(&summary(&end, "standard output", &took));
                Ok(())
            }
            Contents::Cleared | Contents::Stale => Err(Failure::Failed("the server was cleared meanwhile".to_owned())),
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
            match self.contents(connection, writer, &header).await? {
                Contents::Whole(file, end, took) => {
                    publish(file, &partial, &self.output)?;
                    notice(&summary(&end, &self.output.display().to_string(), &took));
                    return Ok(());
                }
                Contents::Stale => notice("the store has changed since the interruption: starting from the beginning"),
                Contents::Cleared => notice("the server was cleared meanwhile: starting from the beginning"),
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

    async fn contents<W: Write>(
        &self,
        connection: &Connection,
        mut writer: Writer<W>,
        header: &Header,
    ) -> Result<Contents<W>, Failure> {
        let options = options::all(connection).await?;
        for (r#type, options) in &options {
            if let Err(error) = writer.options(options_line(r#type, options)) {
                return stale_or(self.failed(error));
            }
        }
        // Only for the progress: without it there is none to be foreseen.
        let total = records::count(connection, "").await.ok().and_then(|count| u64::try_from(count).ok());
        let mut progress = Progress::new("exported", total, 0);
        let request = SyncLatestRequest { r#type: String::new() };
        let mut stream = connection.open(connection.records().sync_latest(request)).await?;
        let mut versions = None;
        while let Some(frame) = connection.next(&mut stream).await? {
            let result = match frame.response {
                Some(Response::Record(record)) => {
                    progress.add(1);
                    self.record(&mut writer, &record)
                }
                // Of a type whose first record came after the options were asked for.
                Some(Response::Options(TypedOptions { type_url, options: Some(set) }))
                    if is_news(&options, &type_url, &set) =>
                {
                    writer.options(options_line(&type_url, &set)).map_err(|error| self.failed(error))
                }
                Some(Response::Versions(last)) => {
                    versions = Some(last);
                    Ok(())
                }
                _ => Ok(()),
            };
            if let Err(failure) = result {
                return stale_or(failure);
            }
        }
        let took = progress.finish();
        let Some(Versions { server_version, .. }) = versions else {
            return Err(Failure::Failed("the server ended the stream before its versions".to_owned()));
        };
        if server_version.to_string() != header.server_version {
            return Ok(Contents::Cleared);
        }
        match writer.end() {
            Ok((to, end)) => Ok(Contents::Whole(to, end, took)),
            Err(error) => stale_or(self.failed(error)),
        }
    }

    fn record<W: Write>(&self, writer: &mut Writer<W>, record: &EncodedRecord) -> Result<(), ExportError> {
        let parts = Parts::split(record)
            .map_err(|error| Failure::Failed(format!("the server sent a malformed record: {error}")))?;
        let decoded = match self.decoded {
            true => fields(record)?.data.as_ref().map(decode::to_json),
            false => None,
        };
        writer.record(&parts, decoded).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: DumpError) -> ExportError {
        match error {
            DumpError::Stale => ExportError::Stale,
            error => ExportError::Failed(written(&self.output, error)),
        }
    }
}

/// How the contents of a file came out.
enum Contents<W> {
    Whole(W, End, String),
    /// What was written before the interruption is not what the server has now.
    Stale,
    /// The store was emptied and begun anew meanwhile.
    Cleared,
}

enum ExportError {
    Stale,
    Failed(Failure),
}

impl From<Failure> for ExportError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn stale_or<W>(error: ExportError) -> Result<Contents<W>, Failure> {
    match error {
        ExportError::Stale => Ok(Contents::Stale),
        ExportError::Failed(failure) => Err(failure),
    }
}

fn is_news(known: &[(String, Options)], r#type: &str, options: &Options) -> bool {
    !known.iter().any(|(known_type, known_options)| known_type == r#type && known_options == options)
}

fn options_line(r#type: &str, options: &Options) -> OptionsLine {
    OptionsLine { r#type: r#type.to_owned(), options: options.into() }
}

fn summary(end: &End, to: &str, took: &str) -> String {
    format!("exported {} records and the options of {} types to {to} {took}", end.records, end.options)
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
