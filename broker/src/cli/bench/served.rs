//! A server of this very binary in a temporary folder, to be measured and thrown away.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    super::{
        child::{Folder, Process},
        connect::{ADDRESS_FILE, ConnectArgs},
        failure::Failure,
    },
    follow::versions,
    wire::Lanes,
};

/// A server that needs longer than this to answer is broken; the largest store here opens in seconds.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A server that needs longer than this to leave is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A running server and its folder, both gone when this is dropped (the process first).
pub(super) struct Served {
    process: Process,
    folder: Folder,
}

impl Served {
    /// Starts a server on free ports, with an empty store in a new folder under `parent`.
    ///
    /// # Errors
    /// When the folder cannot be made, or the server does not answer in time: then its log's end is in the error.
    pub(super) async fn start(parent: Option<&Path>) -> Result<Self, Failure> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let folder = Folder::temporary(&parent, "bench")?;
        let process = spawn(folder.path())?;
        let mut served = Self { process, folder };
        served.answers().await?;
        Ok(served)
    }

    /// The process.
    pub(super) fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// How to connect to it.
    pub(super) fn connect(&self) -> ConnectArgs {
        ConnectArgs {
            address: None,
            shared_secret: None,
            shared_secret_file: None,
            ca_file: None,
            server_name: None,
            data_dir: data_dir(self.folder.path()),
            timeout: START_TIMEOUT,
        }
    }

    /// Stops it, politely or not, starts it again, and tells how long the start took: until it answered a call.
    ///
    /// # Errors
    /// As [`Served::start`].
    pub(super) async fn restart(&mut self, politely: bool) -> Result<Duration, Failure> {
        self.stop(politely).await?;
        // Left behind by a killed server, it would be taken for that of the next.
        let _ = fs::remove_file(data_dir(self.folder.path()).join(ADDRESS_FILE));
        let started = Instant::now();
        self.process = spawn(self.folder.path())?;
        self.answers().await?;
        Ok(started.elapsed())
    }

    async fn stop(&mut self, politely: bool) -> Result<(), Failure> {
        if politely {
            let status = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status();
            status.map_err(|error| Failure::Failed(format!("cannot run kill: {error}")))?;
            let deadline = Instant::now() + STOP_TIMEOUT;
            while self.process.runs() && Instant::now() < deadline {
                sleep(POLL_INTERVAL).await;
            }
        }
        let killed = self.process.0.kill().and_then(|()| self.process.0.wait());
        killed.map(|_| ()).map_err(|error| Failure::Failed(format!("cannot kill the server: {error}")))
    }

    async fn answers(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + START_TIMEOUT;
        let address = data_dir(self.folder.path()).join(ADDRESS_FILE);
        loop {
            let last = match address.exists() {
                true => match self.ask().await {
                    Ok(()) => return Ok(()),
                    Err(failure) => failure.to_string(),
                },
                false => "it has not written its address".to_owned(),
            };
            if !self.process.runs() || Instant::now() >= deadline {
                let log = log_end(self.folder.path());
                return Err(Failure::Failed(format!(
                    "the started server does not answer: {last}\nits log ends:\n{log}"
                )));
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn ask(&self) -> Result<(), Failure> {
        versions(&Lanes::open(&self.connect(), 1).await?).await.map(|_| ())
    }
}

fn data_dir(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn spawn(folder: &Path) -> Result<Process, Failure> {
    let failed = |error: io::Error| Failure::Failed(format!("cannot start `databroker serve`: {error}"));
    let log = File::create(folder.join("log")).map_err(failed)?;
    let data = data_dir(folder);
    Command::new(std::env::current_exe().map_err(failed)?)
        .args(["serve", "--grpc-address", "127.0.0.1:0", "--health-check-addr", "127.0.0.1:0"])
        .args(["--databroker-storage-type", "file", "--databroker-storage-connection-string"])
        .arg(format!("file://{}", data.display()))
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log)
        .spawn()
        .map(Process)
        .map_err(failed)
}

fn log_end(folder: &Path) -> String {
    const LINES: usize = 10;
    let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
