//! What lies between the nodes: a proxy in front of each node's peers' port, which cuts and delays by who connects.
//!
//! Peers speak TLS, so that the proxy sees bytes only. Who a connection comes from is told by the system: the socket at
//! its other end belongs to one of the processes that the test has started.

use std::{collections::HashSet, fs, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// What a connection suffers, by the process that made it. Bytes in a direction that is cut wait; like those of a
/// network that loses all packets, they arrive when it heals, if the connection still stands.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Nothing that these send arrives.
    pub cut_from: HashSet<u32>,
    /// Nothing arrives at these.
    pub cut_to: HashSet<u32>,
    /// How much later everything arrives.
    pub delay: Duration,
}

/// A proxy in front of one port.
pub struct Proxy {
    pub port: u16,
    rules: Arc<watch::Sender<Rules>>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Listens on a port of its own.
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has ports");
        let port = listener.local_addr().expect("it is bound").port();
        let rules = Arc::new(watch::Sender::new(Rules::default()));
        let task = tokio::spawn(accept(listener, target, rules.clone()));
        Self { port, rules, task }
    }

    /// Changes the rules of open connections, too.
    pub fn change(&self, change: impl FnOnce(&mut Rules)) {
        self.rules.send_modify(change);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: u16, rules: Arc<watch::Sender<Rules>>) {
    let mut open = tokio::task::JoinSet::new();
    while let Ok((incoming, from)) = listener.accept().await {
        open.spawn(carry(incoming, from, target, rules.subscribe()));
        while open.try_join_next().is_some() {}
    }
}

async fn carry(incoming: TcpStream, from: SocketAddr, target: u16, rules: watch::Receiver<Rules>) {
    let inode = inode_of(from.port());
    let Ok(outgoing) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let _ = (incoming.set_nodelay(true), outgoing.set_nodelay(true));
    let ((from_read, from_write), (to_read, to_write)) = (incoming.into_split(), outgoing.into_split());
    let sender = Arc::new(Mutex::new(Owner { inode, pid: None }));
    let there = pump(from_read, to_write, rules.clone(), sender.clone(), |rules, pid| rules.cut_from.contains(&pid));
    let back = pump(to_read, from_write, rules, sender, |rules, pid| rules.cut_to.contains(&pid));
    // One end is gone: so is the connection.
    tokio::select! { () = there => {}, () = back => {} }
}

/// The process at the other end, found once.
struct Owner {
    inode: Option<u64>,
    pid: Option<u32>,
}

impl Owner {
    /// Whether one of these processes made the connection.
    fn is_among(&mut self, pids: &HashSet<u32>) -> Option<u32> {
        if self.pid.is_none() {
            self.pid = pids.iter().copied().find(|pid| self.inode.is_some_and(|inode| owns(*pid, inode)));
        }
        self.pid.filter(|pid| pids.contains(pid))
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut rules: watch::Receiver<Rules>,
    owner: Arc<Mutex<Owner>>,
    cuts: impl Fn(&Rules, u32) -> bool,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
        let passes = rules.wait_for(|rules| {
            let all = rules.cut_from.union(&rules.cut_to).copied().collect();
            !owner.lock().is_among(&all).is_some_and(|pid| cuts(rules, pid))
        });
        let Ok(delay) = passes.await.map(|rules| rules.delay) else { return };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// The socket that is bound to a local port, by the kernel's number for it.
fn inode_of(port: u16) -> Option<u64> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let local = format!("0100007F:{port:04X}");
    table.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        if fields.get(1) == Some(&local.as_str()) { fields.get(9)?.parse().ok() } else { None }
    })
}

/// Whether a process holds a socket.
fn owns(pid: u32, inode: u64) -> bool {
    let wanted = format!("socket:[{inode}]");
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    open.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str()))
}
