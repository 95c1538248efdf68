//! The databroker: a replicated record store behind a gRPC interface, and the tools to look into it.
//!
//! ```text
//!  gRPC ─▶ server ─▶ node ─▶ raft (log, majority) ─▶ store.apply ─▶ engine
//!            │         └─ reads: node.fence ─▶ store snapshot
//!  store ─(watch: progress, shared tail)─▶ server::sync ─▶ clients
//!  cli ─▶ any server that speaks the interface
//! ```
//!
//! Calls go to the right; news comes back only as `watch` values.

// A lock or an unwrap is judged where it is written; tests may fail loudly.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod cli;
pub mod config;
pub mod jwt;
pub mod mutation;
mod net;
pub mod node;
pub mod peer;
pub mod raft;
pub mod run;
pub mod server;
pub mod shutdown;
pub mod store;
pub mod telemetry;
