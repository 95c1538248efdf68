//! Keys as bytes whose order is the order of what they say. Which key belongs where is not said here: see `keyspace`.
//!
//! A key is a row of fields. Each encoding keeps the order of its values, and all but the tail end themselves, so that
//! byte order of keys is order by the first field, then by the second, and so on.
//!
//! | field     | encoding                                         | example                                |
//! |-----------|--------------------------------------------------|----------------------------------------|
//! | `seg(x)`  | `x` with each `00` as `00 ff`, ended by `00 00`  | `seg("a\0b")` = `61 00 ff 62 00 00`    |
//! | `u64`     | 8 bytes, big-endian                              | `258` = `00 00 00 00 00 00 01 02`      |
//! | `u32`     | 4 bytes, big-endian                              | `258` = `00 00 01 02`                  |
//! | tail      | the bytes as they are; only as the last field    | `"id"` = `69 64`                       |
//!
//! Why segments sort: where one raw segment ends and the other goes on, `00 00` meets either a byte above `00` or the
//! `00 ff` of an escaped NUL. Why they are prefix-free: `00 00` occurs nowhere but at the end. So the prefix
//! `seg("user")` finds the keys of `user` and none of `user2`, and any byte, NUL included, may occur in a type, an id,
//! a field's path or its value.

use std::borrow::Cow;
use std::ops::Bound;

use bytes::Bytes;

use super::engine::KeyBounds;

const NUL: u8 = 0x00;
const ESCAPED: u8 = 0xff;
const END: u8 = 0x00;

/// Why bytes are not the key they were taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The key ends within a field.
    #[error("the key ends within a {field} at byte {at}")]
    Short {
        /// Which kind of field.
        field: &'static str,
        /// Where the field begins.
        at: usize,
    },
    /// A NUL in a segment is followed by neither mark.
    #[error("the segment at byte {at} has the unknown escape {escape:#04x}")]
    Escape {
        /// Where the segment begins.
        at: usize,
        /// What followed the NUL.
        escape: u8,
    },
    /// A field that must be text is not UTF-8.
    #[error("the text at byte {at} is not UTF-8")]
    Text {
        /// Where the field begins.
        at: usize,
    },
    /// The key goes on after its last field.
    #[error("the key has {count} bytes too many")]
    Long {
        /// How many.
        count: usize,
    },
}

/// Writes a key, field by field: `KeyWriter::new().seg(b"user").u64(7).finish()`.
#[derive(Clone, Debug, Default)]
pub struct KeyWriter {
    bytes: Vec<u8>,
}

impl KeyWriter {
    /// An empty key.
    pub fn new() -> Self {
        // Most keys are a type and an id: room for them without growing.
        Self { bytes: Vec::with_capacity(64) }
    }

    /// Appends a segment.
    #[must_use]
    pub fn seg(mut self, raw: impl AsRef<[u8]>) -> Self {
        for (index, part) in raw.as_ref().split(|byte| *byte == NUL).enumerate() {
            if index > 0 {
                self.bytes.extend([NUL, ESCAPED]);
            }
            self.bytes.extend_from_slice(part);
        }
        self.bytes.extend([NUL, END]);
        self
    }

    /// Appends a number of 8 bytes.
    #[must_use]
    pub fn u64(mut self, value: u64) -> Self {
        self.bytes.extend(value.to_be_bytes());
        self
    }

    /// Appends a number of 4 bytes.
    #[must_use]
    pub fn u32(mut self, value: u32) -> Self {
        self.bytes.extend(value.to_be_bytes());
        self
    }

    /// Appends raw bytes, after which nothing may come, and returns the key.
    pub fn tail(mut self, raw: impl AsRef<[u8]>) -> Bytes {
        self.bytes.extend_from_slice(raw.as_ref());
        self.finish()
    }

    /// The key. Without a tail it is also the prefix of all keys that begin with these fields.
    pub fn finish(self) -> Bytes {
        self.bytes.into()
    }
}

