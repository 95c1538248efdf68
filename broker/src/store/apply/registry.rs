//! The service registry: who reported itself, until when.

use databroker_proto::internal::Report;

use super::{
    super::{
        Error,
        command::{Answer, outcome},
        keyspace::{Keyspace, rows},
    },
    Batch,
};

impl Batch<'_> {
    /// Registers services, or keeps them registered.
    pub(super) fn report(&mut self, report: &Report) -> Result<Answer, Error> {
        let expiry = self.state.now_nanos.saturating_add_signed(report.ttl_nanos);
        for service in &report.services {
            self.txn.put(
                Keyspace::Services.space(),
                rows::service(service.kind, &service.endpoint),
                rows::number(expiry),
            );
        }
        if !report.services.is_empty() {
            self.state.services_generation = self.state.services_generation.saturating_add(1);
        }
        Ok(Answer::of(outcome::Kind::Done(Default::default())))
    }
}
