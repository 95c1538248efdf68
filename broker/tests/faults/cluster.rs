//! Brokers as processes of their own, that form a cluster on loopback, and what can be done to them.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use databroker::jwt::SharedKey;
use parking_lot::Mutex;
use rand::RngExt as _;

use crate::{
    attempts::Disturbed,
    proxy::Proxy,
    support::{PATIENCE, binary, end, signal},
};

/// Ports that this process has given to its clusters: several tests run at once.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port that was free a moment ago. Configurations have to name it before anybody listens there. Below those that the
/// system gives to whoever connects: else one of many connections would take it meanwhile.
fn free_port() -> u16 {
    // Far more than are ever taken.
    for _ in 0..1000 {
        let port = rand::rng().random_range(12_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && GIVEN.lock().insert(port) {
            return port;
        }
    }
    panic!("loopback has no free ports");
}

/// One node: its files, its ports, and its process while it runs.
pub struct Node {
    pub name: String,
    pub folder: PathBuf,
    pub grpc: u16,
    config: PathBuf,
    raft: u16,
    pub health: u16,
    child: Option<Child>,
}

/// A node's name, and how the cluster stands in its eyes.
pub type Status = (String, serde_json::Value);

/// The members that vote, by a status.
pub fn voters(status: &serde_json::Value) -> impl Iterator<Item = &serde_json::Value> {
    let members = status["members"].as_array().into_iter().flatten();
    members.filter(|member| matches!(member["role"].as_str(), Some("leader" | "voter")))
}

/// Those of them that answer and have what the leader has.
pub fn voters_well(status: &serde_json::Value) -> impl Iterator<Item = &serde_json::Value> {
    voters(status).filter(|voter| voter["caughtUp"] == true && voter["reachable"] == true)
}

/// All nodes.
pub struct Cluster {
    pub nodes: Vec<Node>,
    /// One in front of each node's peers' port; none, where peers reach each other directly.
    pub proxies: Vec<Proxy>,
    pub key: SharedKey,
    /// Nodes that something was done to since the cluster was whole.
    pub disturbed: Arc<Disturbed>,
    _parent: tempfile::TempDir,
}

impl Cluster {
    /// Starts nodes and founds a cluster of them, whose peers reach each other through proxies.
    pub async fn start(nodes: usize) -> Self {
        let mut cluster = Self::prepare(nodes);
        for node in &cluster.nodes {
            cluster.proxies.push(Proxy::start(node.raft).await);
        }
        cluster.found("").await
    }

    /// The same, with nothing between the peers: for figures that a proxy on the same processors would spoil.
    /// `settings`: lines of the nodes' configuration.
    pub async fn start_directly(nodes: usize, settings: &str) -> Self {
        Self::prepare(nodes).found(settings).await
    }

    async fn found(mut self, settings: &str) -> Self {
        let nodes = self.nodes.len();
        let members: String = (0..nodes)
            .map(|node| {
                let (Node { name, grpc, .. }, peers) = (&self.nodes[node], self.peers_port(node));
                format!(
                    "  - id: {name}\n    grpc_address: http://127.0.0.1:{grpc}\n    raft_address: 127.0.0.1:{peers}\n"
                )
            })
            .collect();
        self.nodes.iter_mut().for_each(|node| node.configure(&members, &self.key, settings));
        (0..nodes).for_each(|node| self.spawn(node));
        self.run_tool(0, &["cluster", "init"]);
        self.wait_for("all nodes vote", |status| {
            voters(status).count() == nodes && status["leader"].as_str().is_some_and(|leader| !leader.is_empty())
        })
        .await;
        self
    }

    fn prepare(count: usize) -> Self {
        let parent = tempfile::tempdir().expect("a temporary folder can be made");
        let nodes = (1..=count).map(|number| Node::new(parent.path(), number)).collect();
        let key = SharedKey::from_bytes(rand::random());
        Self { nodes, proxies: Vec::new(), key, disturbed: Arc::default(), _parent: parent }
    }

    /// Where peers reach a node.
    fn peers_port(&self, node: usize) -> u16 {
        self.proxies.get(node).map_or(self.nodes[node].raft, |proxy| proxy.port)
    }

    /// A node as the tool that adds it takes it.
    fn member(&self, node: usize) -> String {
        let (Node { name, grpc, .. }, peers) = (&self.nodes[node], self.peers_port(node));
        format!("{name}=127.0.0.1:{peers},http://127.0.0.1:{grpc}")
    }

    /// Starts a node's process.
    pub fn spawn(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        let log = File::options().create(true).append(true).open(node.folder.with_extension("log"));
        let child = Command::new(binary())
            .args(["serve", "--config"])
            .arg(&node.config)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("the log can be opened"))
            .spawn()
            .expect("the binary starts");
        node.child = Some(child);
    }

    /// SIGKILL.
    pub fn kill(&mut self, node: usize) {
        self.disturbed.add(node);
        if let Some(mut child) = self.nodes[node].child.take() {
            child.kill().expect("the child can be killed");
            child.wait().expect("the child can be waited for");
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self, node: usize) {
        self.disturbed.add(node);
        let Some(mut child) = self.nodes[node].child.take() else { return };
        end(&mut child);
    }

    /// SIGSTOP.
    pub fn freeze(&self, node: usize) {
        self.disturbed.add(node);
        self.nodes[node].child.iter().for_each(|child| signal(child.id(), "STOP"));
    }

    /// SIGCONT.
    pub fn thaw(&self, node: usize) {
        self.nodes[node].child.iter().for_each(|child| signal(child.id(), "CONT"));
    }

    /// Loses the disk of a node that does not run.
    pub fn wipe(&self, node: usize) {
        fs::remove_dir_all(&self.nodes[node].folder).expect("the folder can be removed");
    }

    /// The process of a node, if it runs.
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.nodes[node].child.as_ref().map(Child::id)
    }

    /// Whether a node's process was started and not ended by us.
    pub fn runs(&self, node: usize) -> bool {
        self.nodes[node].child.is_some()
    }

    /// Who leads, by the word of any node that answers.
    pub fn leader(&self) -> Option<usize> {
        let running = (0..self.nodes.len()).filter(|node| self.runs(*node));
        running.into_iter().find_map(|node| {
            let name = self.status(node)?["leader"].as_str()?.to_owned();
            self.nodes.iter().position(|node| node.name == name)
        })
    }

    /// How the cluster stands, in the eyes of one node.
    pub fn status(&self, node: usize) -> Option<serde_json::Value> {
        let output = self.tool(node, &["cluster", "status", "-o", "json"]).output().expect("the binary starts");
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Runs a tool against one node and expects it to succeed, soon.
    pub fn run_tool(&self, node: usize, arguments: &[&str]) {
        let began = Instant::now();
        loop {
            let output = self.tool(node, arguments).output().expect("the binary starts");
            if output.status.success() {
                return;
            }
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(began.elapsed() < PATIENCE, "{arguments:?}: {said}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Says to one node that others should belong to the cluster.
    pub fn add_members(&self, at: usize, others: &[usize]) {
        self.change_members(at, "add", others.iter().map(|node| self.member(*node)).collect());
    }

    /// Says to one node that others should not belong to the cluster any longer.
    pub fn remove_members(&self, at: usize, others: &[usize]) {
        self.change_members(at, "remove", others.iter().map(|node| self.nodes[*node].name.clone()).collect());
    }

    fn change_members(&self, at: usize, how: &str, members: Vec<String>) {
        let members = members.iter().map(String::as_str);
        self.run_tool(at, &["cluster", "members", how].into_iter().chain(members).collect::<Vec<_>>());
    }

    /// A tool as it would be run beside a node.
    pub fn tool(&self, node: usize, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--config").arg(&self.nodes[node].config).env_clear();
        command
    }

    /// What each node that runs says.
    pub fn statuses(&self) -> Vec<Status> {
        let running = (0..self.nodes.len()).filter(|node| self.runs(*node));
        running.filter_map(|node| Some((self.nodes[node].name.clone(), self.status(node)?))).collect()
    }

    /// Waits until some node that runs says so.
    pub async fn wait_for(&self, what: &str, holds: impl Fn(&serde_json::Value) -> bool) {
        self.wait_for_all(what, |said| said.iter().any(|(_, status)| holds(status))).await;
    }

    /// Waits until what all nodes that run say is what is wanted.
    pub async fn wait_for_all(&self, what: &str, holds: impl Fn(&[Status]) -> bool) {
        let began = Instant::now();
        loop {
            let said = self.statuses();
            if holds(&said) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "it never came true that {what}: {said:#?}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Starts nodes whose processes have ended by themselves.
    pub fn restart_ended(&mut self) {
        for node in 0..self.nodes.len() {
            let child = self.nodes[node].child.as_mut();
            if child.is_some_and(|child| child.try_wait().expect("the child can be waited for").is_some()) {
                self.spawn(node);
            }
        }
    }

    /// The last words of every node.
    pub fn logs(&self) -> String {
        let log = |node: &Node| {
            let text = fs::read_to_string(node.folder.with_extension("log")).unwrap_or_default();
            let lines: Vec<_> = text.lines().rev().take(15).collect();
            format!("--- {}\n{}\n", node.name, lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        self.nodes.iter().map(log).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (0..self.nodes.len()).for_each(|node| {
            self.thaw(node);
            self.kill(node);
        });
    }
}

impl Node {
    fn new(parent: &Path, number: usize) -> Self {
        let name = format!("node-{number}");
        let folder = parent.join(&name);
        let config = folder.with_extension("yaml");
        let (grpc, raft, health) = (free_port(), free_port(), free_port());
        Self { name, folder, grpc, config, raft, health, child: None }
    }

    fn configure(&mut self, members: &str, key: &SharedKey, settings: &str) {
        let text = format!(
            "grpc_address: 127.0.0.1:{}\nhealth_check_addr: 127.0.0.1:{}\nshared_secret: {}\n\
             databroker_storage_type: file\ndatabroker_storage_connection_string: file://{}\n\
             databroker_cluster_node_id: {}\ndatabroker_raft_bind_address: 127.0.0.1:{}\n\
             {settings}databroker_cluster_nodes:\n{members}",
            self.grpc,
            self.health,
            key.to_base64(),
            self.folder.display(),
            self.name,
            self.raft,
        );
        fs::write(&self.config, text).expect("the configuration can be written");
    }
}
