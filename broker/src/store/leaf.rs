//! The values at the ends of paths, and how they compare with the text a filter gives.
//!
//! Only reads use this: nothing here may influence what is stored.

use std::{borrow::Cow, cmp::Ordering};

use prost_reflect::{EnumDescriptor, Kind};

use super::fields::{self, Malformed, Payload};

/// One populated value.
#[derive(Clone, Debug)]
pub(crate) enum Leaf<'a> {
    Text(&'a str),
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Enum(EnumDescriptor, i32),
    Time(prost_types::Timestamp),
    Span(prost_types::Duration),
    /// JSON's null.
    Null,
    /// Something without a text form: bytes, a message, a map.
    Opaque,
}

impl<'a> Leaf<'a> {
    /// What a field of this kind holds; the payload fits the kind.
    pub(crate) fn scalar(kind: &Kind, payload: Payload<'a>) -> Result<Self, Malformed> {
        Ok(match (kind, payload) {
            (Kind::String, Payload::Bytes(bytes)) => Self::Text(fields::text(bytes)?),
            (Kind::Bool, Payload::Varint(value)) => Self::Bool(value != 0),
            (Kind::Int32, Payload::Varint(value)) => Self::Int(i64::from(value as i32)),
            (Kind::Int64, Payload::Varint(value)) => Self::Int(value as i64),
            (Kind::Sint32 | Kind::Sint64, Payload::Varint(value)) => {
                Self::Int((value >> 1) as i64 ^ -((value & 1) as i64))
            }
            (Kind::Uint32, Payload::Varint(value)) => Self::Uint(u64::from(value as u32)),
            (Kind::Uint64, Payload::Varint(value)) => Self::Uint(value),
            (Kind::Enum(descriptor), Payload::Varint(value)) => Self::Enum(descriptor.clone(), value as i32),
            (Kind::Double, Payload::Fixed64(bits)) => Self::Float(f64::from_bits(bits)),
            (Kind::Fixed64, Payload::Fixed64(bits)) => Self::Uint(bits),
            (Kind::Sfixed64, Payload::Fixed64(bits)) => Self::Int(bits as i64),
            (Kind::Float, Payload::Fixed32(bits)) => Self::Float(f64::from(f32::from_bits(bits))),
            (Kind::Fixed32, Payload::Fixed32(bits)) => Self::Uint(u64::from(bits)),
            (Kind::Sfixed32, Payload::Fixed32(bits)) => Self::Int(i64::from(bits as i32)),
            _ => Self::Opaque,
        })
    }

    /// A point in time; one outside the years 1 to 9999 has no text form.
    pub(crate) fn time(seconds: i64, nanos: i32) -> Self {
        let valid = (-62_135_596_800..=253_402_300_799).contains(&seconds) && (0..=999_999_999).contains(&nanos);
        if valid { Self::Time(prost_types::Timestamp { seconds, nanos }) } else { Self::Opaque }
    }

    /// A span of time; one of more than 10,000 years, or whose parts differ in sign, has no text form.
    pub(crate) fn span(seconds: i64, nanos: i32) -> Self {
        let valid = seconds.unsigned_abs() <= 315_576_000_000
            && nanos.unsigned_abs() <= 999_999_999
            && (seconds == 0 || nanos == 0 || (seconds < 0) == (nanos < 0));
        if valid { Self::Span(prost_types::Duration { seconds, nanos }) } else { Self::Opaque }
    }

    /// What a field of this kind holds when it is not on the wire.
    pub(crate) fn default_of(kind: &Kind) -> Self {
        match kind {
            Kind::String => Self::Text(""),
            Kind::Bool => Self::Bool(false),
            Kind::Double | Kind::Float => Self::Float(0.0),
            Kind::Enum(descriptor) => Self::Enum(descriptor.clone(), 0),
            Kind::Bytes | Kind::Message(_) => Self::Opaque,
            _ => Self::Int(0),
        }
    }

