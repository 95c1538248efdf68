//! The deterministic state machine: records, indexes, change log, options, leases, registry, checkpoint.
//!
//! ```text
//!   raft::machine ──▶ Store::apply(steps) ──▶ engine (one batch per call, position included)
//!                          │ publishes
//!                          ▼
//!   server ──▶ Reader::snapshot() ──▶ Snapshot: get, query, scan, changes      Tail: newest changes in memory
//! ```
//!
//! `apply` is a function of the store and the command alone: no clock, no random number, no environment, no floating
//! point, no iteration over a hash map. Stores at the same position are byte-equal on all nodes.
//!
//! Not here: gRPC, Raft, tasks, clocks. The API is synchronous and blocks; nothing is spawned.

pub mod apply;
pub mod cache;
pub mod cidr;
pub mod codec;
pub mod command;
pub mod dump;
pub mod engine;
mod fields;
pub mod filter;
pub mod inspect;
pub mod keyspace;
mod leaf;
pub mod mask;
pub mod migrate;
mod path;
pub mod query;
pub mod snapshot;
pub mod tail;
pub mod text;
pub mod transfer;
pub mod txn;
pub mod wire;

#[cfg(test)]
mod capacity_tests;
#[cfg(test)]
mod indexing_tests;
#[cfg(test)]
mod limits_tests;
mod machine;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod strategies;
#[cfg(test)]
mod sweep_tests;

pub use apply::check_shape;
pub use machine::{Error, Options, Position, Step, Store};
pub use snapshot::{Progress, Reader, Snapshot};
