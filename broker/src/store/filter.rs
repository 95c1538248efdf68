//! (to come)

/// (to come)
#[derive(Clone, Debug)]
pub struct Filter {}
