//! Scenes with a script, in virtual time: what chance would play too rarely.
//!
//! Not here: what chance plays (`faults`).

use std::{sync::Arc, time::Duration};

use databroker::{
    node,
    store::command::{Answer, Kind, outcome},
};
use databroker_proto::internal;

use crate::{
    clients::place_of,
    cluster::{Cluster, HOLD},
    faults::is_settled,
    network::Network,
    records::{self, Key, TYPES},
    runtime,
    world::World,
};

/// How long a scene waits for something, in virtual time.
const PATIENCE: Duration = Duration::from_secs(20);

struct Scene {
    world: Arc<World>,
    cluster: Arc<Cluster>,
}

/// Plays a scene on so many hosts, the first three of which are voters.
fn play<F: Future<Output = ()>>(hosts: usize, script: impl FnOnce(Scene) -> F) {
    play_with(hosts, &[0, 1, 2], script);
}

fn play_with<F: Future<Output = ()>>(hosts: usize, voters: &'static [usize], script: impl FnOnce(Scene) -> F) {
    runtime::run(1, async move {
        let world = Arc::new(World::new(1));
        let (network, _accidents) = Network::new(world.clone());
        let cluster = Cluster::new(world.clone(), network, hosts, false);
        cluster.found(voters).await;
        let scene = Scene { world: world.clone(), cluster: cluster.clone() };
        scene.until("the voters are there", |scene| is_settled(&scene.cluster)).await;
        script(scene).await;
        let broken = world.judge.lock().first.clone();
        assert!(broken.is_none(), "{broken:?}");
        (0..hosts).for_each(|host| cluster.crash(host, false));
    });
}

impl Scene {
    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let until = self.world.time() + PATIENCE;
        while !holds(self) {
            assert!(self.world.time() < until, "never happened: {what}\n{:#?}", self.world.last_lines());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn leader(&self) -> usize {
        self.cluster.leader().expect("somebody leads")
    }

    fn follower(&self) -> usize {
        (0..3).find(|host| *host != self.leader()).expect("three are there")
    }

    async fn propose(&self, host: usize, kind: Kind) -> Answer {
        let asked = self.cluster.call(host, PATIENCE, |node| async move { node.propose(kind).await });
        asked.await.expect("it answers").expect("it takes the command")
    }

    /// The newest place on the leader.
    fn place(&self) -> (u64, u64) {
        let progress = self.cluster.node(self.leader()).expect("it is there").reader().progress();
        (progress.server_version, progress.latest_record_version)
    }

    fn applied(&self) -> u64 {
        let progress = self.cluster.node(self.leader()).expect("it is there").reader().progress();
        progress.applied.map_or(0, |applied| applied.index)
    }

    async fn value(&self, key: &Key) -> Option<String> {
        let key = key.clone();
        let asked = self.cluster.call(self.leader(), PATIENCE, move |node| async move {
            let found = node.fence().await.unwrap().get(&key.0, &key.1).unwrap();
            found.map(|record| record.to_record().unwrap())
        });
        records::value_of(&asked.await.expect("it answers")?)
    }

    /// A write through a follower takes effect, and its answer is lost. Then others do what they want; then the
    /// follower tries again, and gives the client the answer it gets.
    async fn write_twice<F: Future<Output = ()>>(&self, kind: Kind, meanwhile: impl FnOnce() -> F) -> Answer {
        let (host, before) = (self.follower(), self.applied());
        self.cluster.network.rules.lock().deaf = Some(host);
        let cluster = self.cluster.clone();
        let writing = runtime::spawn(async move {
            cluster.call(host, PATIENCE, |node| async move { node.propose(kind).await }).await
        });
        self.until("it took effect", |scene| scene.applied() > before).await;
        meanwhile().await;
        let retried = self.world.judge.lock().retried;
        self.cluster.network.rules.lock().deaf = None;
        let answer = writing.await.unwrap().expect("it answers").expect("it is taken");
        assert!(self.world.judge.lock().retried > retried, "it was not tried again");
        answer
    }
}

fn key() -> Key {
    (TYPES[0].into(), "record".into())
}

#[test]
fn a_put_whose_answer_was_lost_does_not_undo_what_came_after() {
    play(3, |scene| async move {
        let mut last = (0, 0);
        let answer = scene
            .write_twice(records::put(&key(), "first"), async || {
                last = place_of(&scene.propose(scene.leader(), records::put(&key(), "second")).await).unwrap();
            })
            .await;
        assert_eq!(place_of(&answer), Some((last.0, last.1 - 1)));
        assert_eq!((scene.value(&key()).await, scene.place()), (Some("second".into()), last));
    });
}

#[test]
fn a_patch_whose_answer_was_lost_does_not_undo_what_came_after() {
    play(3, |scene| async move {
        scene.propose(scene.leader(), records::put(&key(), "before")).await;
        let mut last = (0, 0);
        let answer = scene
            .write_twice(records::patch(&key(), "first"), async || {
                last = place_of(&scene.propose(scene.leader(), records::patch(&key(), "second")).await).unwrap();
            })
            .await;
        assert_eq!(place_of(&answer), Some((last.0, last.1 - 1)));
        assert_eq!((scene.value(&key()).await, scene.place()), (Some("second".into()), last));
    });
}

#[test]
fn a_delete_whose_answer_was_lost_does_not_delete_what_came_after() {
    play(3, |scene| async move {
        scene.propose(scene.leader(), records::put(&key(), "before")).await;
        let mut last = (0, 0);
        scene
            .write_twice(records::delete(&key()), async || {
                last = place_of(&scene.propose(scene.leader(), records::put(&key(), "after")).await).unwrap();
            })
            .await;
        assert_eq!((scene.value(&key()).await, scene.place()), (Some("after".into()), last));
    });
}

#[test]
fn a_clear_whose_answer_was_lost_does_not_clear_again() {
    play(3, |scene| async move {
        scene.propose(scene.leader(), records::put(&key(), "before")).await;
        scene.world.judge.lock().issue_clear(2000);
        let clear = Kind::Clear(internal::Clear { server_version: 2000 });
        let answer = scene
            .write_twice(clear, async || {
                scene.propose(scene.leader(), records::put(&key(), "after")).await;
            })
            .await;
        let Some(outcome::Kind::Cleared(cleared)) = answer.outcome.kind else { panic!("{answer:?}") };
        assert_eq!((cleared.old_server_version, cleared.new_server_version), (1000, 2000));
        assert_eq!((scene.value(&key()).await, scene.place()), (Some("after".into()), (2000, 1)));
    });
}

#[test]
fn a_lease_whose_answer_was_lost_is_not_taken_from_its_next_holder() {
    play(3, |scene| async move {
        let ttl = Duration::from_millis(500);
        let lease = |id: &str| records::lease("lease", id, ttl.as_nanos() as i64);
        let is_mine = |answer: Answer| matches!(answer.outcome.kind, Some(outcome::Kind::Leased(it)) if it.acquired);
        let answer = scene
            .write_twice(lease("first"), async || {
                tokio::time::sleep(2 * ttl).await;
                assert!(is_mine(scene.propose(scene.leader(), lease("second")).await));
                tokio::time::sleep(2 * ttl).await;
            })
            .await;
        assert!(is_mine(answer), "the first holder's answer is the one of its time");
        // The second one's has run out; had the first taken it again, this would be refused.
        assert!(is_mine(scene.propose(scene.leader(), lease("third")).await));
    });
}

#[test]
fn a_node_that_stops_ends_the_writes_it_has_passed_on() {
    play(3, |scene| async move {
        let host = scene.follower();
        scene.cluster.network.rules.lock().deaf = Some(host);
        let (cluster, before) = (scene.cluster.clone(), scene.applied());
        let writing = runtime::spawn(async move {
            cluster.call(host, PATIENCE, |node| async move { node.propose(records::put(&key(), "value")).await }).await
        });
        scene.until("it is under way", |scene| scene.applied() > before).await;
        let node = scene.cluster.node(host).unwrap();
        let process = scene.cluster.process(host).unwrap();
        process.spawn(node.shutdown()).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_millis(100), writing).await.expect("it does not wait");
        assert!(matches!(answer.unwrap(), Some(Err(node::Error::ShuttingDown))));
        scene.cluster.network.rules.lock().deaf = None;
    });
}

