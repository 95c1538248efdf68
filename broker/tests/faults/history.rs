//! What clients were told, as one history of versions, and the judgement on it.
//!
//! A version is one write: whoever is told of it, by an acknowledgement, an event or a read, has to be told the same.
//! Not here: who tells it (`clients`), what is reported of it (`trial`).

use std::collections::{BTreeMap, btree_map::Entry};

/// Violations that are kept: who broke one promise broke it a thousand times, and the first are those to look at.
const VIOLATIONS_MAX: usize = 1000;

/// What was written: a record's id and its text.
pub type Content = (String, String);

/// What a node answers to Get: a record's version and text, or that there is none.
pub type Found = Option<(u64, String)>;

/// All that clients were told.
#[derive(Default)]
pub struct History {
    /// What was acknowledged, by version.
    acknowledged: BTreeMap<u64, Content>,
    /// What streams have shown, by version: the first that shows a version sets it.
    shown: BTreeMap<u64, Content>,
    violations: Vec<String>,
}

/// Whether what was promised was kept.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged writes that are not in the history at their version.
    pub lost: Vec<String>,
    /// What clients were told that does not fit together.
    pub violations: Vec<String>,
}

impl History {
    /// A write was acknowledged, at this version.
    pub fn acknowledge(&mut self, version: u64, content: Content) {
        match self.acknowledged.entry(version) {
            Entry::Vacant(free) => _ = free.insert(content),
            Entry::Occupied(first) => {
                let twice = format!("version {version} was acknowledged for {:?} and for {content:?}", first.get());
                self.violate(twice);
            }
        }
    }

    /// A stream that has seen all versions up to `after` shows the next.
    pub fn show(&mut self, stream: usize, after: u64, version: u64, content: Content) {
        if version != after + 1 {
            self.violate(format!("stream {stream}: {version} came after {after}"));
        }
        match self.shown.entry(version) {
            Entry::Vacant(free) => _ = free.insert(content),
            Entry::Occupied(first) if *first.get() == content => {}
            Entry::Occupied(first) => {
                let other = format!("stream {stream}: {version} is {content:?}, another saw {:?}", first.get());
                self.violate(other);
            }
        }
    }

    /// Something else that must not be.
    pub fn violate(&mut self, what: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(what);
        }
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// The last state of each record: its version and text.
    pub fn last(&self) -> BTreeMap<&str, (u64, &str)> {
        self.shown.iter().map(|(version, (id, text))| (id.as_str(), (*version, text.as_str()))).collect()
    }

    /// The judgement, where `nodes` is what each node answers to Get for each id.
    pub fn verdict(&self, nodes: &[BTreeMap<String, Found>]) -> Verdict {
        let kept = |version: &u64, content: &Content| self.shown.get(version) == Some(content);
        let missing = self.acknowledged.iter().filter(|(version, content)| !kept(version, content));
        let lost = missing
            .map(|(version, content)| format!("{content:?} at {version}: there is {:?}", self.shown.get(version)))
            .collect();
        let stale = nodes.iter().enumerate().flat_map(|(node, answers)| self.stale(node, answers));
        Verdict { lost, violations: self.violations.iter().cloned().chain(stale).collect() }
    }

