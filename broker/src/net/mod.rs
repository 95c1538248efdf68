//! What both ports share, that of clients and that of peers: connections within bounds, and files that change.
//!
//! Not here: who may do what, and what a request means.

mod expiry;
mod files;
mod greeting;
mod listener;
mod pem;
mod reason;

pub use expiry::Certificates;
pub(crate) use expiry::Shown;
pub(crate) use files::watch_files;
pub(crate) use listener::{Bounds, Caller, Listener, Standing, accept, bind};
pub(crate) use pem::{PemError, certificates, certified};
pub(crate) use reason::{reason, tls_error};
