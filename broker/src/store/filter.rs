//! (to come)
use super::inspect::Descriptors;
/// (to come)
#[derive(Clone, Debug)]
pub enum Filter {
    /// (to come)
    And(Vec<Filter>),
    /// (to come)
    Or(Vec<Filter>),
    /// (to come)
    Not(Box<Filter>),
    /// (to come)
    Compare(Comparison),
}
/// (to come)
#[derive(Clone, Debug)]
pub struct Comparison {
    /// (to come)
    pub field: Field,
    /// (to come)
    pub operator: Operator,
    /// (to come)
    pub value: Value,
}
/// (to come)
#[derive(Clone, Debug)]
pub struct Value(Option<String>);
impl Value {
    /// (to come)
    pub fn as_text(&self) -> Option<&str> {
        self.0.as_deref()
    }
}
/// (to come)
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// (to come)
    Id,
    /// (to come)
    Cidr,
    /// (to come)
    Path(Vec<String>),
}
/// (to come)
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operator {
    /// (to come)
    Equals,
}
/// (to come)
pub struct Subject<'a>(&'a str);
impl<'a> Subject<'a> {
    /// (to come)
    pub fn new(t: &'a str, _: &'a str, _: &'a [u8], _: &'a Descriptors) -> Self {
        Self(t)
    }
}
impl Filter {
    /// (to come)
    pub fn parse(_: &prost_types::Struct) -> Result<Self, Error> {
        Err(Error {})
    }
    /// (to come)
    pub fn matches(&self, s: &Subject<'_>) -> bool {
        s.0.is_empty()
    }
}
/// (to come)
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct Error {}
