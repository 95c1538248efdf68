//! How far a long transfer is: a bar on a terminal, a line now and then elsewhere.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{duration::short, output::notice};

/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// How far a transfer of records is.
pub(super) struct Progress {
    verb: &'static str,
    total: Option<u64>,
    before: u64,
    done: u64,
    start: Instant,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    Lines { last: Instant },
}

impl Progress {
    /// Begins, where `before` of the `total` records need no transfer. `verb` is what is done: `exported`.
    pub(super) fn new(verb: &'static str, total: Option<u64>, before: u64) -> Self {
        let start = Instant::now();
        let shown = match std::io::stderr().is_terminal() {
            true => Shown::Bar(bar(verb, total, before)),
            false => Shown::Lines { last: start },
        };
        Self { verb, total, before, done: 0, start, shown }
    }

    /// So many records more are done.
    pub(super) fn add(&mut self, records: u64) {
        self.done += records;
        match &mut self.shown {
            Shown::Bar(bar) => bar.inc(records),
            Shown::Lines { last } if last.elapsed() >= LINE_INTERVAL => {
                *last = Instant::now();
                notice(&line(self.verb, self.before, self.done, self.total, self.start.elapsed()));
            }
            Shown::Lines { .. } => {}
        }
    }

    /// Takes the bar away, and says how long it took and how fast it went.
    pub(super) fn finish(self) -> String {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
        let elapsed = self.start.elapsed();
        format!("in {} ({}/s)", short(elapsed), rate(self.done, elapsed))
    }
}

fn bar(verb: &str, total: Option<u64>, before: u64) -> ProgressBar {
    let template = match total {
        Some(_) => "{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta} left",
        None => "{msg} {spinner} {human_pos} {per_sec}",
    };
    let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new).with_message(verb.to_owned());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_position(before);
    // The rate and the time left are reckoned from what is done from now on.
    bar.reset_eta();
    bar
}

fn line(verb: &str, before: u64, done: u64, total: Option<u64>, elapsed: Duration) -> String {
    let rate = rate(done, elapsed);
    let Some(total) = total else { return format!("{verb} {} records, {rate}/s", before + done) };
    let left = total.saturating_sub(before + done).checked_div(rate);
    let left = left.map_or_else(String::new, |seconds| format!(", {} left", short(Duration::from_secs(seconds))));
    format!("{verb} {} of {total} records, {rate}/s{left}", before + done)
}

fn rate(done: u64, elapsed: Duration) -> u64 {
    (done as f64 / elapsed.as_secs_f64().max(1e-3)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_rate_and_time_left() {
        let after = Duration::from_secs(10);
        assert_eq!(line("exported", 0, 1000, Some(4000), after), "exported 1000 of 4000 records, 100/s, 30s left");
        assert_eq!(line("imported", 2000, 1000, Some(4000), after), "imported 3000 of 4000 records, 100/s, 10s left");
        assert_eq!(line("exported", 0, 1000, None, after), "exported 1000 records, 100/s");
        assert_eq!(line("exported", 0, 0, Some(5), after), "exported 0 of 5 records, 0/s");
    }
}