/// A majority elsewhere commits an entry before the leader itself has written it.
#[test]
fn a_leader_that_is_killed_before_it_has_written_what_others_have_starts_again() {
    play(3, |scene| async move {
        for round in 0..6 {
            let leader = scene.leader();
            let (stalled, cluster) = (scene.cluster.hosts[leader].stalled.clone(), scene.cluster.clone());
            *stalled.lock() = Some("log");
            let value = format!("{round}");
            scene.world.judge.lock().issue(&value, key());
            let write = records::put(&key(), &value);
            let writing = runtime::spawn(async move {
                cluster.call(leader, PATIENCE, |node| async move { node.propose(write).await }).await
            });
            tokio::time::sleep(Duration::from_millis(200)).await;
            scene.cluster.crash(leader, false);
            writing.abort();
            *stalled.lock() = None;
            scene.cluster.start(leader, None).await;
            scene.until("all is well", |scene| is_settled(&scene.cluster)).await;
        }
    });
}

/// A follower that was killed has promised its leader not to help another one for a while, and comes back within that time.
#[test]
fn a_follower_that_restarts_helps_nobody_while_its_leader_reads_by_its_lease() {
    play(3, |scene| async move {
        let leader = scene.leader();
        let (other, restarted) = ((leader + 1) % 3, (leader + 2) % 3);
        scene.propose(leader, records::put(&key(), "before")).await;
        let apart = |one: usize, two: usize| [(one, two), (two, one)];
        scene.cluster.network.rules.lock().cut = apart(leader, other).into();
        // It misses the leader, and is helped by nobody.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(scene.leader(), leader);
        scene.cluster.network.rules.lock().cut.extend(apart(leader, restarted));
        scene.cluster.crash(restarted, false);
        scene.cluster.start(restarted, None).await;
        let elected = |scene: &Scene| scene.cluster.node(other).is_some_and(|node| node.status().leader);
        let reading = |scene: &Scene| {
            let cluster = scene.cluster.clone();
            async move {
                let read = cluster.call(leader, Duration::from_millis(50), |node| async move { node.fence().await });
                read.await.and_then(Result::ok).map(|snapshot| snapshot.progress().latest_record_version)
            }
        };
        scene.until("another leads", elected).await;
        scene.propose(other, records::put(&key(), "after")).await;
        assert!(reading(&scene).await.is_none_or(|seen| seen == 2), "the old leader shows what is no longer so");
        scene.cluster.network.rules.lock().cut.clear();
        scene.until("all is well", |scene| is_settled(&scene.cluster)).await;
    });
}

