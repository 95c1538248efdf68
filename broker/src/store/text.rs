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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;
    use prost_reflect::{DynamicMessage, Value};
    use serde_json::json;

    use super::*;
    use crate::store::samples::{self, Random, TYPES, any, descriptors, message, pack};

    fn found(any: &[u8], query: &str) -> bool {
        matches(&descriptors(), any, &lowercase(query))
    }

    #[test]
    fn strings_match_at_any_depth_and_in_any_case() {
        let session = any(
            "session.Session",
            json!({"userId": "Jürgen", "audience": ["One", "TWO"], "idToken": {"subject": "Sub"},
                   "claims": {"email": ["Who@Example.com", 12]}, "idpId": "ΌΣΟΣ"}),
        );
        for query in ["jürgen", "JÜRG", "two", "sub", "@EXAMPLE", "όσοσ", ""] {
            assert!(found(&session, query), "{query}");
        }
        // Keys, numbers and field names are not looked at.
        for query in ["email", "12", "session", "user_id", "jurgen"] {
            assert!(!found(&session, query), "{query}");
        }
    }

    #[test]
    fn values_of_text_maps_match_and_their_keys_do_not() {
        let binding = any("session.SessionBinding", json!({"details": {"Key": "Value"}}));
        assert!(found(&binding, "value") && !found(&binding, "key"));
        let structure = any("google.protobuf.Struct", json!({"Key": {"Inner": ["Value", true]}}));
        assert!(found(&structure, "value") && !found(&structure, "inner") && !found(&structure, "true"));
    }

    #[test]
    fn a_packed_any_is_closed_but_for_its_type_url() {
        let inner = any("test.Test", json!({"stringField": "secret"}));
        let outer = pack("google.protobuf.Any", &inner);
        assert!(found(&outer, "TEST.test") && !found(&outer, "secret"));
    }

    #[test]
    fn enums_bytes_and_what_is_unknown_never_match() {
        let key_pair =
            any("pomerium.config.KeyPair", json!({"status": "KEY_PAIR_STATUS_READY", "key": "YWJj", "id": "x"}));
        assert!(found(&key_pair, "x") && !found(&key_pair, "ready") && !found(&key_pair, "abc"));
        assert!(!found(&pack("some.Other", b"\x0a\x01a"), "a"));
        assert!(!found(b"", "a"));
        assert!(!found(&pack("test.Test", b"\x0a\x01a\x0a\x09"), "a"));
    }

    #[test]
    fn no_character_becomes_two() {
        assert_eq!(lowercase("İΑΣ ẞ"), "iασ ß");
    }

    #[test]
    fn hostile_data_is_survived() {
        for data in samples::hostile() {
            found(&data, "a");
        }
    }

    fn reference(value: &Value, query: &str) -> bool {
        match value {
            Value::String(text) => lowercase(text).contains(query),
            Value::Message(message) => message.fields().any(|(_, value)| reference(value, query)),
            Value::List(list) => list.iter().any(|value| reference(value, query)),
            Value::Map(map) => map.values().any(|value| reference(value, query)),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn the_search_agrees_with_decoded_messages(seed: u64) {
            let mut random = Random(seed);
            let name = TYPES[random.below(TYPES.len())];
            let bytes = random.message(&message(name), 5).encode_to_vec();
            let decoded = Value::Message(DynamicMessage::decode(message(name), &bytes[..]).unwrap());
            for query in ["a", "STRASS", "straß", "σ", "i", "y", "zz"] {
                prop_assert_eq!(found(&pack(name, &bytes), query), reference(&decoded, &lowercase(query)), "{}", query);
            }
        }
    }
}
