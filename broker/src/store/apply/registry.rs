//! The service registry: who reported itself, until when.

use databroker_proto::internal::{Report, ReportedService};

use super::{
    super::{
        Error,
        command::{Answer, outcome},
        keyspace::{Keyspace, rows},
    },
    Batch, too_long,
};

impl Batch<'_> {
    /// Registers services, or keeps them registered.
    pub(super) fn report(&mut self, report: &Report) -> Result<Answer, Error> {
        let refusal = |service: &ReportedService| too_long("the service's endpoint", &service.endpoint);
        if let Some(refusal) = report.services.iter().find_map(refusal) {
            return Ok(refusal);
        }
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
