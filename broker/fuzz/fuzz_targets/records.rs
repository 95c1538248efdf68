//! What looks into the data of records: indexes, text search, masks, addresses, JSON. Any bytes are data.
#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use databroker::{
    cli::decode,
    store::{cidr, inspect::Descriptors, mask, text},
};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use prost_types::Any;

static DESCRIPTORS: LazyLock<Descriptors> = LazyLock::new(|| Descriptors::builtin().expect("built in"));

const TYPES: &[&str] = &[
    "session.Session",
    "session.SessionBindingRequest",
    "user.User",
    "test.Test",
    "google.protobuf.Struct",
    "google.protobuf.Any",
    "no.such.Type",
];

const PATHS: &[&str] =
    &["user_id", "claims", "oauth_token.access_token", "details.x", "string_field", "proto_field.another_string_field"];

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    kind: u8,
    stored: &'a [u8],
    source: &'a [u8],
    known: Vec<u8>,
    other: &'a str,
}

fuzz_target!(|input: Input<'_>| {
    let type_url = format!("type.googleapis.com/{}", TYPES[usize::from(input.kind) % TYPES.len()]);
    let any = |value: &[u8]| Any { type_url: type_url.clone(), value: value.to_vec() }.encode_to_vec();
    let mut paths: Vec<String> =
        input.known.iter().map(|index| PATHS[usize::from(*index) % PATHS.len()].to_owned()).collect();
    paths.push(input.other.to_owned());
    let (stored, source) = (any(input.stored), any(input.source));
    for data in [stored.as_slice(), input.stored] {
        let _ = DESCRIPTORS.index_values(data, &paths);
        let _ = text::matches(&DESCRIPTORS, data, "x");
        let _ = cidr::cidr_of(data);
    }
    let shown = decode::to_json(&Any { type_url, value: input.stored.to_vec() });
    let taken = decode::from_json(shown.clone()).expect("what the tools show they take");
    assert_eq!(decode::to_json(&taken), shown, "and it is the same");
    for paths in [&paths[..], &paths[..paths.len() - 1]] {
        let mut patch = mask::Paths::new(&DESCRIPTORS, paths);
        if let Ok(once) = patch.patch_any(&stored, &source) {
            let twice = patch.patch_any(&once, &source).expect("what was patched can be patched");
            let thrice = patch.patch_any(&twice, &source).expect("what was patched can be patched");
            assert_eq!(twice, thrice, "the same patch again changes nothing");
        }
    }
});
