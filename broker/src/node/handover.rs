//! Leadership goes to another voter without anybody noticing: new writes wait, the successor catches up, takes over, and
//! the waiting writes are sent to it.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::Node;
use crate::raft::{NodeId, runtime::Runtime};

/// How long a successor may take to catch up and take over. While it does, no write is answered.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Transfers are sometimes accepted and do not happen; then another successor is tried.
const ATTEMPTS_MAX: usize = 3;

/// How long writes are let in after an attempt that failed, before there may be another: those that were held are a few
/// thousand at most, and go into some tens of entries.
const BREATH: Duration = Duration::from_millis(100);

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
    /// Nobody can take over, or not the one that was asked for.
    #[error("no other voter that may take over answers and is caught up")]
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
        let leader = if self.role().leads { self.leader_name() } else { self.present_leader_name() };
        let leader = leader.ok_or(Error::NotLeader)?;
        if to == Some(leader.as_str()) {
            return Ok(leader);
        }
        if !self.role().leads {
            return Err(Error::Elsewhere { leader });
        }
        let wanted = |leader: String| match to {
            Some(to) if to != leader => Err(Error::Elsewhere { leader }),
            _ => Ok(leader),
        };
        let mut failed = Error::NotLeader;
        for _ in 0..ATTEMPTS_MAX {
            // An attempt took effect after all, or there was an election meanwhile.
            if !self.role().leads {
                return wanted(self.other_leader().ok_or(failed)?);
            }
            let node = self.successor(to)?;
            match self.hand_over_to(node).await {
                Ok(leader) => return wanted(leader),
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

    /// One that is caught up, whoever asks for it: writes would be held for one that is not, in vain.
    fn successor(&self, to: Option<&str>) -> Result<NodeId, Error> {
        let seen = self.observe();
        let named = |name: &str, node: NodeId| seen.members.get(&node).is_some_and(|member| member.name == name);
        seen.successor(|node| to.is_none_or(|name| named(name, node))).ok_or(Error::NoSuccessor)
    }

    /// Hands leadership to one node, when nobody else is at it any longer: the first to end would let writes in for the
    /// other. Returns the name of who leads then, which is another if an election came first.
    ///
    /// # Errors
    /// See [`Error`].
    pub(super) async fn hand_over_to(&self, node: NodeId) -> Result<String, Error> {
        let _turn = self.shared.handing_over.lock().await;
        let role = self.role();
        if !role.leads {
            return self.other_leader().ok_or(Error::NotLeader);
        }
        let handed = self.attempt(node, role.term).await;
        if handed.is_err() {
            sleep(BREATH).await;
        }
        handed
    }

    /// Holds writes until somebody leads a later term than this one, for so long as a successor may take.
    async fn attempt(&self, node: NodeId, term: u64) -> Result<String, Error> {
        let name = self.member_name(node);
        let timed_out = || Error::TimedOut { name: name.clone() };
        let mut role = self.shared.replica.role().clone();
        let _held = Held::new(self);
        let asked = timeout(PATIENCE, async {
            tokio::select! {
                refused = self.ask_to_lead(node) => Err(refused),
                led = role.wait_for(|role| role.term > term && role.leader.is_some()) => {
                    led.map(drop).map_err(|_| Error::NotLeader)
                }
            }
        });
        asked.await.map_err(|_| timed_out())??;
        self.other_leader().ok_or_else(timed_out)
    }

    /// Asks the other to lead as soon as it can. Returns only if that cannot be asked: whether it does shows in the role.
    async fn ask_to_lead(&self, node: NodeId) -> Error {
        self.caught_up(node).await;
        match self.shared.replica.transfer_leader(node).await {
            Ok(()) => std::future::pending().await,
            Err(_) => Error::NotLeader,
        }
    }

    /// Everything in this node's log is in the other's. With writes held that is soon.
    async fn caught_up(&self, node: NodeId) {
        let replica = &self.shared.replica;
        while replica.matched().get(&node).copied().flatten() < replica.picture().last_log_index {
            sleep(LOOK).await;
        }
    }

    /// Who leads, or led last, if it is not this node: by name.
    fn other_leader(&self) -> Option<String> {
        self.shared.outbound.leader_elsewhere().map(|leader| self.member_name(leader))
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
