//! The service registry: who reported itself, until when.

use std::{collections::BTreeSet, ops::Bound};

use bytes::Bytes;
use databroker_proto::internal::{Report, ReportedService};

use super::{
    super::{
        Error,
        command::{self, Answer, REGISTRY_BYTES_MAX, outcome},
        keyspace::{Keyspace, rows},
        machine::damaged,
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
        let bytes = self.registry_bytes_with(report)?;
        if bytes > REGISTRY_BYTES_MAX {
            return Ok(Answer::of(outcome::Kind::Rejected(command::registry_full(bytes))));
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

    /// What the registry will hold. It is read for this: it is small, because this bounds it.
    fn registry_bytes_with(&self, report: &Report) -> Result<usize, Error> {
        let reported = report.services.iter().map(|service| rows::service(service.kind, &service.endpoint));
        let mut keys: BTreeSet<Bytes> = reported.collect();
        for item in self.txn.range(Keyspace::Services.space(), (Bound::Unbounded, Bound::Unbounded)) {
            keys.insert(item?.0);
        }
        let mut bytes = 0;
        for key in &keys {
            let (_, endpoint) = rows::read_service(key).map_err(|error| damaged("a service's key", error))?;
            bytes += command::service_bytes(&endpoint);
        }
        Ok(bytes)
    }
}
