//! Tests one record at a time, for fields no index answers for.

use std::{cell::OnceCell, cmp::Ordering};

use super::{Comparison, Field, Filter, Operator, Value};
use crate::store::{
    inspect::{Descriptors, Opened},
    leaf::Leaf,
    path::{self, Form, Target},
};

/// A record to be tested. Its data is opened when first needed, and once.
pub struct Subject<'a> {
    record_type: &'a str,
    id: &'a str,
    data: &'a [u8],
    descriptors: &'a Descriptors,
    opened: OnceCell<Option<Opened<'a>>>,
}

impl<'a> Subject<'a> {
    /// `data` is the record's encoded `google.protobuf.Any`; no bytes mean no data. In data of a type that
    /// `descriptors` do not know, every field is absent.
    pub fn new(record_type: &'a str, id: &'a str, data: &'a [u8], descriptors: &'a Descriptors) -> Self {
        Self { record_type, id, data, descriptors, opened: OnceCell::new() }
    }

    /// Whether something at `path` passes `test`: the value, or an element of the list.
    fn any(&self, path: &[String], test: impl Fn(&Leaf<'_>) -> bool) -> bool {
        let Some(opened) = self.opened.get_or_init(|| self.descriptors.open(self.data)) else { return false };
        let mut probe = Probe { test, hit: false };
        let followed = path::follow(&opened.message, opened.bytes, path, Form::Json, &mut probe);
        followed.is_ok() && probe.hit
    }
}

struct Probe<T> {
    test: T,
    hit: bool,
}

impl<T: Fn(&Leaf<'_>) -> bool> Target for Probe<T> {
    fn put(&mut self, leaf: Leaf<'_>) {
        self.hit = (self.test)(&leaf);
    }

    fn add(&mut self, leaf: Leaf<'_>) {
        self.hit |= (self.test)(&leaf);
    }

    fn clear(&mut self) {
        self.hit = false;
    }
}

impl Filter {
    /// Whether the record is kept. `$index` is never true here: only the address index knows.
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::And(children) => !children.is_empty() && children.iter().all(|child| child.matches(subject)),
            Self::Or(children) => children.iter().any(|child| child.matches(subject)),
            Self::Not(child) => !child.matches(subject),
            Self::Compare(comparison) => comparison.matches(subject),
        }
    }
}

impl Comparison {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        let any = |test: &dyn Fn(&Leaf<'_>) -> bool| match &self.field {
            Field::Id => test(&Leaf::Text(subject.id)),
            Field::Type => test(&Leaf::Text(subject.record_type)),
            Field::Cidr => false,
            Field::Path(path) => subject.any(path, test),
        };
        if self.field == Field::Cidr {
            return false;
        }
        match (self.operator, &self.value) {
            (Operator::IsEmpty, _) => !any(&|leaf| !leaf.is_empty()),
            (Operator::IsNotEmpty, _) => any(&|leaf| !leaf.is_empty()),
            (_, Value(None)) => false,
            (Operator::DoesNotEqual, Value(Some(value))) => !any(&|leaf| leaf.equals(value)),
            (Operator::DoesNotContain, Value(Some(value))) => !any(&|leaf| contains(leaf, value)),
            (operator, Value(Some(value))) => any(&|leaf| fits(leaf, operator, value)),
        }
    }
}

fn contains(leaf: &Leaf<'_>, value: &str) -> bool {
    leaf.text().is_some_and(|text| text.contains(value))
}

/// The operators that ask for something; those that ask for its absence are put in terms of these.
fn fits(leaf: &Leaf<'_>, operator: Operator, value: &str) -> bool {
    let compare = |wanted: fn(Ordering) -> bool| leaf.compare(value).is_some_and(wanted);
    match operator {
        Operator::Equals => leaf.equals(value),
        Operator::Contains => contains(leaf, value),
        Operator::StartsWith => leaf.text().is_some_and(|text| text.starts_with(value)),
        Operator::EndsWith => leaf.text().is_some_and(|text| text.ends_with(value)),
        Operator::GreaterThan | Operator::After => compare(Ordering::is_gt),
        Operator::GreaterThanOrEqual | Operator::OnOrAfter => compare(Ordering::is_ge),
        Operator::LessThan | Operator::Before => compare(Ordering::is_lt),
        Operator::LessThanOrEqual | Operator::OnOrBefore => compare(Ordering::is_le),
        Operator::DoesNotEqual | Operator::DoesNotContain | Operator::IsEmpty | Operator::IsNotEmpty => false,
    }
}
