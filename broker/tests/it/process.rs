//! The binary as a person or an init system sees it: output, files, signals, exit codes.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use databroker_proto::databroker::{SyncRequest, data_broker_service_client::DataBrokerServiceClient};
use tonic::{service::interceptor::InterceptedService, transport::Endpoint};

use crate::broker::{PATIENCE, Token, key, put, record, soon};

fn databroker(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_databroker"));
    command.env_clear().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A broker with its own folder and free ports; killed if the test fails.
struct Process {
    child: Child,
    url: String,
    greeting: String,
}

impl Process {
    fn start(folder: &Path, more: &[&str]) -> Self {
        let mut command = databroker(&["serve", "--grpc-address=127.0.0.1:0", "--health-check-addr=127.0.0.1:0"]);
        command.arg("--databroker-storage-connection-string").arg(folder).args(more).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut greeting = String::new();
        for line in lines {
            greeting += &format!("{line}\n");
            if line.starts_with("Next") {
                break;
            }
        }
        let url = greeting.split_whitespace().find(|word| word.starts_with("http://")).unwrap_or_default().to_owned();
        Self { child, url, greeting }
    }

    fn signal(&self, name: &str) {
        let killed = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
    }

    fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn whatever_the_broker_makes_is_private() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("data");
    let process = Process::start(&folder, &[]);
    let mut folders = vec![folder];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            // The engine may remove a file meanwhile.
            let Ok(metadata) = entry.metadata() else { continue };
            assert_eq!(metadata.permissions().mode() & 0o077, 0, "{}", entry.path().display());
            if metadata.is_dir() { folders.push(entry.path()) } else { files += 1 }
        }
    }
    assert!(files > 5, "only {files} files");
    drop(process);
}

#[test]
fn the_first_start_generates_a_secret_and_says_what_to_do_next() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("data");
    let mut process = Process::start(&folder, &[]);
    let secret = folder.join("shared_secret");
    assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    let generated = fs::read_to_string(&secret).unwrap();
    assert_eq!(generated.len(), 44);
    assert!(process.greeting.contains("generated into") && !process.greeting.contains(&generated));
    assert!(!process.url.ends_with(":0"), "{}", process.url);
    assert_eq!(fs::read_to_string(folder.join("address")).unwrap(), process.url);
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0));

    let mut again = Process::start(&folder, &[]);
    assert_eq!(fs::read_to_string(&secret).unwrap(), generated);
    assert!(!again.greeting.contains("generated into"));
    again.signal("INT");
    assert_eq!(again.wait().code(), Some(0));
}

#[test]
fn a_folder_has_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let _first = Process::start(folder.path(), &[]);
    let path = folder.path().to_str().unwrap();
    let mut second = databroker(&["serve", "--grpc-address=127.0.0.1:0", "--health-check-addr=127.0.0.1:0"]);
    let second = second.args(["--databroker-storage-connection-string", path]).output().unwrap();
    assert!(!second.status.success());
    let error = String::from_utf8(second.stderr).unwrap();
    assert!(error.contains("in use by another process") && error.contains(path), "{error}");
}

#[tokio::test]
async fn a_signal_ends_open_streams_with_unavailable_and_what_was_acknowledged_is_there_again() {
    let folder = tempfile::tempdir().unwrap();
    let secret = key().to_base64();
    let more = ["--shared-secret", &secret, "--shutdown-grace-period", "15s"];
    let mut process = Process::start(folder.path(), &more);
    let connect = |url: String| async move {
        let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
        DataBrokerServiceClient::new(InterceptedService::new(channel, Token))
    };
    let client = &mut connect(process.url.clone()).await;
    let server_version = put(client, vec![record("t", "a", "1")]).await.server_version;
    let request = SyncRequest { server_version, record_version: 1, ..SyncRequest::default() };
    let mut stream = client.sync(request).await.unwrap().into_inner();
    process.signal("TERM");
    assert_eq!(soon(stream.message()).await.unwrap_err().code(), tonic::Code::Unavailable);
    assert_eq!(process.wait().code(), Some(0));

    let again = Process::start(folder.path(), &more);
    let client = &mut connect(again.url.clone()).await;
    let info = client.server_info(()).await.unwrap().into_inner();
    assert_eq!((info.server_version, info.latest_record_version), (server_version, 1));
}

