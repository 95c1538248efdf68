//! Free text: whether the data of a record holds a text, in any case.
//!
//! Looked at is every string field, at any depth, in lists and in the values of maps. Not looked at: keys of maps,
//! bytes, numbers, enums, the record's own type and id. A message packed into an Any inside the data is closed: of it
//! only the type URL counts.

use prost_reflect::{Kind, MessageDescriptor};

use super::{
    fields::{self, Fields, Malformed, Payload},
    inspect::Descriptors,
};

/// The number of the key in a map's entry.
const MAP_KEY: u32 = 1;

/// Whether `any`, a record's encoded `google.protobuf.Any`, holds `query`, which [`lowercase`] has been through. Data
/// that is absent, of unknown type or broken holds nothing; the empty query matches everything.
pub fn matches(descriptors: &Descriptors, any: &[u8], query: &str) -> bool {
    if query.is_empty() {
        return true;
    }
    let mut search = Search { query, folded: String::new() };
    descriptors.open(any).is_some_and(|opened| search.message(&opened.message, opened.bytes).unwrap_or(false))
}

/// Lower case, character by character, as Go's `strings.ToLower` has it: no character becomes two, and none depends on
/// its neighbours.
pub fn lowercase(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    fold(text, &mut folded);
    folded
}

fn fold(text: &str, into: &mut String) {
    into.clear();
    if text.is_ascii() {
        into.push_str(text);
        into.make_ascii_lowercase();
    } else {
        // Only U+0130 has a longer lower case; its simple mapping is the first character of that.
        into.extend(text.chars().map(|character| character.to_lowercase().next().unwrap_or(character)));
    }
}

struct Search<'a> {
    query: &'a str,
    /// The text at hand in lower case; kept to use its memory again.
    folded: String,
}

impl Search<'_> {
    /// The bytes have been checked, so the depth is bounded.
    fn message(&mut self, message: &MessageDescriptor, bytes: &[u8]) -> Result<bool, Malformed> {
        for field in Fields::of(bytes) {
            let field = field?;
            let Payload::Bytes(payload) = field.payload else { continue };
            if message.is_map_entry() && field.number == MAP_KEY {
                continue;
            }
            let found = match field.descriptor(message).map(|known| known.kind()) {
                Some(Kind::String) => self.text(fields::text(payload)?),
                Some(Kind::Message(inner)) => self.message(&inner, payload)?,
                _ => false,
            };
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn text(&mut self, text: &str) -> bool {
        fold(text, &mut self.folded);
        self.folded.contains(self.query)
    }
}
