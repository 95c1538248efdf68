//! `lease`.

use std::{sync::Arc, time::Duration};

use tempfile::TempDir;

use super::{Printed, run_line, tool, wait_until};
use crate::cli::{
    failure::Failure,
    standin::{Standin, key},
};

#[tokio::test]
async fn a_lease_is_held_by_one() {
    let server = Standin::start().await;
    let id = tool(&server, &["lease", "acquire", "l"]).await.unwrap();
    let id = id.trim();
    assert_eq!(tool(&server, &["lease", "acquire", "l"]).await.unwrap_err().exit_code(), 1);
    tool(&server, &["lease", "renew", "l", id]).await.unwrap();
    tool(&server, &["lease", "release", "l", id]).await.unwrap();
    tool(&server, &["lease", "acquire", "l"]).await.unwrap();
}

/// `tool` puts its options last, where they would belong to the command.
async fn lease_run(server: &Standin, options: &[&str], script: &str) -> Result<(), Failure> {
    let (address, secret) = (server.address.to_string(), key().to_base64());
    let line = ["lease", "run", "l", "--address", &address, "--shared-secret", &secret];
    let line: Vec<_> = line.iter().chain(options).chain(&["--", "sh", "-c", script]).copied().collect();
    run_line(&line, Printed::default()).await
}

#[tokio::test]
async fn a_command_runs_under_a_lease_that_is_given_back() {
    let server = Standin::start().await;
    lease_run(&server, &[], "exit 0").await.unwrap();
    assert_eq!(lease_run(&server, &[], "exit 3").await.unwrap_err().exit_code(), 3);
    assert!(!server.store.lock().holds_lease("l"));
    server.store.lock().steal_lease("l");
    assert_eq!(lease_run(&server, &["--no-wait"], "exit 0").await.unwrap_err().exit_code(), 1);
}

/// Somebody else gets the lease as soon as this command has it, and it ends for that.
async fn ends_when_the_lease_is_lost(script: &str) {
    let server = Standin::start().await;
    let store = Arc::clone(&server.store);
    let thief = tokio::spawn(async move {
        wait_until("the lease is held", || store.lock().holds_lease("l")).await;
        store.lock().steal_lease("l");
    });
    let run = lease_run(&server, &["--duration", "1s"], script);
    let error = tokio::time::timeout(Duration::from_secs(20), run).await.expect("the command outlived its lease");
    assert_eq!(error.unwrap_err().exit_code(), 1);
    thief.await.unwrap();
}

#[tokio::test]
async fn a_command_is_ended_when_its_lease_is_lost() {
    ends_when_the_lease_is_lost("sleep 60").await;
}

#[tokio::test]
async fn a_command_whose_lease_is_lost_may_end_in_its_own_way() {
    let folder = TempDir::new().unwrap();
    let (ready, asked) = (folder.path().join("ready"), folder.path().join("asked"));
    let server = Standin::start().await;
    let store = Arc::clone(&server.store);
    let thief = tokio::spawn(async move {
        wait_until("the command runs", || ready.exists()).await;
        store.lock().steal_lease("l");
    });
    let script = "trap 'touch asked; exit' TERM; touch ready; while :; do sleep 0.1; done";
    let script = format!("cd '{}'; {script}", folder.path().display());
    let run = lease_run(&server, &["--duration", "3s"], &script);
    let error = tokio::time::timeout(Duration::from_secs(20), run).await.expect("the command outlived its lease");
    assert_eq!(error.unwrap_err().exit_code(), 1);
    assert!(asked.exists());
    thief.await.unwrap();
}

#[tokio::test]
async fn a_command_that_does_not_want_to_end_is_killed() {
    ends_when_the_lease_is_lost("trap '' TERM; while :; do sleep 0.1; done").await;
}
