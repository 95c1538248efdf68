//! What goes wrong on the way to a server, and what the tools say to it.

use std::fs;

use tempfile::TempDir;
use tonic::transport::Identity;

use super::{Printed, run_line};
use crate::cli::{
    failure::Failure,
    standin::{Standin, key},
};

#[tokio::test]
async fn a_wrong_secret_is_exit_code_4() {
    let server = Standin::start().await;
    let (address, secret) = (server.address.to_string(), "A".repeat(43) + "=");
    let error = run_line(&["types", "--address", &address, "--shared-secret", &secret], Printed::default()).await;
    let error = error.unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    assert!(error.to_string().contains("--shared-secret-file"), "{error}");
}

#[tokio::test]
async fn no_server_is_exit_code_5_and_asks_whether_it_runs() {
    let server = Standin::start().await;
    let address = server.address;
    server.stop().await;
    let line = ["info", "--address", &address.to_string(), "--shared-secret", &key().to_base64()];
    let error = run_line(&line, Printed::default()).await.unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
    assert!(error.to_string().contains("databroker serve"), "{error}");
}

#[tokio::test]
async fn an_address_at_which_nobody_listens_any_more_fails_no_call() {
    let (stays, goes) = (Standin::start().await, Standin::start().await);
    let addresses = [format!("{},{}", stays.address, goes.address), format!("{},{}", goes.address, stays.address)];
    goes.stop().await;
    for address in &addresses {
        // It makes several calls, which take turns.
        let line = ["info", "--address", address, "--shared-secret", &key().to_base64()];
        run_line(&line, Printed::default()).await.unwrap();
    }
}

fn certificate() -> (Identity, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    (Identity::from_pem(made.cert.pem(), made.signing_key.serialize_pem()), made.cert.pem())
}

async fn tls_error(line: &[&str]) -> Failure {
    let secret = key().to_base64();
    let line: Vec<_> = ["types", "--shared-secret", &secret].iter().chain(line).copied().collect();
    run_line(&line, Printed::default()).await.unwrap_err()
}

#[tokio::test]
async fn a_mismatch_of_tls_is_explained_both_ways() {
    let folder = TempDir::new().unwrap();
    let (identity, pem) = certificate();
    let ca_file = folder.path().join("ca.pem");
    fs::write(&ca_file, pem).unwrap();
    let ca_file = ca_file.to_str().unwrap();
    let (plain, tls) = (Standin::start().await, Standin::start_tls(identity).await);

    let error = tls_error(&["--address", &format!("https://{}", plain.address), "--ca-file", ca_file]).await;
    assert!(error.to_string().contains("does not speak TLS: use http://"), "{error}");
    assert_eq!(error.exit_code(), 5);

    let error = tls_error(&["--address", &format!("http://{}", tls.address)]).await;
    assert!(error.to_string().contains(&format!("https://{}", tls.address)), "{error}");
    assert_eq!(error.exit_code(), 5);

    let error = tls_error(&["--address", &format!("https://{}", tls.address), "--ca-file", ca_file]).await;
    assert!(error.to_string().contains("--server-name"), "{error}");

    let (_, other) = certificate();
    let other_file = folder.path().join("other.pem");
    fs::write(&other_file, other).unwrap();
    let address = format!("https://localhost:{}", tls.address.port());
    let error = tls_error(&["--address", &address, "--ca-file", other_file.to_str().unwrap()]).await;
    assert!(error.to_string().contains("--ca-file"), "{error}");

    let address = format!("https://{}", tls.address);
    let secret = key().to_base64();
    let line = [
        "types",
        "--shared-secret",
        &secret,
        "--address",
        &address,
        "--ca-file",
        ca_file,
        "--server-name",
        "localhost",
    ];
    run_line(&line, Printed::default()).await.unwrap();
}

#[tokio::test]
async fn a_missing_secret_is_wrong_usage() {
    let folder = TempDir::new().unwrap();
    let error =
        run_line(&["types", "--data-dir", folder.path().to_str().unwrap()], Printed::default()).await.unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    let error = run_line(&["types", "--shared-secret", "c2hvcnQ=", "--address", "127.0.0.1:1"], Printed::default())
        .await
        .unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(!error.to_string().contains("c2hvcnQ"), "{error}");
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let line = ["types", "--address", &address, "--shared-secret", &key().to_base64(), "--timeout", "200ms"];
    let error = run_line(&line, Printed::default()).await.unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
}
