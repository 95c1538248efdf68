//! The tools as processes of their own: what they read and write on pipes and on terminals, and how they take signals.

use std::{
    fs::File,
    io::Read as _,
    process::Stdio,
    thread::{self, JoinHandle},
};

use databroker_proto::{EncodedRecord, Record};
use prost_types::{Any, Timestamp};
use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Signal, kill_process},
    pty::{self, OpenptFlags},
    termios::{self, Winsize},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
};

use crate::broker::{Broker, deleted, key, put, record, soon};

/// How a control sequence begins. All colours are some.
const CONTROL: &str = "\x1b[";

/// A terminal, and what appears on it.
struct Terminal {
    device: File,
    shown: JoinHandle<String>,
}

impl Terminal {
    fn open() -> Self {
        let mut master = File::from(pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap());
        pty::grantpt(&master).unwrap();
        pty::unlockpt(&master).unwrap();
        termios::tcsetwinsize(&master, Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let name = pty::ptsname(&master, Vec::new()).unwrap();
        let device = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        // Read as it comes, because a terminal holds little. The end comes as an error, when nobody has it open any more.
        let shown = thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = master.read_to_end(&mut bytes);
            String::from_utf8(bytes).unwrap()
        });
        Self { device: device.into(), shown }
    }

    fn stdio(&self) -> Stdio {
        self.device.try_clone().unwrap().into()
    }

    /// Everything written to it. No process has it open any more.
    fn shown(self) -> String {
        drop(self.device);
        self.shown.join().unwrap()
    }
}

fn tool(broker: &Broker, line: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_databroker"));
    command.kill_on_drop(true).env_clear().args(line).stdin(Stdio::null()).env("TERM", "xterm-256color");
    command.env("DATABROKER_ADDRESS", broker.addresses.grpc.to_string()).env("SHARED_SECRET", key().to_base64());
    command
}

/// What it writes to pipes.
async fn piped(mut command: Command) -> (String, String) {
    let output = soon(command.output()).await.unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{command:?}: {stderr}");
    (stdout, stderr)
}

/// What it shows on a terminal.
async fn on_terminal(mut command: Command) -> String {
    let terminal = Terminal::open();
    let status = soon(command.stdout(terminal.stdio()).stderr(terminal.stdio()).status()).await.unwrap();
    // It holds the terminal open.
    let line = format!("{command:?}");
    drop(command);
    let shown = terminal.shown();
    assert!(status.success(), "{line}: {shown}");
    shown
}

/// A session that ended long ago, which is told in a colour.
fn ended_session() -> EncodedRecord {
    let mut value = Vec::new();
    prost::encoding::string::encode(2, &"s".to_owned(), &mut value);
    prost::encoding::message::encode(4, &Timestamp { seconds: 1, nanos: 0 }, &mut value);
    let type_url = "type.googleapis.com/session.Session".to_owned();
    let data = Some(Any { type_url: type_url.clone(), value });
    EncodedRecord::from(Record { r#type: type_url, id: "s".into(), data, ..Record::default() })
}

#[tokio::test]
async fn a_transfer_shows_a_bar_on_a_terminal_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let file = file.to_str().unwrap();
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    put(client, (0..3000).map(|number| record("t", &format!("{number}"), "x")).collect()).await;
    for (line, done) in [(&["export", "--output", file][..], "exported"), (&["import", file], "imported")] {
        let shown = on_terminal(tool(&broker, line)).await;
        assert!(shown.contains('█') && shown.contains("/3,000 "), "{line:?}: {shown:?}");
        let (last, before) = (shown.rfind(done).unwrap(), shown.rfind('█').unwrap());
        assert!(last > before && shown[before..].contains("\x1b[2K"), "the bar stays: {shown:?}");
        // The line is one colour, whoever asks.
        assert!(!shown.contains("\x1b[3"), "{shown:?}");

        let (stdout, stderr) = piped(tool(&broker, line)).await;
        let written = format!("{stdout}{stderr}");
        assert!(written.contains(&format!("{done} 3000 records")), "{written:?}");
        assert!(!written.contains(['█', '\r', '\x1b']), "{written:?}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn colours_are_for_terminals_whose_owners_do_not_mind() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    put(client, vec![record("t", "a", "x"), deleted("t", "a"), ended_session()]).await;
    const RED: &str = "\x1b[31m";
    let watch = ["watch", "--from", "0", "--no-follow"];
    for (line, colours) in [(&watch[..], &["\x1b[32m", RED][..]), (&["sessions", "list"], &["\x1b[38;5;9m"])] {
        let shown = on_terminal(tool(&broker, line)).await;
        assert!(colours.iter().all(|colour| shown.contains(colour)), "{line:?}: {shown:?}");
        for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let mut command = tool(&broker, line);
            command.env(name, value);
            let shown = on_terminal(command).await;
            assert!(!shown.contains(CONTROL), "{line:?} with {name}={value}: {shown:?}");
        }
        let (stdout, stderr) = piped(tool(&broker, line)).await;
        assert!(!stdout.is_empty() && !stdout.contains(CONTROL) && !stderr.contains(CONTROL), "{stdout:?} {stderr:?}");
    }
    // What programs read is never coloured.
    let shown = on_terminal(tool(&broker, &["get", "session.Session", "s", "-o", "json"])).await;
    assert!(!shown.contains(CONTROL) && shown.contains("\"@type\""), "{shown:?}");
    broker.stop().await;
}

#[tokio::test]
async fn an_export_is_not_poured_over_a_terminal() {
    let broker = Broker::start().await;
    let terminal = Terminal::open();
    let mut command = tool(&broker, &["export"]);
    let child = command.stdout(terminal.stdio()).stderr(Stdio::piped()).spawn().unwrap();
    let output = soon(child.wait_with_output()).await.unwrap();
    drop(command);
    assert_eq!((output.status.code(), terminal.shown().as_str()), (Some(2), ""));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--output"));
    broker.stop().await;
}

#[tokio::test]
async fn put_reads_standard_input() {
    let broker = Broker::start().await;
    for (number, line) in [&["put"][..], &["put", "-"], &["put", "-f", "-"]].into_iter().enumerate() {
        let mut child =
            tool(&broker, line).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let json = format!(r#"{{"type": "t/t", "id": "{number}", "data": {{"@type": "a/b", "value": ""}}}}"#);
        child.stdin.take().unwrap().write_all(json.as_bytes()).await.unwrap();
        let output = soon(child.wait_with_output()).await.unwrap();
        assert!(output.status.success(), "{line:?}: {}", String::from_utf8_lossy(&output.stderr));
        piped(tool(&broker, &["get", "t/t", &number.to_string()])).await;
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_command_under_a_lease_is_asked_to_end_when_the_tool_is() {
    let broker = Broker::start().await;
    let script = "trap 'echo asked; exit' TERM; echo ready; while :; do sleep 0.1; done";
    let mut command = tool(&broker, &["lease", "run", "l", "--duration", "30s", "--", "sh", "-c", script]);
    let mut child = command.env("PATH", "/usr/bin:/bin").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(soon(lines.next_line()).await.unwrap().as_deref(), Some("ready"));
    let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(soon(lines.next_line()).await.unwrap().as_deref(), Some("asked"));
    assert_eq!(soon(child.wait()).await.unwrap().code(), Some(143));
    // The lease was given back.
    piped(tool(&broker, &["lease", "acquire", "l"])).await;
    broker.stop().await;
}
