//! Lengths of time as people write and read them: `90s`, `1h30m`, "3 minutes ago".

use std::time::Duration;

/// Unit names and their length in nanoseconds, longest first.
const UNITS: &[(&str, u128)] = &[
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Reads `1h30m`, `250ms`, `0`; a bare number means seconds, fractions are allowed.
///
/// # Errors
/// A sentence about what is wrong, for clap to print.
pub fn parse(text: &str) -> Result<Duration, String> {
    let malformed = || format!("{text:?} is not a length of time such as 30s, 5m, 1h30m or 250ms");
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| malformed());
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, tail) = split_where(rest, |c| !c.is_ascii_digit() && c != '.');
        let (unit, tail) = split_where(tail, |c| c.is_ascii_digit() || c == '.');
        let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(malformed)?;
        let seconds = number.parse::<f64>().map_err(|_| malformed())? * (*nanos as f64 / 1e9);
        let part = Duration::try_from_secs_f64(seconds).map_err(|_| malformed())?;
        total = total.checked_add(part).ok_or_else(malformed)?;
        rest = tail;
    }
    if text.is_empty() { Err(malformed()) } else { Ok(total) }
}

fn split_where(text: &str, stop: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(stop).unwrap_or(text.len()))
}

/// The one or two largest units: `3d4h`, `12m5s`, `85ms`.
pub fn short(duration: Duration) -> String {
    let mut rest = duration.as_nanos();
    let mut out = String::new();
    let mut parts = 0;
    for (name, nanos) in UNITS {
        let count = rest / nanos;
        rest %= nanos;
        if count > 0 {
            out += &format!("{count}{name}");
            parts += 1;
        }
        // Below a second, and after two units, the rest is noise.
        if parts == 2 || (parts == 1 && *nanos <= 1_000_000_000) {
            break;
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read() {
        for (text, millis) in [
            ("0", 0),
            ("30", 30_000),
            ("1.5", 1500),
            ("30s", 30_000),
            ("1h30m", 5_400_000),
            ("250ms", 250),
            ("1d", 86_400_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "x", "5 s", "-1s", "1y", "1e300d", "s", "1.2.3s", "NaN", "-1", "inf"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lengths_of_time_are_shown_by_their_largest_units() {
        let shown = |millis| short(Duration::from_millis(millis));
        assert_eq!(shown(0), "0s");
        assert_eq!(shown(85), "85ms");
        assert_eq!(shown(2_900), "2s");
        assert_eq!(shown(725_000), "12m5s");
        assert_eq!(shown(273_600_000), "3d4h");
        assert_eq!(shown(86_400_000), "1d");
    }
}
