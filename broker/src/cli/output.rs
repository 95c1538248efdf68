//! What the tools print: tables for people, JSON and YAML for programs.
//!
//! Results go to standard output; notices, progress and errors to standard error.

use std::{
    io::{self, IsTerminal as _, Write},
    time::{Duration, SystemTime},
};

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use owo_colors::{AnsiColors, OwoColorize as _};
use prost_types::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{duration, failure::Failure};

/// Longer ids are cut in tables, to this many characters.
const SHORT_ID_CHARS: usize = 20;

/// A summary of a record's data is cut to this many characters.
const SUMMARY_CHARS: usize = 60;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people: short ids, relative times.
    #[default]
    Table,
    /// For people with wide windows: whole ids, exact times, all data.
    Wide,
    /// For programs. Streams print one object a line.
    Json,
    /// For programs, and for people who want to see everything.
    Yaml,
}

/// The option that chooses the format.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct OutputArgs {
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Where results go, and in which form.
pub struct Output {
    format: Format,
    colour: bool,
    now: SystemTime,
    to: Box<dyn Write + Send>,
}

impl Output {
    /// Prints to standard output, in colour if that is a terminal whose owner does not mind.
    pub fn stdout(args: OutputArgs) -> Self {
        let colour = io::stdout().is_terminal() && wants_colour(|name| std::env::var(name).ok());
        Self { format: args.output, colour, now: SystemTime::now(), to: Box::new(io::stdout()) }
    }

    /// Prints somewhere else, without colours.
    pub fn new(format: Format, to: impl Write + Send + 'static) -> Self {
        Self { format, colour: false, now: SystemTime::now(), to: Box::new(to) }
    }

    /// The chosen format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether people read it.
    pub fn for_people(&self) -> bool {
        matches!(self.format, Format::Table | Format::Wide)
    }

    /// Whether it is a terminal that knows more than text.
    pub fn on_terminal(&self) -> bool {
        self.colour
    }

    /// Prints bytes as they are.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.to.write_all(bytes).and_then(|()| self.to.flush()).map_err(Failure::output)
    }

    /// Prints one line.
    ///
    /// # Errors
    /// When nobody reads any more, or the disk is full.
    pub fn line(&mut self, text: &str) -> Result<(), Failure> {
        writeln!(self.to, "{text}").and_then(|()| self.to.flush()).map_err(Failure::output)
    }

    /// Prints a value for programs: JSON on several lines, or YAML.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn value(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = match self.format {
            Format::Json => serde_json::to_string_pretty(value).map_err(unprintable)?,
            _ => yaml(value)?,
        };
        self.line(text.trim_end())
    }

    /// Prints a value of a stream: one line of JSON, or a YAML document.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn stream_value(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.line(&serde_json::to_string(value).map_err(unprintable)?),
            _ => self.line(&format!("---\n{}", yaml(value)?.trim_end())),
        }
    }

    /// Prints a table; an empty one as a sentence.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn table(&mut self, header: &[&str], rows: Vec<Vec<Styled>>, empty: &str) -> Result<(), Failure> {
        if rows.is_empty() {
            return self.line(empty);
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header.to_vec());
        table.set_content_arrangement(match (self.format, self.colour) {
            (Format::Table, true) => ContentArrangement::Dynamic,
            _ => ContentArrangement::Disabled,
        });
        for row in rows {
            table.add_row(row.into_iter().map(|cell| cell.cell(self.colour)).collect::<Vec<_>>());
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let text: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        self.line(&text.join("\n"))
    }

    /// The text in a colour, if colours are wanted.
    pub fn paint(&self, text: &str, colour: AnsiColors) -> String {
        if self.colour { text.color(colour).to_string() } else { text.to_owned() }
    }

    /// An id for a column: cut in tables, whole when wide.
    pub fn id(&self, id: &str) -> String {
        match self.format {
            Format::Table => cut(&printable(id), SHORT_ID_CHARS),
            _ => printable(id),
        }
    }

    /// A time for a column: relative in tables, exact when wide, `-` if absent.
    pub fn time(&self, time: Option<&Timestamp>) -> String {
        match (time, self.format) {
            (None, _) => "-".to_owned(),
            (Some(time), Format::Table) => relative(*time, self.now),
            (Some(time), _) => time.to_string(),
        }
    }

    /// A few words on a record's data for a column; all of it when wide.
    pub fn summary(&self, data: Option<&Value>) -> String {
        match (data, self.format) {
            (None, _) => "-".to_owned(),
            (Some(data), Format::Wide) => printable(&data.to_string()),
            (Some(data), _) => cut(&printable(&summary(data)), SUMMARY_CHARS),
        }
    }

    /// The time at which this output began: all relative times count from it.
    pub fn now(&self) -> SystemTime {
        self.now
    }
}