/// Reads a key, field by field, in the order they were written.
#[derive(Clone, Debug)]
pub struct KeyReader<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> KeyReader<'a> {
    /// Begins at the first field.
    pub fn new(key: &'a [u8]) -> Self {
        Self { rest: key, at: 0 }
    }

    /// The next field, a segment. Borrowed unless it holds a NUL.
    ///
    /// # Errors
    /// [`Error::Short`] without an end, [`Error::Escape`] for a NUL that was not written by [`KeyWriter::seg`].
    pub fn seg(&mut self) -> Result<Cow<'a, [u8]>, Error> {
        let mut raw = Cow::Borrowed(&[][..]);
        let mut rest = self.rest;
        loop {
            let nul = rest.iter().position(|byte| *byte == NUL);
            let (part, mark) =
                nul.and_then(|nul| Some((&rest[..nul], *rest.get(nul + 1)?))).ok_or(self.short("segment"))?;
            rest = &rest[part.len() + 2..];
            if raw.is_empty() {
                raw = Cow::Borrowed(part);
            } else {
                raw.to_mut().extend_from_slice(part);
            }
            match mark {
                END => break,
                ESCAPED => raw.to_mut().push(NUL),
                escape => return Err(Error::Escape { at: self.at, escape }),
            }
        }
        self.advance(self.rest.len() - rest.len());
        Ok(raw)
    }

    /// The next field, a segment of text.
    ///
    /// # Errors
    /// Those of [`KeyReader::seg`], and [`Error::Text`].
    pub fn seg_text(&mut self) -> Result<Cow<'a, str>, Error> {
        let at = self.at;
        match self.seg()? {
            Cow::Borrowed(raw) => text(raw, at).map(Cow::Borrowed),
            Cow::Owned(raw) => String::from_utf8(raw).map(Cow::Owned).map_err(|_| Error::Text { at }),
        }
    }

    /// The next field, a number of 8 bytes.
    ///
    /// # Errors
    /// [`Error::Short`].
    pub fn u64(&mut self) -> Result<u64, Error> {
        self.array("u64").map(u64::from_be_bytes)
    }

    /// The next field, a number of 4 bytes.
    ///
    /// # Errors
    /// [`Error::Short`].
    pub fn u32(&mut self) -> Result<u32, Error> {
        self.array("u32").map(u32::from_be_bytes)
    }

    /// All that is left.
    pub fn tail(self) -> &'a [u8] {
        self.rest
    }

    /// All that is left, as text.
    ///
    /// # Errors
    /// [`Error::Text`].
    pub fn tail_text(self) -> Result<&'a str, Error> {
        text(self.rest, self.at)
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// [`Error::Long`].
    pub fn end(self) -> Result<(), Error> {
        if self.rest.is_empty() { Ok(()) } else { Err(Error::Long { count: self.rest.len() }) }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Error> {
        let array = *self.rest.first_chunk().ok_or(self.short(field))?;
        self.advance(N);
        Ok(array)
    }

    fn advance(&mut self, count: usize) {
        self.rest = &self.rest[count..];
        self.at += count;
    }

    fn short(&self, field: &'static str) -> Error {
        Error::Short { field, at: self.at }
    }
}

fn text(raw: &[u8], at: usize) -> Result<&str, Error> {
    std::str::from_utf8(raw).map_err(|_| Error::Text { at })
}

/// The bounds of all keys that begin with `prefix`, the prefix itself included.
pub fn prefix_bounds(prefix: &[u8]) -> KeyBounds {
    (Bound::Included(Bytes::copy_from_slice(prefix)), prefix_end(prefix))
}

/// The smallest key above all that begin with `prefix`: the prefix without its trailing `ff`s, the last byte one up.
fn prefix_end(prefix: &[u8]) -> Bound<Bytes> {
    let Some(last) = prefix.iter().rposition(|byte| *byte != 0xff) else { return Bound::Unbounded };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Bound::Excluded(end.into())
}

#[cfg(test)]
mod tests {
    use std::ops::RangeBounds;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Bytes in which the marks are as frequent as all else.
    fn raw() -> impl Strategy<Value = Vec<u8>> {
        vec(prop_oneof![Just(0x00), Just(0x01), Just(0xfe), Just(0xff), any::<u8>()], 0..12)
    }

    type Fields = (Vec<u8>, u64, Vec<u8>, u32, Vec<u8>);

    fn fields() -> impl Strategy<Value = Fields> {
        (raw(), any::<u64>(), raw(), any::<u32>(), raw())
    }

    fn key((a, n, b, m, tail): &Fields) -> Bytes {
        KeyWriter::new().seg(a).u64(*n).seg(b).u32(*m).tail(tail)
    }

    fn seg(raw: &[u8]) -> Bytes {
        KeyWriter::new().seg(raw).finish()
    }

