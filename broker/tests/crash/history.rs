//! What must be true of a broker that comes back, by all that it ever acknowledged or streamed.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use databroker_proto::{
    EncodedRecord, Record,
    databroker::{SyncLatestRequest, SyncRequest, Versions, sync_latest_response, sync_response},
};
use prost::Message as _;
use tonic::Status;

use super::{
    load::{TYPE, Value, Writer},
    support::Client,
};

/// All that is known of one data folder.
#[derive(Clone, Default)]
pub struct History {
    pub writers: BTreeMap<usize, Writer>,
    pub acknowledged: usize,
    server_version: Option<u64>,
    /// A digest of each change ever seen, by version from 1 on.
    seen: Vec<u64>,
}

/// Why a broker is not what it must be.
pub enum Finding {
    /// It answers, and the answer is wrong.
    Wrong(String),
    /// It fails to answer, and says so.
    Unreadable(Status),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(what) => f.write_str(what),
            Self::Unreadable(status) => write!(f, "a read failed: {status}"),
        }
    }
}

impl From<Status> for Finding {
    fn from(status: Status) -> Self {
        Self::Unreadable(status)
    }
}

type Checked<T = ()> = Result<T, Finding>;

fn hold(claim: bool, otherwise: impl FnOnce() -> String) -> Checked {
    if claim { Ok(()) } else { Err(Finding::Wrong(otherwise())) }
}

impl History {
    pub fn versions(&self) -> usize {
        self.seen.len()
    }

    /// Compares a broker with this history, and learns from it what became of operations that were under way.
    pub async fn check(&mut self, client: &mut Client) -> Checked {
        let info = client.server_info(()).await?.into_inner();
        let known = *self.server_version.get_or_insert(info.server_version);
        hold(known == info.server_version, || format!("server version {} became {}", known, info.server_version))?;
        let changes = changes(client, known).await?;
        hold(changes.len() as u64 == info.latest_record_version, || {
            format!("{} changes, but the latest version is {}", changes.len(), info.latest_record_version)
        })?;
        self.check_versions(&changes)?;
        let records: Vec<Record> = changes.iter().map(decode).collect::<Checked<_>>()?;
        for writer in self.writers.values_mut() {
            writer.check_acknowledged(&records)?;
            self.acknowledged += std::mem::take(&mut writer.operations_acknowledged);
        }
        let live = fold(&changes, &records);
        check_latest(client, &live, info.latest_record_version).await?;
        self.writers.values_mut().try_for_each(|writer| writer.check_held(&live))
    }

    /// A version, once given, keeps its content for ever.
    fn check_versions(&mut self, changes: &[EncodedRecord]) -> Checked {
        hold(changes.len() >= self.seen.len(), || {
            format!("{} versions had been streamed, {} are left", self.seen.len(), changes.len())
        })?;
        let digests: Vec<u64> = changes.iter().map(digest).collect();
        let changed = self.seen.iter().zip(&digests).position(|(before, now)| before != now);
        hold(changed.is_none(), || format!("version {} has changed", changed.unwrap_or_default() + 1))?;
        self.seen = digests;
        Ok(())
    }
}

impl Writer {
    fn check_acknowledged(&mut self, records: &[Record]) -> Checked {
        for (version, id, value) in self.acknowledged.drain(..) {
            let record = usize::try_from(version - 1).ok().and_then(|index| records.get(index));
            let Some(record) = record else {
                return Err(Finding::Wrong(format!("acknowledged version {version} ({id}) is missing")));
            };
            hold(record.id == id && value_of(record).as_ref() == Some(&value), || {
                format!("version {version} was acknowledged for {id} and is now another change, of {}", record.id)
            })?;
        }
        Ok(())
    }

    /// The writer's records are what was acknowledged; the operation that was under way has happened in whole or not.
    fn check_held(&mut self, live: &BTreeMap<String, (EncodedRecord, Option<Value>)>) -> Checked {
        let mine: BTreeMap<String, Value> = live
            .iter()
            .filter(|(id, _)| self.owns(id))
            .map(|(id, (_, value))| (id.clone(), value.clone().unwrap_or_default()))
            .collect();
        let pending = self.pending.take();
        if mine == self.held {
            return Ok(());
        }
        if let Some(effect) = pending {
            self.settle(effect);
        }
        let differs = self.held.iter().find(|(id, value)| mine.get(*id) != Some(*value)).map(|(id, _)| id);
        let extra = mine.keys().find(|id| !self.held.contains_key(*id));
        hold(mine == self.held, || {
            format!("writer {}: {differs:?} is missing or different, {extra:?} should not be there", self.name)
        })
    }
}

/// The whole change log, which must hold each version once.
async fn changes(client: &mut Client, server_version: u64) -> Checked<Vec<EncodedRecord>> {
    let request = SyncRequest { server_version, wait: Some(false), ..SyncRequest::default() };
    let mut stream = client.sync(request).await?.into_inner();
    let mut found = Vec::new();
    while let Some(frame) = stream.message().await? {
        if let Some(sync_response::Response::Record(record)) = frame.response {
            let version = decode(&record)?.version;
            hold(version == found.len() as u64 + 1, || format!("version {version} follows {}", found.len()))?;
            found.push(record);
        }
    }
    Ok(found)
}

/// What is left when all changes have happened.
fn fold(changes: &[EncodedRecord], records: &[Record]) -> BTreeMap<String, (EncodedRecord, Option<Value>)> {
    let mut live = BTreeMap::new();
    for (encoded, record) in changes.iter().zip(records) {
        if record.deleted_at.is_some() {
            live.remove(&record.id);
        } else {
            live.insert(record.id.clone(), (encoded.clone(), value_of(record)));
        }
    }
    live
}

/// The live records are those the change log leads to, byte for byte.
async fn check_latest(
    client: &mut Client,
    live: &BTreeMap<String, (EncodedRecord, Option<Value>)>,
    latest: u64,
) -> Checked {
    let mut stream = client.sync_latest(SyncLatestRequest { r#type: TYPE.to_owned() }).await?.into_inner();
    let mut expected = live.values();
    let mut versions = None;
    while let Some(frame) = stream.message().await? {
        match frame.response {
            Some(sync_latest_response::Response::Record(record)) => {
                let same = expected.next().is_some_and(|(wanted, _)| *wanted == record);
                let record = decode(&record)?;
                hold(same, || format!("SyncLatest has {} at version {}", record.id, record.version))?;
            }
            Some(sync_latest_response::Response::Versions(found)) => versions = Some(found),
            _ => {}
        }
    }
    hold(expected.next().is_none(), || "SyncLatest ends before the last live record".to_owned())?;
    let latest_of = |versions: Versions| versions.latest_record_version;
    hold(versions.map(latest_of) == Some(latest), || format!("SyncLatest ends with {versions:?}, not {latest}"))
}

fn decode(record: &EncodedRecord) -> Checked<Record> {
    record.to_record().map_err(|error| Finding::Wrong(format!("a record does not decode: {error}")))
}

fn value_of(record: &Record) -> Option<Value> {
    Value::decode(record.data.as_ref()?.value.as_slice()).ok()
}

fn digest(record: &EncodedRecord) -> u64 {
    let mut hasher = DefaultHasher::new();
    record.as_bytes().hash(&mut hasher);
    hasher.finish()
}