    /// The text form: as in JSON, but numbers as Go prints them, which is how filters spell them.
    pub(crate) fn text(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Text(text) => Cow::Borrowed(*text),
            Self::Bool(value) => Cow::Borrowed(if *value { "true" } else { "false" }),
            Self::Int(value) => Cow::Owned(value.to_string()),
            Self::Uint(value) => Cow::Owned(value.to_string()),
            Self::Float(value) => Cow::Owned(go_float(*value)),
            Self::Enum(descriptor, number) => Cow::Owned(match descriptor.get_value(*number) {
                Some(value) => value.name().to_owned(),
                None => number.to_string(),
            }),
            Self::Time(time) => Cow::Owned(time.to_string()),
            Self::Span(span) => Cow::Owned(span.to_string()),
            Self::Null | Self::Opaque => return None,
        })
    }

    /// Nothing worth the name: `""`, or JSON's null.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Text("") | Self::Null)
    }

    /// Text equals text byte for byte; numbers, enums, times and spans also equal whatever means the same.
    pub(crate) fn equals(&self, value: &str) -> bool {
        match self {
            Self::Text(text) => *text == value,
            Self::Bool(_) | Self::Null | Self::Opaque => self.text().is_some_and(|text| text == value),
            _ => self.text().is_some_and(|text| text == value) || self.compare_typed(value) == Some(Ordering::Equal),
        }
    }

    /// Numbers compare as numbers and times as times, also when both sides only spell them; all else by the bytes of the
    /// text form.
    pub(crate) fn compare(&self, value: &str) -> Option<Ordering> {
        let text = self.text()?;
        self.compare_typed(value)
            .or_else(|| Some(Number::parse(&text)?.compare(Number::parse(value)?)))
            .or_else(|| {
                let (text, value) = (time(&text)?, time(value)?);
                Some((text.seconds, text.nanos).cmp(&(value.seconds, value.nanos)))
            })
            .or_else(|| Some(text.as_bytes().cmp(value.as_bytes())))
    }

    fn compare_typed(&self, value: &str) -> Option<Ordering> {
        let number = |number: Number| Number::parse(value).map(|value| number.compare(value));
        match self {
            Self::Int(left) => number(Number::Whole(i128::from(*left))),
            Self::Uint(left) => number(Number::Whole(i128::from(*left))),
            Self::Enum(_, left) => number(Number::Whole(i128::from(*left))),
            Self::Float(left) => number(Number::Float(*left)),
            Self::Time(left) => time(value).map(|right| (left.seconds, left.nanos).cmp(&(right.seconds, right.nanos))),
            Self::Span(left) => {
                let right: prost_types::Duration = value.parse().ok()?;
                Some((left.seconds, left.nanos).cmp(&(right.seconds, right.nanos)))
            }
            _ => None,
        }
    }
}

fn time(text: &str) -> Option<prost_types::Timestamp> {
    // Shorter than any time of RFC 3339: not worth parsing.
    if text.len() < "2000-01-01T00:00:00Z".len() { None } else { text.parse().ok() }
}

#[derive(Clone, Copy)]
enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    fn parse(text: &str) -> Option<Self> {
        let float = || text.parse().ok().filter(|float: &f64| float.is_finite()).map(Self::Float);
        text.parse().map(Self::Whole).ok().or_else(float)
    }

    fn compare(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Whole(left), Self::Whole(right)) => left.cmp(&right),
            _ => self.float().total_cmp(&other.float()),
        }
    }

    // Adding zero makes -0 zero, so that the two are equal.
    fn float(self) -> f64 {
        match self {
            Self::Whole(whole) => whole as f64,
            Self::Float(float) => float + 0.0,
        }
    }
}

