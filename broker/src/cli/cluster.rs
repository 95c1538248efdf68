//! `cluster`: look at a cluster and change it, with an administrator's certificate or over the socket of a node on this
//! machine. This is the one tool that does not use the public interface.
//!
//! Not here: how the status is shown (`cluster_status`), and what is done to a node that does not run
//! (`cluster_recover`).

use std::{path::PathBuf, time::Duration};

use databroker_proto::internal::{
    HandoverRequest, InitRequest, SetMembersRequest, ShapeMember, StatusReply, StatusRequest,
};
use tonic::{Code, Response, Status};

use super::{
    cluster_recover::Recover,
    cluster_status,
    duration::short,
    failure::{Failure, chain, code_name},
    output::{Output, OutputArgs, notice},
};
use crate::{
    config::{Config, Flags, PeerFiles},
    peer::{
        SOCKET_FILE,
        material::Material,
        operator::{Connection, DialError},
    },
};

/// How often a watched status is asked for.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Look at a cluster, found it, and change who belongs to it.
#[derive(Debug, clap::Args)]
pub struct Cluster {
    #[command(subcommand)]
    command: ClusterCommand,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Debug, clap::Subcommand)]
enum ClusterCommand {
    /// Show who leads, who is how far behind, and which node may be stopped
    Status {
        /// Show it again every second
        #[arg(short, long)]
        watch: bool,
    },
    /// Found the cluster, once, on one of its nodes
    Init {
        /// Its id [default: a random one]
        #[arg(long, value_name = "ID", default_value = "")]
        cluster_id: String,
    },
    /// Say who should belong to the cluster
    #[command(subcommand)]
    Members(MembersCommand),
    /// Let another node lead
    Handover {
        /// Which [default: the one that has most]
        #[arg(long, value_name = "NAME", default_value = "")]
        to: String,
    },
    Recover(Recover),
}

