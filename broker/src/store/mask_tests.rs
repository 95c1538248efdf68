//! The merge on the wire against its definition on decoded messages.

use std::collections::BTreeSet;

use proptest::prelude::*;
use prost_reflect::{DynamicMessage, ReflectMessage as _, Value};
use serde_json::json;

use super::*;
use crate::store::samples::{self, Random, TYPES, any, descriptors, message, pack};

fn patch(paths: &[&str], stored: &[u8], input: &[u8]) -> Result<Bytes, Error> {
    let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
    Paths::new(&descriptors(), &paths).patch_any(stored, input)
}

#[track_caller]
fn assert_patched(
    name: &str,
    paths: &[&str],
    stored: serde_json::Value,
    input: serde_json::Value,
    expected: serde_json::Value,
) {
    let patched = patch(paths, &any(name, stored), &any(name, input)).unwrap();
    assert_eq!(samples::to_json(&patched), samples::to_json(&any(name, expected)));
}

#[test]
fn a_populated_field_is_set_and_an_absent_one_cleared() {
    let stored = json!({"stringField": "old", "protoField": {"anotherStringField": "kept"}});
    assert_patched(
        "test.Test",
        &["string_field"],
        stored.clone(),
        json!({"stringField": "new", "protoField": {}}),
        json!({"stringField": "new", "protoField": {"anotherStringField": "kept"}}),
    );
    assert_patched(
        "test.Test",
        &["string_field"],
        stored.clone(),
        json!({}),
        json!({"protoField": {"anotherStringField": "kept"}}),
    );
    assert_patched("test.Test", &["proto_field"], stored.clone(), json!({}), json!({"stringField": "old"}));
    assert_patched(
        "test.Test",
        &["proto_field"],
        stored,
        json!({"protoField": {}}),
        json!({"stringField": "old", "protoField": {}}),
    );
}

#[test]
fn paths_are_read_once_for_each_type_and_hold_for_all_its_records() {
    let (descriptors, names) = (descriptors(), ["id".to_owned()]);
    let mut paths = Paths::new(&descriptors, &names);
    for name in ["session.Session", "user.User", "session.Session", "user.User"] {
        let (stored, input) = (any(name, json!({"id": "old"})), any(name, json!({"id": "new"})));
        assert_eq!(paths.patch_any(&stored, &input).unwrap(), input);
    }
    assert_eq!(paths.masks.len(), 2);
    // One type's paths say nothing about another's.
    let (stored, input) = (any("test.Test", json!({})), any("test.Test", json!({})));
    assert!(matches!(paths.patch_any(&stored, &input), Err(Error::UnknownField { .. })));
}

#[test]
fn a_zero_without_presence_is_absent_and_with_presence_is_not() {
    let explicit_zero = pack("session.Session", b"\x98\x01\x00\x7a\x00");
    let stored = any("session.Session", json!({"refreshDisabled": true, "impersonateSessionId": "x"}));
    let patched = patch(&["refresh_disabled", "impersonate_session_id"], &stored, &explicit_zero).unwrap();
    assert_eq!(patched, any("session.Session", json!({"impersonateSessionId": ""})));
}

#[test]
fn lists_and_maps_are_replaced_whole() {
    let stored = json!({"audience": ["a", "b"], "claims": {"x": [1], "y": [2]}, "userId": "u"});
    assert_patched(
        "session.Session",
        &["audience", "claims"],
        stored.clone(),
        json!({"audience": ["c"], "claims": {"y": [3]}}),
        json!({"audience": ["c"], "claims": {"y": [3]}, "userId": "u"}),
    );
    assert_patched("session.Session", &["audience", "claims"], stored, json!({}), json!({"userId": "u"}));
}

#[test]
fn a_path_into_a_message_touches_only_what_it_names() {
    let stored = json!({"idToken": {"issuer": "i", "subject": "s"}});
    assert_patched(
        "session.Session",
        &["id_token.subject"],
        stored.clone(),
        json!({"idToken": {"issuer": "x", "subject": "t"}}),
        json!({"idToken": {"issuer": "i", "subject": "t"}}),
    );
    assert_patched(
        "session.Session",
        &["id_token.subject"],
        stored.clone(),
        json!({}),
        json!({"idToken": {"issuer": "i"}}),
    );
    // The parent covers the child, before it and after it.
    for paths in [["id_token", "id_token.subject"], ["id_token.subject", "id_token"]] {
        assert_patched(
            "session.Session",
            &paths,
            stored.clone(),
            json!({"idToken": {"raw": "r"}}),
            json!({"idToken": {"raw": "r"}}),
        );
    }
}

