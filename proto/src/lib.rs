//! The interfaces of Databroker as Rust types: the public gRPC services, the broker's own disk and wire format,
//! and the descriptors of the record types that clients store.
//!
//! Not here: any logic. What a message means is decided in the broker's `store` and `server`.

mod record;

pub use record::{EncodedRecord, Record};

/// `databroker.*`: records, options, leases, streams, checkpoints.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod databroker {
    pub use crate::{EncodedRecord, Record};
    tonic::include_proto!("databroker");
}

/// `registry.*`: the service registry.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod registry {
    tonic::include_proto!("registry");
}

/// `databroker.internal.v1.*`: what lies in the replicated log.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod internal {
    tonic::include_proto!("databroker.internal.v1");
}

/// The encoded `FileDescriptorSet` of the services, for gRPC reflection.
pub const SERVICES_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/services.bin"));

/// The encoded `FileDescriptorSet` of the record types that the broker can look into (imports included).
pub const RECORDS_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/records.bin"));

/// What stands before a message's full name in an `Any`'s type URL, and in the type of most records.
pub const TYPE_URL_PREFIX: &str = "type.googleapis.com/";

/// The full message name in a type URL: what follows the last slash.
pub fn message_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}
