//! What concerns the store as a whole: Init, Clear, the checkpoint, the shape.

use databroker_proto::internal::{Clear, Cleared, Init, Reshaped, SetCheckpoint, SetShape};

use super::{
    super::{
        Error,
        command::{Answer, COMMAND_VERSION, Reason, outcome},
    },
    Batch,
};

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
        self.cluster.id = init.cluster_id;
        self.cluster.command_version = COMMAND_VERSION;
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
        self.state.epoch = self.state.epoch.saturating_add(1);
        self.rules = super::Rules::default();
        self.changes.clear();
        self.cidr.clear();
        self.cleared = true;
        self.install_defaults()?;
        let cleared = Cleared { old_server_version, new_server_version: clear.server_version };
        Ok(Answer::of(outcome::Kind::Cleared(cleared)))
    }

    /// Stores two numbers for whoever asked.
    pub(super) fn set_checkpoint(&mut self, checkpoint: &SetCheckpoint) -> Answer {
        self.state.checkpoint_server_version = checkpoint.server_version;
        self.state.checkpoint_record_version = checkpoint.record_version;
        Answer::of(outcome::Kind::Done(Default::default()))
    }

    /// Notes who should be a voter, if the caller knew the current shape.
    pub(super) fn set_shape(&mut self, shape: SetShape) -> Answer {
        let accepted = shape.expected_generation == self.cluster.shape_generation;
        if accepted {
            self.cluster.shape_generation = self.cluster.shape_generation.saturating_add(1);
            self.cluster.shape = shape.members;
        }
        Answer::of(outcome::Kind::Reshaped(Reshaped { accepted, generation: self.cluster.shape_generation }))
    }
}
