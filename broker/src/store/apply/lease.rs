//! Leases: at most one live holder of a name, by the store's time.

use databroker_proto::internal::{Lease, LeaseRow, Leased};
use prost::Message as _;

use super::{
    super::{
        Error,
        command::{Answer, outcome},
        keyspace::{Keyspace, rows},
    },
    Batch, too_long,
};

impl Batch<'_> {
    /// Takes, keeps or gives up a lease. It is granted when nobody holds it, when the same id holds it (even if it ran
    /// out), or when it ran out. A ttl that is not positive ends the lease at once: that is how it is released.
    pub(super) fn lease(&mut self, lease: &Lease) -> Result<Answer, Error> {
        let too_long = too_long("the lease's name", &lease.name).or_else(|| too_long("the lease's id", &lease.id));
        if let Some(refusal) = too_long {
            return Ok(refusal);
        }
        let key = rows::lease(&lease.name);
        let held = self.txn.get(Keyspace::Leases.space(), &key)?.map(LeaseRow::decode).transpose();
        let held = held.map_err(|error| Error::Damaged { what: format!("a lease: {error}") })?;
        let now = self.state.now_nanos;
        let acquired = held.is_none_or(|held| held.id == lease.id || held.expires_at_nanos < now);
        if acquired {
            let row = LeaseRow { id: lease.id.clone(), expires_at_nanos: now.saturating_add_signed(lease.ttl_nanos) };
            self.txn.put(Keyspace::Leases.space(), key, row.encode_to_vec());
        }
        Ok(Answer::of(outcome::Kind::Leased(Leased { acquired })))
    }
}
