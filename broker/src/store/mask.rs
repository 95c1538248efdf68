//! Field masks, and the merge they steer, done on encoded bytes.
//!
//! A decoded map has no order of its own, so decoding and encoding again could make stores differ. The merge therefore
//! keeps the stored bytes of fields the mask does not name, drops those of fields it names, and appends the source's
//! bytes of these. Fields this build does not know survive in the stored data and are not taken from the source.

use std::{
    borrow::Cow,
    collections::{BTreeMap, btree_map::Entry},
};

use bytes::{BufMut, Bytes};
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use super::{
    fields::{self, Any, Fields, Malformed, Payload, siblings},
    inspect::Descriptors,
    path::is_zero,
};

#[cfg(test)]
#[path = "mask_tests.rs"]
mod tests;

/// How many names a path may have.
const NAMES_MAX: usize = 64;

/// Why a mask cannot be applied.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No descriptor: the data cannot be looked into.
    #[error("data of type {type_url:?} can only be patched without a mask: the type is unknown")]
    UnknownType {
        /// The stored data's type.
        type_url: String,
    },
    /// The input's data is of another type than what is stored.
    #[error("the stored data is of type {stored:?}, the input's of type {source_type:?}")]
    TypeMismatch {
        /// What is stored.
        stored: String,
        /// What was sent.
        source_type: String,
    },
    /// One side has no data.
    #[error("the {side} record has no data")]
    AbsentData {
        /// `stored` or `input`.
        side: &'static str,
    },
    /// One side's bytes are no message of its type.
    #[error("the {side} data cannot be decoded: {source}")]
    Undecodable {
        /// `stored` or `input`.
        side: &'static str,
        /// What is wrong.
        source: Malformed,
    },
    /// A path names a field that is not there.
    #[error("no field {field:?} in {message} (path {path:?})")]
    UnknownField {
        /// The path, cut if long.
        path: String,
        /// The name.
        field: String,
        /// Where it was looked for.
        message: String,
    },
    /// A path goes on after a list, a map or a scalar.
    #[error("field {field:?} has no fields of its own to select (path {path:?})")]
    NotAMessage {
        /// The path, cut if long.
        path: String,
        /// The field's name.
        field: String,
    },
    /// A path of more than 64 names.
    #[error("a path has more than {NAMES_MAX} names")]
    TooDeep,
}

/// Which fields of a message are replaced. A path covers all paths below it, in whatever order they are given.
#[derive(Clone, Debug)]
pub struct Mask {
    message: MessageDescriptor,
    fields: BTreeMap<u32, Node>,
}

#[derive(Clone, Debug)]
enum Node {
    Whole,
    Part(Mask),
}

/// What one side of a merge has of a field.
#[derive(Clone, Copy, Debug, Default)]
struct Holding {
    /// Populated: set, and not the zero of a field without explicit presence.
    present: bool,
    /// What stands on the wire before this offset was displaced by another member of the same oneof.
    since: usize,
}

type Holdings = BTreeMap<u32, Holding>;

impl Mask {
    /// Reads paths of proto field names joined with dots.
    ///
    /// # Errors
    /// A path that leads nowhere; see [`Error`].
    pub fn parse<S: AsRef<str>>(paths: &[S], message: &MessageDescriptor) -> Result<Self, Error> {
        let mut mask = Self::empty(message);
        for path in paths {
            let path = path.as_ref();
            if path.split('.').count() > NAMES_MAX {
                return Err(Error::TooDeep);
            }
            mask.add(path, path)?;
        }
        Ok(mask)
    }

    fn empty(message: &MessageDescriptor) -> Self {
        Self { message: message.clone(), fields: BTreeMap::new() }
    }

    fn add(&mut self, whole_path: &str, path: &str) -> Result<(), Error> {
        let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
        let field = self.message.get_field_by_name(name).ok_or_else(|| Error::UnknownField {
            path: clip(whole_path),
            field: clip(name),
            message: self.message.full_name().to_owned(),
        })?;
        let Some(rest) = rest else {
            self.fields.insert(field.number(), Node::Whole);
            return Ok(());
        };
        let inner = match field.kind() {
            Kind::Message(inner) if !field.is_list() && !field.is_map() && !field.is_group() => Self::empty(&inner),
            _ => return Err(Error::NotAMessage { path: clip(whole_path), field: clip(name) }),
        };
        match self.fields.entry(field.number()).or_insert_with(|| Node::Part(inner.clone())) {
            Node::Part(mask) => mask.add(whole_path, rest),
            // Covered by a shorter path, but a wrong one is an error all the same.
            Node::Whole => { inner }.add(whole_path, rest),
        }
    }

