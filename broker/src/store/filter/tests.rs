//! What filters mean, by example.

use prost_types::{Struct, Value as Json, value::Kind};
use serde_json::json;

use super::*;
use crate::store::samples::{self, any, descriptors, pack, to_struct};

fn parse(filter: &serde_json::Value) -> Result<Filter, Error> {
    Filter::parse(&to_struct(filter))
}

/// A filter in one line: what the parser understood.
fn show(filter: &Filter) -> String {
    let all = |children: &[Filter]| children.iter().map(show).collect::<Vec<_>>().join(", ");
    match filter {
        Filter::And(children) => format!("and({})", all(children)),
        Filter::Or(children) => format!("or({})", all(children)),
        Filter::Not(child) => format!("not({})", show(child)),
        Filter::Compare(Comparison { field, operator, value }) => {
            let field = match field {
                Field::Id => "<id>".to_owned(),
                Field::Type => "<type>".to_owned(),
                Field::Cidr => "<network>".to_owned(),
                Field::Path(path) => path.join("/"),
            };
            format!(
                "{field} {} {}",
                operator.name(),
                value.as_text().map_or("?".to_owned(), |text| format!("{text:?}"))
            )
        }
    }
}

fn shown(filter: serde_json::Value) -> String {
    match parse(&filter) {
        Ok(filter) => show(&filter),
        Err(error) => format!("error: {error}"),
    }
}