/// A number as Go's `fmt` prints a float64 by default: the shortest digits that read back the same, plain unless the
/// decimal exponent is below -4 or above 5.
pub(crate) fn go_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..6).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_read_as_go_prints_them() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (3.0, "3"),
            (-2.5, "-2.5"),
            (0.1, "0.1"),
            (123_456.0, "123456"),
            (999_999.5, "999999.5"),
            (1_000_000.0, "1e+06"),
            (1_234_567.0, "1.234567e+06"),
            (-1_234_567.5, "-1.2345675e+06"),
            (1e21, "1e+21"),
            (1e100, "1e+100"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
        ] {
            assert_eq!(go_float(value), text);
        }
    }

    #[test]
    fn numbers_compare_as_numbers_and_times_as_times() {
        use Ordering::{Equal, Greater, Less};
        let time = |text: &str| Leaf::Time(text.parse().unwrap());
        for (leaf, value, order) in [
            (Leaf::Int(9), "10", Less),
            (Leaf::Text("9"), "10", Less),
            (Leaf::Text("a9"), "a10", Greater),
            (Leaf::Text("nan"), "inf", Greater),
            (Leaf::Int(i64::MAX), "9223372036854775806", Greater),
            (Leaf::Uint(u64::MAX), "-1", Greater),
            (Leaf::Float(-0.0), "0", Equal),
            (Leaf::Int(1_000_000), "1e+06", Equal),
            (time("2026-01-01T00:00:00Z"), "2026-01-01T01:00:00+01:00", Equal),
            (time("2026-01-01T00:00:00Z"), "2025-12-31T23:59:59.999Z", Greater),
            (Leaf::Text("2026-01-01T00:30:00Z"), "2026-01-01T01:00:00+01:00", Greater),
            (Leaf::Span(prost_types::Duration { seconds: 9, nanos: 0 }), "10.5s", Less),
        ] {
            assert_eq!(leaf.compare(value), Some(order), "{leaf:?} {value}");
        }
        assert_eq!(Leaf::Opaque.compare("1"), None);
    }

    #[test]
    fn text_equals_only_itself_but_numbers_equal_every_spelling() {
        assert!(!Leaf::Text("10").equals("1e+01"));
        assert!(Leaf::Text("").equals(""));
        assert!(Leaf::Int(1_000_000).equals("1e+06"));
        assert!(Leaf::Float(1e6).equals("1000000"));
        assert!(Leaf::Float(f64::NAN).equals("NaN"));
        assert!(!Leaf::Float(f64::NAN).equals("1"));
        assert!(Leaf::Bool(true).equals("true") && !Leaf::Bool(true).equals("1"));
        assert!(!Leaf::Null.equals("") && !Leaf::Opaque.equals(""));
    }

    #[test]
    fn times_outside_the_calendar_have_some_text_and_no_panic() {
        for seconds in [i64::MIN, -1, 0, i64::MAX] {
            for nanos in [i32::MIN, -1, 0, i32::MAX] {
                let leaf = Leaf::time(seconds, nanos);
                let _ = (leaf.text(), leaf.compare("2026-01-01T00:00:00Z"), leaf.equals("x"));
                let leaf = Leaf::span(seconds, nanos);
                let _ = (leaf.text(), leaf.compare("1s"), leaf.compare("99999999999999999999s"));
            }
        }
        for text in [
            "2026-13-01T00:00:00Z",
            "9999999999999999999-01-01T00:00:00Z",
            "2026-01-01T00:00:00+99:99",
            "é026-01-01T00:00:00Z",
        ] {
            let _ = Leaf::Text(text).compare("2026-01-01T00:00:00Z");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_spelling_of_a_time_or_number_is_a_panic(
            text in r"[+-]?[0-9]{0,20}(-[0-9]{0,3}){0,2}([Tt ][0-9:]{0,9})?(\.[0-9]{0,20})?([zZ]|[+-][0-9:]{0,6})?[es]?",
            other in r"[0-9é:TZ+.-]{0,30}",
        ) {
            for (text, value) in [(&text, "2026-01-01T00:00:00Z"), (&text, &other), (&other, &text)] {
                let _ = Leaf::Text(text).compare(value);
                let _ = Leaf::span(1, 1).compare(value);
                let _ = Leaf::time(1, 1).compare(value);
                let _ = Leaf::Int(1).compare(value);
            }
        }
    }
}
