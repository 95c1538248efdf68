//! How the tools reach a server: where it is, the shared secret, TLS; and what to tell a person when it does not work.
//!
//! Nothing here knows whose server it is: any that speaks the interface will do.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use databroker_proto::{
    databroker::{
        checkpoint_service_client::CheckpointServiceClient, data_broker_service_client::DataBrokerServiceClient,
    },
    registry::registry_client::RegistryClient,
};
use parking_lot::Mutex;
use tonic::{
    Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri},
};

use super::{failover::Failover, failure::Failure};
use crate::jwt::{self, SharedKey, Signer};

/// Where a server listens unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "http://127.0.0.1:5443";

/// The file in the data folder that holds the shared secret.
pub const SECRET_FILE: &str = "shared_secret";

/// The file in the data folder in which a running server writes the URL of its gRPC listener.
pub const ADDRESS_FILE: &str = "address";

/// The largest message taken from a server: a single record may be far over gRPC's customary 4 MiB.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

// Bulk streams over a real network need more in flight than HTTP/2's 64 KiB.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// How long a stream that is to end may be silent: long enough for a server that reads its whole store first.
const STREAM_SILENCE_MAX: Duration = Duration::from_secs(120);

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// A client of the records service.
pub type Records = DataBrokerServiceClient<Transport>;

/// A channel that shows the token on every call.
pub type Transport = InterceptedService<Failover, Token>;

/// Where the server is and how to prove who we are.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct ConnectArgs {
    /// Server: host:port, http://host:port (plaintext) or https://host:port (TLS); several with commas between them are
    /// the nodes of one cluster, of which any that answers is used [default: the file `address` in the data folder, else
    /// http://127.0.0.1:5443]
    #[arg(long, global = true, env = "DATABROKER_ADDRESS", value_name = "ADDRESS")]
    pub address: Option<String>,

    /// Shared secret: base64 of 32 bytes. Others on this machine may see it in the process list: prefer the variable
    /// or a file [default: the file `shared_secret` in the data folder]
    #[arg(long, global = true, env = "SHARED_SECRET", hide_env_values = true, value_name = "BASE64")]
    pub shared_secret: Option<SecretText>,

    /// File with the shared secret (base64, or the 32 raw bytes)
    #[arg(long, global = true, env = "SHARED_SECRET_FILE", value_name = "FILE", conflicts_with = "shared_secret")]
    pub shared_secret_file: Option<PathBuf>,

    /// PEM file of the authority that signed the server's certificate [default: those this machine trusts]
    #[arg(long, global = true, env = "DATABROKER_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// Name to expect in the server's certificate, if not the host of the address
    #[arg(long, global = true, value_name = "NAME")]
    pub server_name: Option<String>,

    /// Data folder of a server on this machine, from which address and secret are taken
    #[arg(long, global = true, env = "DATABROKER_DATA_DIR", value_name = "DIR", default_value = "./databroker-data")]
    pub data_dir: PathBuf,

    /// How long to wait for the connection, and for each answer
    #[arg(long, global = true, value_name = "DURATION", default_value = "10s", value_parser = super::duration::parse)]
    pub timeout: Duration,
}

/// A secret on its way from the command line: printed by nothing.
#[derive(Clone)]
pub struct SecretText(String);

impl FromStr for SecretText {
    type Err = std::convert::Infallible;

    // Judged later: a parser's error would print the value.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

impl ConnectArgs {
    /// Connects, and hands out clients. The token is not tried before the first call.
    ///
    /// # Errors
    /// When address, secret or authority cannot be read, or nobody answers at any of the addresses in time.
    pub async fn connect(&self) -> Result<Connection, Failure> {
        let addresses = self.resolve_addresses()?;
        let token = Token::new(&self.resolve_key()?);
        // So that all can be tried in the time of one call.
        let each = self.timeout / u32::try_from(addresses.len()).unwrap_or(1).max(1);
        let endpoints = addresses.iter().map(|address| Ok(self.endpoint(address)?.connect_timeout(each)));
        let endpoints = endpoints.collect::<Result<Vec<_>, Failure>>()?;
        let mut failed = None;
        for (first, (address, endpoint)) in addresses.iter().zip(&endpoints).enumerate() {
            match self.reach(address, endpoint).await {
                Ok(reached) => {
                    // The others connect when their turn comes.
                    let mut channels: Vec<_> = endpoints.iter().map(Endpoint::connect_lazy).collect();
                    channels[first] = reached;
                    let channel = Failover::new(channels, first);
                    return Ok(Connection { address: address.clone(), channel, token, timeout: self.timeout });
                }
                Err(failure) => failed = Some(failure),
            }
        }
        Err(failed.unwrap_or_else(|| Failure::MalformedAddress { address: String::new() }))
    }

