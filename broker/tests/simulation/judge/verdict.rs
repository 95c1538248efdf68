//! The end of a run: everything that was told is held against the final history.
//!
//! Not here: what can be judged at once (the rest of `judge`).

use std::collections::BTreeMap;

use bytes::Bytes;
use databroker_proto::Record;
use prost::Message as _;

use super::{Acknowledged, Floor, Judge, Place, Read};
use crate::records::{self, Key};

/// What each record was, after each of its changes: a version, and what was live from then on.
type Lives = BTreeMap<(u64, Key), Vec<(u64, Option<Bytes>)>>;

impl Judge {
    /// Holds everything against the final history, which is that of `server` up to `latest`.
    pub fn verdict(&mut self, (server, latest): Place) {
        self.hold_versions(server, latest);
        let effects = self.hold_effects();
        self.hold_acknowledged(server, &effects);
        self.hold_reads();
    }

    pub(super) fn rank(&self, server: u64) -> Option<usize> {
        self.order.iter().position(|known| *known == server)
    }

    /// Whether a place is not before a floor.
    fn reaches(&self, (server, version): Place, floor: &Floor, after: bool) -> Result<(), String> {
        for (told_server, told) in floor {
            let enough = if *told_server == server {
                version > *told || (!after && version == *told)
            } else {
                match (self.rank(server), self.rank(*told_server)) {
                    (Some(this), Some(that)) => this > that,
                    _ => true,
                }
            };
            if !enough {
                return Err(format!("{version} of {server}, though {told} of {told_server} was known before"));
            }
        }
        Ok(())
    }

    fn hold_versions(&mut self, server: u64, latest: u64) {
        let Some(history) = self.history.get(&server) else { return };
        let last = history.last_key_value().map_or(0, |(version, _)| *version);
        if last > latest {
            self.violation("R5", format!("version {last} was seen, but the history ends at {latest}"));
            return;
        }
        if let Some((missing, _)) = (1..=latest).zip(history.keys()).find(|(expected, version)| expected != *version) {
            self.violation("R3", format!("version {missing} of {server} is missing"));
            return;
        }
        let mut before = (0, 0);
        let mut found = None;
        for (version, bytes) in history {
            let record = Record::decode(bytes.clone()).unwrap_or_default();
            let at = record.modified_at.map_or((0, 0), |at| (at.seconds, at.nanos));
            if record.version != *version {
                found = Some(format!("the record at version {version} says {}", record.version));
            }
            if at < before {
                found = Some(format!("the time of version {version} is before that of the one before"));
            }
            before = at;
        }
        if let Some(what) = found {
            self.violation("R3", what);
        }
    }

    /// Where each written value took effect.
    fn hold_effects(&mut self) -> BTreeMap<String, Place> {
        let (mut effects, mut tombstones) = (BTreeMap::new(), BTreeMap::<Key, u64>::new());
        let mut found = Vec::new();
        for (server, history) in &self.history {
            for (version, bytes) in history {
                let record = Record::decode(bytes.clone()).unwrap_or_default();
                if record.deleted_at.is_some() {
                    *tombstones.entry(records::key_of(&record)).or_default() += 1;
                    continue;
                }
                let Some(value) = records::value_of(&record) else { continue };
                if self.issued.get(&value) != Some(&records::key_of(&record)) {
                    found.push(("R5", format!("nobody wrote {value:?}, which stands at {version} of {server}")));
                }
                if let Some((_, before)) = effects.insert(value.clone(), (*server, *version)) {
                    found.push(("R14", format!("{value:?} took effect at {before} and again at {version}")));
                }
            }
        }
        for (key, count) in tombstones {
            let asked = self.deletes.get(&key).copied().unwrap_or(0);
            if count > asked {
                found.push(("R14", format!("{key:?} was deleted {count} times, asked for {asked} times")));
            }
        }
        for (rule, what) in found {
            self.violation(rule, what);
        }
        effects
    }

    fn hold_acknowledged(&mut self, server: u64, effects: &BTreeMap<String, Place>) {
        let mut found = None;
        for Acknowledged { value, place, floor } in &self.acknowledged {
            match effects.get(value) {
                Some(effect) if effect == place => {}
                Some(effect) => {
                    found = Some(("R1", format!("{value:?} was acknowledged at {place:?}, it is at {effect:?}")))
                }
                // Clear has taken it along before anybody looked.
                None if place.0 != server => {}
                None => found = Some(("R1", format!("{value:?} was acknowledged at {place:?} and is gone"))),
            }
            if let Err(what) = self.reaches(*place, floor, true) {
                found = Some(("R1", format!("{value:?} was acknowledged at {what}")));
            }
            if found.is_some() {
                break;
            }
        }
        if let Some((rule, what)) = found {
            self.violation(rule, what);
        }
    }

    fn hold_reads(&mut self) {
        let mut by_key = Lives::new();
        for (server, history) in &self.history {
            for (version, bytes) in history {
                let record = Record::decode(bytes.clone()).unwrap_or_default();
                let live = record.deleted_at.is_none().then(|| bytes.clone());
                by_key.entry((*server, records::key_of(&record))).or_default().push((*version, live));
            }
        }
        let mut found = None;
        for Read { who, key, place, floor, found: read } in &self.reads {
            if let Err(what) = self.reaches(*place, floor, false) {
                found = Some(("R7", format!("{who} saw {what}")));
                break;
            }
            let (server, version) = *place;
            // Of a history that ended, the last changes may have been seen by nobody.
            let complete =
                self.history.get(&server).is_some_and(|seen| seen.range(..=version).count() as u64 == version);
            let changes = by_key.get(&(server, key.clone()));
            let last = changes.and_then(|changes| {
                let upto = changes.partition_point(|(at, _)| *at <= version);
                upto.checked_sub(1).and_then(|last| changes[last].1.clone())
            });
            if complete && last != *read {
                found =
                    Some(("R5", format!("{who}, of {key:?} at {version}, found what the history does not have there")));
                break;
            }
        }
        if let Some((rule, what)) = found {
            self.violation(rule, what);
        }
    }
}