#[derive(Debug, clap::Subcommand)]
enum MembersCommand {
    /// Replace the whole list
    Set {
        /// NAME=RAFT_ADDRESS or NAME=RAFT_ADDRESS,GRPC_ADDRESS
        #[arg(required = true, value_parser = member, value_name = "MEMBER")]
        members: Vec<ShapeMember>,
    },
    /// Add nodes, or change the addresses of some
    Add {
        /// NAME=RAFT_ADDRESS or NAME=RAFT_ADDRESS,GRPC_ADDRESS
        #[arg(required = true, value_parser = member, value_name = "MEMBER")]
        members: Vec<ShapeMember>,
    },
    /// Remove nodes
    Remove {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// How a node is reached.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Connection")]
struct ReachArgs {
    /// A node's address for peers, host:port; with --admin-cert, --admin-key and --peers-ca
    #[arg(long, global = true, env = "DATABROKER_PEERS_ADDRESS", value_name = "ADDRESS")]
    peers_address: Option<String>,
    /// PEM file with an administrator's certificate
    #[arg(long, global = true, env = "DATABROKER_ADMIN_CERT", value_name = "FILE")]
    admin_cert: Option<PathBuf>,
    /// PEM file with its private key
    #[arg(long, global = true, env = "DATABROKER_ADMIN_KEY", value_name = "FILE")]
    admin_key: Option<PathBuf>,
    /// PEM file with the authority of the nodes' certificates
    #[arg(long, global = true, env = "DATABROKER_PEERS_CA", value_name = "FILE")]
    peers_ca: Option<PathBuf>,
    /// Configuration of a node on this machine, whose socket is used
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data folder of a node on this machine, whose socket is used
    #[arg(long, global = true, env = "DATABROKER_DATA_DIR", value_name = "DIR", default_value = "./databroker-data")]
    data_dir: PathBuf,
    /// How long to wait for each answer
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s", value_parser = super::duration::parse)]
    timeout: Duration,
}

fn member(text: &str) -> Result<ShapeMember, String> {
    let wanted = || "NAME=RAFT_ADDRESS or NAME=RAFT_ADDRESS,GRPC_ADDRESS is wanted".to_owned();
    let (name, addresses) = text.split_once('=').ok_or_else(wanted)?;
    let (raft, grpc) = addresses.split_once(',').unwrap_or((addresses, ""));
    match crate::peer::identity::is_name(name) && raft.contains(':') {
        true => Ok(ShapeMember { name: name.into(), raft_address: raft.into(), grpc_address: grpc.into() }),
        false => Err(wanted()),
    }
}

impl Cluster {
    /// Asks, and prints the answer.
    ///
    /// # Errors
    /// When no node can be reached, or it refuses.
    pub async fn run(self, open: impl FnOnce(OutputArgs) -> Output) -> Result<(), Failure> {
        let mut output = open(self.output);
        match self.command {
            ClusterCommand::Status { watch: true } => watch(&self.reach, &mut output).await,
            ClusterCommand::Status { watch: false } => {
                let status = self.reach.node().await?.status().await?;
                cluster_status::print(&status, &mut output)
            }
            ClusterCommand::Init { cluster_id } => {
                let node = self.reach.node().await?;
                let reply = node.call(node.connection.admin().init(InitRequest { cluster_id })).await?;
                output.line(&format!("founded the cluster {}", reply.cluster_id))
            }
            ClusterCommand::Members(command) => reshape(&self.reach.node().await?, command, &mut output).await,
            ClusterCommand::Handover { to } => {
                let node = self.reach.node().await?;
                let reply = node.call(node.connection.admin().handover(HandoverRequest { to })).await?;
                output.line(&format!("{} leads", reply.leader))
            }
            ClusterCommand::Recover(recover) => recover.run(&self.reach.folder()?, &mut output).await,
        }
    }
}

/// Until Ctrl-C. A node that cannot be reached may come back.
async fn watch(reach: &ReachArgs, output: &mut Output) -> Result<(), Failure> {
    // What can only be a mistake ends it at once.
    let mut node = Some(reach.node().await?);
    loop {
        match latest(reach, &mut node).await {
            Ok(status) => cluster_status::print_again(&status, output)?,
            Err(failure) => notice(&failure.to_string()),
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Asks the same node again, over a new connection if the last one failed.
async fn latest(reach: &ReachArgs, node: &mut Option<Node>) -> Result<StatusReply, Failure> {
    let known = match node.take() {
        Some(known) => known,
        None => reach.node().await?,
    };
    let status = known.status().await?;
    *node = Some(known);
    Ok(status)
}

async fn reshape(node: &Node, command: MembersCommand, output: &mut Output) -> Result<(), Failure> {
    let status = node.status().await?;
    let members = reshaped(status.shape, command)?;
    let request = SetMembersRequest { expected_generation: status.shape_generation, members };
    let reply = node.call(node.connection.admin().set_members(request)).await?;
    match reply.accepted {
        true => output.line(&format!(
            "accepted, as generation {}: follow it with `databroker cluster status --watch`",
            reply.generation
        )),
        false => Err(Failure::Failed(format!(
            "somebody else changed the members at the same time (generation {}): look, and try again",
            reply.generation
        ))),
    }
}

/// The list after the change.
fn reshaped(mut shape: Vec<ShapeMember>, command: MembersCommand) -> Result<Vec<ShapeMember>, Failure> {
    match command {
        MembersCommand::Set { members } => shape = members,
        MembersCommand::Add { members } => {
            shape.retain(|known| members.iter().all(|member| member.name != known.name));
            shape.extend(members);
        }
        MembersCommand::Remove { names } => {
            if let Some(name) = names.iter().find(|name| shape.iter().all(|known| known.name != **name)) {
                return Err(Failure::NotFound(format!("there is no member {name:?}")));
            }
            shape.retain(|known| !names.contains(&known.name));
        }
    }
    if shape.is_empty() {
        return Err(Failure::Usage("a cluster cannot be without members".to_owned()));
    }
    Ok(shape)
}

/// A node that answers operators.
struct Node {
    connection: Connection,
    place: String,
    timeout: Duration,
}

impl ReachArgs {
    async fn node(&self) -> Result<Node, Failure> {
        let (place, connected) = match (&self.peers_address, self.files()?) {
            (Some(address), Some(files)) => {
                let (material, _) = Material::of_anybody(&files).map_err(|error| Failure::Usage(error.to_string()))?;
                (address.clone(), Connection::tls(address, &material).await)
            }
            (None, None) => {
                let socket = self.folder()?.join(SOCKET_FILE);
                (socket.display().to_string(), Connection::socket(&socket).await)
            }
            _ => {
                return Err(Failure::Usage(
                    "--peers-address, --admin-cert, --admin-key and --peers-ca belong together; without them the socket \
                     of a node on this machine is used"
                        .to_owned(),
                ));
            }
        };
        let connection = connected.map_err(|error| unreached(&place, &error))?;
        Ok(Node { connection, place, timeout: self.timeout })
    }

    fn files(&self) -> Result<Option<PeerFiles>, Failure> {
        match (&self.peers_ca, &self.admin_cert, &self.admin_key) {
            (Some(ca), Some(certificate), Some(key)) => {
                Ok(Some(PeerFiles { ca: ca.clone(), certificate: certificate.clone(), key: key.clone() }))
            }
            (None, None, None) => Ok(None),
            _ => Err(Failure::Usage("--admin-cert, --admin-key and --peers-ca belong together".to_owned())),
        }
    }

    /// The data folder of the node on this machine.
    fn folder(&self) -> Result<PathBuf, Failure> {
        let Some(config) = &self.config else { return Ok(self.data_dir.clone()) };
        let flags = Flags::of_file(config);
        Ok(Config::load(&flags).map_err(|error| Failure::Usage(error.to_string()))?.storage.folder)
    }
}

impl Node {
    async fn status(&self) -> Result<StatusReply, Failure> {
        self.call(self.connection.admin().status(StatusRequest {})).await
    }

    async fn call<T>(&self, answer: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failure> {
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.refused(status)),
            Err(_) => Err(Failure::Refused {
                hint: format!("no answer from {} within {} (--timeout)", self.place, short(self.timeout)),
                status: Box::new(Status::new(Code::DeadlineExceeded, "")),
            }),
        }
    }

    fn refused(&self, status: Status) -> Failure {
        let hint = match (self.connection.broke(), std::error::Error::source(&status)) {
            (Some(error), _) => return unreached(&self.place, error),
            (None, Some(source)) => format!("the connection to {} broke off: {}", self.place, chain(source)),
            (None, None) if status.code() == Code::PermissionDenied => {
                format!("the node refuses: {} (an administrator's certificate is needed)", status.message())
            }
            (None, None) => format!("the node answers {}: {}", code_name(status.code()), status.message()),
        };
        Failure::Refused { hint, status: Box::new(status) }
    }
}

fn unreached(place: &str, error: &DialError) -> Failure {
    let (code, hint) = match error {
        // An authority of another kind of key has signed: that of a secret has Ed25519, those in files have ECDSA.
        DialError::Refused(reason) if reason.contains("UnsupportedSignatureAlgorithmForPublicKeyContext") => (
            Code::Unauthenticated,
            format!(
                "the node at {place} has no certificate of this authority: most likely the certificates of its cluster \
                 come from the shared secret, where no administrator's certificate counts. To change such a cluster, use \
                 the socket of a node, with --data-dir or --config on its machine ({reason})"
            ),
        ),
        DialError::Refused(reason) => (Code::Unauthenticated, format!("no connection to {place}: {reason}")),
        DialError::Unreachable(reason) => (
            Code::Unavailable,
            format!(
                "no node at {place} ({reason}): is it running? Give --data-dir or --config of a node on this machine, or \
                 --peers-address with an administrator's certificate"
            ),
        ),
    };
    Failure::Refused { hint, status: Box::new(Status::new(code, "")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(shape: &[ShapeMember]) -> Vec<&str> {
        shape.iter().map(|member| member.name.as_str()).collect()
    }

    #[test]
    fn a_certificate_of_files_against_a_cluster_of_the_secret_is_told_apart() {
        let words = "invalid peer certificate: UnsupportedSignatureAlgorithmForPublicKeyContext { .. }";
        let failure = unreached("h:1", &DialError::Refused(words.to_owned()));
        let told = failure.to_string();
        assert!(told.contains("come from the shared secret") && told.contains("--data-dir"), "{told}");
        assert_eq!(failure.exit_code(), 4);
    }

    #[test]
    fn members_are_set_added_and_removed() {
        let shape = vec![member("a=h:1,http://h:2").unwrap(), member("b=h:3").unwrap()];
        assert_eq!(shape[0].grpc_address, "http://h:2");
        for bad in ["a", "a=", "a=h", "=h:1", "a/b=h:1"] {
            assert!(member(bad).is_err(), "{bad}");
        }
        let moved = MembersCommand::Add { members: vec![member("b=x:9").unwrap(), member("c=h:5").unwrap()] };
        let more = reshaped(shape.clone(), moved).unwrap();
        assert_eq!((names(&more), more[1].raft_address.as_str()), (vec!["a", "b", "c"], "x:9"));
        let remove = |names: &[&str]| MembersCommand::Remove { names: names.iter().map(|n| (*n).to_owned()).collect() };
        assert_eq!(names(&reshaped(shape.clone(), remove(&["a"])).unwrap()), ["b"]);
        assert!(matches!(reshaped(shape.clone(), remove(&["x"])), Err(Failure::NotFound(_))));
        assert!(matches!(reshaped(shape, remove(&["a", "b"])), Err(Failure::Usage(_))));
    }
}