#[test]
fn a_path_into_an_absent_message_creates_it_only_if_the_source_has_it() {
    assert_patched("session.Session", &["id_token.subject"], json!({}), json!({}), json!({}));
    assert_patched(
        "session.Session",
        &["id_token.subject"],
        json!({}),
        json!({"idToken": {"raw": "r"}}),
        json!({"idToken": {}}),
    );
}

#[test]
fn setting_one_member_of_a_oneof_clears_the_others() {
    let name = "session.Session.DeviceCredential";
    assert_patched(
        name,
        &["id"],
        json!({"typeId": "t", "unavailable": {}}),
        json!({"id": "i"}),
        json!({"typeId": "t", "id": "i"}),
    );
    assert_patched(name, &["id"], json!({"unavailable": {}}), json!({}), json!({"unavailable": {}}));
    assert_patched(name, &["id", "unavailable"], json!({"unavailable": {}}), json!({"id": "i"}), json!({"id": "i"}));
    assert_patched(name, &["unavailable"], json!({"unavailable": {}}), json!({"id": "i"}), json!({}));
}

#[test]
fn a_displaced_member_does_not_come_back() {
    // The stored bytes hold `id` and then `unavailable`, which displaced it.
    let stored = pack("session.Session.DeviceCredential", b"\x1a\x01i\x12\x00");
    let patched = patch(&["unavailable"], &stored, &pack("session.Session.DeviceCredential", b"")).unwrap();
    assert_eq!(patched, pack("session.Session.DeviceCredential", b""));
}

#[test]
fn unmasked_bytes_and_unknown_fields_stay_as_they_are() {
    // Unknown fields before and after, an overlong varint, a known number with another wire type.
    let stored = b"\xfa\x7d\x01x\x0a\x03old\x12\x82\x00\x0a\x00\x08\x05\xf8\x7d\x01";
    let patched =
        patch(&["string_field"], &pack("test.Test", stored), &pack("test.Test", b"\x0a\x03new\xf8\x7d\x02")).unwrap();
    let expected = b"\xfa\x7d\x01x\x12\x82\x00\x0a\x00\x08\x05\xf8\x7d\x01\x0a\x03new";
    assert_eq!(patched, pack("test.Test", expected));
}

#[test]
fn a_message_in_pieces_is_merged_before_it_is_patched() {
    let stored = pack("session.Session", b"\x32\x03\x0a\x01i\x32\x03\x12\x01s");
    let patched = patch(&["id_token.issuer"], &stored, &pack("session.Session", b"\x32\x03\x0a\x01j")).unwrap();
    assert_eq!(patched, pack("session.Session", b"\x32\x06\x12\x01s\x0a\x01j"));
}

