//! Which record type a person means by a short name.

use databroker_proto::{TYPE_URL_PREFIX, message_name};

use super::{connect::Connection, decode, failure::Failure};

/// Turns short names off.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct ExactArgs {
    /// Take the type as it is written, without completing `session.Session` to `type.googleapis.com/session.Session`
    #[arg(long)]
    pub(super) exact_type: bool,
}

/// The types with at least one record, sorted.
///
/// # Errors
/// Those of the call.
pub(super) async fn list(connection: &Connection) -> Result<Vec<String>, Failure> {
    Ok(connection.call(connection.records().list_types(())).await?.types)
}

/// The types that are meant by short names; the server is asked once, and only if there is a short name.
pub(super) struct Names<'a> {
    connection: &'a Connection,
    exact: ExactArgs,
    listed: Option<Vec<String>>,
}

impl<'a> Names<'a> {
    pub(super) fn new(connection: &'a Connection, exact: ExactArgs) -> Self {
        Self { connection, exact, listed: None }
    }

    /// The type that is meant by `given`.
    ///
    /// # Errors
    /// Those of the call that lists the types, and when several types have this name.
    pub(super) async fn resolve(&mut self, given: &str) -> Result<String, Failure> {
        if self.exact.exact_type || given.is_empty() || given.contains('/') {
            return Ok(given.to_owned());
        }
        let listed = match self.listed.take() {
            Some(listed) => listed,
            None => list(self.connection).await?,
        };
        resolve_among(given, self.listed.insert(listed), decode::knows)
    }
}

/// The type that is meant by `given`, if it is the only one asked for.
///
/// # Errors
/// As [`Names::resolve`].
pub(super) async fn resolve(connection: &Connection, given: &str, exact: ExactArgs) -> Result<String, Failure> {
    Names::new(connection, exact).resolve(given).await
}

fn resolve_among(given: &str, listed: &[String], knows: impl Fn(&str) -> bool) -> Result<String, Failure> {
    if listed.iter().any(|listed| listed == given) {
        return Ok(given.to_owned());
    }
    let named: Vec<_> = listed.iter().filter(|listed| message_name(listed) == given).collect();
    match named[..] {
        [only] => Ok(only.clone()),
        [] if knows(given) => Ok(format!("{TYPE_URL_PREFIX}{given}")),
        [] => Ok(given.to_owned()),
        _ => Err(Failure::Usage(format!("{given:?} may be any of the types {named:?}: write one of them in full"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(given: &str, listed: &[&str]) -> Option<String> {
        let listed: Vec<_> = listed.iter().map(|name| (*name).to_owned()).collect();
        resolve_among(given, &listed, |name| name == "user.User").ok()
    }

    #[test]
    fn a_short_name_means_the_listed_type_of_that_name() {
        let listed = ["pomerium.io/DirectoryUser", "type.googleapis.com/session.Session"];
        assert_eq!(resolved("session.Session", &listed).as_deref(), Some(listed[1]));
        assert_eq!(resolved("DirectoryUser", &listed).as_deref(), Some(listed[0]));
    }

    #[test]
    fn a_short_name_means_a_known_type_before_there_are_records_of_it() {
        assert_eq!(resolved("user.User", &[]).as_deref(), Some("type.googleapis.com/user.User"));
        assert_eq!(resolved("custom", &[]).as_deref(), Some("custom"));
    }

    #[test]
    fn a_type_that_is_listed_as_written_wins() {
        assert_eq!(resolved("a", &["a", "x/a"]).as_deref(), Some("a"));
        assert_eq!(resolved("a", &["x/a", "y/a"]), None);
    }
}