    async fn reach(&self, address: &Uri, endpoint: &Endpoint) -> Result<Channel, Failure> {
        tokio::time::timeout(self.timeout, endpoint.connect())
            .await
            .map_err(|_| Failure::NoAnswer { address: address.to_string(), timeout: self.timeout })?
            .map_err(|source| Failure::connect(address, source))
    }

    fn resolve_addresses(&self) -> Result<Vec<Uri>, Failure> {
        let text = match &self.address {
            Some(address) => address.clone(),
            None => address_in(&self.data_dir)?.unwrap_or_else(|| DEFAULT_ADDRESS.to_owned()),
        };
        text.split(',').map(|one| parse_address(one.trim())).collect()
    }

    fn resolve_key(&self) -> Result<SharedKey, Failure> {
        let (from, content) = match (&self.shared_secret, &self.shared_secret_file) {
            (Some(secret), _) => {
                let from = "--shared-secret or SHARED_SECRET".to_owned();
                let key = SharedKey::parse(secret.0.as_bytes());
                return key.map_err(|source| Failure::MalformedSecret { from, source });
            }
            (None, Some(file)) => (file.display().to_string(), read(file)?),
            (None, None) => self.secret_in_data_dir()?,
        };
        SharedKey::parse_file(&content).map_err(|source| Failure::MalformedSecret { from, source })
    }

    fn secret_in_data_dir(&self) -> Result<(String, Vec<u8>), Failure> {
        let file = self.data_dir.join(SECRET_FILE);
        match fs::read(&file) {
            Ok(text) => Ok((file.display().to_string(), text)),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Err(Failure::NoSecret { file }),
            Err(source) => Err(Failure::Read { file, source }),
        }
    }

    fn endpoint(&self, address: &Uri) -> Result<Endpoint, Failure> {
        let endpoint = Endpoint::from(address.clone())
            .connect_timeout(self.timeout)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(KEEPALIVE_INTERVAL))
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        if address.scheme_str() != Some("https") {
            return Ok(endpoint);
        }
        endpoint.tls_config(self.tls()?).map_err(|source| Failure::Tls { source: Box::new(source) })
    }

    fn tls(&self) -> Result<ClientTlsConfig, Failure> {
        let tls = ClientTlsConfig::new().timeout(self.timeout);
        let tls = match &self.ca_file {
            Some(file) => tls.ca_certificate(Certificate::from_pem(read(file)?)),
            None => tls.with_native_roots(),
        };
        Ok(match &self.server_name {
            Some(name) => tls.domain_name(name),
            None => tls,
        })
    }
}

/// A server that answered.
#[derive(Clone)]
pub struct Connection {
    address: Uri,
    channel: Failover,
    token: Token,
    timeout: Duration,
}

impl Connection {
    /// The server's URL.
    pub fn address(&self) -> &Uri {
        &self.address
    }

    /// How long to wait for an answer.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether there is another address to go to when one fails.
    pub fn has_others(&self) -> bool {
        self.channel.has_others()
    }

    /// The channel with the token on it, for any other client.
    pub fn transport(&self) -> Transport {
        InterceptedService::new(self.channel.clone(), self.token.clone())
    }

    /// A client of `databroker.DataBrokerService`.
    pub fn records(&self) -> Records {
        DataBrokerServiceClient::new(self.transport()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// A client of `databroker.CheckpointService`.
    pub fn checkpoints(&self) -> CheckpointServiceClient<Transport> {
        CheckpointServiceClient::new(self.transport())
    }

    /// A client of `registry.Registry`.
    pub fn registry(&self) -> RegistryClient<Transport> {
        RegistryClient::new(self.transport())
    }

    /// Awaits one answer, no longer than the time-out.
    ///
    /// # Errors
    /// What the server answered, or that it did not.
    pub async fn call<T>(
        &self,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Failure> {
        Ok(self.within(self.timeout, answer).await?.into_inner())
    }

    /// Awaits the beginning of a stream that ends: some servers gather all of it before they send the headers.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub async fn open<T>(
        &self,
        stream: impl Future<Output = Result<tonic::Response<Streaming<T>>, Status>>,
    ) -> Result<Streaming<T>, Failure> {
        Ok(self.within(self.timeout.max(STREAM_SILENCE_MAX), stream).await?.into_inner())
    }

    /// Awaits the next message of a stream that ends; None after the last.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub async fn next<T>(&self, stream: &mut Streaming<T>) -> Result<Option<T>, Failure> {
        self.within(self.timeout.max(STREAM_SILENCE_MAX), stream.message()).await
    }

    async fn within<T>(
        &self,
        timeout: Duration,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(timeout, answer).await {
            Ok(answer) => answer.map_err(|status| self.refused(status)),
            Err(_) => Err(Failure::NoAnswer { address: self.address.to_string(), timeout }),
        }
    }

    /// What a status from this server means to a person.
    pub fn refused(&self, status: Status) -> Failure {
        Failure::status(&self.address, status)
    }
}

/// Puts the token on each call. Clones share the token, which is signed anew at most once a second.
#[derive(Clone)]
pub struct Token(Arc<Minter>);

struct Minter {
    signer: Signer,
    latest: Mutex<Option<(u64, MetadataValue<Ascii>)>>,
}

impl Token {
    fn new(key: &SharedKey) -> Self {
        Self(Arc::new(Minter { signer: Signer::new(key), latest: Mutex::new(None) }))
    }

