//! `options`: what applies to all records of a type.

use std::{collections::BTreeSet, time::Duration};

use databroker_proto::{
    TYPE_URL_PREFIX,
    databroker::{GetOptionsRequest, Options, SetOptionsRequest},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tonic::Code;

use super::{
    Ask,
    connect::Connection,
    decode, duration,
    failure::Failure,
    output::{Output, printable},
    types::{self, ExactArgs},
};

/// Calls at a time when many types are asked for.
const CALLS_MAX: usize = 16;

/// Types known to carry options that are not messages of this build.
const PLAIN_TYPES: &[&str] = &[
    "pomerium.io/DirectoryUser",
    "pomerium.io/DirectoryGroup",
    "pomerium.io/BundleCacheEntry",
    "pomerium.io/ActiveUsersMetricState",
];

/// Show and change what applies to all records of a type: capacity, time to live, indexed fields.
#[derive(Debug, clap::Subcommand)]
pub enum OptionsCommand {
    /// Show the options of a type
    Get(GetOptions),
    /// Change some options of a type; the others stay
    Set(SetOptions),
    /// Remove all options of a type
    Clear(ClearOptions),
    /// Show the options of all types that have records or are known to this build (the interface has no list of others)
    List,
}

impl Ask for OptionsCommand {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        match self {
            Self::Get(command) => command.run(connection, output).await,
            Self::Set(command) => command.run(connection, output).await,
            Self::Clear(command) => command.run(connection, output).await,
            Self::List => {
                let all = all(connection).await?;
                print(output, all.into_iter().map(|(r#type, options)| TypedJson::new(r#type, &options)).collect())
            }
        }
    }
}

/// Arguments of `options get`.
#[derive(Debug, clap::Args)]
pub struct GetOptions {
    /// The type, in full or short
    pub r#type: String,
    #[command(flatten)]
    exact: ExactArgs,
}

impl GetOptions {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        let r#type = types::resolve(connection, &self.r#type, self.exact).await?;
        match get(connection, &r#type).await? {
            Some(options) => print(output, vec![TypedJson::new(r#type, &options)]),
            None => Err(Failure::NotFound(format!("type {:?} has no options", printable(&r#type)))),
        }
    }
}

/// Arguments of `options set`.
#[derive(Debug, clap::Args)]
#[group(id = "change", required = true, multiple = true)]
pub struct SetOptions {
    /// The type, in full or short
    pub r#type: String,
    /// Keep at most so many records, those changed last; checked when a record of the type is written
    #[arg(long, group = "change", value_name = "COUNT", conflicts_with = "no_capacity")]
    pub capacity: Option<u64>,
    /// Keep any number of records
    #[arg(long, group = "change")]
    pub no_capacity: bool,
    /// Index these fields, and no others: comma-separated paths such as user_id or details.name; repeatable
    #[arg(long, group = "change", value_name = "FIELD", value_delimiter = ',', conflicts_with = "no_index")]
    pub index: Vec<String>,
    /// Index no fields
    #[arg(long, group = "change")]
    pub no_index: bool,
    /// Delete records that were not changed for so long
    #[arg(long, group = "change", value_name = "DURATION", value_parser = duration::parse, conflicts_with = "no_ttl")]
    pub ttl: Option<Duration>,
    /// Delete no records for their age
    #[arg(long, group = "change")]
    pub no_ttl: bool,
    #[command(flatten)]
    exact: ExactArgs,
}

impl SetOptions {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        let r#type = types::resolve(connection, &self.r#type, self.exact).await?;
        let mut options = get(connection, &r#type).await?.unwrap_or_default();
        self.change(&mut options)?;
        set(connection, &r#type, options.clone()).await?;
        print(output, vec![TypedJson::new(r#type, &options)])
    }

    fn change(&self, options: &mut Options) -> Result<(), Failure> {
        if self.capacity.is_some() || self.no_capacity {
            options.capacity = self.capacity;
        }
        if !self.index.is_empty() || self.no_index {
            options.indexable_fields = self.index.clone();
        }
        if let Some(ttl) = self.ttl {
            options.ttl = Some(ttl.try_into().map_err(|_| Failure::Usage("--ttl is too long".to_owned()))?);
        }
        if self.no_ttl {
            options.ttl = None;
        }
        Ok(())
    }
}

/// Arguments of `options clear`.
#[derive(Debug, clap::Args)]
pub struct ClearOptions {
    /// The type, in full or short
    pub r#type: String,
    #[command(flatten)]
    exact: ExactArgs,
}

impl ClearOptions {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        let r#type = types::resolve(connection, &self.r#type, self.exact).await?;
        set(connection, &r#type, Options::default()).await?;
        print(output, vec![TypedJson::new(r#type, &Options::default())])
    }
}

/// The options of a type, if it has any.
pub(super) async fn get(connection: &Connection, r#type: &str) -> Result<Option<Options>, Failure> {
    let request = GetOptionsRequest { r#type: r#type.to_owned() };
    match connection.call(connection.records().get_options(request)).await {
        Ok(response) => Ok(Some(response.options.unwrap_or_default())),
        Err(failure) if failure.code() == Some(Code::NotFound) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Sets the options of a type.
pub(super) async fn set(connection: &Connection, r#type: &str, options: Options) -> Result<(), Failure> {
    let empty = options == Options::default();
    let request = SetOptionsRequest { r#type: r#type.to_owned(), options: Some(options) };
    match connection.call(connection.records().set_options(request)).await {
        Ok(_) => Ok(()),
        // Some servers remove the options and then fail to read them back.
        Err(failure) if empty && failure.code() == Some(Code::NotFound) => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// The options of all types that can be known: those with records, and those of this build. Sorted by type.
pub(super) async fn all(connection: &Connection) -> Result<Vec<(String, Options)>, Failure> {
    let known = decode::known_messages().into_iter().map(|name| format!("{TYPE_URL_PREFIX}{name}"));
    let plain = PLAIN_TYPES.iter().map(|name| (*name).to_owned());
    let types: BTreeSet<_> = types::list(connection).await?.into_iter().chain(known).chain(plain).collect();
    // The empty type can hold records, but not be asked for its options.
    let asked = types.into_iter().filter(|r#type| !r#type.is_empty()).map(|r#type| async move {
        let options = get(connection, &r#type).await?;
        Ok(options.map(|options| (r#type, options)))
    });
    stream::iter(asked).buffered(CALLS_MAX).try_filter_map(|found| async move { Ok(found) }).try_collect().await
}

/// A type's options as JSON has them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OptionsJson {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    capacity: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    indexable_fields: Vec<String>,
    /// Protobuf's JSON form of a duration: `900s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl: Option<String>,
}

impl From<&Options> for OptionsJson {
    fn from(options: &Options) -> Self {
        let ttl = options.ttl.as_ref().map(ToString::to_string);
        Self { capacity: options.capacity, indexable_fields: options.indexable_fields.clone(), ttl }
    }
}

impl OptionsJson {
    /// The options, or the text that is not a duration.
    pub(super) fn to_options(&self) -> Result<Options, String> {
        let ttl = self.ttl.as_ref().map(|text| text.parse().map_err(|_| text.clone())).transpose()?;
        Ok(Options { capacity: self.capacity, indexable_fields: self.indexable_fields.clone(), ttl })
    }
}

#[derive(Serialize)]
struct TypedJson {
    r#type: String,
    options: OptionsJson,
}

impl TypedJson {
    fn new(r#type: String, options: &Options) -> Self {
        Self { r#type, options: options.into() }
    }
}

fn print(output: &mut Output, all: Vec<TypedJson>) -> Result<(), Failure> {
    if !output.for_people() {
        return output.value(&all);
    }
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let row = |TypedJson { r#type, options }| {
        let fields = (!options.indexable_fields.is_empty()).then(|| printable(&options.indexable_fields.join(",")));
        vec![
            printable(&r#type).into(),
            or_dash(options.capacity.map(|capacity| capacity.to_string())).into(),
            or_dash(options.ttl).into(),
            or_dash(fields).into(),
        ]
    };
    output.table(&["TYPE", "CAPACITY", "TTL", "INDEXED"], all.into_iter().map(row).collect(), "no options")
}
