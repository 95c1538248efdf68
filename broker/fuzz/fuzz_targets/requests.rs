//! Every request message: what decodes keeps its meaning when it is encoded again, and each record in it is either
//! refused, or readable as it would be stored.
#![no_main]

use databroker::store::wire::{self, Stamp};
use databroker_proto::{EncodedRecord, databroker::*, registry};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fn decoded<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    let again = M::decode(message.encode_to_vec().as_slice()).expect("what was encoded decodes");
    // NaN is not itself, so messages with numbers are compared as text.
    assert_eq!(format!("{again:?}"), format!("{message:?}"));
    Some(message)
}

fn check_records(records: &[EncodedRecord]) {
    for record in records {
        if wire::validate(record).is_ok() {
            let parts = wire::parse(record.as_bytes()).expect("a valid record can be taken apart");
            let stamp = Stamp { version: 1, now_nanos: 1, deleted: parts.deleted };
            let stored = EncodedRecord::from_bytes(wire::assemble(&parts, stamp));
            // Not what was sent: a field in pieces, each broken, may be whole when joined.
            stored.to_record().expect("what is stored is readable");
        }
    }
}

fuzz_target!(|input: (u8, &[u8])| {
    let (method, bytes) = input;
    match method % 13 {
        0 => check_records(&decoded::<PutRequest>(bytes).unwrap_or_default().records),
        1 => check_records(&decoded::<PatchRequest>(bytes).unwrap_or_default().records),
        2 => _ = decoded::<QueryRequest>(bytes),
        3 => _ = decoded::<GetRequest>(bytes),
        4 => _ = decoded::<SyncRequest>(bytes),
        5 => _ = decoded::<SyncLatestRequest>(bytes),
        6 => _ = decoded::<SetOptionsRequest>(bytes),
        7 => _ = decoded::<AcquireLeaseRequest>(bytes),
        8 => _ = decoded::<RenewLeaseRequest>(bytes),
        9 => _ = decoded::<SetCheckpointRequest>(bytes),
        10 => _ = decoded::<registry::ListRequest>(bytes),
        11 => _ = registry::RegisterRequest::decode(bytes),
        _ => check_records(&[EncodedRecord::from_bytes(bytes.to_vec())]),
    }
});
