//! A leader that is gone is not said to lead.
//!
//! Not here: how long is too long (`raft::presence`).

use databroker_proto::internal::member_status;

use super::*;

/// What a node says to people and to machines about who leads.
fn says(node: &Node) -> (String, bool, usize) {
    let status = node.cluster_status();
    let leading = status.members.iter().filter(|member| member.role() == member_status::Role::Leader).count();
    (status.leader, node.replication().has_leader, leading)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nobody_leads_neither_a_dead_leader_nor_one_that_is_alone() {
    for the_leader_stays in [true, false] {
        let mut cluster = Cluster::of([COMMAND_VERSION; 3]).await;
        let leads = |nodes: &[&Node]| nodes.iter().all(|node| says(node).1 && says(node).2 == 1);
        cluster.eventually("all say who leads", leads).await;
        let leader = cluster.leader().unwrap().shared.member.name.clone();
        let stays = ["a", "b", "c"].into_iter().find(|name| (*name == leader) == the_leader_stays).unwrap();
        // Killed, as far as the others can tell: what steps down in good order would let another lead.
        cluster.hub.running.lock().retain(|address, _| *address == format!("{stays}:1"));
        let gone = || ["a", "b", "c"].into_iter().filter(|name| *name != stays);
        // Nor do they ask for its vote while the other is being stopped.
        cluster.hub.silent.lock().extend(gone().map(|name| format!("{name}:1")));
        for name in gone() {
            cluster.stop(name).await;
        }
        cluster.eventually("nobody leads", |nodes| says(nodes[0]) == (String::new(), false, 0)).await;
        let node = cluster.running[stays].clone();
        assert!(the_leader_stays == node.role().leads);
        let (writing, held) = (node.clone(), || node.replication().requests_held == 1);
        let write = tokio::spawn(async move { writing.propose(put("held")).await });
        cluster.eventually("the write is held", |_| held()).await;
        write.abort();
        drop(node);
        cluster.end().await;
    }
}