    fn at(&self, now: SystemTime) -> Result<MetadataValue<Ascii>, Status> {
        let second = jwt::unix_seconds(now);
        let mut latest = self.0.latest.lock();
        if let Some((minted, token)) = &*latest
            && *minted == second
        {
            return Ok(token.clone());
        }
        let text = self.0.signer.sign(now).map_err(|error| Status::internal(format!("sign a token: {error}")))?;
        let token = MetadataValue::try_from(text).map_err(|_| Status::internal("sign a token: not a header value"))?;
        *latest = Some((second, token.clone()));
        Ok(token)
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let token = self.at(SystemTime::now())?;
        request.metadata_mut().insert(jwt::METADATA_KEY, token);
        Ok(request)
    }
}

fn address_in(data_dir: &Path) -> Result<Option<String>, Failure> {
    let file = data_dir.join(ADDRESS_FILE);
    match fs::read_to_string(&file) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Failure::Read { file, source }),
    }
}

/// A bare host and port means plaintext, as the default listener speaks it; a URL's path is of no use and refused.
fn parse_address(text: &str) -> Result<Uri, Failure> {
    let malformed = || Failure::MalformedAddress { address: text.to_owned() };
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Uri = url.parse().map_err(|_| malformed())?;
    let plain = matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.host().is_some_and(|host| !host.is_empty())
        && matches!(uri.path_and_query().map(|path| path.as_str()), None | Some("" | "/"));
    if plain { Ok(uri) } else { Err(malformed()) }
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(file).map_err(|source| Failure::Read { file: file.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        connect: ConnectArgs,
    }

    fn args(data_dir: &Path) -> ConnectArgs {
        let line = ["x", "--data-dir", &data_dir.display().to_string()].map(str::to_owned);
        Line::parse_from(line).connect
    }

    #[test]
    fn an_address_may_be_a_host_and_port_or_a_url() {
        let shown = |text: &str| parse_address(text).map(|uri| uri.to_string()).ok();
        assert_eq!(shown("localhost:5443").as_deref(), Some("http://localhost:5443/"));
        assert_eq!(shown("[::1]:5443").as_deref(), Some("http://[::1]:5443/"));
        assert_eq!(shown("https://broker:443").as_deref(), Some("https://broker:443/"));
        for bad in ["", "ftp://x", "http://", "http://x/path", "a b", "http://x?q"] {
            assert_eq!(shown(bad), None, "{bad}");
        }
    }

    #[test]
    fn address_and_secret_are_found_in_the_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        let args = args(folder.path());
        assert_eq!(args.resolve_addresses().unwrap(), [parse_address("127.0.0.1:5443").unwrap()]);
        assert!(matches!(args.resolve_key(), Err(Failure::NoSecret { .. })));

        let key = SharedKey::from_bytes([3; 32]);
        fs::write(folder.path().join(ADDRESS_FILE), "http://127.0.0.1:7000\n").unwrap();
        fs::write(folder.path().join(SECRET_FILE), key.to_base64()).unwrap();
        assert_eq!(args.resolve_addresses().unwrap(), [parse_address("127.0.0.1:7000").unwrap()]);
        let several = ConnectArgs { address: Some("a:1, https://b:2".into()), ..args.clone() };
        assert_eq!(several.resolve_addresses().unwrap().len(), 2);
        assert_eq!(args.resolve_key().unwrap(), key);
    }

    #[test]
    fn a_token_is_signed_once_a_second() {
        let token = Token::new(&SharedKey::from_bytes([3; 32]));
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let first = token.at(start).unwrap();
        assert_eq!(token.clone().at(start + Duration::from_millis(999)).unwrap(), first);
        assert_ne!(token.at(start + Duration::from_secs(1)).unwrap(), first);
    }

    #[test]
    fn a_secret_is_not_printed() {
        let line = Line::parse_from(["x", "--shared-secret", "c2VjcmV0"]);
        assert!(!format!("{:?}", line.connect).contains("c2VjcmV0"));
    }
}