/// A table's cell and its colour.
pub struct Styled(String, Option<Color>);

impl Styled {
    /// A cell in a colour.
    pub fn new(text: impl Into<String>, colour: Color) -> Self {
        Self(text.into(), Some(colour))
    }

    fn cell(self, colour: bool) -> Cell {
        let cell = Cell::new_owned(self.0);
        match self.1 {
            Some(wanted) if colour => cell.fg(wanted),
            _ => cell,
        }
    }
}

impl<T: Into<String>> From<T> for Styled {
    fn from(text: T) -> Self {
        Self(text.into(), None)
    }
}

/// Tells a person something that is not a result. If nobody reads it, that is no reason to stop.
pub fn notice(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A type as people write it: without the customary prefix.
pub fn short_type(r#type: &str) -> String {
    printable(r#type.strip_prefix(databroker_proto::TYPE_URL_PREFIX).unwrap_or(r#type))
}

/// Text with control characters escaped: ids and data come from others and must not steer a terminal.
pub fn printable(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// `3m5s ago`, `in 13h`; exact if it cannot be reckoned.
pub fn relative(time: Timestamp, now: SystemTime) -> String {
    let Ok(then) = SystemTime::try_from(time) else { return time.to_string() };
    match (now.duration_since(then), then.duration_since(now)) {
        (Ok(past), _) if past < Duration::from_secs(1) => "now".to_owned(),
        (Ok(past), _) => format!("{} ago", duration::short(past)),
        // The clocks of two machines are never quite the same.
        (Err(_), Ok(future)) if future < Duration::from_secs(1) => "now".to_owned(),
        (Err(_), Ok(future)) => format!("in {}", duration::short(future)),
        (Err(_), Err(_)) => time.to_string(),
    }
}

/// `key=value` for the plain members of a record's data, without those that look like secrets.
fn summary(data: &Value) -> String {
    let Value::Object(object) = data else { return data.to_string() };
    let object = match object.get("value") {
        Some(Value::Object(inner)) => inner,
        _ => object,
    };
    let words =
        object.iter().filter(|(name, _)| !name.starts_with('@') && !is_secret(name)).filter_map(|(name, value)| {
            match value {
                Value::String(text) => Some(format!("{name}={text}")),
                Value::Number(_) | Value::Bool(_) => Some(format!("{name}={value}")),
                _ => None,
            }
        });
    words.collect::<Vec<_>>().join(" ")
}

fn is_secret(name: &str) -> bool {
    ["secret", "token", "verifier", "password", "private", "raw"].iter().any(|word| name.contains(word))
}

fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some(_) => text.chars().take(chars_max - 1).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

/// See <https://no-color.org>: any value but the empty one means no.
fn wants_colour(variable: impl Fn(&str) -> Option<String>) -> bool {
    variable("NO_COLOR").is_none_or(|value| value.is_empty()) && variable("TERM").is_none_or(|term| term != "dumb")
}

fn yaml(value: &impl Serialize) -> Result<String, Failure> {
    serde_yaml::to_string(value).map_err(unprintable)
}

fn unprintable(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(format!("cannot print the result: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_relative_to_now() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100_000);
        let shown = |seconds| relative(Timestamp { seconds, nanos: 0 }, now);
        assert_eq!(shown(100_000), "now");
        assert_eq!(relative(Timestamp { seconds: 100_000, nanos: 3_000_000 }, now), "now");
        assert_eq!(shown(99_815), "3m5s ago");
        assert_eq!(shown(103_600), "in 1h");
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(printable("a\x1b[31m\0\u{9b}b"), "a\\u{1b}[31m\\u{0}\\u{9b}b");
        assert_eq!(printable("é&="), "é&=");
    }

    #[test]
    fn a_summary_shows_plain_members_and_no_secrets() {
        let data =
            json!({"@type": "x", "id": "1", "on": true, "access_token": "no", "client_secret": "no", "sub": {"a": 1}});
        assert_eq!(summary(&data), "id=1 on=true");
        assert_eq!(summary(&json!({"@type": "Struct", "value": {"name": "n"}})), "name=n");
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        assert_eq!(cut("ééééé", 5), "ééééé");
        assert_eq!(cut("éééééé", 5), "éééé…");
    }

    #[test]
    fn colours_are_off_when_no_color_is_set() {
        assert!(wants_colour(|_| None));
        assert!(wants_colour(|name| (name == "NO_COLOR").then(String::new)));
        assert!(!wants_colour(|name| (name == "NO_COLOR").then(|| "1".into())));
        assert!(!wants_colour(|name| (name == "TERM").then(|| "dumb".into())));
    }
}
