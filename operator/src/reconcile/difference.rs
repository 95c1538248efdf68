//! What is applied, and whether what is there is as it says. Pure.
//!
//! Not here: applying it (`apply`).

use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::resources::meta;

/// What is applied for an object: what it says, and of which fields.
pub fn body(desired: &impl Serialize) -> Value {
    let mut body = serde_json::to_value(desired).unwrap_or_default();
    let fields = fields(&body);
    body["metadata"]["annotations"][meta::FIELDS_ANNOTATION] = json!(fields);
    body
}

/// Where `observed` first differs from what `desired` says, as a path; `None` where it has all of it. What is not said is
/// others' to decide.
pub fn difference(desired: &Value, observed: &Value) -> Option<String> {
    let within = |key: &str, inner: String| if inner.is_empty() { key.to_owned() } else { format!("{key}.{inner}") };
    match (desired, observed) {
        (Value::Object(desired), Value::Object(observed)) => desired.iter().find_map(|(key, value)| {
            let inner = match observed.get(key) {
                Some(observed) if ["requests", "limits"].contains(&key.as_str()) => {
                    (!are_equal_quantities(value, observed)).then(String::new)
                }
                Some(observed) => difference(value, observed),
                None => (!is_nothing(value)).then(String::new),
            };
            inner.map(|inner| within(key, inner))
        }),
        (Value::Array(desired), Value::Array(observed)) if is_by_key(desired) => desired.iter().find_map(|item| {
            let other = observed.iter().find(|other| key(other) == key(item));
            let inner = other.map_or(Some(String::new()), |other| difference(item, other));
            inner.map(|inner| within(&key(item).unwrap_or_default(), inner))
        }),
        (Value::Array(desired), Value::Array(observed)) if desired.len() == observed.len() => {
            let mut pairs = desired.iter().zip(observed).enumerate();
            pairs.find_map(|(index, (a, b))| difference(a, b).map(|inner| within(&index.to_string(), inner)))
        }
        (desired, observed) => (desired != observed).then(String::new),
    }
}

/// What an entry of a list is merged by, in the lists that are applied here: others may add entries of other keys
/// (<https://kubernetes.io/docs/reference/using-api/server-side-apply/#merge-strategy>).
fn key(item: &Value) -> Option<String> {
    let keys = [&["mountPath"][..], &["uid"], &["topologyKey", "whenUnsatisfiable"], &["name"]];
    let of = |names: &&[&str]| names.iter().map(|name| item[*name].as_str()).collect::<Option<Vec<_>>>();
    keys.iter().find_map(of).map(|values| values.join(","))
}

fn is_by_key(list: &[Value]) -> bool {
    !list.is_empty() && list.iter().all(|item| key(item).is_some())
}

