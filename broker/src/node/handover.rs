//! Leadership goes to another voter without anybody noticing: new writes wait, the successor catches up, takes over, and
//! the waiting writes are sent to it.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::Node;
use crate::raft::{NodeId, runtime::Runtime};

/// How long a successor may take to catch up and take over. While it does, no write is answered.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Transfers are sometimes accepted and do not happen; then another successor is tried.
const ATTEMPTS_MAX: usize = 3;

/// How often the successor's progress is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// Why leadership stays where it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is none here, and nobody is known to lead.
    #[error("nobody leads, as far as this node knows")]
    NotLeader,
    /// There is none here.
    #[error("{leader} leads: ask it")]
    Elsewhere {
        /// Who leads.
        leader: String,
    },
    /// A name that is no voter's.
    #[error("{name:?} is no voter of this cluster")]
    Unknown {
        /// Who was asked for.
        name: String,
    },
    /// Nobody can take over.
    #[error("no other voter is caught up")]
    NoSuccessor,
    /// It was tried, and did not happen in time.
    #[error("{name} did not take over in time")]
    TimedOut {
        /// Who should have.
        name: String,
    },
}

impl<R: Runtime> Node<R> {
    /// Hands leadership to the named voter, or to the one that is furthest. Returns the name of the new leader.
    ///
    /// # Errors
    /// See [`Error`]; this node then still leads, unless it lost an election meanwhile.
    pub async fn hand_over(&self, to: Option<&str>) -> Result<String, Error> {
        self.check_wanted(to)?;
        let fits = |leader: &String| to.is_none_or(|to| to == leader);
        let leader = if self.role().leads { self.leader_name() } else { self.present_leader_name() };
        let leader = leader.ok_or(Error::NotLeader)?;
        if to == Some(leader.as_str()) {
            return Ok(leader);
        }
        if !self.role().leads {
            return Err(Error::Elsewhere { leader });
        }
        let mut failed = Error::NoSuccessor;
        for _ in 0..ATTEMPTS_MAX {
            // An attempt took effect after all, or there was an election meanwhile.
            if !self.role().leads {
                return self.leader_name().filter(fits).ok_or(failed);
            }
            let node = self.successor(to)?;
            match self.hand_over_to(node).await {
                Ok(name) => return Ok(name),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Before this node stops: lets another lead, if it leads several.
    pub async fn step_down(&self) {
        let role = self.role();
        if !role.leads || role.voters < 2 {
            return;
        }
        match self.hand_over(None).await {
            Ok(leader) => tracing::info!(leader, "leadership was handed over"),
            Err(error) => tracing::warn!(%error, "leadership was not handed over: the others will elect"),
        }
    }

    /// Only a voter can lead, whoever is asked to see to it.
    fn check_wanted(&self, to: Option<&str>) -> Result<(), Error> {
        let Some(name) = to else { return Ok(()) };
        let seen = self.observe();
        let is_voter = seen.members.iter().any(|(node, member)| member.name == name && seen.is_voter(*node));
        if is_voter { Ok(()) } else { Err(Error::Unknown { name: name.into() }) }
    }

    fn successor(&self, to: Option<&str>) -> Result<NodeId, Error> {
        let seen = self.observe();
        let Some(name) = to else { return seen.successor(|_| true).ok_or(Error::NoSuccessor) };
        let named = |node: &NodeId| seen.members.get(node).is_some_and(|member| member.name == name);
        let voter = seen.voters.iter().flatten().copied().find(named);
        voter.filter(|node| *node != seen.me).ok_or_else(|| Error::Unknown { name: name.into() })
    }

    /// Hands leadership to one node.
    ///
    /// # Errors
    /// See [`Error`].
    pub(super) async fn hand_over_to(&self, node: NodeId) -> Result<String, Error> {
        let name = self.member_name(node);
        let _held = Held::new(self);
        let deadline = Instant::now() + PATIENCE;
        let timed_out = || Error::TimedOut { name: name.clone() };
        timeout_at(deadline, self.caught_up(node)).await.map_err(|_| timed_out())?;
        self.shared.replica.transfer_leader(node).await.map_err(|_| Error::NotLeader)?;
        let mut role = self.shared.replica.role().clone();
        let took_over = role.wait_for(|role| role.leader == Some(node));
        match timeout_at(deadline, took_over).await {
            Ok(Ok(_)) => Ok(name),
            Ok(Err(_)) | Err(_) => Err(timed_out()),
        }
    }

    /// Everything in this node's log is in the other's. With writes held that is soon.
    async fn caught_up(&self, node: NodeId) {
        let replica = &self.shared.replica;
        while replica.matched().get(&node).copied().flatten() < replica.picture().last_log_index {
            sleep(LOOK).await;
        }
    }

    fn member_name(&self, node: NodeId) -> String {
        self.shared.replica.peer(node).map(|peer| peer.member.name).unwrap_or_default()
    }

    /// Who leads and is there, by name.
    pub(super) fn present_leader_name(&self) -> Option<String> {
        self.shared.replica.present_leader().map(|leader| self.member_name(leader))
    }

    /// Who leads, or led last, by name.
    pub(super) fn leader_name(&self) -> Option<String> {
        self.role().leader.map(|leader| self.member_name(leader))
    }
}

/// Writes wait for as long as this lives.
struct Held<'a, R: Runtime>(&'a Node<R>);

impl<'a, R: Runtime> Held<'a, R> {
    fn new(node: &'a Node<R>) -> Self {
        node.shared.open.send_replace(false);
        Self(node)
    }
}

impl<R: Runtime> Drop for Held<'_, R> {
    fn drop(&mut self) {
        self.0.shared.open.send_replace(true);
    }
}
