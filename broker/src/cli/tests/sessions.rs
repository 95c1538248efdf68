//! `sessions`.

use std::time::SystemTime;

use databroker_proto::{EncodedRecord, Record};
use prost_types::{Any, Timestamp};
use serde_json::json;

use super::{tool, tool_json};
use crate::cli::standin::Standin;

/// Encoded `session.Session`: id, user_id, expires_at.
fn session(id: &str, user: &str, expires_in: i64) -> EncodedRecord {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    let mut bytes = Vec::new();
    prost::encoding::string::encode(2, &id.to_owned(), &mut bytes);
    prost::encoding::string::encode(3, &user.to_owned(), &mut bytes);
    prost::encoding::message::encode(4, &Timestamp { seconds: now + expires_in, nanos: 0 }, &mut bytes);
    stored("session.Session", id, bytes)
}

fn user(id: &str, name: &str, email: &str) -> EncodedRecord {
    let mut bytes = Vec::new();
    prost::encoding::string::encode(3, &name.to_owned(), &mut bytes);
    prost::encoding::string::encode(4, &email.to_owned(), &mut bytes);
    stored("user.User", id, bytes)
}

fn stored(message: &str, id: &str, value: Vec<u8>) -> EncodedRecord {
    let type_url = format!("type.googleapis.com/{message}");
    let data = Some(Any { type_url: type_url.clone(), value });
    EncodedRecord::from(Record { r#type: type_url, id: id.into(), data, ..Default::default() })
}

#[tokio::test]
async fn sessions_are_listed_with_their_users_and_revoked_by_id_or_user() {
    let server = Standin::start().await;
    for record in [
        session("aaa-1", "u1", 7200),
        session("aab-2", "u1", -10),
        session("bbb-3", "u2", 60),
        user("u1", "Some One", "one@example.com"),
    ] {
        server.store.lock().put(&record);
    }
    let all = tool_json(&server, &["sessions", "list"]).await;
    assert_eq!(all.as_array().unwrap().len(), 3);
    let active = tool_json(&server, &["sessions", "list", "--active", "--user", "ONE@example.com"]).await;
    assert_eq!(active.as_array().unwrap().len(), 1);
    assert_eq!(
        (&active[0]["id"], &active[0]["name"], &active[0]["ended"]),
        (&json!("aaa-1"), &json!("Some One"), &json!(false))
    );
    let table = tool(&server, &["sessions", "list"]).await.unwrap();
    assert!(table.contains("Some One") && table.contains("one@example.com") && table.contains("ago"), "{table}");

    const SESSION: &str = "type.googleapis.com/session.Session";
    assert_eq!(tool(&server, &["sessions", "revoke", "aa"]).await.unwrap_err().exit_code(), 2);
    tool(&server, &["sessions", "revoke", "bb"]).await.unwrap();
    assert_eq!(server.store.lock().ids(SESSION), ["aaa-1", "aab-2"]);
    tool(&server, &["sessions", "revoke", "--user", "one@example.com"]).await.unwrap();
    assert!(server.store.lock().ids(SESSION).is_empty());
    assert_eq!(tool(&server, &["sessions", "revoke", "--user", "u1"]).await.unwrap_err().exit_code(), 3);
}
