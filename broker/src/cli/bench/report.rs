//! What a person or a program reads of a run.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, TableStyle, presets};
use serde::Serialize;

use super::{
    drive::Outcome,
    tally::{Latencies, Summary},
    usage::Usage,
};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Table,
    /// For a README.
    Markdown,
    /// For programs.
    Json,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// What was run.
    pub(super) workload: String,
    /// What is counted: `calls`, `records` or `events`.
    pub(super) unit: &'static str,
    /// How many.
    pub(super) count: u64,
    /// In how long.
    pub(super) seconds: f64,
    /// Count by seconds.
    pub(super) per_second: f64,
    /// Of one call, unless the notes say otherwise.
    pub(super) latency: Option<Summary>,
    /// Attempts that failed and were made again, on another address.
    pub(super) retried: u64,
    /// The longest time in which no call of anybody succeeded.
    pub(super) longest_gap_ms: Option<f64>,
    /// Calls that failed, streams that ended.
    pub(super) errors: u64,
    /// Why the first of them did.
    pub(super) first_error: Option<String>,
    /// Processor time and memory of both sides.
    pub(super) usage: Usage,
    /// The side that used more processor time, where both are known.
    pub(super) busier: Option<&'static str>,
    /// What else there is to say.
    pub(super) notes: Vec<String>,
}

impl Report {
    /// Of callers that made calls.
    pub(super) fn of(workload: impl Into<String>, unit: &'static str, outcome: &Outcome) -> Self {
        Self {
            workload: workload.into(),
            unit,
            count: outcome.tally.units,
            seconds: outcome.elapsed.as_secs_f64(),
            per_second: outcome.per_second(),
            latency: outcome.tally.latencies.summary(),
            retried: outcome.tally.retried,
            longest_gap_ms: outcome.longest_gap.map(|gap| gap.as_secs_f64() * 1000.0),
            errors: outcome.tally.errors,
            first_error: outcome.tally.first_error.clone(),
            usage: outcome.usage,
            busier: outcome.usage.busier(),
            notes: Vec::new(),
        }
    }

    /// The same, with other events counted than the calls.
    pub(super) fn counting(self, unit: &'static str, count: u64, per_second: f64, latencies: &Latencies) -> Self {
        Self { unit, count, per_second, latency: latencies.summary(), ..self }
    }

    /// The same with one more note.
    pub(super) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// The same with these failures of streams added.
    pub(super) fn stream_failures(mut self, (count, first): (u64, Option<String>)) -> Self {
        self.errors += count;
        self.first_error = self.first_error.or(first);
        self
    }
}

/// Reports as text.
pub(super) fn render(reports: &[Report], format: Format) -> String {
    match format {
        Format::Json => serde_json::to_string_pretty(reports).unwrap_or_default(),
        Format::Markdown => table(reports, presets::ASCII_MARKDOWN),
        Format::Table => table(reports, presets::NOTHING) + &remarks(reports),
    }
}

fn table(reports: &[Report], style: TableStyle) -> String {
    let rows = reports.iter().map(|report| {
        let latency = |of: fn(&Summary) -> f64| report.latency.as_ref().map_or("-".to_owned(), |l| millis(of(l)));
        vec![
            report.workload.clone(),
            format!("{} {}/s", grouped(report.per_second), report.unit),
            latency(|l| l.p50_ms),
            latency(|l| l.p99_ms),
            latency(|l| l.max_ms),
            report.longest_gap_ms.map_or("-".to_owned(), millis),
            grouped(report.retried as f64),
            grouped(report.errors as f64),
            seconds(report.usage.client_cpu_seconds),
            seconds(report.usage.server_cpu_seconds),
            report.usage.server_rss_peak_bytes.map_or("-".to_owned(), mebibytes),
        ]
    });
    let header = [
        "workload",
        "throughput",
        "p50",
        "p99",
        "max",
        "longest gap",
        "retried",
        "errors",
        "client CPU",
        "server CPU",
        "server memory",
    ];
    grid(style, &header, rows)
}

/// A table of text, numbers to the right.
pub(super) fn grid(style: TableStyle, header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(style).set_header(header.to_vec()).add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    // Padding for alignment is of no use at the end of a line.
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

fn remarks(reports: &[Report]) -> String {
    let mut text = String::new();
    for report in reports {
        for note in &report.notes {
            let _ = writeln!(text, "{}: {note}", report.workload);
        }
        if let Some(error) = &report.first_error {
            let _ = writeln!(text, "{}: {} errors, the first: {error}", report.workload, report.errors);
        }
        if let Some(side) = report.busier {
            let _ = writeln!(text, "{}: {}", report.workload, busier_words(side));
        }
    }
    text
}

/// Which side used more processor time, as a sentence.
pub(super) fn busier_words(side: &str) -> &'static str {
    match side {
        "client" => {
            "the client used more processor time than the server: with a cheaper client the figure would be higher"
        }
        "server" => "the server used more processor time than the client",
        _ => "client and server used about the same processor time",
    }
}

/// `12,345`, and `1.5` for small numbers that are not whole.
pub(super) fn grouped(number: f64) -> String {
    if number < 10.0 && number.fract() != 0.0 {
        return format!("{number:.2}");
    }
    let digits = format!("{:.0}", number.max(0.0));
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `0.85 ms`, `12.3 ms`, `150 ms`.
pub(super) fn millis(millis: f64) -> String {
    match millis {
        m if m < 10.0 => format!("{m:.2} ms"),
        m if m < 100.0 => format!("{m:.1} ms"),
        m => format!("{m:.0} ms"),
    }
}

fn seconds(seconds: Option<f64>) -> String {
    seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.1} s"))
}

/// Bytes as whole mebibytes.
pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::tally::Tally, *};

    fn report() -> Report {
        let mut tally = Tally::new();
        tally.succeeded(12_345, Duration::from_micros(850));
        tally.retried = 2;
        let longest_gap = Some(Duration::from_millis(450));
        let outcome = Outcome { tally, elapsed: Duration::from_secs(1), longest_gap, usage: Usage::default() };
        Report::of("put", "calls", &outcome).note("with a note")
    }

    #[test]
    fn numbers_are_written_as_people_read_them() {
        assert_eq!(grouped(1_234_567.4), "1,234,567");
        assert_eq!(grouped(999.0), "999");
        assert_eq!(grouped(1.25), "1.25");
        assert_eq!(grouped(0.0), "0");
        assert_eq!(
            (millis(0.8512), millis(12.34), millis(150.2)),
            ("0.85 ms".into(), "12.3 ms".into(), "150 ms".into())
        );
    }

    #[test]
    fn a_report_shows_in_every_format() {
        let reports = [report()];
        let text = render(&reports, Format::Table);
        assert!(text.contains("12,345 calls/s") && text.contains("put: with a note"), "{text}");
        let markdown = render(&reports, Format::Markdown);
        assert!(markdown.lines().all(|line| line.starts_with('|') && line.ends_with('|')), "{markdown}");
        let json: serde_json::Value = serde_json::from_str(&render(&reports, Format::Json)).unwrap();
        assert_eq!(json[0]["per_second"], 12_345.0);
        assert_eq!((&json[0]["retried"], &json[0]["longest_gap_ms"]), (&2.into(), &450.0.into()));
    }
}