/// What is said at all, without what is said of it: two bodies that say something of the same fields have the same. In an
/// annotation it tells the next visit that a field is no longer said, which does not show in what is there. Of values it
/// tells nothing, for some are secret.
fn fields(body: &Value) -> String {
    fn visit(value: &Value, path: &str, digest: &mut Sha256) {
        match value {
            Value::Object(object) => {
                object.iter().for_each(|(key, value)| visit(value, &format!("{path}/{key}"), digest));
            }
            Value::Array(list) if is_by_key(list) => {
                list.iter().for_each(|item| visit(item, &format!("{path}[{:?}]", key(item)), digest));
            }
            Value::Array(list) => {
                list.iter().enumerate().for_each(|(index, item)| visit(item, &format!("{path}[{index}]"), digest));
            }
            _ => {}
        }
        if !is_nothing(value) {
            digest.update(path.as_bytes());
            digest.update([0]);
        }
    }
    let mut digest = Sha256::new();
    visit(body, "", &mut digest);
    digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Nothing, said in many words.
fn is_nothing(value: &Value) -> bool {
    value.is_null()
        || value.as_object().is_some_and(serde_json::Map::is_empty)
        || value.as_array().is_some_and(Vec::is_empty)
}

/// The API server writes quantities in its own way: 1024Mi comes back as 1Gi.
fn are_equal_quantities(desired: &Value, observed: &Value) -> bool {
    let (Some(desired), Some(observed)) = (desired.as_object(), observed.as_object()) else {
        return desired == observed;
    };
    desired.iter().all(|(key, value)| {
        let observed = observed.get(key);
        let number = |value: &Value| value.as_str().and_then(quantity);
        match (number(value), observed.and_then(number)) {
            (Some(desired), Some(observed)) => desired == observed,
            _ => Some(value) == observed,
        }
    })
}

/// The number of a quantity, in thousandths, as Kubernetes defines them; `None` for what is rarely written.
fn quantity(text: &str) -> Option<i128> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = fraction.get(..fraction.len().min(3))?;
    let thousandths: i128 = format!("{whole}{fraction:0<3}").parse().ok()?;
    let factor: i128 = match suffix {
        "m" => return (thousandths % 1000 == 0).then_some(thousandths / 1000),
        "" => 1,
        "k" => 1000,
        "M" => 1000_i128.pow(2),
        "G" => 1000_i128.pow(3),
        "T" => 1000_i128.pow(4),
        "P" => 1000_i128.pow(5),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        _ => return None,
    };
    thousandths.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_add_is_no_reason_to_apply_and_what_they_change_is() {
        let desired = json!({"a": 1, "list": [{"name": "x"}], "none": null, "empty": {}});
        let differs = |observed| difference(&desired, &observed);
        assert_eq!(differs(json!({"a": 1, "b": 2, "list": [{"name": "x", "default": true}]})), None);
        assert_eq!(differs(json!({"a": 2, "list": [{"name": "x"}]})).as_deref(), Some("a"));
        assert_eq!(differs(json!({"a": 1, "list": [{"name": "y"}]})).as_deref(), Some("list.x"));
        assert_eq!(differs(json!({"a": 1, "list": [{"name": "x"}, {"name": "y"}]})), None);
        assert_eq!(differs(json!({"a": 1})).as_deref(), Some("list"));
    }

    #[test]
    fn entries_of_others_in_a_list_by_name_are_left_and_ours_are_found_wherever_they_are() {
        let desired = json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]});
        let differs = |observed| difference(&desired, &json!({"env": observed}));
        let (a, b, theirs) =
            (json!({"name": "A", "value": "1"}), json!({"name": "B", "value": "2"}), json!({"name": "X"}));
        assert_eq!(differs(json!([theirs, b, a])), None);
        assert_eq!(differs(json!([b, theirs])).as_deref(), Some("env.A"));
        assert_eq!(differs(json!([{"name": "A", "value": "3"}, b])).as_deref(), Some("env.A.value"));
        let mounts = json!([{"name": "data", "mountPath": "/data"}]);
        let more = json!([{"name": "data", "mountPath": "/other"}, {"name": "data", "mountPath": "/data"}]);
        assert!(difference(&mounts, &more).is_none() && difference(&more, &mounts).is_some());
        let zones = json!([{"topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "maxSkew": 1}]);
        let hosts = json!({"topologyKey": "host", "whenUnsatisfiable": "DoNotSchedule", "maxSkew": 1});
        assert!(difference(&zones, &json!([hosts, zones[0]])).is_none());
        // A list without keys is said as a whole.
        assert!(difference(&json!([{"key": "a"}]), &json!([{"key": "a"}, {"key": "b"}])).is_some());
    }

    #[test]
    fn a_field_that_is_no_longer_said_shows_and_a_value_does_not() {
        let body = json!({"metadata": {"name": "x"}, "spec": {"a": {"b": 1}, "list": [{"name": "c"}], "plain": ["d"]}});
        let changed = |pointer: &str, value: Value| {
            let mut other = body.clone();
            *other.pointer_mut(pointer).unwrap() = value;
            fields(&other) != fields(&body)
        };
        for (pointer, value) in [
            ("/spec/a", json!({})),
            ("/spec/a/b", json!(null)),
            ("/spec/list", json!([])),
            ("/spec/list/0/name", json!("other")),
            ("/spec/plain", json!(["d", "e"])),
            ("/metadata", json!({"name": "x", "ownerReferences": [{"uid": "u"}]})),
        ] {
            assert!(changed(pointer, value), "{pointer}");
        }
        assert!(!changed("/spec/a/b", json!(2)));
    }

    #[test]
    fn quantities_are_compared_by_what_they_mean_where_they_are_quantities() {
        let of = |text: &str| json!({"requests": {"memory": text}});
        let equal = |a: &str, b: &str| difference(&of(a), &of(b)).is_none();
        assert!(equal("1024Mi", "1Gi") && equal("0.5", "500m") && equal("much", "much"));
        assert!(!equal("1G", "1Gi") && !equal("much", "1Gi"));
        let annotation = |text: &str| json!({"annotations": {"a": text}});
        assert!(difference(&annotation("1k"), &annotation("1000")).is_some());
    }
}
