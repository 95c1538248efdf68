//! Patch: changes some fields of stored records, touches them, or deletes them.

use std::collections::BTreeSet;

use bytes::Bytes;
use databroker_proto::{EncodedRecord, internal::Patch};

use super::{
    super::{
        super::mutation,
        Error,
        command::{Answer, Reason},
        mask::{self, Paths},
        wire::{self, Parts},
    },
    Batch,
    records::Versions,
};

impl Batch<'_> {
    /// Patches records in request order. One that does not exist is passed over; one that cannot be patched undoes the
    /// whole command.
    pub(super) fn patch(&mut self, patch: Patch) -> Result<Answer, Error> {
        let parsed: Result<Vec<Parts>, wire::Error> = patch.records.iter().map(wire::parse).collect();
        let parsed = match parsed {
            Ok(parsed) => parsed,
            Err(error) => return Ok(Answer::rejected(Reason::InvalidRecord, error.to_string())),
        };
        let mark = self.mark();
        let mut versions = Versions::default();
        let mut records = Vec::with_capacity(parsed.len());
        let mut touched = BTreeSet::new();
        let mut paths = Paths::new(self.descriptors, &patch.paths);
        for input in &parsed {
            match self.patch_one(input, &mut paths)? {
                Ok(None) => versions.push(0),
                Ok(Some(record)) => {
                    versions.push(self.state.latest_record_version);
                    records.push(record);
                    touched.insert(&input.record_type);
                }
                Err(error) => {
                    self.undo(mark);
                    return Ok(refused(input, &error));
                }
            }
        }
        self.enforce_capacities(touched)?;
        Ok(self.written(versions, records))
    }

    fn patch_one(
        &mut self,
        input: &Parts,
        paths: &mut Paths<'_>,
    ) -> Result<Result<Option<EncodedRecord>, mask::Error>, Error> {
        if input.deleted {
            return Ok(Ok(self.delete(&input.record_type, &input.id)?));
        }
        let Some(mut parts) = self.live(&input.record_type, &input.id)? else {
            return Ok(Ok(None));
        };
        // Without a mask nothing is decoded: a record of any type can be touched.
        if !paths.is_empty() {
            let empty = Bytes::new();
            let (stored, source) = (parts.data.as_ref().unwrap_or(&empty), input.data.as_ref().unwrap_or(&empty));
            match paths.patch_any(stored, source) {
                Ok(merged) => parts.data = Some(mutation::encoded_again(self.descriptors, merged)),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(Some(self.upsert(&parts)?)))
    }
}

/// How much of a type or an id an error names.
const NAMED_CHARS_MAX: usize = 100;

fn refused(input: &Parts, error: &mask::Error) -> Answer {
    // The text ends up in a header of the response, where a character may take three bytes: it is cut.
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).chars().take(NAMED_CHARS_MAX).collect::<String>();
    let reason = match error {
        mask::Error::UnknownType { .. } => Reason::UnknownType,
        mask::Error::TypeMismatch { .. } => Reason::TypeMismatch,
        mask::Error::AbsentData { .. } | mask::Error::Undecodable { .. } => Reason::InvalidData,
        _ => Reason::InvalidMask,
    };
    let (record_type, id) = (text(&input.record_type), text(&input.id));
    Answer::rejected(reason, format!("cannot patch record {record_type:?} {id:?}: {error}"))
}
