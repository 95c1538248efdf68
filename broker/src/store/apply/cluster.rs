//! What concerns the store as a whole: Init, Clear, the checkpoint, the shape, who was removed, what all understand.

use std::{collections::BTreeSet, sync::Arc};

use databroker_proto::internal::{
    Clear, Cleared, Cluster, ConfirmRetired, Init, Membership, RaiseCommandVersion, Recover, Reshaped, RetiredNode,
    SetCheckpoint, SetShape, ShapeMember,
};

use super::{
    super::{
        Error,
        command::{Answer, FIRST_VERSION, Reason, outcome},
        keyspace::NAME_BYTES_MAX,
    },
    Batch,
};

/// Members of a shape at most: each more makes every write wait for more disks, and nobody gains from a tenth.
pub const SHAPE_MEMBERS_MAX: usize = 9;

/// Removed nodes remembered at most. Those that have confirmed go first: they will not vote again. Disks are lost and
/// nodes replaced rarely; a cluster that has lost this many without hearing from one of them forgets the oldest.
const RETIRED_MAX: usize = 64;

impl Batch<'_> {
    /// Makes an empty store that of a cluster. Asked again with the same id it changes nothing.
    pub(super) fn init(&mut self, init: Init) -> Result<Answer, Error> {
        let done = Answer::of(outcome::Kind::Done(Default::default()));
        if self.state.server_version != 0 {
            return Ok(if self.cluster.id == init.cluster_id {
                done
            } else {
                Answer::rejected(
                    Reason::AlreadyInitialized,
                    format!("the store belongs to cluster {}", self.cluster.id),
                )
            });
        }
        if init.server_version == 0 || init.cluster_id.is_empty() {
            return Ok(Answer::rejected(
                Reason::InvalidData,
                "a cluster id and a server version other than 0 are needed",
            ));
        }
        self.state.server_version = init.server_version;
        let cluster = self.cluster_mut();
        cluster.id = init.cluster_id;
        // Not what this build knows: nodes of all releases must make the same of the same command.
        cluster.command_version = FIRST_VERSION;
        self.install_defaults()?;
        Ok(done)
    }

    /// Forgets all records, their changes and options; leases and registry stay. The keys themselves are of an earlier
    /// epoch from now on, and swept later: Clear costs the same however much there is.
    pub(super) fn clear(&mut self, clear: &Clear) -> Result<Answer, Error> {
        if clear.server_version == 0 {
            return Ok(Answer::rejected(Reason::InvalidData, "a server version other than 0 is needed"));
        }
        let old_server_version = self.state.server_version;
        self.state.server_version = clear.server_version;
        self.state.latest_record_version = 0;
        self.state.earliest_record_version = 0;
        self.state.change_log_bytes = 0;
        self.state.checkpoint_server_version = 0;
        self.state.checkpoint_record_version = 0;
        self.state.evicting.clear();
        self.state.indexing.clear();
        self.state.expiry_begins_after.clear();
        self.state.epoch = self.state.epoch.saturating_add(1);
        self.rules = super::Rules::default();
        self.changes.clear();
        self.cidr.clear();
        self.cleared = true;
        self.install_defaults()?;
        let cleared = Cleared { old_server_version, new_server_version: clear.server_version };
        Ok(Answer::of(outcome::Kind::Cleared(cleared)))
    }

    /// Goes on as the store of another cluster, of one node: with all records and their versions, but under a server
    /// version of its own, for what the lost nodes have acknowledged may be missing. Whom the old cluster has removed
    /// is its own affair.
    pub(super) fn recover(&mut self, recover: Recover) -> Answer {
        let Recover { cluster_id, server_version, name } = recover;
        if server_version == 0 || cluster_id.is_empty() {
            return Answer::rejected(Reason::InvalidData, "a cluster id and a server version other than 0 are needed");
        }
        self.state.server_version = server_version;
        let cluster = self.cluster_mut();
        cluster.id = cluster_id;
        cluster.shape.retain(|member| member.name == name);
        cluster.shape_generation = cluster.shape_generation.saturating_add(1);
        cluster.retired.clear();
        Answer::of(outcome::Kind::Done(Default::default()))
    }

    /// Stores two numbers for whoever asked.
    pub(super) fn set_checkpoint(&mut self, checkpoint: &SetCheckpoint) -> Answer {
        self.state.checkpoint_server_version = checkpoint.server_version;
        self.state.checkpoint_record_version = checkpoint.record_version;
        Answer::of(outcome::Kind::Done(Default::default()))
    }

    /// Notes who should be a voter, if the caller knew the current shape.
    pub(super) fn set_shape(&mut self, shape: SetShape) -> Answer {
        if let Err(detail) = check_shape(&shape.members) {
            return Answer::rejected(Reason::InvalidData, detail);
        }
        let accepted = shape.expected_generation == self.cluster.shape_generation;
        if accepted {
            let cluster = self.cluster_mut();
            cluster.shape_generation = cluster.shape_generation.saturating_add(1);
            cluster.shape = shape.members;
        }
        Answer::of(outcome::Kind::Reshaped(Reshaped { accepted, generation: self.cluster.shape_generation }))
    }

    /// Notes that a removed node knows it. Of a node that nobody remembers it means nothing.
    pub(super) fn confirm_retired(&mut self, confirm: &ConfirmRetired) -> Answer {
        let known = self.cluster_mut().retired.iter_mut().filter(|retired| retired.node == confirm.node);
        known.for_each(|retired| retired.confirmed = true);
        Answer::of(outcome::Kind::Done(Default::default()))
    }

    /// Notes what all voters understand. It never falls: what was proposed under it stands in the log.
    pub(super) fn raise_command_version(&mut self, raise: &RaiseCommandVersion) -> Answer {
        let version = self.cluster.command_version.max(raise.version);
        self.cluster_mut().command_version = version;
        Answer::of(outcome::Kind::Done(Default::default()))
    }

    /// Readers may share what is here: only the first change of a batch makes a copy.
    fn cluster_mut(&mut self) -> &mut Cluster {
        Arc::make_mut(&mut self.cluster)
    }

    /// Whether a node was a member and is none any longer.
    pub(super) fn is_removed(&self, node: u64) -> bool {
        self.cluster.retired.iter().any(|retired| retired.node == node)
    }

    /// Notes who is gone, and forgets the answers of origins that are. Until they hear of it they may ask again: then
    /// they are refused.
    pub(in super::super) fn change_members(&mut self, before: &Membership, after: &Membership) {
        self.memory.keep_members(after);
        note_removed(&mut self.cluster_mut().retired, before, after);
    }
}

