//! SetOptions: what applies to all records of a type.
//!
//! Not here: the indexes that follow from it (`indexing`).

use bytes::Bytes;
use databroker_proto::internal::{IndexWork, SetOptions};
use prost::Message as _;

use super::{
    super::{
        Error,
        command::{Answer, FIELDS_MAX, Reason, outcome},
        keyspace::{Keyspace, PATH_BYTES_MAX, records as keys},
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
        // As the client gave them: stored and sent as such, the same one again and again.
        let fields = rules.options.indexable_fields.len();
        if fields > FIELDS_MAX {
            let detail = format!("{fields} indexed fields, at most {FIELDS_MAX} are allowed");
            return Ok(Answer::rejected(Reason::InvalidData, detail));
        }
        let record_type = Bytes::copy_from_slice(set.r#type.as_bytes());
        let work = self.index_work(&record_type, &rules);
        let dropped = work.dropped_fields.len();
        if dropped > FIELDS_MAX {
            // What is left is written with every batch.
            let detail = format!(
                "{dropped} fields would wait for their index to be dropped, at most {FIELDS_MAX} are allowed: try again \
                 later"
            );
            return Ok(Answer::rejected(Reason::Busy, detail));
        }
        self.replace_rules(&record_type, rules, work)?;
        Ok(Answer::of(outcome::Kind::Done(Default::default())))
    }

    /// The options every store starts with.
    pub(super) fn install_defaults(&mut self) -> Result<(), Error> {
        defaults().into_iter().try_for_each(|(record_type, options)| {
            let (record_type, rules) = (Bytes::from(record_type.into_bytes()), TypeRules::from(options));
            let work = self.index_work(&record_type, &rules);
            self.replace_rules(&record_type, rules, work)
        })
    }

    fn replace_rules(&mut self, record_type: &Bytes, new: TypeRules, work: IndexWork) -> Result<(), Error> {
        self.replace_index_work(work)?;
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
}
