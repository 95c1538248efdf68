//! What `databroker cluster recover` works with: the disk of a node that does not run. It is the one tool that has
//! nobody to ask, and so gets what it needs where `serve` gets it.
//!
//! Not here: what is done to the disk (`node::recover`), and the talk with people (`cli`).

use std::path::Path;

pub use crate::node::recover::{Error, Held, Stopped};

/// Takes the data folder of a stopped node.
///
/// # Errors
/// See [`Error`].
pub fn stopped(folder: &Path) -> Result<Stopped, Error> {
    super::keep_private();
    Stopped::open(folder)
}