/// Not all that was committed is applied where it was proposed.
#[test]
fn a_read_on_the_only_voter_sees_what_a_learner_has_streamed() {
    play_with(3, &[0], |scene| async move {
        scene.propose(0, records::put(&key(), "before")).await;
        // Host 1 becomes a learner, and no voter, for host 2 does not catch up.
        scene.cluster.network.rules.lock().cut = [(0, 2), (2, 0)].into();
        scene.cluster.reshape(&[0, 1, 2]).await;
        let shown = |scene: &Scene, host: usize| {
            scene.cluster.node(host).map_or(0, |node| node.reader().progress().latest_record_version)
        };
        scene.until("host 1 learns", |scene| shown(scene, 1) == 1).await;
        *scene.cluster.hosts[0].stalled.lock() = Some("apply");
        let cluster = scene.cluster.clone();
        let write = records::put(&key(), "after");
        let writing =
            runtime::spawn(
                async move { cluster.call(0, PATIENCE, |node| async move { node.propose(write).await }).await },
            );
        scene.until("host 1 shows it", |scene| shown(scene, 1) == 2).await;
        let cluster = scene.cluster.clone();
        let reading = runtime::spawn(async move {
            cluster.call(0, PATIENCE, |node| async move { node.fence().await.unwrap().progress() }).await.unwrap()
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        *scene.cluster.hosts[0].stalled.lock() = None;
        assert_eq!(reading.await.unwrap().latest_record_version, 2);
        writing.await.unwrap().unwrap().unwrap();
        scene.cluster.network.rules.lock().cut.clear();
        scene.until("the voters are there", |scene| is_settled(&scene.cluster)).await;
    });
}

/// The last two of the old voters are gone while the first goes on with two others: one was down all the time, one
/// died as soon as it was removed. Together they are a majority of what they remember.
#[test]
fn two_removed_nodes_that_come_back_on_their_old_disks_elect_nobody_and_serve_nothing() {
    play(5, |scene| async move {
        let (down, leader) = ((scene.leader() + 1) % 3, scene.leader());
        let removed = 3 - down - leader;
        scene.propose(leader, records::put(&key(), "before")).await;
        scene.cluster.crash(down, true);
        scene.cluster.reshape(&[leader, 3, 4]).await;
        let is_removed = |scene: &Scene| {
            let leader = scene.cluster.leader().and_then(|leader| scene.cluster.node(leader));
            leader.is_some_and(|leader| !leader.cluster_status().retired.is_empty())
        };
        scene.until("they are removed", is_removed).await;
        scene.cluster.crash(removed, true);
        let old: Vec<u64> =
            [down, removed].iter().map(|host| scene.cluster.hosts[*host].disk.lock().node_id().unwrap()).collect();
        let rest = [leader, 3, 4];
        let links = rest.iter().flat_map(|one| [(*one, down), (down, *one), (*one, removed), (removed, *one)]);
        scene.cluster.network.rules.lock().cut = links.collect();
        scene.cluster.start(down, None).await;
        scene.cluster.start(removed, None).await;
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            for host in [down, removed] {
                assert!(!scene.cluster.node(host).unwrap().status().leader, "node-{host} leads");
            }
        }
        for host in [down, removed] {
            let read = scene.cluster.call(host, PATIENCE, |node| async move { node.fence().await.map(drop) }).await;
            assert!(matches!(read, Some(Err(node::Error::NoLeader | node::Error::NotInitialized))), "{read:?}");
            let write = records::put(&key(), "lost");
            let write = scene.cluster.call(host, 2 * HOLD, |node| async move { node.propose(write).await }).await;
            assert!(matches!(write, Some(Err(node::Error::NoLeader | node::Error::NotInitialized))), "{write:?}");
        }
        // Told, they begin anew.
        scene.cluster.network.rules.lock().cut.clear();
        let begun_anew = |scene: &Scene| {
            let id = |host: &usize| scene.cluster.hosts[*host].disk.lock().node_id();
            [down, removed].iter().all(|host| id(host).is_some_and(|id| !old.contains(&id)))
        };
        scene.until("they begin anew", begun_anew).await;
        assert_eq!(scene.value(&key()).await, Some("before".into()));
    });
}
