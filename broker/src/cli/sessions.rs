//! `sessions`: who is logged in, and logging them out.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use comfy_table::Color;
use databroker_proto::databroker::{SyncLatestRequest, sync_latest_response::Response};
use prost_types::Timestamp;
use serde::Serialize;

use super::{
    Ask,
    connect::Connection,
    failure::Failure,
    output::{Output, Styled, notice, printable},
    record::fields,
    records,
};

const SESSION: &str = "type.googleapis.com/session.Session";
const USER: &str = "type.googleapis.com/user.User";

/// Sessions whose end is nearer than this are marked.
const ENDS_SOON: Duration = Duration::from_secs(60 * 60);

/// Sessions are held in memory to be sorted: beyond this many, the rest is left out with a notice.
const SESSIONS_MAX: usize = 1_000_000;

/// Records in one call of `revoke`: deletions carry the session's data, and servers take 4 MiB.
const REVOKE_BATCH: usize = 100;

/// Show who is logged in, and log them out.
#[derive(Debug, clap::Subcommand)]
pub enum SessionsCommand {
    /// Show who is logged in: since when, until when, last seen
    List(List),
    /// End sessions, by id or by user
    Revoke(Revoke),
}

impl Ask for SessionsCommand {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        match self {
            Self::List(command) => command.run(connection, output).await,
            Self::Revoke(command) => command.run(connection, output).await,
        }
    }
}

/// The fields of `session.Session` that are shown. Not by descriptor: one pass over many sessions.
#[derive(Clone, PartialEq, prost::Message)]
struct Session {
    #[prost(string, tag = "2")]
    id: String,
    #[prost(string, tag = "3")]
    user_id: String,
    #[prost(message, optional, tag = "4")]
    expires_at: Option<Timestamp>,
    #[prost(message, optional, tag = "14")]
    issued_at: Option<Timestamp>,
    #[prost(message, optional, tag = "18")]
    accessed_at: Option<Timestamp>,
    #[prost(string, tag = "20")]
    idp_id: String,
}

/// The fields of `user.User` that are shown.
#[derive(Clone, PartialEq, prost::Message)]
struct User {
    #[prost(string, tag = "2")]
    id: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    email: String,
}

/// A session with what is known of its user.
struct Login {
    id: String,
    session: Session,
    user: User,
}

impl Login {
    /// Whether `wanted` is the user's id, email or name; capitals do not matter.
    fn is_of(&self, wanted: &str) -> bool {
        let wanted = wanted.to_lowercase();
        // Unknown names and emails are empty: nobody is meant by that.
        !wanted.is_empty()
            && [&self.session.user_id, &self.user.email, &self.user.name]
                .iter()
                .any(|text| text.to_lowercase() == wanted)
    }

    fn ended(&self, now: SystemTime) -> bool {
        self.ends(now) == Some(Duration::ZERO)
    }

    /// How long until its end; zero if that is past, None if it has none.
    fn ends(&self, now: SystemTime) -> Option<Duration> {
        let end = SystemTime::try_from(self.session.expires_at?).ok()?;
        Some(end.duration_since(now).unwrap_or_default())
    }

    /// Seconds since 1970 when it was last used, or else began.
    fn last_seen(&self) -> i64 {
        self.session.accessed_at.or(self.session.issued_at).map_or(0, |time| time.seconds)
    }
}

/// Arguments of `sessions list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Only those of this user: id, email or name
    #[arg(long)]
    pub user: Option<String>,
    /// Only those that have not ended
    #[arg(long)]
    pub active: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LoginJson {
    id: String,
    user_id: String,
    name: String,
    email: String,
    idp_id: String,
    issued_at: Option<String>,
    expires_at: Option<String>,
    accessed_at: Option<String>,
    ended: bool,
}

impl List {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        let now = output.now();
        let mut logins = logins(connection).await?;
        logins.retain(|login| self.user.as_ref().is_none_or(|user| login.is_of(user)));
        logins.retain(|login| !self.active || !login.ended(now));
        logins.sort_by_key(|login| std::cmp::Reverse(login.last_seen()));
        if !output.for_people() {
            return output.value(&logins.iter().map(|login| login_json(login, now)).collect::<Vec<_>>());
        }
        let count = logins.len();
        let rows = logins.iter().map(|login| login_row(login, output)).collect();
        output.table(&["ID", "USER", "EMAIL", "ISSUED", "EXPIRES", "LAST SEEN"], rows, "nobody is logged in")?;
        notice(&format!("{count} sessions"));
        Ok(())
    }
}

fn login_json(login: &Login, now: SystemTime) -> LoginJson {
    let text = |time: &Option<Timestamp>| time.as_ref().map(ToString::to_string);
    LoginJson {
        id: login.id.clone(),
        user_id: login.session.user_id.clone(),
        name: login.user.name.clone(),
        email: login.user.email.clone(),
        idp_id: login.session.idp_id.clone(),
        issued_at: text(&login.session.issued_at),
        expires_at: text(&login.session.expires_at),
        accessed_at: text(&login.session.accessed_at),
        ended: login.ended(now),
    }
}