#[test]
fn what_cannot_be_patched_is_refused_by_name() {
    let test = any("test.Test", json!({"stringField": "x"}));
    let session = any("session.Session", json!({"userId": "u"}));
    let text = |result: Result<Bytes, Error>| result.unwrap_err().to_string();
    assert_eq!(text(patch(&["nope"], &test, &test)), r#"no field "nope" in test.Test (path "nope")"#);
    assert_eq!(
        text(patch(&["proto_field.x"], &test, &test)),
        r#"no field "x" in test.EmbeddedMessage (path "proto_field.x")"#
    );
    assert_eq!(
        text(patch(&["proto_field", "proto_field.x"], &test, &test)),
        r#"no field "x" in test.EmbeddedMessage (path "proto_field.x")"#
    );
    assert_eq!(text(patch(&[""], &test, &test)), r#"no field "" in test.Test (path "")"#);
    for path in ["user_id.x", "audience.x", "claims.x", "device_credentials.id"] {
        assert!(matches!(patch(&[path], &session, &session), Err(Error::NotAMessage { .. })), "{path}");
    }
    assert!(matches!(patch(&["stringField"], &test, &test), Err(Error::UnknownField { .. })));
    assert!(matches!(patch(&["x"], &test, &session), Err(Error::TypeMismatch { .. })));
    assert!(matches!(patch(&["x"], &pack("a.B", b""), &pack("a.B", b"")), Err(Error::UnknownType { .. })));
    assert_eq!(patch(&["x"], b"", &test), Err(Error::AbsentData { side: "stored" }));
    assert_eq!(patch(&["x"], &test, b""), Err(Error::AbsentData { side: "input" }));
    let broken = pack("test.Test", b"\x0a\x05x");
    assert!(matches!(patch(&["string_field"], &broken, &test), Err(Error::Undecodable { side: "stored", .. })));
    assert!(matches!(patch(&["string_field"], &test, &broken), Err(Error::Undecodable { side: "input", .. })));
    assert!(matches!(patch(&["string_field"], b"\x0a\x05", &test), Err(Error::Undecodable { side: "stored", .. })));
    assert_eq!(patch(&[&"a.".repeat(100)], &test, &test), Err(Error::TooDeep));
    assert!(text(patch(&[&"a".repeat(1 << 20)], &test, &test)).len() < 1000);
}

#[test]
fn without_paths_nothing_is_decoded() {
    assert_eq!(patch(&[], b"\xff", b"").unwrap(), &b"\xff"[..]);
}

#[test]
fn hostile_data_is_survived() {
    for stored in samples::hostile() {
        for input in samples::hostile().into_iter().step_by(7) {
            let _ = patch(&["id", "id_token.subject"], &stored, &input);
            let _ = patch(&["list_value.values"], &stored, &input);
        }
    }
}

/// All paths of a type, as deep as clients go, without those through lists and maps.
fn paths_of(message: &MessageDescriptor, prefix: &str, depth: usize, into: &mut Vec<String>) {
    for field in message.fields() {
        let path = format!("{prefix}{}", field.name());
        if let (Kind::Message(inner), true) = (field.kind(), depth > 1 && !field.is_list() && !field.is_map()) {
            paths_of(&inner, &format!("{path}."), depth - 1, into);
        }
        into.push(path);
    }
}

/// The definition of the merge, on decoded messages.
fn reference(paths: &BTreeSet<String>, target: &mut DynamicMessage, source: &DynamicMessage) {
    let names: BTreeSet<&str> = paths.iter().map(|path| path.split('.').next().unwrap()).collect();
    for name in names {
        let field = target.descriptor().get_field_by_name(name).unwrap();
        let has = source.has_field(&field);
        if paths.contains(name) {
            if has {
                target.set_field(&field, source.get_field(&field).into_owned())
            } else {
                target.clear_field(&field)
            }
        } else if has || target.has_field(&field) {
            let below =
                paths.iter().filter_map(|path| path.strip_prefix(name)?.strip_prefix('.')).map(str::to_owned).collect();
            let source = source.get_field(&field).into_owned();
            let mut inner = target.get_field(&field).into_owned();
            if let (Value::Message(inner), Value::Message(source)) = (&mut inner, &source) {
                reference(&below, inner, source);
            }
            target.set_field(&field, inner);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_merge_agrees_with_decoded_messages(seed: u64) {
        let mut random = Random(seed);
        let message = message(TYPES[random.below(TYPES.len())]);
        let (stored, source) = (random.encoded(&message), random.encoded(&message));
        let mut all = Vec::new();
        paths_of(&message, "", 3, &mut all);
        let mut paths: Vec<String> = (0..=random.below(5)).map(|_| all[random.below(all.len())].clone()).collect();

        let merged = Mask::parse(&paths, &message).unwrap().merge(&stored, &source).unwrap();
        let decode = |bytes: &[u8]| DynamicMessage::decode(message.clone(), bytes).unwrap();
        let mut expected = decode(&stored);
        reference(&paths.iter().cloned().collect(), &mut expected, &decode(&source));
        prop_assert_eq!(decode(&merged), expected);

        // The order of paths changes nothing, and neither does doing it twice.
        paths.reverse();
        prop_assert_eq!(&Mask::parse(&paths, &message).unwrap().merge(&stored, &source).unwrap(), &merged);
        let again = Mask::parse(&paths, &message).unwrap().merge(&merged, &source).unwrap();
        prop_assert_eq!(decode(&again), decode(&merged));
    }

    #[test]
    fn damaged_data_is_merged_or_refused(seed: u64) {
        let mut random = Random(seed);
        let name = TYPES[random.below(TYPES.len())];
        let (mut stored, mut input) = (random.encoded(&message(name)), random.encoded(&message(name)));
        if random.below(2) == 0 { random.damage(&mut stored) } else { random.damage(&mut input) }
        let mut all = Vec::new();
        paths_of(&message(name), "", 3, &mut all);
        let path = &all[random.below(all.len())];
        if let Ok(patched) = patch(&[path], &pack(name, &stored), &pack(name, &input)) {
            let value = Any::parse(&patched).unwrap().value;
            prop_assert_eq!(fields::check(&message(name), value), Ok(()));
        }
    }
}

#[test]
fn maps_of_many_keys_merge_to_the_same_bytes_every_time() {
    let map =
        |range: std::ops::Range<u32>| range.map(|n| (format!("k{n}"), json!([n]))).collect::<serde_json::Map<_, _>>();
    let stored = any("session.Session", json!({"claims": map(0..20), "userId": "u"}));
    let input = any("session.Session", json!({"claims": map(10..30), "userId": "v"}));
    let first = patch(&["claims", "user_id"], &stored, &input).unwrap();
    for _ in 0..20 {
        assert_eq!(patch(&["user_id", "claims"], &stored, &input).unwrap(), first);
    }
}
