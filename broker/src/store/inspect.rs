//! Looks into the data of records: which types this build knows, what the field index holds.
//!
//! Not here: filters (`filter`), free text (`text`), field masks (`mask`), addresses (`cidr`); data as JSON for people is
//! the tools' business.

use prost_reflect::{DescriptorPool, MessageDescriptor};

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost_reflect::{DynamicMessage, MapKey, ReflectMessage as _, Value};
    use serde_json::json;

    use super::*;
    use crate::store::samples::{self, Random, TYPES, any, descriptors, message, pack};

    fn indexed(any: &[u8], paths: &[&str]) -> Option<Vec<(usize, String)>> {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        descriptors().index_values(any, &paths)
    }

    fn values(list: &[(usize, &str)]) -> Option<Vec<(usize, String)>> {
        Some(list.iter().map(|(at, value)| (*at, (*value).to_owned())).collect())
    }

    #[test]
    fn every_record_type_of_the_interface_is_known() {
        for name in [
            "session.Session",
            "session.SessionBinding",
            "session.SessionBindingRequest",
            "session.IdentityBinding",
            "user.User",
            "user.ServiceAccount",
            "pomerium.device.Type",
            "pomerium.device.Enrollment",
            "pomerium.device.Credential",
            "pomerium.device.OwnerCredentialRecord",
            "oauth21.AuthorizationRequest",
            "oauth21.MCPRefreshToken",
            "oauth21.PendingUpstreamAuth",
            "oauth21.UpstreamMCPToken",
            "oauth21.UpstreamOAuthClient",
            "ietf.rfc7591.v1.ClientRegistration",
            "pomerium.events.LastError",
            "pomerium.config.Config",
            "pomerium.config.VersionedConfig",
            "pomerium.config.KeyPair",
            "pomerium.config.Route",
            "pomerium.config.Policy",
            "pomerium.config.Settings",
            "test.Test",
            "google.protobuf.Any",
            "google.protobuf.BoolValue",
            "google.protobuf.Duration",
            "google.protobuf.Empty",
            "google.protobuf.ListValue",
            "google.protobuf.StringValue",
            "google.protobuf.Struct",
            "google.protobuf.Timestamp",
            "google.protobuf.Value",
        ] {
            assert!(descriptors().knows(&format!("type.googleapis.com/{name}")), "{name}");
        }
        assert!(!descriptors().knows("type.googleapis.com/some.Other"));
        assert!(!descriptors().knows("session.Session.ClaimsEntry"));
    }

    #[test]
    fn texts_are_indexed_and_absent_fields_are_indexed_as_empty() {
        let session = any(
            "session.Session",
            json!({"userId": "u", "idToken": {"subject": "s"}, "claims": {"email": ["e"]}, "audience": ["x"],
                   "issuedAt": "2026-01-01T00:00:00Z"}),
        );
        assert_eq!(
            indexed(&session, &["user_id", "id", "id_token.subject", "oauth_token.access_token", "nothing.at.all", ""]),
            values(&[(0, "u"), (1, ""), (2, "s"), (3, ""), (4, ""), (5, "")])
        );
        // What is no text leaves out that field, and no other.
        assert_eq!(
            indexed(&session, &["id_token", "audience", "claims", "claims.email", "issued_at.seconds", "user_id"]),
            values(&[(5, "u")])
        );
        // Lists and scalars lead nowhere; JSON names are no field names.
        assert_eq!(
            indexed(&session, &["audience.x", "claims.email.values.string_value", "user_id.x", "userId"]),
            values(&[(0, ""), (1, ""), (2, ""), (3, "")])
        );
    }

    #[test]
    fn keys_of_maps_are_names_and_a_struct_is_the_message_it_is() {
        let binding = any("session.SessionBinding", json!({"details": {"foo": "bar", "none": ""}}));
        assert_eq!(
            indexed(&binding, &["details.foo", "details.none", "details.other", "details"]),
            values(&[(0, "bar"), (1, ""), (2, "")])
        );
        let structure = any("google.protobuf.Struct", json!({"foo": "bar", "n": 1}));
        assert_eq!(
            indexed(&structure, &["fields.foo.string_value", "foo", "fields.n.string_value", "fields.n.number_value"]),
            values(&[(0, "bar"), (1, ""), (2, "")])
        );
    }

    #[test]
    fn unknown_absent_and_broken_data_is_not_indexed() {
        assert_eq!(indexed(&pack("some.Other", b"\x0a\x01a"), &["id"]), None);
        assert_eq!(indexed(b"", &["id"]), None);
        assert_eq!(indexed(&pack("test.Test", b"\x0a\x05a"), &["string_field"]), None);
        assert_eq!(indexed(&pack("test.Test", b"\x0a\x01\xff"), &["proto_field"]), None);
        assert_eq!(indexed(&pack("test.Test", b""), &["string_field"]), values(&[(0, "")]));
        // A known number with another wire type is an unknown field.
        assert_eq!(indexed(&pack("test.Test", b"\x08\x05"), &["string_field"]), values(&[(0, "")]));
    }

    #[test]
    fn the_last_member_of_a_oneof_counts() {
        let id_then_unavailable = pack("session.Session.DeviceCredential", b"\x1a\x01a\x12\x00");
        assert_eq!(indexed(&id_then_unavailable, &["id"]), values(&[(0, "")]));
        let unavailable_then_id = pack("session.Session.DeviceCredential", b"\x12\x00\x1a\x01a");
        assert_eq!(indexed(&unavailable_then_id, &["id"]), values(&[(0, "a")]));
    }

    #[test]
    fn hostile_data_is_survived() {
        for data in samples::hostile() {
            indexed(&data, &["id", "fields.a.string_value", "list_value.values", "claims.email"]);
            let _ = fields::check(&message("google.protobuf.Value"), &data);
        }
        let mut deep = b"\x1a\x01a".to_vec();
        for level in 0..200 {
            // A list in a value in a list …
            let mut outer = vec![if level % 2 == 0 { 0x0a } else { 0x32 }];
            prost::encoding::encode_varint(deep.len() as u64, &mut outer);
            outer.extend(deep);
            deep = outer;
        }
        assert_eq!(
            fields::check(&message("google.protobuf.Value"), &deep),
            Err(crate::store::fields::Malformed::TooDeep)
        );
    }

    /// The definition of the index, on decoded messages.
    fn reference(message: &DynamicMessage, path: &[&str]) -> Option<String> {
        let (name, rest) = path.split_first()?;
        let missing = Some(String::new());
        let Some(field) = message.descriptor().get_field_by_name(name) else { return missing };
        if !message.has_field(&field) {
            return missing;
        }
        let mut value = message.get_field(&field).into_owned();
        let mut rest = rest;
        if let (Value::Map(entries), Some((key, after))) = (&value, rest.split_first()) {
            let Some(entry) = entries.get(&MapKey::String((*key).to_owned())) else { return missing };
            (value, rest) = (entry.clone(), after);
        }
        match (value, rest) {
            (Value::String(text), []) => Some(text),
            (_, []) => None,
            (Value::Message(inner), rest) => reference(&inner, rest),
            _ => missing,
        }
    }

    proptest! {
        #[test]
        fn the_index_agrees_with_decoded_messages(seed: u64) {
            let mut random = Random(seed);
            let name = TYPES[random.below(TYPES.len())];
            let bytes = random.encoded(&message(name));
            let decoded = DynamicMessage::decode(message(name), &bytes[..]).unwrap();
            let paths: Vec<String> = ["string_field", "proto_field.another_string_field", "claims.a.values", "user_id", "id", "details.a",
                "details.x", "impersonate_session_id", "config.name", "config.settings.id", "fields.a.string_value", "fields.b.list_value",
                "string_value", "struct_value.fields.a.string_value", "request_metadata.client_name", "request_metadata.logo_uri_localized.b",
                "unavailable", "number_value", "status"].map(str::to_owned).to_vec();
            let expected = paths.iter().enumerate()
                .filter_map(|(at, path)| Some((at, reference(&decoded, &path.split('.').collect::<Vec<_>>())?))).collect::<Vec<_>>();
            prop_assert_eq!(descriptors().index_values(&pack(name, &bytes), &paths), Some(expected));
        }

        #[test]
        fn what_decodes_is_called_decodable(seed: u64) {
            let mut random = Random(seed);
            let name = TYPES[random.below(TYPES.len())];
            let mut bytes = random.encoded(&message(name));
            random.damage(&mut bytes);
            indexed(&pack(name, &bytes), &["id", "fields.a.string_value"]);
            // prost-reflect takes a map's entries with any wire type. The other way round need not hold either: a known
            // number with another wire type is left alone here and refused there.
            let maps = name.starts_with("google.") || name.starts_with("session.Session") || name.starts_with("ietf.");
            if !maps && DynamicMessage::decode(message(name), &bytes[..]).is_ok() {
                prop_assert_eq!(fields::check(&message(name), &bytes), Ok(()), "{} {:x?}", name, bytes);
            }
        }
    }
}
