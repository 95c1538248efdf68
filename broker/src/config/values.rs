//! From the text of a setting to its typed value. Pure.
//!
//! Reasons are worded to follow "`key` is not valid: ". None of them repeats the text: it may be secret.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde_yaml::Value;

use super::{ClusterNode, Discovery};
use crate::peer::identity::is_name;

/// A value, or what is wrong with the text.
pub(super) type Parsed<T> = Result<T, String>;

/// A scalar as text; lists and maps have none.
pub(super) fn scalar(value: &Value) -> Parsed<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Null => Err("it has no value".into()),
        Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => Err("a single value is wanted here".into()),
    }
}

/// `host:port`, `[v6]:port`, `localhost:port`, or `:port` for all interfaces.
pub(super) fn address(text: &str) -> Parsed<SocketAddr> {
    let full = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None if text.starts_with(':') => format!("[::]{text}"),
        None => text.to_owned(),
    };
    full.parse().map_err(|_| "an address such as 127.0.0.1:5443 or :5443 is wanted".into())
}

/// The name of a node or a cluster.
pub(super) fn name(text: &str) -> Parsed<String> {
    match is_name(text) {
        true => Ok(text.to_owned()),
        false => {
            Err("a name of letters, digits, `-`, `_` and `.` is wanted, at most 253, that begins with a letter or \
                      digit"
                .into())
        }
    }
}

/// `host:port`, for others to connect to.
pub(super) fn host_and_port(text: &str) -> Parsed<String> {
    let (host, port) = text.rsplit_once(':').unwrap_or_default();
    let bracketed = host.starts_with('[') && host.ends_with(']');
    match port.parse::<u16>() {
        Ok(port) if port != 0 && !host.is_empty() && (bracketed || !host.contains([':', '/', ' '])) => {
            Ok(text.to_owned())
        }
        _ => Err("host:port is wanted, such as node-1.example.com:5999".into()),
    }
}

/// `dns://host:port`.
pub(super) fn discovery(text: &str) -> Parsed<Discovery> {
    let wanted = || "dns://host:port is wanted, such as dns://databroker-peers:5999".to_owned();
    let rest = text.strip_prefix("dns://").ok_or_else(wanted)?;
    let (host, port) = host_and_port(rest).ok().as_deref().and_then(split).ok_or_else(wanted)?;
    Ok(Discovery { host, port })
}

fn split(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
}

/// `true` or `false`.
pub(super) fn switch(text: &str) -> Parsed<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("true or false is wanted".into()),
    }
}

/// A path; the empty one names nothing.
pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    if text.is_empty() { Err("a path is wanted".into()) } else { Ok(text.into()) }
}

/// The folder of a storage connection string.
pub(super) fn folder(text: &str) -> Parsed<PathBuf> {
    match text.split_once("://") {
        Some(("file", folder)) => path(folder),
        Some((scheme, _)) => Err(format!("`{scheme}://` names no folder: file:///folder is wanted")),
        None => path(text),
    }
}

/// How many units of a kind one unit word stands for.
type Units = &'static [(&'static str, f64)];

const SECONDS: Units = &[("ms", 0.001), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
const BYTES: Units = &[
    ("KiB", 1024.0),
    ("MiB", 1048576.0),
    ("GiB", 1073741824.0),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("B", 1.0),
    ("", 1.0),
];

/// Ten years: what is longer is a mistake, and no time of day can be added to everything.
const DURATION_MAX: Duration = Duration::from_secs(87_600 * 3600);

/// A duration such as `1h30m`, `15s` or `250ms`, not negative.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let wanted = || "a duration such as 1h30m, 15s or 250ms is wanted, of at most 87600h".to_owned();
    let seconds = sum_of_units(text, SECONDS).ok_or_else(wanted)?;
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| *duration <= DURATION_MAX).ok_or_else(wanted)
}

/// A size such as `64MiB` or `1000000`, at least 1.
pub(super) fn bytes(text: &str) -> Parsed<u64> {
    match sum_of_units(text, BYTES) {
        Some(bytes) if bytes >= 1.0 && bytes <= 2f64.powi(53) => Ok(bytes as u64),
        _ => Err("a size such as 64MiB is wanted".into()),
    }
}

/// A size that may be nothing: `0` switches off what it bounds.
pub(super) fn bytes_or_nothing(text: &str) -> Parsed<u64> {
    if text.trim() == "0" { Ok(0) } else { bytes(text) }
}

/// Adds up `<number><unit>` pairs; `None` if the text is anything else.
fn sum_of_units(text: &str, units: Units) -> Option<f64> {
    let mut rest = text.trim();
    let mut sum = None;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().ok()?;
        let word = &rest[digits..];
        let end = word.find(|c: char| c.is_ascii_digit()).unwrap_or(word.len());
        let (_, factor) = units.iter().find(|(unit, _)| *unit == word[..end].trim())?;
        sum = Some(sum.unwrap_or(0.0) + number * factor);
        rest = &word[end..];
    }
    sum
}

/// A count, at least 1.
pub(super) fn count(text: &str) -> Parsed<u32> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a whole number of at least 1 is wanted".into()),
        Ok(count) => Ok(count),
    }
}

/// One of the given words.
pub(super) fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Parsed<T> {
    let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
    let found = choices.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| *value).ok_or_else(|| format!("one of {} is wanted", words.join(", ")))
}

/// A list of nodes; in a flag or an environment variable it is YAML or JSON in one string.
pub(super) fn cluster_nodes(value: &Value) -> Parsed<Vec<ClusterNode>> {
    let wanted = |error: serde_yaml::Error| format!("a list of {{id, grpc_address, raft_address}} is wanted: {error}");
    match value {
        Value::String(text) => serde_yaml::from_str(text).map_err(wanted),
        list => serde_yaml::from_value(list.clone()).map_err(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_add_up_their_units() {
        assert_eq!(duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(bytes("64MiB").unwrap(), 64 << 20);
        assert_eq!(bytes("1000").unwrap(), 1000);
        for bad in
            ["", "h", "1", "1x", "-1s", "1.2.3s", "1e9s", "87601h", "9999999999999999999s", "99999999999999999999h"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for bad in ["", "0", "-1", "1 TiBs", "99999999999999999999GiB"] {
            assert!(bytes(bad).is_err(), "{bad}");
            assert_eq!(bytes_or_nothing(bad).is_ok(), bad == "0", "{bad}");
        }
    }

    #[test]
    fn an_address_may_leave_out_its_host() {
        assert_eq!(address(":5443").unwrap().to_string(), "[::]:5443");
        assert_eq!(address("localhost:1").unwrap().to_string(), "127.0.0.1:1");
        assert!(address("5443").is_err());
        assert!(address("example.com:1").is_err());
    }

    #[test]
    fn a_connection_string_is_a_file_url_or_a_path() {
        assert_eq!(folder("file:///var/lib/x").unwrap(), PathBuf::from("/var/lib/x"));
        assert_eq!(folder("./here").unwrap(), PathBuf::from("./here"));
        assert!(folder("postgres://u:p@h/d").is_err());
        assert!(!folder("postgres://u:p@h/d").unwrap_err().contains("u:p"));
    }
}
