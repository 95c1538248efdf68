//! Filters as clients write them, in JSON: what they mean, and their limits.
//!
//! | JSON | meaning |
//! |---|---|
//! | `{"f": 1, "g": 2}` | both |
//! | `{"f": [1, 2]}` | one of these |
//! | `{"f": {"g": 1}}`, `{"f.g": 1}` | the field `g` of `f` |
//! | `{"f": {">": 1}}` | a comparison; see [`Operator`] |
//! | `{"$and": […]}`, `{"$or": […]}`, `{"$not": …}` | logic, at any depth |
//! | `{"id": …}`, `{"type": …}`, `{"$index": …}` | the record's id, its type, its network |
//!
//! Whatever is empty (`{}`, `[]`, an operator without a field) matches nothing. Not here: how a record is tested
//! (`scan`), and which index answers what (`query`).

mod scan;
#[cfg(test)]
mod tests;

use prost_types::{Struct, value::Kind};

pub use scan::Subject;

use super::leaf::go_float;

/// How deep a filter may nest, and how many names a path may have.
const DEPTH_MAX: usize = 64;

/// How many values a filter may hold: each costs a comparison per record.
const NODES_MAX: usize = 10_000;

/// How long a path may be, in bytes: every comparison keeps its own.
const PATH_BYTES_MAX: usize = 1024;

/// Why a filter is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `$and` or `$or` of something else.
    #[error("{operator} must be an array")]
    NotAnArray {
        /// Which of the two.
        operator: &'static str,
    },
    /// Too many levels.
    #[error("the filter is nested more than {DEPTH_MAX} levels deep")]
    TooDeep,
    /// Too many values.
    #[error("the filter holds more than {NODES_MAX} values")]
    TooLarge,
    /// A field's path is too long.
    #[error("a field path of the filter is longer than {PATH_BYTES_MAX} bytes or {DEPTH_MAX} names")]
    PathTooLong,
}

/// What a query keeps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// All of these; of nothing, nothing.
    And(Vec<Filter>),
    /// At least one of these.
    Or(Vec<Filter>),
    /// What this does not keep.
    Not(Box<Filter>),
    /// One field and one value.
    Compare(Comparison),
}

/// One field and one value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Comparison {
    /// What is looked at.
    pub field: Field,
    /// How.
    pub operator: Operator,
    /// With what.
    pub value: Value,
}

/// What a comparison looks at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// The record's id.
    Id,
    /// The record's type.
    Type,
    /// The network the record speaks of. Only the address index answers this: a scan finds nothing.
    Cidr,
    /// A field of the record's data: the names on the way, at least one.
    Path(Vec<String>),
}

/// The value of a comparison, as text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Value(Option<String>);

impl Value {
    /// The text: a string itself, null `""`, a boolean `true` or `false`, a number as Go prints it. Lists and objects
    /// have none, and match nothing.
    pub fn as_text(&self) -> Option<&str> {
        self.0.as_deref()
    }

    fn of(kind: Option<&Kind>) -> Self {
        Self(match kind {
            None | Some(Kind::NullValue(_)) => Some(String::new()),
            Some(Kind::BoolValue(value)) => Some(value.to_string()),
            Some(Kind::NumberValue(value)) => Some(go_float(*value)),
            Some(Kind::StringValue(value)) => Some(value.clone()),
            Some(Kind::StructValue(_) | Kind::ListValue(_)) => None,
        })
    }
}

/// How a field is compared with a value.
///
/// An absent field equals and contains nothing and is neither before nor after anything; it differs from everything and
/// is empty. Of a list it is enough if one element fits, and `not` means that none does. `$isAnyOf` is no operator of
/// its own: it is read as `equals` one of the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `=`, `==`, `$eq`, `$equals`, `$is`
    Equals,
    /// `!=`, `$doesNotEqual`
    DoesNotEqual,
    /// `>`
    GreaterThan,
    /// `>=`
    GreaterThanOrEqual,
    /// `<`
    LessThan,
    /// `<=`
    LessThanOrEqual,
    /// `$after`: as `>`
    After,
    /// `$before`: as `<`
    Before,
    /// `$onOrAfter`: as `>=`
    OnOrAfter,
    /// `$onOrBefore`: as `<=`
    OnOrBefore,
    /// `$contains`: the value is part of the text
    Contains,
    /// `$doesNotContain`
    DoesNotContain,
    /// `$startsWith`
    StartsWith,
    /// `$endsWith`
    EndsWith,
    /// `$isEmpty`: absent, `""`, or null. With the value `false` it is read as `$isNotEmpty`, and the other way round.
    IsEmpty,
    /// `$isNotEmpty`
    IsNotEmpty,
}

