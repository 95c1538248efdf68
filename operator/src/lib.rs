//! The operator: makes of each `Databroker` a cluster of brokers, and keeps it so.
//!
//! ```text
//!   controller ─▶ reconcile: validate ─▶ observe ─▶ plan ─▶ build ─▶ apply ─▶ status
//!   (when)                   pure        client     pure    pure     client   client
//! ```
//!
//! It never decides who leads: the brokers do. Without it a cluster serves and fails over; only changes of its shape wait.

pub mod api;
pub mod brokers;
pub mod check;
pub mod config;
pub mod context;
pub mod controller;
pub mod metrics;
pub mod reconcile;
pub mod resources;
