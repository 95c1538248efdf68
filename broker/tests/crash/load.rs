//! Concurrent writers, each with ids of its own, that remember what was acknowledged and what was under way at the end.

use std::collections::BTreeMap;

use databroker_proto::databroker::{PatchRequest, PutRequest, Record};
use prost::Message;
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::task::JoinHandle;
use tonic::Status;

use super::{
    history::History,
    support::{Broker, Client},
};

/// Enough for several requests to share one sync.
pub const WRITERS: usize = 16;

/// A writer overwrites and deletes rather than hold more.
const HELD_MAX: usize = 200;

/// A type whose descriptor is built in, so that Patch can look into it.
pub const TYPE: &str = "type.googleapis.com/test.Test";

/// `test.Test`.
#[derive(Clone, PartialEq, Message)]
pub struct Value {
    #[prost(string, tag = "1")]
    pub changing: String,
    #[prost(message, optional, tag = "2")]
    pub kept: Option<Embedded>,
}

/// `test.EmbeddedMessage`.
#[derive(Clone, PartialEq, Message)]
pub struct Embedded {
    #[prost(string, tag = "1")]
    pub text: String,
}

/// What an operation makes of ids; `None` deletes.
pub type Effect = BTreeMap<String, Option<Value>>;

/// One writer's memory.
#[derive(Clone)]
pub struct Writer {
    pub name: usize,
    random: SmallRng,
    operations: u64,
    /// What its records must be, by all that was acknowledged.
    pub held: BTreeMap<String, Value>,
    /// The effect of the operation that was sent and never answered.
    pub pending: Option<Effect>,
    /// Versions acknowledged since the last check.
    pub acknowledged: Vec<(u64, String, Value)>,
    pub operations_acknowledged: usize,
}

/// The running writers.
pub struct Load(Vec<JoinHandle<Writer>>);

impl Load {
    pub async fn start(broker: &Broker, history: &mut History, random: &mut SmallRng) -> Self {
        let mut tasks = Vec::new();
        for name in 0..WRITERS {
            let seed = random.next_u64();
            let mut writer = history.writers.remove(&name).unwrap_or_else(|| Writer::new(name, seed));
            let mut client = broker.client().await;
            tasks.push(tokio::spawn(async move {
                while writer.write(&mut client).await.is_ok() {}
                writer
            }));
        }
        Self(tasks)
    }

    /// Waits for the writers, which end with their broker.
    pub async fn end(self, history: &mut History) {
        for task in self.0 {
            let writer = task.await.unwrap();
            history.writers.insert(writer.name, writer);
        }
    }
}

impl Writer {
    fn new(name: usize, seed: u64) -> Self {
        Self {
            name,
            random: SmallRng::seed_from_u64(seed),
            operations: 0,
            held: BTreeMap::new(),
            pending: None,
            acknowledged: Vec::new(),
            operations_acknowledged: 0,
        }
    }

    /// Whether an id is one of this writer's.
    pub fn owns(&self, id: &str) -> bool {
        id.split_once('-').is_some_and(|(name, _)| name == self.name.to_string())
    }

    /// Takes over an effect as what must be.
    pub fn settle(&mut self, effect: Effect) {
        for (id, value) in effect {
            match value {
                Some(value) => _ = self.held.insert(id, value),
                None => _ = self.held.remove(&id),
            }
        }
    }

    async fn write(&mut self, client: &mut Client) -> Result<(), Status> {
        self.operations += 1;
        let choice = if self.held.len() > HELD_MAX { 9 } else { self.random.random_range(0..10) };
        let ids = self.some_ids(choice);
        let effect: Effect = match choice {
            _ if ids.is_empty() => return Ok(()),
            // Batches of new and old ids.
            0..=5 => ids.into_iter().map(|id| (id, Some(self.new_value()))).collect(),
            // A masked patch: the other field stays.
            6 | 7 => ids.into_iter().map(|id| (id.clone(), Some(self.patched(&id)))).collect(),
            // A touch: the version moves, the data does not.
            8 => ids.into_iter().map(|id| (id.clone(), self.held.get(&id).cloned())).collect(),
            _ => ids.into_iter().map(|id| (id, None)).collect(),
        };
        let records = effect.iter().map(|(id, value)| record(id, value.as_ref()).into()).collect();
        self.pending = Some(effect.clone());
        let answered = match choice {
            6..=8 => {
                let paths = if choice == 8 { vec![] } else { vec!["string_field".to_owned()] };
                let request = PatchRequest { records, field_mask: Some(prost_types::FieldMask { paths }) };
                client.patch(request).await?.into_inner().records
            }
            _ => client.put(PutRequest { records }).await?.into_inner().records,
        };
        assert_eq!(answered.len(), effect.len(), "each record is answered");
        for (encoded, (id, value)) in answered.iter().zip(&effect) {
            if let Some(value) = value {
                let version = encoded.to_record().unwrap().version;
                assert!(version > 0, "a write is answered with its version");
                self.acknowledged.push((version, id.clone(), value.clone()));
            }
        }
        self.operations_acknowledged += 1;
        self.pending = None;
        self.settle(effect);
        Ok(())
    }

    /// Different ids in order: for a put new ones among them, else held ones.
    fn some_ids(&mut self, choice: u32) -> Vec<String> {
        let count = self.random.random_range(1..=4);
        let mut ids: Vec<String> = (0..count).filter_map(|_| self.held_id()).collect();
        if choice <= 5 {
            ids.extend((0..count).map(|part| format!("{}-{}-{part}", self.name, self.operations)));
        }
        ids.sort();
        ids.dedup();
        ids
    }

    fn held_id(&mut self) -> Option<String> {
        let index = self.random.random_range(0..self.held.len().max(1));
        self.held.keys().nth(index).cloned()
    }

    fn new_value(&mut self) -> Value {
        let padding = "x".repeat(self.random.random_range(0..400));
        let text = format!("{}-{:016x}", self.name, self.random.next_u64());
        Value { changing: format!("{text}{padding}"), kept: Some(Embedded { text }) }
    }

    fn patched(&mut self, id: &str) -> Value {
        let kept = self.held.get(id).and_then(|value| value.kept.clone());
        Value { kept, ..self.new_value() }
    }
}

fn record(id: &str, value: Option<&Value>) -> Record {
    let data = value.map(|value| prost_types::Any { type_url: TYPE.to_owned(), value: value.encode_to_vec() });
    let deleted_at = value.is_none().then(prost_types::Timestamp::default);
    Record { r#type: TYPE.to_owned(), id: id.to_owned(), data, deleted_at, ..Record::default() }
}