impl Operator {
    /// The operator's name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Equals => "equals",
            Self::DoesNotEqual => "doesNotEqual",
            Self::GreaterThan => ">",
            Self::GreaterThanOrEqual => ">=",
            Self::LessThan => "<",
            Self::LessThanOrEqual => "<=",
            Self::After => "after",
            Self::Before => "before",
            Self::OnOrAfter => "onOrAfter",
            Self::OnOrBefore => "onOrBefore",
            Self::Contains => "contains",
            Self::DoesNotContain => "doesNotContain",
            Self::StartsWith => "startsWith",
            Self::EndsWith => "endsWith",
            Self::IsEmpty => "isEmpty",
            Self::IsNotEmpty => "isNotEmpty",
        }
    }

    fn parse(key: &str) -> Option<Self> {
        Some(match key {
            "=" | "==" | "$eq" | "$equals" | "$is" => Self::Equals,
            "!=" | "$doesNotEqual" => Self::DoesNotEqual,
            ">" => Self::GreaterThan,
            ">=" => Self::GreaterThanOrEqual,
            "<" => Self::LessThan,
            "<=" => Self::LessThanOrEqual,
            "$after" => Self::After,
            "$before" => Self::Before,
            "$onOrAfter" => Self::OnOrAfter,
            "$onOrBefore" => Self::OnOrBefore,
            "$contains" => Self::Contains,
            "$doesNotContain" => Self::DoesNotContain,
            "$startsWith" => Self::StartsWith,
            "$endsWith" => Self::EndsWith,
            "$isEmpty" => Self::IsEmpty,
            "$isNotEmpty" => Self::IsNotEmpty,
            _ => return None,
        })
    }

    fn with(self, value: &Value) -> Self {
        match (self, value.as_text()) {
            (Self::IsEmpty, Some("false")) => Self::IsNotEmpty,
            (Self::IsNotEmpty, Some("false")) => Self::IsEmpty,
            _ => self,
        }
    }
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn parse(filter: &Struct) -> Result<Self, Error> {
        Parser { nodes: 0, depth: 0 }.object(&[], filter)
    }

    /// Matches no record.
    fn nothing() -> Self {
        Self::Or(Vec::new())
    }

    fn all_of(mut children: Vec<Self>) -> Self {
        match children.len() {
            0 => Self::nothing(),
            1 => children.remove(0),
            _ => Self::And(children),
        }
    }

    fn any_of(mut children: Vec<Self>) -> Self {
        if children.len() == 1 { children.remove(0) } else { Self::Or(children) }
    }
}

impl Field {
    /// Names may hold dots themselves: `{"a.b": …}` is `{"a": {"b": …}}`. `None`: there is no name at all.
    fn of(path: &[&str]) -> Option<Self> {
        match path {
            [] => None,
            ["id"] => Some(Self::Id),
            ["type"] => Some(Self::Type),
            ["$index"] => Some(Self::Cidr),
            _ => Some(Self::Path(path.iter().flat_map(|name| name.split('.')).map(str::to_owned).collect())),
        }
    }
}

struct Parser {
    nodes: usize,
    depth: usize,
}

impl Parser {
    /// What stands at `path`: an object, a list of alternatives, or a scalar to equal.
    fn value(&mut self, path: &[&str], value: &prost_types::Value) -> Result<Filter, Error> {
        match &value.kind {
            Some(Kind::StructValue(object)) => self.object(path, object),
            Some(Kind::ListValue(list)) => Ok(Filter::any_of(self.each(path, &list.values)?)),
            scalar => self.compare(path, Operator::Equals, scalar.as_ref()),
        }
    }

    /// The members in the order of their keys, all of which must match.
    fn object(&mut self, path: &[&str], object: &Struct) -> Result<Filter, Error> {
        self.enter()?;
        let members = object.fields.iter().map(|(key, value)| self.member(path, key, value));
        let members = members.collect::<Result<Vec<_>, _>>()?;
        self.depth -= 1;
        Ok(Filter::all_of(members))
    }

    fn each(&mut self, path: &[&str], values: &[prost_types::Value]) -> Result<Vec<Filter>, Error> {
        self.enter()?;
        let children = values.iter().map(|value| self.value(path, value)).collect::<Result<Vec<_>, _>>()?;
        self.depth -= 1;
        Ok(children)
    }

    fn member(&mut self, path: &[&str], key: &str, value: &prost_types::Value) -> Result<Filter, Error> {
        match key {
            "$and" => Ok(Filter::all_of(self.array("$and", path, value)?)),
            "$or" => Ok(Filter::any_of(self.array("$or", path, value)?)),
            "$not" => Ok(Filter::Not(Box::new(self.value(path, value)?))),
            "$isAnyOf" => match &value.kind {
                Some(Kind::ListValue(_)) => self.value(path, value),
                kind => self.compare(path, Operator::Equals, kind.as_ref()),
            },
            _ => match Operator::parse(key) {
                Some(operator) => self.compare(path, operator, value.kind.as_ref()),
                None => self.value(&[path, &[key]].concat(), value),
            },
        }
    }

    fn array(
        &mut self,
        operator: &'static str,
        path: &[&str],
        value: &prost_types::Value,
    ) -> Result<Vec<Filter>, Error> {
        match &value.kind {
            Some(Kind::ListValue(list)) => self.each(path, &list.values),
            _ => Err(Error::NotAnArray { operator }),
        }
    }

    fn compare(&mut self, path: &[&str], operator: Operator, value: Option<&Kind>) -> Result<Filter, Error> {
        self.count()?;
        let bytes: usize = path.iter().map(|name| name.len() + 1).sum();
        let names: usize = path.iter().map(|name| name.split('.').count()).sum();
        if bytes > PATH_BYTES_MAX || names > DEPTH_MAX {
            return Err(Error::PathTooLong);
        }
        let value = Value::of(value);
        let operator = operator.with(&value);
        Ok(Field::of(path).map_or_else(Filter::nothing, |field| Filter::Compare(Comparison { field, operator, value })))
    }

    fn enter(&mut self) -> Result<(), Error> {
        self.count()?;
        self.depth += 1;
        if self.depth > DEPTH_MAX { Err(Error::TooDeep) } else { Ok(()) }
    }

    fn count(&mut self) -> Result<(), Error> {
        self.nodes += 1;
        if self.nodes > NODES_MAX { Err(Error::TooLarge) } else { Ok(()) }
    }
}