    /// Where a node's answers are not the last state of all records.
    fn stale(&self, node: usize, answers: &BTreeMap<String, Found>) -> Vec<String> {
        let differs = |(id, (version, text)): (&str, (u64, &str))| {
            let found = answers.get(id).and_then(Option::as_ref).map(|(version, text)| (*version, text.as_str()));
            (found != Some((version, text)))
                .then(|| format!("node {node}: {id} is {found:?} instead of {text:?} at {version}"))
        };
        self.last().into_iter().filter_map(differs).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(id: &str, text: &str) -> Content {
        (id.into(), text.into())
    }

    /// Two streams have seen three writes of two records, all of them acknowledged.
    fn sound() -> History {
        let mut history = History::default();
        let writes = [content("a", "1"), content("b", "2"), content("a", "3")];
        for (version, write) in (1..).zip(writes) {
            history.acknowledge(version, write.clone());
            history.show(0, version - 1, version, write.clone());
            history.show(1, version - 1, version, write);
        }
        history
    }

    fn answers() -> BTreeMap<String, Found> {
        [("a", 3, "3"), ("b", 2, "2")].map(|(id, version, text)| (id.into(), Some((version, text.into())))).into()
    }

    /// The only violation there is.
    fn violation(history: &History) -> String {
        let verdict = history.verdict(&[answers(), answers()]);
        assert_eq!((&verdict.lost[..], verdict.violations.len()), (&[][..], 1), "{verdict:?}");
        verdict.violations[0].clone()
    }

    #[test]
    fn nothing_is_wrong_with_a_sound_history() {
        assert_eq!(sound().verdict(&[answers(), answers()]), Verdict::default());
        // A write whose answer was lost is there, and was not acknowledged.
        let mut history = sound();
        history.show(0, 3, 4, content("b", "4"));
        let answers = [answers(), [("b".into(), Some((4, "4".into())))].into()].into_iter().flatten().collect();
        assert_eq!(history.verdict(&[answers]), Verdict::default());
    }

    #[test]
    fn a_lost_write_is_noticed_though_its_record_was_written_again() {
        let mut history = History::default();
        history.acknowledge(1, content("a", "1"));
        history.acknowledge(2, content("a", "2"));
        history.show(0, 0, 1, content("a", "2"));
        let lost = history.verdict(&[]).lost;
        assert_eq!(lost.len(), 2, "{lost:?}");
        assert!(lost[1].contains("at 2: there is None"), "{lost:?}");
    }

    #[test]
    fn a_write_at_another_version_is_noticed() {
        let mut history = sound();
        history.acknowledge(4, content("c", "4"));
        history.show(0, 3, 4, content("d", "other"));
        history.show(0, 4, 5, content("c", "4"));
        let later = [("c".into(), Some((5, "4".into()))), ("d".into(), Some((4, "other".into())))];
        let verdict = history.verdict(&[answers().into_iter().chain(later).collect()]);
        assert_eq!((verdict.lost.len(), verdict.violations.len()), (1, 0), "{verdict:?}");
        assert!(verdict.lost[0].contains("at 4: there is Some((\"d\", \"other\"))"), "{verdict:?}");
    }

    #[test]
    fn two_acknowledgements_of_one_version_are_noticed() {
        let mut history = sound();
        history.acknowledge(3, content("a", "3"));
        assert!(violation(&history).contains("version 3 was acknowledged"));
    }

    #[test]
    fn a_gap_in_a_stream_is_noticed() {
        let mut history = sound();
        history.show(2, 0, 2, content("b", "2"));
        assert!(violation(&history).contains("stream 2: 2 came after 0"));
    }

    #[test]
    fn a_version_that_a_stream_sees_twice_is_noticed() {
        let mut history = sound();
        history.show(0, 3, 3, content("a", "3"));
        assert!(violation(&history).contains("stream 0: 3 came after 3"));
    }

    #[test]
    fn streams_that_differ_are_noticed() {
        let mut history = sound();
        history.show(2, 2, 3, content("a", "another"));
        assert!(violation(&history).contains("stream 2: 3 is"));
    }

    #[test]
    fn a_stale_get_is_noticed_on_any_node() {
        let of = |found: Found| answers().into_iter().chain([("a".to_owned(), found)]).collect();
        for found in [Some((1, "1".into())), Some((3, "1".into())), Some((4, "3".into())), None] {
            let verdict = sound().verdict(&[answers(), of(found)]);
            assert_eq!((verdict.lost.len(), verdict.violations.len()), (0, 1), "{verdict:?}");
            assert!(verdict.violations[0].contains("node 1: a is"), "{verdict:?}");
        }
    }
}