    #[test]
    fn encodings_are_these_bytes() {
        assert_eq!(&seg(b"a\0b")[..], [0x61, 0x00, 0xff, 0x62, 0x00, 0x00]);
        assert_eq!(&seg(b"")[..], [0x00, 0x00]);
        assert_eq!(&KeyWriter::new().u64(258).finish()[..], [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(&KeyWriter::new().u32(258).tail("id")[..], [0, 0, 1, 2, 0x69, 0x64]);
    }

    #[test]
    fn a_segment_without_nul_is_not_copied() {
        let key = seg(b"user");
        assert!(matches!(KeyReader::new(&key).seg(), Ok(Cow::Borrowed(b"user"))));
    }

    #[test]
    fn bytes_that_are_no_key_are_refused() {
        assert_eq!(KeyReader::new(b"ab").seg(), Err(Error::Short { field: "segment", at: 0 }));
        assert_eq!(KeyReader::new(b"ab\0").seg(), Err(Error::Short { field: "segment", at: 0 }));
        assert_eq!(KeyReader::new(b"ab\0\x01").seg(), Err(Error::Escape { at: 0, escape: 1 }));
        assert_eq!(KeyReader::new(&[0; 7]).u64(), Err(Error::Short { field: "u64", at: 0 }));
        assert_eq!(KeyReader::new(&[0; 3]).u32(), Err(Error::Short { field: "u32", at: 0 }));
        assert_eq!(KeyReader::new(b"x").end(), Err(Error::Long { count: 1 }));
        assert_eq!(KeyReader::new(b"\xc3\x28").tail_text(), Err(Error::Text { at: 0 }));
        let key = KeyWriter::new().u32(1).seg(b"\xc3\0\x28").finish();
        let mut reader = KeyReader::new(&key);
        assert_eq!(reader.u32(), Ok(1));
        assert_eq!(reader.seg_text(), Err(Error::Text { at: 4 }));
    }

    #[test]
    fn the_prefix_of_only_ff_has_no_end() {
        assert_eq!(prefix_bounds(b"\xff\xff").1, Bound::Unbounded);
        assert_eq!(prefix_bounds(b"").1, Bound::Unbounded);
        assert_eq!(prefix_bounds(b"a\xff").1, Bound::Excluded(Bytes::from_static(b"b")));
    }

    proptest! {
        #[test]
        fn keys_round_trip(fields in fields()) {
            let key = key(&fields);
            let mut reader = KeyReader::new(&key);
            let head = (reader.seg()?.into_owned(), reader.u64()?, reader.seg()?.into_owned(), reader.u32()?);
            prop_assert_eq!((head.0, head.1, head.2, head.3, reader.tail().to_vec()), fields);
        }

        #[test]
        fn text_round_trips(a: String, tail: String) {
            let key = KeyWriter::new().seg(&a).tail(&tail);
            let mut reader = KeyReader::new(&key);
            prop_assert_eq!(&*reader.seg_text()?, &a[..]);
            prop_assert_eq!(reader.tail_text()?, &tail[..]);
        }

        #[test]
        fn byte_order_is_field_order(a in fields(), mut b in fields(), same in 0..5_usize) {
            // Equal leading fields, else only the first one would ever decide.
            if same > 0 { b.0.clone_from(&a.0); }
            if same > 1 { b.1 = a.1; }
            if same > 2 { b.2.clone_from(&a.2); }
            if same > 3 { b.3 = a.3; }
            prop_assert_eq!(key(&a).cmp(&key(&b)), a.cmp(&b));
        }

        #[test]
        fn no_segment_is_a_prefix_of_another(a in raw(), b in raw()) {
            prop_assert!(a == b || !seg(&b).starts_with(&seg(&a)));
        }

        #[test]
        fn prefix_bounds_hold_what_begins_with_the_prefix(prefix in raw(), key in raw(), extend: bool) {
            let key = if extend { [&prefix[..], &key[..]].concat() } else { key };
            prop_assert_eq!(prefix_bounds(&prefix).contains(&Bytes::from(key.clone())), key.starts_with(&prefix));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in vec(any::<u8>(), 0..24)) {
            let mut reader = KeyReader::new(&bytes);
            let _ = (reader.seg(), reader.u32(), reader.seg_text(), reader.u64());
            let _ = (reader.clone().tail_text(), reader.end());
        }
    }
}
