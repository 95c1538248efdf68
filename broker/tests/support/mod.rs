//! A broker as a process of its own, and a client for it. Shared by the tests that kill it and that send it rubbish.
//!
//! `DATABROKER_BINARY` names another binary than the one cargo has just built. Not here: what the tests claim.
#![allow(dead_code)]

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant, SystemTime},
};

use databroker::jwt::{METADATA_KEY, SharedKey, Signer};
use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

/// A broker that takes longer than this to serve, or to end, hangs. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The greatest message any test here sends or takes.
pub const MESSAGE_BYTES_MAX: usize = 80 << 20;

pub type Client = DataBrokerServiceClient<InterceptedService<Channel, Token>>;

/// A running broker; killed when dropped.
pub struct Broker {
    child: Child,
    folder: PathBuf,
    pub address: String,
    key: SharedKey,
}

/// A broker that ended instead of serving.
#[derive(Debug)]
pub struct Refusal {
    pub status: ExitStatus,
    pub stderr: String,
}

impl Broker {
    /// Starts a broker on a folder and waits until its address is known.
    pub fn start(folder: &Path) -> Result<Self, Refusal> {
        let _ = fs::remove_file(folder.join("address"));
        Self::start_as(Self::command(folder), folder, |_| folder.to_owned())
    }

    /// The same with another command; `seen`: where the folder of the process with an id is to be looked into.
    pub fn start_as(mut command: Command, folder: &Path, seen: impl FnOnce(u32) -> PathBuf) -> Result<Self, Refusal> {
        let mut child = launch(&mut command, folder);
        let (began, seen) = (Instant::now(), seen(child.id()));
        loop {
            if let Some(status) = child.try_wait().expect("the child can be waited for") {
                return Err(Refusal { status, stderr: fs::read_to_string(stderr_file(folder)).unwrap_or_default() });
            }
            if let Some((address, key)) = announced(&seen) {
                return Ok(Self { child, folder: folder.to_owned(), address, key });
            }
            if began.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the broker neither serves nor ends: {:?}", fs::read_to_string(stderr_file(folder)));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Starts the process and does not wait for anything.
    pub fn spawn(folder: &Path) -> Child {
        let _ = fs::remove_file(folder.join("address"));
        launch(&mut Self::command(folder), folder)
    }

    fn command(folder: &Path) -> Command {
        let mut command = Command::new(binary());
        command
            .args(["serve", "--grpc-address", "127.0.0.1:0", "--health-check-addr", "127.0.0.1:0"])
            .args(["--databroker-storage-connection-string", &format!("file://{}", folder.display())])
            .env_clear();
        command
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("the child can be waited for").is_none()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("the child can be killed");
        self.child.wait().expect("the child can be waited for");
    }

    /// SIGTERM, and how it ended.
    pub fn stop(mut self) -> ExitStatus {
        end(&mut self.child)
    }

    /// What it wrote to standard error since it started.
    pub fn stderr(&self) -> String {
        fs::read_to_string(stderr_file(&self.folder)).unwrap_or_default()
    }

    /// Its resident memory in bytes.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or(io::ErrorKind::InvalidData)?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().map_err(io::Error::other)?;
        Ok(kib << 10)
    }

    /// A connection of its own.
    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(self.address.clone()).expect("the address is a URL");
        endpoint.connect_timeout(PATIENCE).connect().await.expect("the broker takes connections")
    }

    /// A client on a connection of its own.
    pub async fn client(&self) -> Client {
        DataBrokerServiceClient::with_interceptor(self.channel().await, self.token())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub fn token(&self) -> Token {
        Token::signed(&self.key)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Adds a valid token to each call.
#[derive(Clone)]
pub struct Token(pub MetadataValue<Ascii>);

impl Token {
    /// One that is valid for some minutes.
    pub fn signed(key: &SharedKey) -> Self {
        let token = Signer::new(key).sign(SystemTime::now()).expect("a token can be signed");
        Self(token.parse().expect("a token is ASCII"))
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(METADATA_KEY, self.0.clone());
        Ok(request)
    }
}

/// Starts a process that keeps what it says in a file.
fn launch(command: &mut Command, folder: &Path) -> Child {
    let stderr = File::create(stderr_file(folder)).expect("the folder's parent is writable");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().expect("the program starts")
}

/// The binary under test.
pub fn binary() -> OsString {
    std::env::var_os("DATABROKER_BINARY").unwrap_or(env!("CARGO_BIN_EXE_databroker").into())
}

/// Sends a process a signal, by its name without `SIG`.
pub fn signal(pid: u32, signal: &str) {
    let sent = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status();
    assert!(sent.expect("kill runs").success());
}

/// SIGTERM, and how the process ended.
pub fn end(child: &mut Child) -> ExitStatus {
    signal(child.id(), "TERM");
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().expect("the child can be waited for") {
            return status;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the broker does not end on SIGTERM");
}

/// Beside the folder, so that the folder holds nothing but the broker's own.
fn stderr_file(folder: &Path) -> PathBuf {
    folder.with_extension("stderr")
}

/// The address is written last, in one go or after a file of the same name was truncated: only a whole URL counts.
fn announced(folder: &Path) -> Option<(String, SharedKey)> {
    let address = fs::read_to_string(folder.join("address")).ok()?.trim().to_owned();
    let port = address.rsplit(':').next()?;
    if !address.starts_with("http://") || port.parse::<u16>().is_err() {
        return None;
    }
    let key = SharedKey::parse(&fs::read(folder.join("shared_secret")).ok()?).ok()?;
    Some((address, key))
}