    /// `stored` with the masked fields as `source` has them: set where the source has them populated, else cleared. Lists
    /// and maps are replaced whole. Both are encoded messages of the mask's type.
    ///
    /// # Errors
    /// When a side's framing is broken.
    pub fn merge(&self, stored: &[u8], source: &[u8]) -> Result<Vec<u8>, Malformed> {
        let (had, has) = (self.survey(stored)?, self.survey(source)?);
        let mut out = Vec::with_capacity(stored.len() + source.len());
        self.keep_unmasked(stored, &had, &has, &mut out)?;
        for (&number, node) in &self.fields {
            let (old, new) = (holding(&had, number), holding(&has, number));
            match node {
                Node::Whole if new.present => copy(source, number, new.since, &self.message, &mut out)?,
                Node::Part(mask) if (old.present || new.present) && !self.displaced(number, &has) => {
                    let old = gather(stored, number, old.since, &self.message)?;
                    let new = gather(source, number, new.since, &self.message)?;
                    let inner = mask.merge(&old, &new)?;
                    put_delimited(number, &inner, &mut out);
                }
                Node::Whole | Node::Part(_) => {}
            }
        }
        Ok(out)
    }

    /// Copies the stored fields that stay as they are. Of a oneof in which a masked member is set, or was, only the
    /// member that counts may stay: dropping it must not bring back one it had displaced.
    fn keep_unmasked(&self, stored: &[u8], had: &Holdings, has: &Holdings, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let mut at = 0;
        for field in Fields::of(stored) {
            let field = field?;
            let start = at;
            at += field.raw.len();
            let number = field.number;
            let keep = match had.get(&number) {
                Some(held) if field.descriptor(&self.message).is_some() => {
                    !self.fields.contains_key(&number) && start >= held.since && !self.displaced(number, has)
                }
                _ => true,
            };
            if keep {
                out.extend_from_slice(field.raw);
            }
        }
        Ok(())
    }

    /// Whether the merge sets another member of this field's oneof.
    fn displaced(&self, number: u32, has: &Holdings) -> bool {
        let field = self.message.get_field(number);
        field.is_some_and(|field| {
            siblings(&field).into_iter().any(|other| self.fields.contains_key(&other) && holding(has, other).present)
        })
    }

    /// What `bytes` hold of the masked fields, and of those that share a oneof with one.
    fn survey(&self, bytes: &[u8]) -> Result<Holdings, Malformed> {
        let mut holdings = Holdings::new();
        for field in self.fields.keys().filter_map(|&number| self.message.get_field(number)) {
            holdings.extend(
                siblings(&field).into_iter().chain([field.number()]).map(|number| (number, Holding::default())),
            );
        }
        let mut at = 0;
        for field in Fields::of(bytes) {
            let field = field?;
            at += field.raw.len();
            let Some(holding) = holdings.get_mut(&field.number) else { continue };
            let Some(known) = field.descriptor(&self.message) else { continue };
            holding.present = populated(&known, field.payload) || (holding.present && known.is_list());
            for sibling in siblings(&known) {
                holdings.insert(sibling, Holding { present: false, since: at });
            }
        }
        Ok(holdings)
    }
}

fn holding(holdings: &Holdings, number: u32) -> Holding {
    holdings.get(&number).copied().unwrap_or_default()
}

fn populated(field: &FieldDescriptor, payload: Payload<'_>) -> bool {
    match (field.kind(), payload) {
        (Kind::String | Kind::Bytes | Kind::Message(_), _) if field.is_list() => true,
        // A packed list; one without elements is none.
        (_, Payload::Bytes(packed)) if field.is_list() => !packed.is_empty(),
        _ => field.is_list() || field.is_map() || field.supports_presence() || !is_zero(payload),
    }
}

