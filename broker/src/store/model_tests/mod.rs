//! The store against a plain model: random commands must give equal answers, equal contents, and byte-equal dumps on
//! both engines, however the commands are cut into batches; and after each, random queries must find what the model does.

mod checks;
mod data;
mod model;
mod ops;
mod queries;

use std::sync::Arc;

use databroker_proto::{
    EncodedRecord, Record,
    internal::{self, Command, Entry, Identity, Init, command::Kind, outcome},
};
use proptest::prelude::*;
use prost::Message as _;

use super::{
    Options, Position, Step, Store,
    apply::INDEX_ENTRIES_MAX,
    command::{Answer, Reason},
    dump,
    engine::{Engine, fjall::Fjall, memory::Memory},
    keyspace::Keyspace,
};
use checks::check_contents;
use data::assert_same;
use model::{Expected, Model};
use ops::{Op, kind_of, op};
use queries::{Ask, ask};

const SECOND: u64 = 1_000_000_000;

struct Driver {
    store: Store,
    index: u64,
    batch: Vec<(Position, Step)>,
}

impl Driver {
    fn open(engine: Arc<dyn Engine>, index_entries_max: u64) -> Self {
        let options =
            Options { tail_bytes_max: 2000, record_cache_bytes_max: 16 << 10, index_entries_max, ..Options::default() };
        let store = Store::open(engine, &options).unwrap();
        Self { store, index: 0, batch: Vec::new() }
    }

    fn enqueue(&mut self, entry: &Entry) {
        self.index += 1;
        let position = Position { term: 1, node: 5, index: self.index };
        self.batch.push((position, Step::Commands(entry.encode_to_vec().into())));
    }

    fn flush(&mut self) -> Vec<Answer> {
        self.store.apply(std::mem::take(&mut self.batch)).unwrap().into_iter().flatten().collect()
    }

    fn one(&mut self, entry: &Entry) -> Answer {
        self.enqueue(entry);
        self.flush().pop().unwrap()
    }
}

fn entry(now: u64, request: Option<u64>, kind: Kind) -> Entry {
    let identity = request.map(|request| Identity { origin: 5, request, settled: request.saturating_sub(1).max(1) });
    Entry { command_version: 1, now_nanos: now, commands: vec![Command { identity, kind: Some(kind) }] }
}

fn decoded(records: &[EncodedRecord]) -> Vec<Record> {
    records.iter().map(|record| record.to_record().unwrap()).collect()
}

/// What a patch is refused with that makes no sense, for clients INVALID_ARGUMENT.
fn is_invalid(reason: Reason) -> bool {
    matches!(reason, Reason::InvalidMask | Reason::UnknownType | Reason::TypeMismatch | Reason::InvalidData)
}

fn run(ops: Vec<Op>, cuts: &[bool], asks: &[Ask], index_entries_max: u64) {
    let folder = tempfile::tempdir().unwrap();
    let names = Keyspace::names();
    let on_disk = Arc::new(Fjall::open(folder.path(), &names, Default::default()).unwrap());
    let in_memory = Arc::new(Memory::new(&names));
    let mut one_by_one = Driver::open(in_memory.clone(), index_entries_max);
    let mut batched = Driver::open(on_disk.clone(), index_entries_max);
    let mut now = 1_700_000_000 * SECOND;
    let init = entry(now, None, Kind::Init(Init { cluster_id: "c".into(), server_version: 3 }));
    one_by_one.one(&init);
    batched.enqueue(&init);
    let mut model = Model { server_version: 3, now, ..Model::default() };
    let mut request = 1;
    let mut last: Option<(Kind, Answer)> = None;
    let mut expected_answers = vec![Answer::of(outcome::Kind::Done(internal::Done {}))];
    for (nth, op) in ops.into_iter().enumerate() {
        if let Op::Tick(seconds) = op {
            now += seconds * SECOND;
            continue;
        }
        model.now = now;
        if let Op::Again = op {
            let Some((kind, answer)) = &last else { continue };
            let again = entry(now, Some(request), kind.clone());
            let second = one_by_one.one(&again);
            assert_eq!(second.outcome, answer.outcome, "a command seen again gives the same answer");
            batched.enqueue(&again);
            expected_answers.push(second);
            continue;
        }
        request += 1;
        let kind = kind_of(&op, now).unwrap();
        let command = entry(now, Some(request), kind.clone());
        let answer = one_by_one.one(&command);
        match (&op, model.apply(&op), &answer.outcome.kind) {
            (_, Expected::Written(records), Some(outcome::Kind::Written(_))) => {
                assert_same(&decoded(&answer.records), &records, &op);
            }
            (_, Expected::Leased(acquired), Some(outcome::Kind::Leased(leased))) => {
                assert_eq!(leased.acquired, acquired);
            }
            (_, Expected::Refused, Some(outcome::Kind::Rejected(rejected))) => {
                assert!(is_invalid(rejected.reason()), "{op:?}: {rejected:?}");
            }
            (Op::Sweep { age, bytes_max, deletions_max }, _, Some(outcome::Kind::Swept(first))) => {
                let at_most = *deletions_max as usize;
                model.sweep(*age, *bytes_max, at_most);
                let mut more = first.more;
                batched.enqueue(&command);
                expected_answers.push(answer.clone());
                let mut rounds = 0;
                while more {
                    let next = entry(now, None, kind.clone());
                    let answer = one_by_one.one(&next);
                    let Some(outcome::Kind::Swept(swept)) = &answer.outcome.kind else { panic!("{answer:?}") };
                    more = swept.more;
                    model.sweep(*age, *bytes_max, at_most);
                    check_contents(&one_by_one.store, &model, asks);
                    batched.enqueue(&next);
                    expected_answers.push(answer);
                    rounds += 1;
                    assert!(rounds < 2000, "sweeping comes to an end");
                }
            }
            (_, Expected::Anything, _) => {}
            (_, expected, answered) => panic!("{op:?}: {expected:?} expected, answered {answered:?}"),
        }
        if !matches!(op, Op::Sweep { .. }) {
            batched.enqueue(&command);
            expected_answers.push(answer.clone());
        }
        last = Some((kind, answer));
        check_contents(&one_by_one.store, &model, asks);
        if cuts.get(nth).copied().unwrap_or(false) {
            assert_eq!(batched.flush(), std::mem::take(&mut expected_answers));
        }
    }
    assert_eq!(batched.flush(), expected_answers);
    let dump_of = |engine: &dyn Engine| dump::dump(&*engine.view().unwrap()).unwrap();
    assert_eq!(dump_of(&*in_memory), dump_of(&*on_disk), "batches do not show in what is stored");
    // What was stored is read back after a restart.
    let reopened = Driver::open(on_disk, index_entries_max);
    assert_eq!(reopened.store.applied(), one_by_one.store.applied());
    check_contents(&reopened.store, &model, asks);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn random_commands_do_what_the_model_does(
        ops in prop::collection::vec(op(), 1..40),
        cuts in prop::collection::vec(any::<bool>(), 40),
        asks in prop::collection::vec(ask(), 8),
    ) {
        run(ops, &cuts, &asks, INDEX_ENTRIES_MAX);
    }

    #[test]
    fn random_commands_do_what_the_model_does_while_indexes_come_and_go(
        ops in prop::collection::vec(op().prop_map(Op::without_age), 1..40),
        cuts in prop::collection::vec(any::<bool>(), 40),
        asks in prop::collection::vec(ask(), 8),
        index_entries_max in 0..4_u64,
    ) {
        run(ops, &cuts, &asks, index_entries_max);
    }
}
