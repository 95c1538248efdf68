//! Says that nobody leads, and that somebody does again: once each, however long it lasts.
//!
//! Not here: which leader counts as one (`raft::presence`); that leadership goes from one to another (`raft::replica`).

use std::time::Duration;

use tokio::time::Instant;

use super::Node;
use crate::raft::runtime::Runtime;

/// How long nobody leads before people are told: an election is nothing to be told of.
const GRACE: Duration = Duration::from_secs(1);

/// Since when nobody leads, and whether that was told.
#[derive(Debug, Default)]
pub(super) struct Absence {
    since: Option<Instant>,
    told: bool,
}

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// Nobody leads, for so long.
    Begun(Duration),
    /// Somebody leads again, after so long.
    Over(Duration),
}

impl Absence {
    fn look(&mut self, led: bool, now: Instant) -> Option<News> {
        if led {
            let Self { since, told } = std::mem::take(self);
            return since.filter(|_| told).map(|since| News::Over(now - since));
        }
        let lasted = now - *self.since.get_or_insert(now);
        let due = lasted >= GRACE && !self.told;
        self.told |= due;
        due.then_some(News::Begun(lasted))
    }
}

impl<R: Runtime> Node<R> {
    /// Looks whether anybody leads.
    pub(super) fn tell_absence(&self, absence: &mut Absence) {
        if !self.role().initialized || self.ready().is_err() {
            return;
        }
        match absence.look(self.shared.replica.present_leader().is_some(), Instant::now()) {
            None => {}
            Some(News::Begun(lasted)) => tracing::warn!(
                seconds = lasted.as_secs_f64(),
                "nobody leads: nothing can be written until a majority of the voters is reachable"
            ),
            Some(News::Over(lasted)) => tracing::info!(seconds = lasted.as_secs_f64(), "somebody leads again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absence_is_told_once_when_it_lasts_and_once_when_it_is_over() {
        let (start, mut absence) = (Instant::now(), Absence::default());
        let mut look = |led, millis| absence.look(led, start + Duration::from_millis(millis));
        assert_eq!((look(true, 0), look(false, 100), look(true, 900)), (None, None, None), "an election");
        assert_eq!((look(false, 1000), look(false, 1999)), (None, None));
        assert_eq!(look(false, 2500), Some(News::Begun(Duration::from_millis(1500))));
        assert_eq!(look(false, 9000), None);
        assert_eq!(look(true, 9500), Some(News::Over(Duration::from_millis(8500))));
        assert_eq!(look(true, 9600), None);
    }
}
