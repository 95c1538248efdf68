//! SetOptions: what applies to all records of a type, and the indexes that follow from it.

use bytes::Bytes;
use databroker_proto::internal::SetOptions;
use prost::Message as _;

use super::{
    super::{
        Error,
        command::{Answer, FIELDS_MAX, Reason, outcome},
        keyspace::{Keyspace, PATH_BYTES_MAX, records as keys},
        wire,
    },
    Batch,
    rules::{TypeRules, defaults},
    too_long,
};

impl Batch<'_> {
    /// Replaces the options of a type; empty ones remove the entry.
    pub(super) fn set_options(&mut self, set: &SetOptions) -> Result<Answer, Error> {
        let rules = match TypeRules::decode(set.options.clone()) {
            Ok(rules) => rules,
            Err(error) => return Ok(Answer::rejected(Reason::InvalidData, format!("the options: {error}"))),
        };
        if let Some(refusal) = too_long("the type", &set.r#type) {
            return Ok(refusal);
        }
        if rules.fields.iter().any(|path| path.len() > PATH_BYTES_MAX) {
            let detail = format!("the path of an indexed field has more than {PATH_BYTES_MAX} bytes");
            return Ok(Answer::rejected(Reason::InvalidData, detail));
        }
        if rules.fields.len() > FIELDS_MAX {
            let detail = format!("{} indexed fields, at most {FIELDS_MAX} are allowed", rules.fields.len());
            return Ok(Answer::rejected(Reason::InvalidData, detail));
        }
        let record_type = Bytes::copy_from_slice(set.r#type.as_bytes());
        self.replace_rules(&record_type, rules)?;
        Ok(Answer::of(outcome::Kind::Done(Default::default())))
    }

    /// The options every store starts with.
    pub(super) fn install_defaults(&mut self) -> Result<(), Error> {
        defaults().into_iter().try_for_each(|(record_type, options)| {
            self.replace_rules(&Bytes::from(record_type.into_bytes()), TypeRules::from(options))
        })
    }

    fn replace_rules(&mut self, record_type: &Bytes, new: TypeRules) -> Result<(), Error> {
        let old = self.rules.get(record_type).map(|rules| (**rules).clone()).unwrap_or_default();
        self.rebuild_fields(record_type, &old, &new)?;
        self.rebuild_age(record_type, &old, &new)?;
        let key = keys::named(self.state.epoch, record_type);
        let encoded = new.options.encode_to_vec();
        if encoded.is_empty() {
            self.txn.remove(Keyspace::Options.space(), key);
            self.rules.remove(record_type);
        } else {
            self.txn.put(Keyspace::Options.space(), key, encoded);
            self.rules.insert(record_type.clone(), new);
        }
        Ok(())
    }

    /// Only fields that come or go cost anything: setting the same options again scans nothing.
    fn rebuild_fields(&mut self, record_type: &Bytes, old: &TypeRules, new: &TypeRules) -> Result<(), Error> {
        let epoch = self.state.epoch;
        // Sorted, each once: see `TypeRules`.
        let absent = |from: &TypeRules, field: &String| from.fields.binary_search(field).is_err();
        for field in old.fields.iter().filter(|field| absent(new, field)) {
            self.remove_range(Keyspace::FieldIndex, keys::field_path(epoch, record_type, field))?;
        }
        let added: Vec<String> = new.fields.iter().filter(|field| absent(old, field)).cloned().collect();
        if added.is_empty() {
            return Ok(());
        }
        // Keys only: the records of a type may be more than memory holds.
        let keys = self.each_of_type(record_type, |parts| self.field_keys(&parts, &added))?;
        for key in keys.into_iter().flatten() {
            self.txn.put(Keyspace::FieldIndex.space(), key, Bytes::new());
        }
        Ok(())
    }

    fn rebuild_age(&mut self, record_type: &Bytes, old: &TypeRules, new: &TypeRules) -> Result<(), Error> {
        match (old.by_age(), new.by_age()) {
            (true, false) => self.remove_range(Keyspace::AgeIndex, keys::of_type(self.state.epoch, record_type)),
            (false, true) => {
                let id = |parts: wire::Parts| (parts.version, Bytes::copy_from_slice(&parts.id));
                for (version, id) in self.each_of_type(record_type, id)? {
                    let key = keys::by_version(self.state.epoch, record_type, version);
                    self.txn.put(Keyspace::AgeIndex.space(), key, id);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn each_of_type<T>(&self, record_type: &Bytes, take: impl Fn(wire::Parts) -> T) -> Result<Vec<T>, Error> {
        let bounds = keys::of_type(self.state.epoch, record_type);
        self.txn
            .range(Keyspace::Records.space(), bounds)
            .map(|item| {
                let (_, value) = item?;
                let parts = wire::parse(&value);
                parts.map(&take).map_err(|error| Error::Damaged { what: format!("a record: {error}") })
            })
            .collect()
    }

    fn remove_range(&mut self, keyspace: Keyspace, bounds: super::super::engine::KeyBounds) -> Result<(), Error> {
        let found: Result<Vec<Bytes>, _> =
            self.txn.range(keyspace.space(), bounds).map(|item| item.map(|(key, _)| key)).collect();
        for key in found? {
            self.txn.remove(keyspace.space(), key);
        }
        Ok(())
    }
}