/// Notes who is no longer a member, now that the membership changes from one to the other. A node that is a member
/// again, with its old id, is not removed: that happens only to a learner that never voted.
fn note_removed(retired: &mut Vec<RetiredNode>, before: &Membership, after: &Membership) {
    let members: BTreeSet<u64> = after.members.iter().map(|member| member.node).collect();
    retired.retain(|node| !members.contains(&node.node));
    let gone = before.members.iter().filter(|member| !members.contains(&member.node));
    retired.extend(gone.map(|member| RetiredNode {
        node: member.node,
        name: member.name.clone(),
        raft_address: member.raft_address.clone(),
        confirmed: false,
    }));
    while retired.len() > RETIRED_MAX {
        let first = retired.iter().position(|node| node.confirmed).unwrap_or(0);
        retired.remove(first);
    }
}

/// Says what is wrong with a shape: pure, so that it can be asked before a proposal too.
///
/// # Errors
/// What to do about it.
pub fn check_shape(members: &[ShapeMember]) -> Result<(), String> {
    if members.is_empty() {
        return Err("the members are missing: a cluster has at least one".into());
    }
    if members.len() > SHAPE_MEMBERS_MAX {
        return Err(format!("{} members are too many: at most {SHAPE_MEMBERS_MAX} are allowed", members.len()));
    }
    let mut names = BTreeSet::new();
    for ShapeMember { name, raft_address, grpc_address } in members {
        if name.is_empty() || raft_address.is_empty() {
            return Err(format!("the member {name:?} needs a name and the address of its peers' port"));
        }
        let longest = [name, raft_address, grpc_address].map(String::len).into_iter().max().unwrap_or(0);
        if longest > NAME_BYTES_MAX {
            return Err(format!("a name or address has {longest} bytes, more than {NAME_BYTES_MAX}"));
        }
        if !names.insert(name) {
            return Err(format!("the member {name:?} is listed twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use databroker_proto::internal::{Command, Entry, Identity, Member};
    use prost::Message as _;

    use super::{
        super::super::{Options, Position, Step, Store, command::Kind, engine::memory::Memory, keyspace::Keyspace},
        *,
    };

    fn membership(nodes: &[u64]) -> Membership {
        let member = |node: &u64| Member { node: *node, name: format!("n{node}"), ..Member::default() };
        Membership { members: nodes.iter().map(member).collect(), ..Membership::default() }
    }

    #[test]
    fn who_is_removed_is_remembered_until_a_member_again() {
        let mut retired = Vec::new();
        note_removed(&mut retired, &membership(&[1, 2, 3]), &membership(&[1, 3]));
        note_removed(&mut retired, &membership(&[1, 3]), &membership(&[1, 4]));
        assert_eq!(retired.iter().map(|r| (r.node, r.confirmed)).collect::<Vec<_>>(), [(2, false), (3, false)]);
        note_removed(&mut retired, &membership(&[1, 4]), &membership(&[1, 2, 4]));
        assert_eq!(retired.iter().map(|r| r.node).collect::<Vec<_>>(), [3]);
    }

    /// Its answers are forgotten: it might otherwise take effect a second time.
    #[test]
    fn what_a_removed_node_asks_again_is_refused() {
        let mut store = Store::open(Arc::new(Memory::new(&Keyspace::names())), &Options::default()).unwrap();
        let mut index = 0;
        let mut apply = |step: Step| {
            index += 1;
            store.apply(vec![(Position { term: 1, node: 1, index }, step)]).unwrap().remove(0).pop()
        };
        let commands = |identity: Option<Identity>, kind: Kind| {
            let commands = vec![Command { identity, kind: Some(kind) }];
            Step::Commands(Entry { command_version: 1, now_nanos: 1, commands }.encode_to_vec().into())
        };
        let clear = |origin: u64, server_version: u64| {
            commands(Some(Identity { origin, request: 5, settled: 5 }), Kind::Clear(Clear { server_version }))
        };
        let members = |nodes: &[u64]| Step::Membership(membership(nodes).encode_to_vec().into());
        apply(members(&[1, 2]));
        apply(commands(None, Kind::Init(Init { cluster_id: "c".into(), server_version: 7 })));
        let first = apply(clear(2, 8)).unwrap();
        assert_eq!(apply(clear(2, 8)).unwrap(), first);
        apply(members(&[1]));
        let again = apply(clear(2, 8)).unwrap();
        assert!(matches!(&again.outcome.kind, Some(outcome::Kind::Rejected(why)) if why.reason() == Reason::Removed));
        let other = apply(clear(1, 9)).unwrap();
        let expected = Cleared { old_server_version: 8, new_server_version: 9 };
        assert_eq!(other.outcome.kind, Some(outcome::Kind::Cleared(expected)));
    }

    #[test]
    fn the_oldest_that_confirmed_is_forgotten_first() {
        let mut retired = Vec::new();
        let all: Vec<u64> = (1..=RETIRED_MAX as u64).collect();
        note_removed(&mut retired, &membership(&all), &membership(&[100]));
        retired[7].confirmed = true;
        note_removed(&mut retired, &membership(&[100]), &membership(&[101]));
        assert_eq!(retired.len(), RETIRED_MAX);
        assert!(!retired.iter().any(|r| r.node == 8) && retired.iter().any(|r| r.node == 100));
        note_removed(&mut retired, &membership(&[101]), &membership(&[102]));
        assert!(!retired.iter().any(|r| r.node == 1), "none has confirmed: the oldest goes");
    }

    #[test]
    fn a_shape_needs_members_with_names_of_their_own_and_addresses() {
        let member = |name: &str| ShapeMember { name: name.into(), raft_address: "h:1".into(), ..Default::default() };
        assert!(check_shape(&[member("a"), member("b")]).is_ok());
        assert!(check_shape(&[]).unwrap_err().contains("missing"));
        assert!(check_shape(&[member("a"), member("a")]).unwrap_err().contains("twice"));
        assert!(check_shape(&[ShapeMember::default()]).unwrap_err().contains("address"));
        let many: Vec<_> = (0..10).map(|n| member(&n.to_string())).collect();
        assert!(check_shape(&many).unwrap_err().contains("too many"));
        assert!(check_shape(&[member(&"x".repeat(NAME_BYTES_MAX + 1))]).unwrap_err().contains("bytes"));
    }
}
