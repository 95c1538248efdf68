//! `dev`: a cluster on this machine in one command, to see what happens when a node dies, and to try things on.
//!
//! Every node is a process of this very binary, with certificates and a secret of its own cluster that are thrown away
//! afterwards. Not for production, where each node has a machine to itself.

use std::{
    fs::{self, File},
    io::{self, IsTerminal as _, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use databroker_proto::internal::{InitRequest, MemberStatus, StatusReply, StatusRequest, member_status::Role};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{
    certs::create,
    child::{Folder, Process},
    connect::SECRET_FILE,
    failure::Failure,
    output::notice,
};
use crate::{
    jwt::{KEY_BYTES, SharedKey},
    peer::{
        SOCKET_FILE,
        authority::{Authority, Issued},
        identity::Identity,
        operator::Connection,
    },
};

/// The cluster's name in its certificates.
const CLUSTER: &str = "dev";

/// Certificates are thrown away sooner.
const VALID_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// A node that needs longer to answer is broken.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How often the nodes are asked how they are.
const LOOK: Duration = Duration::from_millis(250);

/// How long a node may take to say how it is: a frozen one is not waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// Run a cluster on this machine, to try things on.
#[derive(Debug, clap::Args)]
pub struct Dev {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// Folder for their data, which stays; it must not exist [default: a temporary one that goes]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// A node, and its process while it runs.
struct Node {
    name: String,
    folder: PathBuf,
    config: PathBuf,
    ports: Ports,
    process: Option<Process>,
}

#[derive(Clone, Copy)]
struct Ports {
    grpc: u16,
    raft: u16,
    health: u16,
}

impl Dev {
    /// Runs until `q`, Ctrl-C or SIGTERM.
    ///
    /// # Errors
    /// When a port, a file or a process cannot be had, or the nodes do not answer.
    pub async fn run(self) -> Result<(), Failure> {
        let folder = self.folder()?;
        let mut nodes = prepare(folder.path(), self.nodes)?;
        for node in &mut nodes {
            node.start()?;
        }
        found(&nodes).await?;
        notice(&explanation(folder.path(), &nodes));
        follow(&mut nodes, keys()).await
    }

    fn folder(&self) -> Result<Folder, Failure> {
        match &self.dir {
            Some(dir) => Folder::make(dir.clone(), true),
            None => Folder::temporary(&std::env::temp_dir(), "dev"),
        }
    }
}

/// Writes what the nodes need: a secret, certificates, a configuration each.
fn prepare(folder: &Path, count: u8) -> Result<Vec<Node>, Failure> {
    let unmade = |error: crate::peer::authority::Error| Failure::Failed(error.to_string());
    let key = SharedKey::from_bytes(rand::random::<[u8; KEY_BYTES]>());
    create(&folder.join(SECRET_FILE), 0o600, &key.to_base64())?;
    let (authority, issued) = Authority::make(CLUSTER, VALID_FOR).map_err(unmade)?;
    create(&folder.join("ca.pem"), 0o644, &issued.certificate_pem)?;
    let ports = ports(count)?;
    let nodes: Vec<Node> = (1..).zip(ports).map(|(number, ports)| Node::new(folder, number, ports)).collect();
    let members: String = nodes.iter().map(Node::member).collect();
    for node in &nodes {
        let issued = authority.issue(&Identity::node(CLUSTER, &node.name), &[], Some(VALID_FOR)).map_err(unmade)?;
        node.write(folder, &issued, &members)?;
    }
    Ok(nodes)
}

/// Free ports, all different: they are held until the last is found. Another process may still take one before its node
/// does; then that node says so in its log.
fn ports(count: u8) -> Result<Vec<Ports>, Failure> {
    let failed = |source: io::Error| Failure::Failed(format!("no port on loopback can be had: {source}"));
    let mut held = Vec::new();
    let mut free = || {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        held.push(listener);
        Ok::<_, Failure>(port)
    };
    (0..count).map(|_| Ok(Ports { grpc: free()?, raft: free()?, health: free()? })).collect()
}

impl Node {
    fn new(folder: &Path, number: u8, ports: Ports) -> Self {
        let name = format!("n{number}");
        let config = folder.join(format!("{name}.yaml"));
        Self { folder: folder.join(&name), name, config, ports, process: None }
    }

    /// This node in the list that all of them have.
    fn member(&self) -> String {
        let Self { name, ports: Ports { grpc, raft, .. }, .. } = self;
        format!("  - {{id: {name}, grpc_address: \"http://127.0.0.1:{grpc}\", raft_address: \"127.0.0.1:{raft}\"}}\n")
    }

    fn write(&self, folder: &Path, issued: &Issued, members: &str) -> Result<(), Failure> {
        let (certificate, key) =
            (folder.join(format!("{}.pem", self.name)), folder.join(format!("{}-key.pem", self.name)));
        create(&key, 0o600, &issued.key_pem())?;
        create(&certificate, 0o644, &issued.certificate_pem)?;
        let Ports { grpc, raft, health } = self.ports;
        // JSON strings are YAML strings, whatever is in the path.
        let quoted = |path: &Path| serde_json::Value::from(path.display().to_string()).to_string();
        let storage = serde_json::Value::from(format!("file://{}", self.folder.display()));
        let text = format!(
            "grpc_address: 127.0.0.1:{grpc}\nhealth_check_addr: 127.0.0.1:{health}\n\
             databroker_raft_bind_address: 127.0.0.1:{raft}\nshared_secret_file: {}\n\
             databroker_storage_connection_string: {storage}\ndatabroker_cluster_name: {CLUSTER}\n\
             databroker_cluster_node_id: {}\ndatabroker_peer_ca_file: {}\ndatabroker_peer_certificate_file: {}\n\
             databroker_peer_certificate_key_file: {}\ndatabroker_cluster_bootstrap: explicit\n\
             databroker_cluster_nodes:\n{members}",
            quoted(&folder.join(SECRET_FILE)),
            self.name,
            quoted(&folder.join("ca.pem")),
            quoted(&certificate),
            quoted(&key),
        );
        create(&self.config, 0o600, &text)
    }

    fn start(&mut self) -> Result<(), Failure> {
        let log = self.config.with_extension("log");
        let failed = |file: &Path| {
            let file = file.to_owned();
            move |source| Failure::Write { file, source }
        };
        let stderr = File::options().create(true).append(true).open(&log).map_err(failed(&log))?;
        let binary =
            std::env::current_exe().map_err(|source| Failure::Failed(format!("this binary is lost: {source}")))?;
        let child = Command::new(&binary)
            .args(["serve", "--config"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(|source| Failure::Failed(format!("cannot start {}: {source}", binary.display())))?;
        self.process = Some(Process(child));
        Ok(())
    }

    /// Whether its process still runs.
    fn runs(&mut self) -> bool {
        // What has ended is down, whoever ended it.
        self.process.take_if(|process| !process.runs());
        self.process.is_some()
    }

    async fn status(&self) -> Option<StatusReply> {
        let asked = async {
            let connection = Connection::socket(&self.folder.join(SOCKET_FILE)).await.ok()?;
            Some(connection.admin().status(StatusRequest {}).await.ok()?.into_inner())
        };
        timeout(PATIENCE, asked).await.ok().flatten()
    }
}

/// Founds the cluster as soon as the first node listens.
async fn found(nodes: &[Node]) -> Result<(), Failure> {
    let Some(first) = nodes.first() else { return Ok(()) };
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let init = async {
            let connection =
                Connection::socket(&first.folder.join(SOCKET_FILE)).await.map_err(|error| error.to_string())?;
            let founded = connection.admin().init(InitRequest::default()).await;
            founded.map(drop).map_err(|status| status.message().to_owned())
        };
        match init.await {
            Ok(()) => return Ok(()),
            Err(reason) if Instant::now() > deadline => {
                let log = fs::read_to_string(first.config.with_extension("log")).unwrap_or_default();
                return Err(Failure::Failed(format!("the cluster cannot be founded: {reason}\n{log}")));
            }
            Err(_) => sleep(LOOK).await,
        }
    }
}

fn explanation(folder: &Path, nodes: &[Node]) -> String {
    let addresses: Vec<_> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.ports.grpc)).collect();
    format!(
        "{} nodes, their files in {}. In other terminals:\n\n  export DATABROKER_ADDRESS={}\n  export SHARED_SECRET_FILE={}\n  \
         databroker watch\n  databroker bench mixed\n  databroker cluster status --data-dir {}\n\nKeys: 1 to {} kill a node, or \
         start it again; l kills the leader; q ends.\n",
        nodes.len(),
        folder.display(),
        addresses.join(","),
        folder.join(SECRET_FILE).display(),
        nodes.first().map(|node| node.folder.display().to_string()).unwrap_or_default(),
        nodes.len(),
    )
}

/// What is typed, a character at a time; nothing where nobody sits at a terminal.
fn keys() -> mpsc::Receiver<char> {
    // Nobody types ahead of a node's start.
    let (typed, keys) = mpsc::channel(1);
    if io::stdin().is_terminal() && io::stderr().is_terminal() {
        std::thread::spawn(move || {
            let terminal = console::Term::stderr();
            while let Ok(key) = terminal.read_char() {
                if typed.blocking_send(key).is_err() {
                    return;
                }
            }
        });
    }
    keys
}

/// Shows how the nodes are, and does what is typed.
async fn follow(nodes: &mut [Node], mut keys: mpsc::Receiver<char>) -> Result<(), Failure> {
    let (mut shown, terminal) = (String::new(), io::stderr().is_terminal());
    let mut typing = true;
    loop {
        let status = newest(nodes).await;
        let line = line(nodes, status.as_ref());
        if line != shown {
            let (before, after) = if terminal { ("\r\x1b[2K", "") } else { ("", "\n") };
            // Nobody may be reading.
            let _ = write!(io::stderr(), "{before}{line}{after}").and_then(|()| io::stderr().flush());
            shown = line;
        }
        let key = tokio::select! {
            key = keys.recv(), if typing => key,
            () = sleep(LOOK) => continue,
        };
        match key {
            Some('q') => return Ok(()),
            Some(key) => act(nodes, key, status.as_ref())?,
            None => typing = false,
        }
    }
}

/// The word of the node that knows the latest term.
async fn newest(nodes: &mut [Node]) -> Option<StatusReply> {
    let mut replies = Vec::new();
    for node in nodes.iter_mut().filter_map(|node| node.runs().then_some(&*node)) {
        replies.extend(node.status().await);
    }
    replies.into_iter().max_by_key(|reply| (reply.term, !reply.leader.is_empty()))
}

fn act(nodes: &mut [Node], key: char, status: Option<&StatusReply>) -> Result<(), Failure> {
    let leader = status.map(|status| status.leader.as_str()).unwrap_or_default();
    let wanted = if key == 'l' { leader.to_owned() } else { format!("n{key}") };
    let Some(node) = nodes.iter_mut().find(|node| node.name == wanted) else { return Ok(()) };
    if node.runs() {
        node.process = None;
        return Ok(());
    }
    node.start()
}

/// All nodes on one line.
fn line(nodes: &mut [Node], status: Option<&StatusReply>) -> String {
    let one = |node: &mut Node| {
        let state = match status.and_then(|status| status.members.iter().find(|member| member.name == node.name)) {
            _ if !node.runs() => "down".to_owned(),
            None => "starting".to_owned(),
            Some(member) => state(member, status.is_some_and(|status| status.leader == node.name)),
        };
        format!("{} {state}", node.name)
    };
    let all: Vec<_> = nodes.iter_mut().map(one).collect();
    let (term, version) = status.map_or((0, 0), |status| (status.term, status.latest_record_version));
    format!("term {term}, version {version} · {}", all.join(" · "))
}

fn state(member: &MemberStatus, leads: bool) -> String {
    match member.role() {
        _ if leads => "LEADS".to_owned(),
        _ if !member.reachable => "silent".to_owned(),
        Role::Learner | Role::Waiting => format!("joining, {} behind", member.lag_records),
        _ if member.caught_up => "follows".to_owned(),
        _ => format!("follows, {} behind", member.lag_records),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_a_configuration_that_a_node_can_start_with() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a \"b\": #c");
        fs::create_dir(&folder).unwrap();
        let nodes = prepare(&folder, 3).unwrap();
        assert_eq!(nodes.len(), 3);
        for node in &nodes {
            let config = crate::config::Config::load(&crate::config::Flags::of_file(&node.config)).unwrap();
            assert_eq!(config.storage.folder, node.folder);
            assert_eq!(config.cluster.nodes.len(), 3);
            let files = config.cluster.peer_files.unwrap();
            let me = Identity::node(CLUSTER, &node.name);
            crate::peer::material::Material::from_files(&files, me).unwrap();
        }
    }

    #[test]
    fn the_line_says_of_each_node_how_it_is() {
        let parent = tempfile::tempdir().unwrap();
        let mut nodes = prepare(parent.path(), 2).unwrap();
        let member = |name: &str, role: Role| MemberStatus {
            name: name.into(),
            role: role.into(),
            reachable: true,
            caught_up: true,
            ..MemberStatus::default()
        };
        assert_eq!(line(&mut nodes, None), "term 0, version 0 · n1 down · n2 down");
        assert_eq!(state(&member("n1", Role::Leader), true), "LEADS");
        assert_eq!(state(&member("n2", Role::Voter), false), "follows");
        let behind = MemberStatus { lag_records: 7, caught_up: false, ..member("n2", Role::Learner) };
        assert_eq!(state(&behind, false), "joining, 7 behind");
    }
}