#[test]
fn a_wrong_configuration_is_told() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("data");
    for (arguments, text) in [
        (&["--databroker-storage-type=postgres"][..], "databroker export"),
        (&["--databroker-cluster-node-id=a"], "NO_CLUSTER_NODES"),
        (&["--grpc-address=0.0.0.0:0"], "grpc_insecure"),
        (&["--config=/nowhere.yaml"], "/nowhere.yaml"),
        (&["--certificate-file=/nowhere.pem", "--certificate-key-file=/nowhere.key"], "/nowhere.pem"),
    ] {
        let mut command = databroker(&["serve", "--grpc-address=127.0.0.1:0", "--health-check-addr=127.0.0.1:0"]);
        if arguments[0].starts_with("--grpc-address") {
            command = databroker(&["serve"]);
        }
        let output =
            command.arg("--databroker-storage-connection-string").arg(&folder).args(arguments).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(text), "{arguments:?}: {error}");
    }
}

#[test]
fn the_configuration_can_be_checked_and_printed() {
    let output = databroker(&["config", "print", "--log-level=debug"]).env("SHARED_SECRET", key().to_base64()).output();
    let printed = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(printed.contains("log_level: \"debug\"  # flag --log-level"), "{printed}");
    assert!(printed.contains("# environment SHARED_SECRET") && !printed.contains(&key().to_base64()), "{printed}");
    assert!(databroker(&["config", "check"]).status().unwrap().success());
    let mut output = databroker(&["config", "check", "--durability=maybe"]).spawn().unwrap();
    let mut error = String::new();
    output.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert!(!output.wait().unwrap().success() && error.contains("`durability` (flag --durability)"), "{error}");
}

#[test]
fn files_that_cannot_be_used_are_told_by_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let malformed = folder.path().join("secret");
    std::fs::write(&malformed, "too short").unwrap();
    let malformed = format!("--shared-secret-file={}", malformed.display());
    for (arguments, text) in [
        (&["--shared-secret-file=/nowhere"][..], "/nowhere"),
        (&[&malformed], "secret: "),
        (&["--certificate-file=/nowhere.pem", "--certificate-key-file=/nowhere.key"], "/nowhere.pem"),
    ] {
        let output = databroker(&["config", "check"]).args(arguments).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(text), "{arguments:?}: {error}");
    }
}

/// A client that connects, and then neither speaks nor listens.
fn frozen_client(process: &Process) -> std::net::TcpStream {
    use std::io::Write as _;
    let address = process.url.trim_start_matches("http://");
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    socket.read_exact(&mut [0; 9]).unwrap();
    socket
}

#[test]
fn a_frozen_client_is_not_waited_for_beyond_the_grace_period() {
    let folder = tempfile::tempdir().unwrap();
    // A third of it is kept for what comes after the clients: enough of that on a slow machine, too.
    let grace = Duration::from_secs(9);
    let mut process = Process::start(folder.path(), &["--shutdown-grace-period=9s"]);
    let _frozen = frozen_client(&process);
    let signalled = Instant::now();
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0));
    // Whatever is left to write is written within the period, too.
    assert!(signalled.elapsed() < grace, "{:?}", signalled.elapsed());
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(folder.path(), &["--shutdown-grace-period=10m"]);
    let _frozen = frozen_client(&process);
    process.signal("TERM");
    // Signals of one kind merge while the first is not taken yet: the port tells when it was.
    let address = process.url.trim_start_matches("http://").to_owned();
    let started = Instant::now();
    while std::net::TcpStream::connect(&address).is_ok() {
        assert!(started.elapsed() < PATIENCE, "the port stays open");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(process.child.try_wait().unwrap().is_none());
    process.signal("INT");
    assert_eq!(process.wait().code(), Some(130));
}
