//! Nodes of two releases in one cluster: one build knows one command more than the other.
//!
//! Not here: which commands need which version (`store::command`).

use databroker_proto::internal::{RaiseCommandVersion, member_status};

use super::*;

/// What the two builds know.
const OLD: u32 = COMMAND_VERSION;
const NEW: u32 = COMMAND_VERSION + 1;

fn next() -> Kind {
    Kind::SetCheckpoint(command::tests::NEXT)
}

async fn upgrade(cluster: &mut Cluster, name: &'static str) {
    cluster.running[name].step_down().await;
    cluster.stop(name).await;
    cluster.start(name, NEW).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mixed_releases_work_and_the_new_command_waits_until_all_nodes_know_it() {
    let mut cluster = Cluster::of([OLD, OLD, NEW]).await;
    // Whoever leads, the new one too.
    for leader in ["c", "a"] {
        if !cluster.running[leader].role().leads {
            cluster.leader().unwrap().hand_over(Some(leader)).await.unwrap();
        }
        let leads = cluster.running[leader].clone();
        cluster.eventually("all were heard", |_| leads.observe().understood_by_all() == Some(OLD)).await;
        for (name, node) in &cluster.running {
            node.propose(put(&format!("{leader}{name}"))).await.unwrap();
            let refused = node.propose(next()).await;
            assert!(matches!(refused, Err(Error::TooEarly { needed: NEW, raised: OLD })), "{name}: {refused:?}");
        }
    }
    cluster.all_equal().await;
    upgrade(&mut cluster, "a").await;
    upgrade(&mut cluster, "b").await;
    let raised = |node: &&Node| node.reader().snapshot().cluster().command_version == NEW;
    cluster.eventually("all know that the version is raised", |nodes| nodes.iter().all(raised)).await;
    for node in cluster.running.values() {
        node.propose(next()).await.unwrap();
    }
    cluster.all_equal().await;

    // One that knows less is not taken in.
    cluster.start("d", OLD).await.unwrap();
    let leader = cluster.leader().unwrap().clone();
    let members = ["a", "b", "c", "d"].map(shaped).into();
    assert!(leader.set_members(1, members).await.unwrap().accepted);
    let text = format!("waiting for d to be upgraded: it knows command version {OLD}, the cluster uses {NEW}");
    cluster.eventually("the leader says why", |_| leader.cluster_status().next_step == text).await;
    assert_eq!(leader.status().voters, 3);
    cluster.stop("d").await;
    cluster.start("d", NEW).await.unwrap();
    cluster.eventually("it votes", |_| leader.status().voters == 4).await;
    assert!(leader.cluster_status().members.iter().all(|member| member.role() != member_status::Role::Waiting));
    cluster.end().await;
}

/// A node of the old release that was away, and comes back to a log that is ahead of what it knows; or, with so much
/// written meanwhile, to a store.
async fn comes_back_too_old(writes: usize, expected: &str) {
    let mut cluster = Cluster::of([OLD, OLD, OLD]).await;
    upgrade(&mut cluster, "a").await;
    upgrade(&mut cluster, "b").await;
    cluster.all_equal().await;
    cluster.running["c"].step_down().await;
    cluster.stop("c").await;
    cluster.eventually("one of the others leads", |nodes| nodes.iter().any(|node| node.role().leads)).await;
    // As if it had last been heard as a new one, and was set back since.
    let leader = cluster.leader().unwrap().clone();
    leader.propose_own(Kind::RaiseCommandVersion(RaiseCommandVersion { version: NEW })).await.unwrap();
    leader.propose(next()).await.unwrap();
    let known = leader.status().last_log_index;
    for index in 0..writes {
        leader.propose(put(&index.to_string())).await.unwrap();
    }
    if writes > 0 {
        cluster.eventually("what it lacks is gone from the log", |_| leader.status().purged_index >= known).await;
    }
    let old = cluster.start("c", OLD).await.unwrap();
    let reason = timeout(PATIENCE, old.failed()).await.unwrap();
    for part in [expected, "needs command version 2", "knows 1", "upgrade this node"] {
        assert!(reason.contains(part), "{reason}");
    }
    assert!(!reason.contains("damage"), "{reason}");
    drop(old);
    cluster.stop("c").await;
    // The same disk, and the newer build.
    cluster.start("c", NEW).await.unwrap();
    leader.propose(put("last")).await.unwrap();
    cluster.all_equal().await;
    // And never back again.
    cluster.stop("c").await;
    let refused = cluster.start("c", OLD).await.err().unwrap();
    assert!(matches!(refused, OpenError::Store(store::Error::TooNew(_))), "{refused}");
    assert!(refused.to_string().contains("upgrade this node"), "{refused}");
    cluster.start("c", NEW).await.unwrap();
    cluster.all_equal().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_meets_a_command_it_does_not_know_stops_and_its_disk_is_good_for_a_newer_build() {
    comes_back_too_old(0, "cannot apply the log entry at index").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_one_that_is_sent_a_store_of_a_cluster_that_is_ahead_of_it() {
    comes_back_too_old(150, "the store that arrived is of a cluster of a newer release").await;
}
