//! The workloads that ask and wait for one answer: put, get, query, patch, and a mix of them.

use bytes::Bytes;
use tonic::Status;

use super::{
    drive::Caller,
    request::{Numbers, Template},
    wire::{HoldsRecord, Lane, Lanes, Method},
};

/// One kind of call with its request prepared.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    method: Method,
    template: Template,
    /// What one call counts for.
    units: u64,
    /// Without a record in the answer the call did not do what is measured.
    must_hold_record: bool,
}

impl Operation {
    /// Puts `batch` records at once.
    pub(super) fn put(record_type: &str, size: usize, batch: usize) -> Self {
        let batch = batch.max(1);
        let template = Template::put(record_type, size, batch);
        Self { method: Method::Put, template, units: batch as u64, must_hold_record: true }
    }

    /// Reads one record by its id.
    pub(super) fn get(record_type: &str) -> Self {
        Self { method: Method::Get, template: Template::get(record_type), units: 1, must_hold_record: true }
    }

    /// Finds one record by id or address.
    pub(super) fn query(record_type: &str) -> Self {
        let template = Template::authorize_query(record_type);
        Self { method: Method::Query, template, units: 1, must_hold_record: true }
    }

    /// Touches one record.
    pub(super) fn patch(record_type: &str) -> Self {
        Self { method: Method::Patch, template: Template::touch(record_type), units: 1, must_hold_record: true }
    }

    fn request(&self, numbers: &mut Numbers) -> Bytes {
        match self.method {
            // Each record of a batch has its own id; a query has one id in two places.
            Method::Put => self.template.each(|| numbers.next()),
            _ => self.template.about(numbers.next()),
        }
    }

    async fn call(&self, lane: &mut Lane, numbers: &mut Numbers) -> Result<u64, Status> {
        let HoldsRecord(found) = lane.unary(self.method, self.request(numbers)).await?;
        if self.must_hold_record && !found {
            return Err(Status::not_found("the answer holds no record: is the store filled? (bench load)"));
        }
        Ok(self.units)
    }
}

/// Calls one operation again and again, each time about another record.
pub(super) struct Single {
    lane: Lane,
    operation: Operation,
    numbers: Numbers,
}

impl Single {
    /// `callers` of them over all lanes; records are chosen at random below `records`.
    pub(super) fn callers(lanes: &Lanes, operation: &Operation, callers: usize, records: u64) -> Vec<Self> {
        let caller =
            |n| Self { lane: lanes.lane(n), operation: operation.clone(), numbers: Numbers::new(n as u64, records) };
        (0..callers).map(caller).collect()
    }
}

impl Caller for Single {
    async fn call(&mut self) -> Result<u64, Status> {
        self.operation.call(&mut self.lane, &mut self.numbers).await
    }

    fn take_retried(&mut self) -> u64 {
        self.lane.take_retried()
    }
}

/// Prepares an operation for records of a type and size.
type Prepare = fn(&str, usize) -> Operation;

/// How a busy access proxy uses its databroker: mostly queries, some reads, session touches, few writes.
/// Shares of a hundred calls.
const MIX: [(Prepare, u64); 4] = [
    (|record_type, _| Operation::query(record_type), 70),
    (|record_type, _| Operation::get(record_type), 15),
    (|record_type, _| Operation::patch(record_type), 10),
    (|record_type, size| Operation::put(record_type, size, 1), 5),
];

/// What [`Mixed`] does, in words.
pub(super) const MIX_SHARES: &str = "70 % query, 15 % get, 10 % patch, 5 % put";

/// Calls the operations of [`MIX`] at random.
pub(super) struct Mixed {
    lane: Lane,
    operations: Vec<(Operation, u64)>,
    choice: Numbers,
    numbers: Numbers,
}

impl Mixed {
    /// As [`Single::callers`].
    pub(super) fn callers(lanes: &Lanes, record_type: &str, size: usize, callers: usize, records: u64) -> Vec<Self> {
        let operations: Vec<_> = MIX.iter().map(|(make, share)| (make(record_type, size), *share)).collect();
        let caller = |n| Self {
            lane: lanes.lane(n),
            operations: operations.clone(),
            choice: Numbers::new(n as u64 + 1_000_000, 100),
            numbers: Numbers::new(n as u64, records),
        };
        (0..callers).map(caller).collect()
    }

    fn choose(operations: &[(Operation, u64)], mut point: u64) -> Option<&Operation> {
        for (operation, share) in operations {
            if point < *share {
                return Some(operation);
            }
            point -= share;
        }
        None
    }
}

impl Caller for Mixed {
    async fn call(&mut self) -> Result<u64, Status> {
        let point = self.choice.next();
        match Self::choose(&self.operations, point) {
            Some(operation) => operation.call(&mut self.lane, &mut self.numbers).await,
            None => Err(Status::internal("the shares of the mix do not add up to 100")),
        }
    }

    fn take_retried(&mut self) -> u64 {
        self.lane.take_retried()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_covers_every_point_of_a_hundred() {
        let operations: Vec<_> = MIX.iter().map(|(make, share)| (make("t", 200), *share)).collect();
        let queries =
            (0..100).filter(|point| Mixed::choose(&operations, *point).unwrap().method == Method::Query).count();
        assert_eq!(queries, 70);
        assert!(Mixed::choose(&operations, 100).is_none());
    }
}
