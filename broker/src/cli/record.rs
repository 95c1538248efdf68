//! A record as JSON: `{version, type, id, data, modifiedAt, deletedAt}`, the shape that `get` prints and `put` takes.

use databroker_proto::{EncodedRecord, Record};
use prost_types::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{decode, failure::Failure};

/// A record's fields as JSON has them. `data` is of the shape of [`decode::to_json`].
///
/// `version` and `modifiedAt` are given by the store: `put` takes them and does nothing with them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordJson {
    /// Rises with every change of any record.
    #[serde(default)]
    pub version: u64,
    /// The record's type.
    pub r#type: String,
    /// The record's id.
    pub id: String,
    /// What is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
    /// When this version was written (RFC 3339, UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified_at: Option<String>,
    /// When it was deleted; in `put`: delete it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<String>,
}

impl RecordJson {
    /// What a record holds, to be printed.
    pub fn new(record: &Record) -> Self {
        Self {
            version: record.version,
            r#type: record.r#type.clone(),
            id: record.id.clone(),
            data: record.data.as_ref().map(decode::to_json),
            modified_at: record.modified_at.as_ref().map(ToString::to_string),
            deleted_at: record.deleted_at.as_ref().map(ToString::to_string),
        }
    }

    /// The record to be put.
    ///
    /// # Errors
    /// When the data or a time is malformed.
    pub fn into_record(self) -> Result<Record, Failure> {
        let subject = format!("record {:?} of type {:?}", self.id, self.r#type);
        let malformed = |error: String| Failure::Usage(format!("{subject}: {error}"));
        Ok(Record {
            version: self.version,
            data: self.data.map(decode::from_json).transpose().map_err(|error| malformed(error.to_string()))?,
            modified_at: self.modified_at.map(timestamp).transpose().map_err(malformed)?,
            deleted_at: self.deleted_at.map(timestamp).transpose().map_err(malformed)?,
            r#type: self.r#type,
            id: self.id,
        })
    }
}

fn timestamp(text: String) -> Result<Timestamp, String> {
    text.parse().map_err(|_| format!("{text:?} is not a time such as 2026-01-31T12:00:00Z"))
}

/// The fields of a record that a server sent.
///
/// # Errors
/// When it sent something else.
pub fn fields(encoded: &EncodedRecord) -> Result<Record, Failure> {
    encoded.to_record().map_err(|error| Failure::Failed(format!("the server sent a malformed record: {error}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_survives_its_json() {
        let record = Record {
            version: 7,
            r#type: "t".into(),
            id: "a\0b".into(),
            data: Some(prost_types::Any { type_url: "x/y".into(), value: vec![1, 2] }),
            modified_at: Some(Timestamp { seconds: 1_700_000_000, nanos: 123_456_789 }),
            deleted_at: None,
        };
        let json = serde_json::to_value(RecordJson::new(&record)).unwrap();
        assert_eq!(
            json,
            json!({
                "version": 7, "type": "t", "id": "a\0b", "modifiedAt": "2023-11-14T22:13:20.123456789Z",
                "data": {"@type": "x/y", "value": "AQI="},
            })
        );
        assert_eq!(serde_json::from_value::<RecordJson>(json).unwrap().into_record().unwrap(), record);
    }

    #[test]
    fn a_malformed_record_is_named_in_the_error() {
        let json =
            RecordJson { id: "i".into(), r#type: "t".into(), deleted_at: Some("yes".into()), ..Default::default() };
        let error = json.into_record().unwrap_err();
        assert_eq!((error.exit_code(), error.to_string().contains("\"i\"")), (2, true), "{error}");
    }
}
