//! Keys of the store: bytes that are no key are refused, and what was written comes back, in the order of its fields.
#![no_main]

use arbitrary::Arbitrary;
use databroker::store::codec::{KeyReader, KeyWriter};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Fields {
    first: Vec<u8>,
    second: Vec<u8>,
    number: u64,
    tail: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
struct Input {
    raw: Vec<u8>,
    one: Fields,
    other: Fields,
}

fn write(fields: &Fields) -> Vec<u8> {
    KeyWriter::new().seg(&fields.first).seg(&fields.second).u64(fields.number).tail(&fields.tail).to_vec()
}

fn read(key: &[u8]) -> Option<Fields> {
    let mut reader = KeyReader::new(key);
    let first = reader.seg().ok()?.into_owned();
    let second = reader.seg().ok()?.into_owned();
    let number = reader.u64().ok()?;
    Some(Fields { first, second, number, tail: reader.tail().to_vec() })
}

fuzz_target!(|input: Input| {
    let (one, other) = (write(&input.one), write(&input.other));
    assert_eq!(read(&one).as_ref(), Some(&input.one));
    assert_eq!(one.cmp(&other), input.one.cmp(&input.other), "byte order is the order of the fields");
    if let Some(fields) = read(&input.raw) {
        assert_eq!(write(&fields), input.raw, "a key has one spelling");
    }
    let _ = KeyReader::new(&input.raw).seg_text();
    let _ = KeyReader::new(&input.raw).tail_text();
});
