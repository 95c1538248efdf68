//! The `Databroker` resource: what people write (`databroker`), what they are told (`status`), and the definition that
//! the API server gets (`definition`).
//!
//! Not here: what follows from it (`reconcile`). Imports nothing else of this crate.

pub mod databroker;
pub mod definition;
pub mod status;

pub use databroker::{Databroker, DatabrokerSpec};
pub use status::DatabrokerStatus;

#[cfg(test)]
mod tests;
