//! (to come)
use ipnet::IpNet;
/// (to come)
#[derive(Default)]
pub struct CidrTable {}
impl CidrTable {
    /// (to come)
    pub fn insert(&mut self, _: &str, _: &str, _: IpNet) {}
    /// (to come)
    pub fn remove(&mut self, _: &str, _: &str, _: IpNet) {}
    /// (to come)
    pub fn lookup(&self, _: &str, _: &str) -> Vec<(String, String)> {
        Vec::new()
    }
}
/// (to come)
pub fn cidr_of(_: &[u8]) -> Option<IpNet> {
    None
}
