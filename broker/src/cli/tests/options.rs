//! `options`.

use serde_json::json;

use super::{TEST, record, tool, tool_json};
use crate::cli::standin::Standin;

#[tokio::test]
async fn options_change_one_by_one() {
    let server = Standin::start().await;
    server.store.lock().put(&record(TEST, "1", b""));
    tool(&server, &["options", "set", "test.Test", "--capacity", "5", "--index", "a,b.c"]).await.unwrap();
    tool(&server, &["options", "set", "test.Test", "--ttl", "15m"]).await.unwrap();
    let expected = json!([{"type": TEST, "options": {"capacity": 5, "indexableFields": ["a", "b.c"], "ttl": "900s"}}]);
    assert_eq!(tool_json(&server, &["options", "get", "test.Test"]).await, expected);
    assert_eq!(tool_json(&server, &["options", "list"]).await, expected);
    tool(&server, &["options", "clear", "test.Test"]).await.unwrap();
    assert_eq!(tool(&server, &["options", "get", "test.Test"]).await.unwrap_err().exit_code(), 3);
}