fn login_row(login: &Login, output: &Output) -> Vec<Styled> {
    let name = match login.user.name.as_str() {
        "" => output.id(&login.session.user_id),
        name => printable(name),
    };
    let expires = output.time(login.session.expires_at.as_ref());
    let expires = match login.ends(output.now()) {
        Some(Duration::ZERO) => Styled::new(expires, Color::Red),
        Some(left) if left < ENDS_SOON => Styled::new(expires, Color::Yellow),
        _ => expires.into(),
    };
    vec![
        output.id(&login.id).into(),
        name.into(),
        printable(&login.user.email).into(),
        output.time(login.session.issued_at.as_ref()).into(),
        expires,
        output.time(login.session.accessed_at.as_ref()).into(),
    ]
}

/// Arguments of `sessions revoke`.
#[derive(Debug, clap::Args)]
#[group(id = "which", required = true, multiple = false)]
pub struct Revoke {
    /// Ids of sessions, or their beginnings as `list` shows them if no other session begins so
    #[arg(group = "which")]
    pub ids: Vec<String>,
    /// All sessions of this user: id, email or name
    #[arg(long, group = "which")]
    pub user: Option<String>,
}

impl Revoke {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        let logins = logins(connection).await?;
        let ids = match &self.user {
            Some(user) => of_user(&logins, user)?,
            None => self.ids.iter().map(|given| one_of(&logins, given)).collect::<Result<_, _>>()?,
        };
        for batch in ids.chunks(REVOKE_BATCH) {
            let mut found = Vec::new();
            for id in batch {
                match records::get(connection, SESSION, id).await {
                    Ok(record) => found.push(record),
                    // It ended by itself in the meantime.
                    Err(Failure::NotFound(_)) => {}
                    Err(failure) => return Err(failure),
                }
            }
            for deleted in records::delete(connection, &found).await? {
                output.line(&format!("revoked {}", printable(&deleted.id)))?;
            }
        }
        Ok(())
    }
}

fn of_user(logins: &[Login], user: &str) -> Result<Vec<String>, Failure> {
    let ids: Vec<_> = logins.iter().filter(|login| login.is_of(user)).map(|login| login.id.clone()).collect();
    match ids.is_empty() {
        true => Err(Failure::NotFound(format!("there is no session of user {user:?}"))),
        false => Ok(ids),
    }
}

fn one_of(logins: &[Login], given: &str) -> Result<String, Failure> {
    let begin = given.trim_end_matches('…');
    if let Some(exact) = logins.iter().find(|login| login.id == given) {
        return Ok(exact.id.clone());
    }
    let mut begun = logins.iter().filter(|login| !begin.is_empty() && login.id.starts_with(begin));
    match (begun.next(), begun.next()) {
        (Some(only), None) => Ok(only.id.clone()),
        (None, _) => Err(Failure::NotFound(format!("there is no session {given:?}"))),
        (Some(_), Some(_)) => Err(Failure::Usage(format!("several sessions begin with {begin:?}"))),
    }
}

/// All sessions, with their users where those are known.
async fn logins(connection: &Connection) -> Result<Vec<Login>, Failure> {
    let mut logins = Vec::new();
    for (id, session) in latest::<Session>(connection, SESSION).await? {
        logins.push(Login { id, session, user: User::default() });
    }
    let users: HashMap<_, _> = match logins.is_empty() {
        true => HashMap::new(),
        false => latest::<User>(connection, USER).await?.into_iter().collect(),
    };
    for login in &mut logins {
        login.user = users.get(&login.session.user_id).cloned().unwrap_or_default();
    }
    Ok(logins)
}

/// All records of a type, by id. Data that does not decode shows as empty: an odd session is still one.
async fn latest<M: prost::Message + Default>(
    connection: &Connection,
    r#type: &str,
) -> Result<Vec<(String, M)>, Failure> {
    let request = SyncLatestRequest { r#type: r#type.to_owned() };
    let mut stream = connection.open(connection.records().sync_latest(request)).await?;
    let mut all = Vec::new();
    while let Some(frame) = connection.next(&mut stream).await? {
        let Some(Response::Record(encoded)) = frame.response else { continue };
        let record = fields(&encoded)?;
        if all.len() == SESSIONS_MAX {
            notice(&format!("more than {SESSIONS_MAX} records of type {}: the rest is left out", r#type));
            break;
        }
        all.push((record.id, M::decode(record.data.unwrap_or_default().value.as_slice()).unwrap_or_default()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(id: &str, user: &str, email: &str) -> Login {
        Login {
            id: id.into(),
            session: Session { user_id: user.into(), ..Default::default() },
            user: User { email: email.into(), ..Default::default() },
        }
    }

    #[test]
    fn a_session_is_named_by_its_id_or_an_unambiguous_beginning() {
        let logins = [login("abc", "u", ""), login("abd", "u", ""), login("ab", "v", "")];
        assert_eq!(one_of(&logins, "ab").unwrap(), "ab");
        assert_eq!(one_of(&logins, "abc…").unwrap(), "abc");
        assert_eq!(one_of(&logins, "a").unwrap_err().exit_code(), 2);
        assert_eq!(one_of(&logins, "x").unwrap_err().exit_code(), 3);
        assert_eq!(one_of(&logins, "").unwrap_err().exit_code(), 3);
    }

    #[test]
    fn a_user_is_named_by_id_or_email_in_any_capitals() {
        let logins = [login("1", "u1", "A@x.org"), login("2", "u2", "")];
        assert_eq!(of_user(&logins, "a@X.org").unwrap(), ["1"]);
        assert_eq!(of_user(&logins, "u2").unwrap(), ["2"]);
        assert!(of_user(&logins, "u").is_err());
        assert!(of_user(&logins, "").is_err());
    }
}
