//! The newest changes in memory, encoded once and shared by every stream that keeps up.

use databroker_proto::EncodedRecord;

/// Consecutive changes for one stream.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// In order of version.
    pub records: Vec<EncodedRecord>,
    /// Every change of the wanted type up to this version has been returned: the next question starts here.
    pub position: u64,
    /// Nothing newer was there at the moment of the call.
    pub complete: bool,
}