/// The occurrences of a field from an offset on.
fn occurrences<'a>(
    bytes: &'a [u8],
    number: u32,
    since: usize,
    message: &MessageDescriptor,
) -> impl Iterator<Item = Result<fields::Field<'a>, Malformed>> {
    let known = move |field: &fields::Field<'_>| field.number == number && field.descriptor(message).is_some();
    Fields::of(bytes.get(since..).unwrap_or_default()).filter(move |field| field.as_ref().map_or(true, known))
}

fn copy(
    source: &[u8],
    number: u32,
    since: usize,
    message: &MessageDescriptor,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    for field in occurrences(source, number, since, message) {
        out.extend_from_slice(field?.raw);
    }
    Ok(())
}

/// A singular message field's content. If it occurs several times the pieces are one message: joined, they decode as the
/// merge of all.
fn gather<'a>(
    bytes: &'a [u8],
    number: u32,
    since: usize,
    message: &MessageDescriptor,
) -> Result<Cow<'a, [u8]>, Malformed> {
    let mut whole: Cow<'a, [u8]> = Cow::Borrowed(&[]);
    for field in occurrences(bytes, number, since, message) {
        match field?.payload {
            Payload::Bytes(piece) if whole.is_empty() => whole = Cow::Borrowed(piece),
            Payload::Bytes(piece) => whole.to_mut().extend_from_slice(piece),
            _ => {}
        }
    }
    Ok(whole)
}

fn put_delimited(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.put_slice(bytes);
}

/// So much of a client's text as an error may repeat.
fn clip(text: &str) -> String {
    text.chars().take(100).collect()
}

/// The paths of one command, read once for each type of message they are applied to.
#[derive(Debug)]
pub struct Paths<'a> {
    descriptors: &'a Descriptors,
    paths: &'a [String],
    /// By the message's name.
    masks: BTreeMap<String, Mask>,
}

impl<'a> Paths<'a> {
    /// Nothing is read yet.
    pub fn new(descriptors: &'a Descriptors, paths: &'a [String]) -> Self {
        Self { descriptors, paths, masks: BTreeMap::new() }
    }

    /// No path: data stays as it is.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Copies the fields that the paths name from the input's data into the stored data. Both, and the result, are
    /// encoded `google.protobuf.Any` messages; no bytes mean no data. Without paths the stored data stays as it is.
    ///
    /// # Errors
    /// See [`Error`]; nothing but the arguments decides.
    pub fn patch_any(&mut self, stored: &[u8], input: &[u8]) -> Result<Bytes, Error> {
        if self.is_empty() {
            return Ok(Bytes::copy_from_slice(stored));
        }
        let (old, new) = (data("stored", stored)?, data("input", input)?);
        let message = self
            .descriptors
            .message(old.message_name())
            .ok_or_else(|| Error::UnknownType { type_url: clip(old.type_url) })?;
        if old.message_name() != new.message_name() {
            return Err(Error::TypeMismatch { stored: clip(old.type_url), source_type: clip(new.type_url) });
        }
        let mask = self.mask(&message)?;
        for (side, any) in [("stored", &old), ("input", &new)] {
            fields::check(&message, any.value).map_err(|source| Error::Undecodable { side, source })?;
        }
        let merged =
            mask.merge(old.value, new.value).map_err(|source| Error::Undecodable { side: "stored", source })?;
        let mut out = Vec::with_capacity(old.type_url.len() + merged.len() + 16);
        put_delimited(Any::TYPE_URL, old.type_url.as_bytes(), &mut out);
        if !merged.is_empty() {
            put_delimited(Any::VALUE, &merged, &mut out);
        }
        Ok(out.into())
    }

    fn mask(&mut self, message: &MessageDescriptor) -> Result<&Mask, Error> {
        match self.masks.entry(message.full_name().to_owned()) {
            Entry::Occupied(read) => Ok(read.into_mut()),
            Entry::Vacant(unread) => Ok(unread.insert(Mask::parse(self.paths, message)?)),
        }
    }
}

fn data<'a>(side: &'static str, any: &'a [u8]) -> Result<Any<'a>, Error> {
    let any = Any::parse(any).map_err(|source| Error::Undecodable { side, source })?;
    if any.type_url.is_empty() { Err(Error::AbsentData { side }) } else { Ok(any) }
}
