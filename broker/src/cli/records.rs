//! `get`, `put`, `delete`, `query`, `types`: records, one call at a time.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use databroker_proto::{
    EncodedRecord, Record,
    databroker::{GetRequest, PutRequest, QueryRequest},
};
use prost::Message as _;
use serde::Serialize;
use serde_json::Value;
use tonic::Code;

use super::{
    Ask,
    connect::Connection,
    decode,
    failure::Failure,
    output::{Output, notice, printable, short_type},
    record::{RecordJson, fields},
    types::{self, ExactArgs, Names},
};

/// The largest input of `put`: servers take no larger request.
const INPUT_BYTES_MAX: u64 = 64 << 20;

/// Show one record.
#[derive(Debug, clap::Args)]
pub struct Get {
    /// Its type, in full or short (`session.Session`)
    pub r#type: String,
    /// Its id
    pub id: String,
    #[command(flatten)]
    exact: ExactArgs,
}

impl Ask for Get {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        let r#type = types::resolve(connection, &self.r#type, self.exact).await?;
        let record = RecordJson::new(&fields(&get(connection, &r#type, &self.id).await?)?);
        if !output.for_people() {
            return output.value(&record);
        }
        let time = |text: &Option<String>| text.as_deref().and_then(|text| text.parse().ok());
        output.line(&format!("type      {}", printable(&record.r#type)))?;
        output.line(&format!("id        {}", printable(&record.id)))?;
        output.line(&format!("version   {}", record.version))?;
        output.line(&format!("modified  {}", output.time(time(&record.modified_at).as_ref())))?;
        match &record.data {
            Some(data) => output.line(&format!("data\n{}", indented(data)?)),
            None => output.line("data      -"),
        }
    }
}

fn indented(data: &Value) -> Result<String, Failure> {
    let yaml =
        serde_yaml::to_string(data).map_err(|error| Failure::Failed(format!("cannot print the data: {error}")))?;
    Ok(yaml.lines().map(|line| format!("  {}", printable(line))).collect::<Vec<_>>().join("\n"))
}

/// One record, as stored.
pub(super) async fn get(connection: &Connection, r#type: &str, id: &str) -> Result<EncodedRecord, Failure> {
    let request = GetRequest { r#type: r#type.to_owned(), id: id.to_owned() };
    match connection.call(connection.records().get(request)).await {
        Ok(response) => Ok(response.record.unwrap_or_default()),
        Err(failure) if failure.code() == Some(Code::NotFound) => Err(not_found(r#type, id)),
        Err(failure) => Err(failure),
    }
}

fn not_found(r#type: &str, id: &str) -> Failure {
    Failure::NotFound(format!("there is no record {:?} of type {:?}", printable(id), printable(r#type)))
}

/// Store records, all or none.
#[derive(Debug, clap::Args)]
pub struct Put {
    /// Records: JSON objects, or arrays of them; `-` is standard input
    #[arg(value_name = "JSON", conflicts_with = "file")]
    pub records: Vec<String>,
    /// File with JSON objects or arrays, one after the other; `-` is standard input, the default if there is no argument.
    /// At most 64 MiB: more is for `import`
    #[arg(short, long)]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    exact: ExactArgs,
}

impl Ask for Put {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        let mut records = Vec::new();
        let mut names = Names::new(connection, self.exact);
        for text in self.input()? {
            for record in parse_records(&text)? {
                let mut record = record.into_record()?;
                record.r#type = names.resolve(&record.r#type).await?;
                records.push(EncodedRecord::from(record));
            }
        }
        if records.is_empty() {
            return Err(Failure::Usage("no record was given".to_owned()));
        }
        let response = connection.call(connection.records().put(PutRequest { records })).await?;
        print_records(output, &response.records, |records| PutJson {
            server_version: response.server_version.to_string(),
            records,
        })
    }
}

impl Put {
    fn input(&self) -> Result<Vec<String>, Failure> {
        match &self.file {
            None if self.records.is_empty() => Ok(vec![stdin()?]),
            None => self.records.iter().map(|text| if text == "-" { stdin() } else { Ok(text.clone()) }).collect(),
            Some(file) if file.as_os_str() == "-" => Ok(vec![stdin()?]),
            Some(file) => {
                let opened = fs::File::open(file).map_err(|source| Failure::Read { file: file.clone(), source })?;
                Ok(vec![read_to_end(opened, file)?])
            }
        }
    }
}

fn stdin() -> Result<String, Failure> {
    read_to_end(io::stdin(), Path::new("standard input"))
}

fn read_to_end(from: impl io::Read, file: &Path) -> Result<String, Failure> {
    let failed = |source| Failure::Read { file: file.to_owned(), source };
    let mut bytes = Vec::new();
    // One more than is taken, to see that there is more.
    from.take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > INPUT_BYTES_MAX {
        return Err(Failure::Usage(format!(
            "{} has more than the {} MiB that `put` takes: give it in parts, or take an export in with `import`",
            file.display(),
            INPUT_BYTES_MAX >> 20
        )));
    }
    String::from_utf8(bytes).map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// Reads JSON values one after the other: records, arrays of them, or what `query -o json` and `put -o json` print.
fn parse_records(text: &str) -> Result<Vec<RecordJson>, Failure> {
    let malformed = |error: serde_json::Error| Failure::Usage(format!("not a record: {error}"));
    let mut records = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter() {
        match value.map_err(malformed)? {
            Value::Array(array) => {
                for value in array {
                    records.push(serde_json::from_value(value).map_err(malformed)?);
                }
            }
            Value::Object(mut object) if object.contains_key("records") => {
                let array = object.remove("records").unwrap_or_default();
                records.extend(serde_json::from_value::<Vec<RecordJson>>(array).map_err(malformed)?);
            }
            value => records.push(serde_json::from_value(value).map_err(malformed)?),
        }
    }
    Ok(records)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PutJson {
    // A string, as it is random over all 64 bits and many programs read numbers as floats.
    server_version: String,
    records: Vec<RecordJson>,
}

/// Delete records.
#[derive(Debug, clap::Args)]
pub struct Delete {
    /// Their type, in full or short
    pub r#type: String,
    /// Their ids
    #[arg(required = true)]
    pub ids: Vec<String>,
    /// Do not mind records that are not there
    #[arg(long)]
    pub ignore_not_found: bool,
    #[command(flatten)]
    exact: ExactArgs,
}

impl Ask for Delete {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        let r#type = types::resolve(connection, &self.r#type, self.exact).await?;
        let mut found = Vec::new();
        for id in &self.ids {
            match get(connection, &r#type, id).await {
                Ok(record) => found.push(record),
                Err(Failure::NotFound(_)) if self.ignore_not_found => {}
                Err(failure) => return Err(failure),
            }
        }
        let deleted = delete(connection, &found).await?;
        if !output.for_people() {
            return output.value(&deleted);
        }
        for record in &deleted {
            output.line(&format!("deleted {} {}", short_type(&record.r#type), printable(&record.id)))?;
        }
        Ok(())
    }
}

/// Which record is gone.
#[derive(Debug, Serialize)]
pub(super) struct Deleted {
    pub(super) r#type: String,
    pub(super) id: String,
}

/// Deletes records in one call. Their data goes along: some servers put that into the tombstone, and into the search for
/// index entries, instead of what they have stored.
pub(super) async fn delete(connection: &Connection, found: &[EncodedRecord]) -> Result<Vec<Deleted>, Failure> {
    let mut deleted = Vec::new();
    let mut records = Vec::new();
    for encoded in found {
        let mut bytes = encoded.as_bytes().to_vec();
        let mark = Record { deleted_at: Some(SystemTime::now().into()), ..Default::default() };
        // Two encoded messages one after the other are one message: nothing of the record is lost.
        bytes.extend(mark.encode_to_vec());
        let record = fields(encoded)?;
        deleted.push(Deleted { r#type: record.r#type, id: record.id });
        records.push(EncodedRecord::from_bytes(bytes));
    }
    if !records.is_empty() {
        connection.call(connection.records().put(PutRequest { records })).await?;
    }
    Ok(deleted)
}

/// Find records.
#[derive(Debug, clap::Args)]
pub struct Query {
    /// Their type, in full or short; all types if left out
    #[arg(default_value = "", hide_default_value = true)]
    pub r#type: String,
    /// Filter: {"user_id": "x"}, {"$or": [{"id": "a"}, {"email": {"$endsWith": "@example.com"}}]}, …
    #[arg(short = 'F', long, value_name = "JSON")]
    pub filter: Option<String>,
    /// Text that some string field must contain, in capitals or not
    #[arg(long, default_value = "", hide_default_value = true)]
    pub text: String,
    /// Leave out so many of the first
    #[arg(long, default_value_t = 0)]
    pub offset: u32,
    /// Show at most so many
    #[arg(long, default_value_t = 100)]
    pub limit: u32,
    #[command(flatten)]
    exact: ExactArgs,
}

impl Ask for Query {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        let request = QueryRequest {
            r#type: types::resolve(connection, &self.r#type, self.exact).await?,
            query: self.text,
            offset: i64::from(self.offset),
            limit: i64::from(self.limit),
            filter: self.filter.as_deref().map(parse_filter).transpose()?,
            minimum_record_version_hint: None,
        };
        let response = connection.call(connection.records().query(request)).await?;
        print_records(output, &response.records, |records| QueryJson {
            server_version: response.server_version.to_string(),
            record_version: response.record_version,
            total_count: response.total_count,
            records,
        })?;
        if output.for_people() {
            notice(&format!("{} of {}", response.records.len(), response.total_count));
        }
        Ok(())
    }
}

fn parse_filter(text: &str) -> Result<prost_types::Struct, Failure> {
    let json: Value =
        serde_json::from_str(text).map_err(|error| Failure::Usage(format!("--filter is not JSON: {error}")))?;
    decode::to_struct(&json).map_err(|_| Failure::Usage("--filter must be a JSON object".to_owned()))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct QueryJson {
    server_version: String,
    record_version: u64,
    total_count: i64,
    records: Vec<RecordJson>,
}

fn print_records<J: Serialize>(
    output: &mut Output,
    encoded: &[EncodedRecord],
    json: impl FnOnce(Vec<RecordJson>) -> J,
) -> Result<(), Failure> {
    let records = encoded.iter().map(fields).collect::<Result<Vec<_>, _>>()?;
    let views: Vec<_> = records.iter().map(RecordJson::new).collect();
    if !output.for_people() {
        return output.value(&json(views));
    }
    let row = |(record, view): (&Record, &RecordJson)| {
        vec![
            short_type(&record.r#type).into(),
            output.id(&record.id).into(),
            record.version.to_string().into(),
            output.time(record.modified_at.as_ref()).into(),
            output.summary(view.data.as_ref()).into(),
        ]
    };
    let rows = records.iter().zip(&views).map(row).collect();
    output.table(&["TYPE", "ID", "VERSION", "MODIFIED", "DATA"], rows, "no records")
}

/// List the types of which there are records.
#[derive(Debug, clap::Args)]
pub struct Types {
    /// Count the records of each type (some servers read all of them for that)
    #[arg(long)]
    pub count: bool,
}

#[derive(Serialize)]
pub(super) struct TypeJson {
    pub(super) r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) records: Option<i64>,
}

impl Ask for Types {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        let mut types = Vec::new();
        for r#type in types::list(connection).await? {
            let records = match self.count {
                true => Some(count(connection, &r#type).await?),
                false => None,
            };
            types.push(TypeJson { r#type, records });
        }
        print_types(output, types)
    }
}

pub(super) fn print_types(output: &mut Output, types: Vec<TypeJson>) -> Result<(), Failure> {
    if !output.for_people() {
        return output.value(&types);
    }
    let counted = types.iter().any(|r#type| r#type.records.is_some());
    let header: &[&str] = if counted { &["TYPE", "RECORDS"] } else { &["TYPE"] };
    let row = |r#type: TypeJson| {
        let name = printable(&r#type.r#type);
        std::iter::once(name.into()).chain(r#type.records.map(|count| count.to_string().into())).collect()
    };
    output.table(header, types.into_iter().map(row).collect(), "no records")
}

/// How many records there are of a type; of all types for the empty one.
pub(super) async fn count(connection: &Connection, r#type: &str) -> Result<i64, Failure> {
    let request = QueryRequest { r#type: r#type.to_owned(), limit: 0, ..Default::default() };
    Ok(connection.call(connection.records().query(request)).await?.total_count)
}
