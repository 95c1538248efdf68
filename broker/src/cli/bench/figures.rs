//! The lines of the suite's table: what was measured, what it should be, and whether it is.

use comfy_table::presets;
use serde::Serialize;

use super::{
    drive::Outcome,
    report::{Format, busier_words, grid, grouped, mebibytes, millis},
};

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) figure: String,
    pub(super) checks: Vec<Check>,
    /// Whether every check holds.
    pub(super) met: bool,
    /// Calls that failed, and why the first did.
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
    pub(super) client_cpu_seconds: Option<f64>,
    pub(super) server_cpu_seconds: Option<f64>,
    pub(super) busier: Option<&'static str>,
}

/// One number and what it should be.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) value: f64,
    pub(super) unit: Unit,
    pub(super) bound: Bound,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    PerSecond,
    Millis,
    Seconds,
    Bytes,
    Percent,
    Times,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::PerSecond => format!("{}/s", grouped(value)),
            Self::Millis => millis(value),
            Self::Seconds => format!("{value:.2} s"),
            Self::Bytes => mebibytes(value as u64),
            Self::Percent => format!("{value:.2} %"),
            Self::Times => format!("× {value:.2}"),
        }
    }
}

impl Check {
    pub(super) fn at_least(name: &'static str, value: f64, unit: Unit, bound: f64) -> Self {
        Self { name, value, unit, bound: Bound::AtLeast(bound) }
    }

    pub(super) fn at_most(name: &'static str, value: f64, unit: Unit, bound: f64) -> Self {
        Self { name, value, unit, bound: Bound::AtMost(bound) }
    }

    fn holds(&self) -> bool {
        match self.bound {
            Bound::AtLeast(bound) => self.value >= bound,
            Bound::AtMost(bound) => self.value <= bound,
        }
    }

    pub(super) fn measured(&self) -> String {
        format!("{} {}", self.name, self.unit.show(self.value)).trim().to_owned()
    }

    fn target(&self) -> String {
        let (sign, bound) = match self.bound {
            Bound::AtLeast(bound) => ("≥", bound),
            Bound::AtMost(bound) => ("≤", bound),
        };
        format!("{} {sign} {}", self.name, self.unit.show(bound)).trim().to_owned()
    }
}

impl Row {
    pub(super) fn new(figure: impl Into<String>, checks: Vec<Check>) -> Self {
        let met = checks.iter().all(Check::holds);
        Self {
            figure: figure.into(),
            checks,
            met,
            errors: 0,
            first_error: None,
            client_cpu_seconds: None,
            server_cpu_seconds: None,
            busier: None,
        }
    }

    /// With what the run cost; a run with errors meets nothing.
    pub(super) fn from_run(figure: impl Into<String>, checks: Vec<Check>, outcome: &Outcome) -> Self {
        let row = Self::new(figure, checks);
        Self {
            met: row.met && outcome.tally.errors == 0,
            errors: outcome.tally.errors,
            first_error: outcome.tally.first_error.clone(),
            client_cpu_seconds: outcome.usage.client_cpu_seconds,
            server_cpu_seconds: outcome.usage.server_cpu_seconds,
            busier: outcome.usage.busier(),
            ..row
        }
    }

    pub(super) fn failed(self, (count, first): (u64, Option<String>)) -> Self {
        let met = self.met && count == 0;
        Self { met, errors: self.errors + count, first_error: self.first_error.or(first), ..self }
    }
}

/// The table, or the rows as JSON.
pub(super) fn render(rows: &[Row], format: Format) -> String {
    if format == Format::Json {
        return serde_json::to_string_pretty(rows).unwrap_or_default();
    }
    let style = if format == Format::Markdown { presets::ASCII_MARKDOWN } else { presets::NOTHING };
    let join = |row: &Row, of: fn(&Check) -> String| row.checks.iter().map(of).collect::<Vec<_>>().join(", ");
    let cells = rows.iter().map(|row| {
        vec![
            row.figure.clone(),
            join(row, Check::target),
            join(row, Check::measured),
            if row.met { "yes" } else { "NO" }.to_owned(),
            row.client_cpu_seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.1} s")),
            row.server_cpu_seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.1} s")),
            row.busier.unwrap_or("-").to_owned(),
        ]
    });
    let header = ["figure", "target", "measured", "met", "client CPU", "server CPU", "busier"];
    let mut text = grid(style, &header, cells);
    for row in rows.iter().filter(|row| row.errors > 0) {
        text += &format!(
            "\n{}: {} errors, the first: {}",
            row.figure,
            row.errors,
            row.first_error.as_deref().unwrap_or("-")
        );
    }
    if rows.iter().any(|row| row.busier == Some("client")) {
        text += &format!("\nWhere the busier side is the client: {}.\n", busier_words("client"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_only_when_every_check_holds() {
        let fast = Check::at_least("", 12_345.0, Unit::PerSecond, 10_000.0);
        let slow = Check::at_most("p99", 25.0, Unit::Millis, 20.0);
        assert!(Row::new("x", vec![fast.clone()]).met);
        let row = Row::new("x", vec![fast, slow]);
        assert!(!row.met);
        let text = render(&[row], Format::Markdown);
        assert!(text.contains("≥ 10,000/s, p99 ≤ 20.0 ms") && text.contains("12,345/s, p99 25.0 ms"), "{text}");
    }

    #[test]
    fn a_run_with_errors_meets_nothing() {
        let row = Row::new("x", Vec::new()).failed((1, Some("ABORTED: no".to_owned())));
        assert!(!row.met);
        assert!(render(&[row], Format::Table).contains("1 errors, the first: ABORTED: no"));
    }
}
