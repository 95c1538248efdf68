//! `cluster recover`: the last resort, on the disk of one stopped node. Says what is there and what is lost, and does
//! nothing before somebody has typed the cluster's id.
//!
//! Not here: what is done to the disk (`node::recover`).

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    time::SystemTime,
};

use serde::Serialize;
use tokio::sync::oneshot;

use super::{
    failure::{Failure, chain},
    output::{Output, notice, printable, relative},
};
use crate::run::recovery::{Error, Held, stopped};

/// What `--help` says at length.
const LONG: &str = "\
Make the data of one stopped node a cluster of its own, when the others are lost for good.

For the day on which more than half of the nodes have lost their disks. As long as a majority can be started, start it \
instead. If several are left, take the one whose last log entry is of the latest term, and of those the one with the \
highest index: this shows both before it asks. Run it as the user the broker runs as. Remove the data folders of the \
others first: on their old disks they must never be started again.

All that this node's log holds is kept, records, versions, leases and options included; what only the others have \
acknowledged is lost. The cluster gets a new id, its only member is this node, and clients fetch everything anew once. \
Afterwards start the broker, and add new nodes with `databroker cluster members add`.

Broken off, it has not happened or can be repeated.";

/// Make a stopped node's data a cluster of its own, when the others are lost for good
#[derive(Debug, clap::Args)]
#[command(long_about = LONG)]
pub(super) struct Recover {
    /// Say that the other nodes are lost for good
    #[arg(long, required = true)]
    force_new_cluster: bool,
    /// The id of the cluster that is given up, for scripts; without it, it is asked for
    #[arg(long, value_name = "CLUSTER_ID")]
    confirm: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Recovered {
    old_cluster_id: String,
    cluster_id: String,
    // A string, as it is random over all 64 bits and many programs read numbers as floats.
    server_version: String,
    records: u64,
    record_version: u64,
}

impl Recover {
    /// Looks, asks, and does it.
    ///
    /// # Errors
    /// The folder is in use, holds no cluster, cannot be read; or nobody confirmed.
    pub(super) async fn run(self, folder: &Path, output: &mut Output) -> Result<(), Failure> {
        let node = stopped(folder).map_err(failed)?;
        let held = node.held().map_err(failed)?;
        notice(&description(&held, SystemTime::now()));
        let typed = match self.confirm {
            Some(given) => given,
            None => ask().await?,
        };
        confirm(&typed, &held)?;
        let founding = node.recover().map_err(failed)?;
        if output.for_people() {
            return output.line(&format!(
                "{} is the only member of cluster {} now: start the broker, then add new nodes with `databroker \
                 cluster members add`",
                printable(&held.name),
                founding.cluster_id
            ));
        }
        output.value(&Recovered {
            old_cluster_id: held.cluster_id,
            cluster_id: founding.cluster_id,
            server_version: founding.server_version.to_string(),
            records: held.records,
            record_version: held.record_version,
        })
    }
}

fn failed(error: Error) -> Failure {
    match error {
        Error::Nothing { .. } => Failure::NotFound(format!("{error}: give --data-dir or --config of a stopped node")),
        error => Failure::Failed(chain(&error)),
    }
}

/// What is here, and what is lost.
fn description(held: &Held, now: SystemTime) -> String {
    let name = if held.name.is_empty() { "without a name" } else { &held.name };
    let others = if held.others.is_empty() { "none".to_owned() } else { held.others.join(", ") };
    let changed = held.changed_at.map_or_else(|| "not known".to_owned(), |at| format!("{at}, {}", relative(at, now)));
    let unapplied = held.last_index.saturating_sub(held.applied_index);
    printable_lines(&format!(
        "This disk holds\n  \
         cluster          {}\n  \
         node             {name} ({:016x})\n  \
         other members    {others}\n  \
         term             {}\n  \
         last log index   {} of term {} ({unapplied} entries are not applied yet: they will be)\n  \
         records          {}, the newest has version {}\n  \
         last change      {changed}\n\n\
         It becomes the only member of a new cluster, with all of that. What the other members have acknowledged after \
         it is lost. They must never be started again on their disks: remove their data folders. Clients fetch \
         everything anew once.\n",
        held.cluster_id, held.node_id, held.term, held.last_index, held.last_term, held.records, held.record_version,
    ))
}

fn printable_lines(text: &str) -> String {
    text.lines().map(|line| printable(line) + "\n").collect()
}

/// Asks whoever sits at the terminal.
async fn ask() -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage("nobody is there to ask: give the cluster's id with --confirm".to_owned()));
    }
    // Nobody may be reading; then nobody will type it.
    let _ = write!(io::stderr(), "Type the cluster's id to go on: ").and_then(|()| io::stderr().flush());
    let (typed, line) = oneshot::channel();
    // A thread of its own, so that Ctrl-C ends the tool while it waits.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = io::stdin().read_line(&mut line).map(|_| line);
        // Whoever waited was interrupted.
        drop(typed.send(read));
    });
    let line = line.await.map_err(|_| Failure::Interrupted)?;
    line.map_err(|error| Failure::Failed(format!("cannot read what is typed: {error}")))
}

fn confirm(typed: &str, held: &Held) -> Result<(), Failure> {
    match typed.trim() == held.cluster_id {
        true => Ok(()),
        false => Err(Failure::Usage(format!(
            "{:?} is not the id of this cluster, {:?}: nothing was changed",
            typed.trim(),
            held.cluster_id
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Held {
        Held {
            cluster_id: "old".into(),
            node_id: 0xbeef,
            name: "n3".into(),
            others: vec!["n1".into(), "n2".into()],
            term: 7,
            last_term: 6,
            last_index: 1204,
            applied_index: 1200,
            records: 8800,
            record_version: 9120,
            changed_at: Some(prost_types::Timestamp { seconds: 100, nanos: 0 }),
        }
    }

    #[test]
    fn it_says_what_is_there_and_what_is_lost() {
        let text = description(&held(), SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(280));
        for part in
            ["old", "n3 (000000000000beef)", "n1, n2", "1204 of term 6 (4 entries", "8800, the newest has version 9120"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains("1970-01-01T00:01:40Z, 3m ago") && text.contains("is lost"), "{text}");
        let unsaid = description(&Held { changed_at: None, others: vec![], ..held() }, SystemTime::now());
        assert!(unsaid.contains("not known") && unsaid.contains("none"), "{unsaid}");
    }

    #[test]
    fn only_the_clusters_id_confirms() {
        assert!(confirm("old\n", &held()).is_ok());
        for other in ["", "yes", "OLD", "n3"] {
            assert!(matches!(confirm(other, &held()), Err(Failure::Usage(_))), "{other}");
        }
    }
}