#[test]
fn the_grammar_reads_as_documented() {
    for (filter, expected) in [
        (json!({"f": "a"}), r#"f equals "a""#),
        (json!({"g": 1, "f": "a"}), r#"and(f equals "a", g equals "1")"#),
        (json!({"f": ["a", "b"]}), r#"or(f equals "a", f equals "b")"#),
        (json!({"f": ["a"]}), r#"f equals "a""#),
        (
            json!({"f": [["a", "b"], {">": 1, "g": 2}]}),
            r#"or(or(f equals "a", f equals "b"), and(f > "1", f/g equals "2"))"#,
        ),
        (json!({"f": {"g": 1}}), r#"f/g equals "1""#),
        (json!({"f.g": {"h.i": 1}}), r#"f/g/h/i equals "1""#),
        (json!({"f": {"g": 1, ">": 2}}), r#"and(f > "2", f/g equals "1")"#),
        (json!({"$and": [{"f": 1}]}), r#"f equals "1""#),
        (
            json!({"$or": [{"f": 1}, {"$and": [{"g": 2}, {"h": 3}]}]}),
            r#"or(f equals "1", and(g equals "2", h equals "3"))"#,
        ),
        (json!({"f": {"$or": [1, 2]}}), r#"or(f equals "1", f equals "2")"#),
        (json!({"$not": {"f": 1}}), r#"not(f equals "1")"#),
        (json!({"f": {"$not": {">": 1}}}), r#"not(f > "1")"#),
        (json!({"f": {"$not": "a"}}), r#"not(f equals "a")"#),
        (
            json!({"id": "a", "type": "b", "$index": "c"}),
            r#"and(<network> equals "c", <id> equals "a", <type> equals "b")"#,
        ),
        (json!({"id": ["a", "b"]}), r#"or(<id> equals "a", <id> equals "b")"#),
        (json!({"f": {"id": "a", "$index": "b"}}), r#"and(f/$index equals "b", f/id equals "a")"#),
        (json!({"f": {"$isAnyOf": ["a", "b"]}}), r#"or(f equals "a", f equals "b")"#),
        (json!({"f": {"$isAnyOf": "a"}}), r#"f equals "a""#),
        (json!({"f": {"$eq": ["a"]}}), "f equals ?"),
        (json!({"f": {"$eq": {}}}), "f equals ?"),
        (json!({"f": {"$isEmpty": true}}), r#"f isEmpty "true""#),
        (json!({"f": {"$isEmpty": false}}), r#"f isNotEmpty "false""#),
        // What is empty matches nothing.
        (json!({}), "or()"),
        (json!({"f": {}}), "or()"),
        (json!({"f": []}), "or()"),
        (json!({"$and": []}), "or()"),
        (json!({"$or": []}), "or()"),
        (json!({"$eq": 1}), "or()"),
        (json!({"$and": [1]}), "or()"),
        (json!({"$and": {}}), "error: $and must be an array"),
        (json!({"f": {"$or": 1}}), "error: $or must be an array"),
    ] {
        assert_eq!(shown(filter.clone()), expected, "{filter}");
    }
}

#[test]
fn every_operator_has_its_name() {
    for (keys, name) in [
        (&["=", "==", "$eq", "$equals", "$is"][..], "equals"),
        (&["!=", "$doesNotEqual"], "doesNotEqual"),
        (&[">"], ">"),
        (&[">="], ">="),
        (&["<"], "<"),
        (&["<="], "<="),
        (&["$after"], "after"),
        (&["$before"], "before"),
        (&["$onOrAfter"], "onOrAfter"),
        (&["$onOrBefore"], "onOrBefore"),
        (&["$contains"], "contains"),
        (&["$doesNotContain"], "doesNotContain"),
        (&["$startsWith"], "startsWith"),
        (&["$endsWith"], "endsWith"),
        (&["$isEmpty"], "isEmpty"),
        (&["$isNotEmpty"], "isNotEmpty"),
    ] {
        for key in keys {
            assert_eq!(shown(json!({"f": {*key: "v"}})), format!("f {name} \"v\""));
        }
    }
}

#[test]
fn values_become_text_as_in_go() {
    for (value, text) in [
        (json!(true), "true"),
        (json!(null), ""),
        (json!("x"), "x"),
        (json!(123456), "123456"),
        (json!(1000000), "1e+06"),
        (json!(1234567), "1.234567e+06"),
        (json!(0.1), "0.1"),
        (json!(-3), "-3"),
    ] {
        assert_eq!(shown(json!({"f": value})), format!("f equals {text:?}"));
    }
    let odd = |number: f64| {
        let fields = [("f".to_owned(), Json { kind: Some(Kind::NumberValue(number)) })].into();
        show(&Filter::parse(&Struct { fields }).unwrap())
    };
    assert_eq!(odd(f64::NAN), r#"f equals "NaN""#);
    assert_eq!(odd(f64::NEG_INFINITY), r#"f equals "-Inf""#);
    let absent = Struct { fields: [("f".to_owned(), Json { kind: None })].into() };
    assert_eq!(show(&Filter::parse(&absent).unwrap()), r#"f equals """#);
}

fn nested(levels: usize, innermost: serde_json::Value, key: &str) -> serde_json::Value {
    (0..levels).fold(innermost, |inner, _| json!({key: inner}))
}

#[test]
fn sibling_paths_are_right_at_every_depth() {
    for depth in 1..DEPTH_MAX - 1 {
        let filter = nested(depth, json!({"x": 1, "y": 2}), "a");
        let prefix = "a/".repeat(depth);
        assert_eq!(shown(filter), format!("and({prefix}x equals \"1\", {prefix}y equals \"2\")"));
    }
}

#[test]
fn depth_and_size_are_bounded_with_a_reason() {
    assert!(parse(&nested(DEPTH_MAX, json!(1), "a")).is_ok());
    assert_eq!(parse(&nested(DEPTH_MAX + 1, json!(1), "a")), Err(Error::TooDeep));
    assert_eq!(parse(&nested(DEPTH_MAX + 1, json!(1), "$not")), Err(Error::TooDeep));
    let lists = (0..200).fold(json!(1), |inner, _| json!([inner]));
    assert_eq!(parse(&json!({"a": lists})), Err(Error::TooDeep));
    assert!(parse(&json!({"a": vec![1; NODES_MAX - 10]})).is_ok());
    assert_eq!(parse(&json!({"a": vec![1; NODES_MAX]})), Err(Error::TooLarge));
    assert_eq!(parse(&json!({"a": vec![json!({}); NODES_MAX]})), Err(Error::TooLarge));
    assert_eq!(parse(&json!({"a".repeat(2000): 1})), Err(Error::PathTooLong));
    assert_eq!(parse(&json!({".".repeat(100): 1})), Err(Error::PathTooLong));
}

fn kept(filter: serde_json::Value, data: &[u8]) -> bool {
    let descriptors = descriptors();
    parse(&filter).unwrap().matches(&Subject::new("the/type", "id-7", data, &descriptors))
}

#[track_caller]
fn assert_kept(data: &[u8], yes: &[serde_json::Value], no: &[serde_json::Value]) {
    for (filters, expected) in [(yes, true), (no, false)] {
        for filter in filters {
            assert_eq!(kept(filter.clone(), data), expected, "{filter}");
            assert_eq!(kept(json!({"$not": filter}), data), !expected, "not {filter}");
        }
    }
}

fn session() -> Vec<u8> {
    any(
        "session.Session",
        json!({"id": "abc", "userId": "10", "issuedAt": "2026-01-02T03:04:05Z", "refreshDisabled": true,
               "audience": ["one", "two"], "idToken": {"subject": "sub"}, "claims": {"email": ["a@x", "b@y"], "n": [7]}}),
    )
}

#[test]
fn texts_are_compared_by_every_operator() {
    assert_kept(
        &session(),
        &[
            json!({"id": "id-7"}),
            json!({"id": {"$startsWith": "id-"}}),
            json!({"type": "the/type"}),
            json!({"type": {"$contains": "/"}}),
            json!({"user_id": 10}),
            json!({"user_id": {"$is": "10"}}),
            json!({"user_id": ["9", "10"]}),
            json!({"user_id": {">": 9}}),
            json!({"user_id": {">=": "10", "<=": "10", "<": 10.5}}),
            json!({"user_id": {"!=": "1"}}),
            json!({"id_token.subject": {"$startsWith": "s", "$endsWith": "b", "$contains": "u"}}),
            json!({"id_token": {"subject": {"$doesNotContain": "x", "$isNotEmpty": true}}}),
            json!({"$or": [{"user_id": "1"}, {"id_token.subject": "sub"}]}),
        ],
        &[
            json!({"id": "abc"}),
            json!({"type": "other"}),
            json!({"user_id": "010"}),
            json!({"user_id": {"<": 9}}),
            json!({"user_id": {"!=": 10}}),
            json!({"user_id": {"$eq": ["10"]}}),
            json!({"user_id": {"!=": ["10"]}}),
            json!({"id_token.subject": {"$isEmpty": true}}),
            json!({"id_token.subject": {"$endsWith": "s"}}),
            json!({"$and": [{"user_id": "1"}, {"id_token.subject": "sub"}]}),
            json!({"$index": "10.0.0.1"}),
            json!({"$index": {"!=": "10.0.0.1"}}),
            json!({}),
        ],
    );
}

#[test]
fn an_absent_field_equals_nothing_and_is_empty() {
    for field in ["idp_id", "oauth_token.access_token", "no.such", "claims.none", "impersonate_session_id"] {
        assert_kept(
            &session(),
            &[json!({field: {"$isEmpty": true}}), json!({field: {"!=": ""}}), json!({field: {"$doesNotContain": ""}})],
            &[
                json!({field: ""}),
                json!({field: null}),
                json!({field: {">=": ""}}),
                json!({field: {"<": "z"}}),
                json!({field: {"$contains": ""}}),
                json!({field: {"$isNotEmpty": true}}),
            ],
        );
    }
    let explicit = any("session.Session", json!({"impersonateSessionId": ""}));
    assert_kept(
        &explicit,
        &[json!({"impersonate_session_id": ""}), json!({"impersonate_session_id": {"$isEmpty": 1}})],
        &[json!({"impersonate_session_id": {"!=": ""}})],
    );
}

#[test]
fn numbers_booleans_enums_and_times_have_a_text_form() {
    assert_kept(
        &session(),
        &[
            json!({"refresh_disabled": true}),
            json!({"issued_at": "2026-01-02T03:04:05Z"}),
            json!({"issued_at": "2026-01-02T04:04:05+01:00"}),
            json!({"issued_at": {"$after": "2026-01-01T00:00:00Z", "$before": "2026-01-02T03:04:05.1Z"}}),
            json!({"issued_at": {"$onOrAfter": "2026-01-02T03:04:05Z", "$onOrBefore": "2026-01-02T03:04:05Z"}}),
            json!({"issued_at": {"$startsWith": "2026-01-02"}}),
            json!({"issued_at.seconds": {">": 1_700_000_000}}),
        ],
        &[json!({"refresh_disabled": false}), json!({"issued_at": {"$after": "2026-01-02T03:04:05Z"}})],
    );
    let request = any("session.SessionBindingRequest", json!({"state": "Accepted", "details": {"k": "v", "e": ""}}));
    assert_kept(
        &request,
        &[
            json!({"state": "Accepted"}),
            json!({"state": 1}),
            json!({"details.k": "v"}),
            json!({"details.e": ""}),
            json!({"details": {"$isNotEmpty": 1}}),
        ],
        &[json!({"state": "Revoked"}), json!({"details.k": "w"}), json!({"details": "v"})],
    );
}

#[test]
fn one_fitting_element_of_a_list_is_enough() {
    assert_kept(
        &session(),
        &[
            json!({"audience": "two"}),
            json!({"audience": {"$isAnyOf": ["three", "two"]}}),
            json!({"audience": {"$contains": "tw"}}),
            json!({"claims.email": "b@y"}),
            json!({"claims.n": {">=": 7}}),
        ],
        &[
            json!({"audience": "three"}),
            json!({"audience": {"!=": "two"}}),
            json!({"audience": {"$doesNotContain": "w"}}),
            json!({"claims.email": {"$isEmpty": true}}),
            json!({"claims": "b@y"}),
        ],
    );
}

#[test]
fn a_struct_is_walked_as_json_and_as_the_message_it_is() {
    let data = any(
        "google.protobuf.Struct",
        json!({"name": "n", "big": 1_000_000, "yes": true, "none": null, "list": ["a", 2, [3]], "in": {"ner": "x"}, "empty": []}),
    );
    assert_kept(
        &data,
        &[
            json!({"name": "n"}),
            json!({"fields.name.string_value": "n"}),
            json!({"big": 1_000_000}),
            json!({"big": "1000000"}),
            json!({"fields.big.number_value": {">": 999_999}}),
            json!({"yes": true}),
            json!({"none": {"$isEmpty": true}}),
            json!({"empty": {"$isEmpty": true}}),
            json!({"list": "a"}),
            json!({"list": 2}),
            json!({"in.ner": "x"}),
            json!({"in": {"$isNotEmpty": true}}),
            json!({"fields.in.struct_value.fields.ner.string_value": "x"}),
        ],
        &[json!({"none": ""}), json!({"list": 3}), json!({"in": "x"}), json!({"name.x": "n"}), json!({"list.a": "a"})],
    );
    let value = any("google.protobuf.Value", json!({"a": {"b": "c"}}));
    assert_kept(&value, &[json!({"a.b": "c"})], &[json!({"a.b": "d"})]);
}

#[test]
fn data_that_cannot_be_opened_has_no_fields() {
    for data in [pack("some.Other", b"\x0a\x01a"), pack("test.Test", b"\x0a"), vec![]] {
        assert_kept(
            &data,
            &[json!({"id": "id-7"}), json!({"f": {"$isEmpty": true}}), json!({"f": {"!=": "a"}})],
            &[json!({"string_field": "a"}), json!({"f": ""})],
        );
    }
}

#[test]
fn hostile_data_is_survived() {
    let paths = ["fields.a.list_value", "list_value.values", "struct_value.fields", "a.b.c", "issued_at", "claims.a"];
    for data in samples::hostile() {
        for path in paths {
            kept(json!({path: {"$contains": "a"}}), &data);
        }
    }
}

#[test]
fn long_paths_through_nested_structs_stay_cheap() {
    let deep = (0..25).fold(json!("x"), |inner, _| json!({"fields": inner}));
    let data = any("google.protobuf.Struct", json!({"fields": deep}));
    let path = vec!["fields"; 64].join(".");
    let start = std::time::Instant::now();
    kept(json!({path: "x"}), &data);
    assert!(start.elapsed().as_secs() < 5);
}
