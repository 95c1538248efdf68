//! Looks into the data of records: which types this build knows, what the field index holds, what people are shown.
//!
//! Not here: filters (`filter`), free text (`text`), field masks (`mask`), addresses (`cidr`).

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

use super::{
    fields::{self, Any},
    leaf::Leaf,
    path::{self, Form, Target},
};

/// Why the built-in descriptors cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptor set that was compiled into this program is broken.
    #[error("cannot load the built-in descriptors of record types: {0}")]
    Load(#[source] prost_reflect::DescriptorError),
}

/// Why JSON is no record data.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The pool has no `google.protobuf.Any`.
    #[error("the built-in descriptors lack google.protobuf.Any")]
    NoAny,
    /// An unknown `@type`, an unknown field, or a value that does not fit its field.
    #[error("the JSON is no record data: {0}")]
    Invalid(#[source] serde_json::Error),
}

/// The types whose data can be looked into. Cloning is cheap.
///
/// The pool is part of what commands mean: it decides what is indexed and what a patch accepts. New types therefore come
/// with a new command version only.
#[derive(Clone, Debug)]
pub struct Descriptors(DescriptorPool);

/// Data of a known type that can be decoded.
#[derive(Clone, Debug)]
pub(crate) struct Opened<'a> {
    pub(crate) message: MessageDescriptor,
    pub(crate) bytes: &'a [u8],
}

impl Descriptors {
    /// The types compiled into this program.
    ///
    /// # Errors
    /// Never, unless the build itself was damaged.
    pub fn builtin() -> Result<Self, Error> {
        DescriptorPool::decode(databroker_proto::RECORDS_DESCRIPTOR_SET).map(Self).map_err(Error::Load)
    }

    /// Whether data with this type URL (or full message name) can be looked into.
    pub fn knows(&self, type_url: &str) -> bool {
        self.message(databroker_proto::message_name(type_url)).is_some()
    }

    pub(crate) fn message(&self, name: &str) -> Option<MessageDescriptor> {
        self.0.get_message_by_name(name).filter(|message| !message.is_map_entry())
    }

    /// Opens an encoded `google.protobuf.Any`; `None` for an unknown type and for bytes that are none of it.
    pub(crate) fn open<'a>(&self, any: &'a [u8]) -> Option<Opened<'a>> {
        let any = Any::parse(any).ok()?;
        let message = self.message(any.message_name())?;
        fields::check(&message, any.value).ok()?;
        Some(Opened { message, bytes: any.value })
    }

    /// What the field index holds of a record: for each of `paths` (its position, the value). `any` is the record's
    /// encoded `google.protobuf.Any`.
    ///
    /// A text gives itself, a field that is not populated gives `""`; where the path leads to anything else the record is
    /// not indexed under this path. `None`: the data is absent, of unknown type, or broken; nothing is indexed.
    pub fn index_values(&self, any: &[u8], paths: &[String]) -> Option<Vec<(usize, String)>> {
        let opened = self.open(any)?;
        let mut values = Vec::with_capacity(paths.len());
        for (at, path) in paths.iter().enumerate() {
            let names: Vec<&str> = path.split('.').collect();
            let mut found = Indexed::Missing;
            path::follow(&opened.message, opened.bytes, &names, Form::Proto, &mut found).ok()?;
            match found {
                Indexed::Missing => values.push((at, String::new())),
                Indexed::Text(text) => values.push((at, text)),
                Indexed::NotText => {}
            }
        }
        Some(values)
    }

    /// The data as JSON, with its type URL under `@type`; `None` if it cannot be shown (unknown type, broken data).
    /// Builds the whole message: for tools, not for servers.
    pub fn to_json(&self, any: &[u8]) -> Option<serde_json::Value> {
        let message = DynamicMessage::decode(self.message("google.protobuf.Any")?, any).ok()?;
        serde_json::to_value(message).ok()
    }

    /// The encoded `google.protobuf.Any` that [`Descriptors::to_json`] shows as `json`.
    ///
    /// # Errors
    /// See [`JsonError`].
    pub fn from_json(&self, json: serde_json::Value) -> Result<Vec<u8>, JsonError> {
        let any = self.message("google.protobuf.Any").ok_or(JsonError::NoAny)?;
        let message = DynamicMessage::deserialize(any, json).map_err(JsonError::Invalid)?;
        Ok(message.encode_to_vec())
    }
}

/// What the field index sees at the end of a path.
enum Indexed {
    Missing,
    Text(String),
    NotText,
}

impl Target for Indexed {
    fn put(&mut self, leaf: Leaf<'_>) {
        *self = match leaf {
            Leaf::Text(text) => Self::Text(text.to_owned()),
            _ => Self::NotText,
        };
    }

    fn add(&mut self, _: Leaf<'_>) {
        *self = Self::NotText;
    }

    fn clear(&mut self) {
        *self = Self::Missing;
    }
}
