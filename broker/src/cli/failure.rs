//! Why a tool failed, in words that say what to do, and the exit code that tells programs.

use std::{error::Error as StdError, io, path::PathBuf, process::ExitCode, time::Duration};

use tonic::{Code, Status, transport::Uri};

use super::{duration::short, output::notice};
use crate::jwt::MalformedKey;

/// What `--help` says about exit codes.
pub const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such record, 4 secret or certificate refused, 5 server not reachable.";

/// A tool's failure.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The address is not one.
    #[error("{address:?} is not an address: give host:port, http://host:port or https://host:port")]
    MalformedAddress {
        /// As given.
        address: String,
    },
    /// No secret was given or found.
    #[error(
        "no shared secret: there is no {}. Give --data-dir of the server's data folder, --shared-secret-file, or set SHARED_SECRET",
        file.display()
    )]
    NoSecret {
        /// Where it was looked for.
        file: PathBuf,
    },
    /// What was given or found is not a secret.
    #[error("{source} (from {from})")]
    MalformedSecret {
        /// The flag or file.
        from: String,
        /// What is wrong with it.
        source: MalformedKey,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}{}", file.display(), read_hint(source))]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", file.display())]
    Write {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The TLS options do not fit together.
    #[error("cannot set up TLS: {}", chain(source.as_ref()))]
    Tls {
        /// Why.
        source: Box<tonic::transport::Error>,
    },
    /// The connection failed.
    #[error("{hint}")]
    Connect {
        /// What happened and what to do.
        hint: String,
        /// The transport's own words.
        source: Box<tonic::transport::Error>,
    },
    /// Nobody answered.
    #[error("no answer from {address} within {} (--timeout)", short(*timeout))]
    NoAnswer {
        /// The server's URL.
        address: String,
        /// How long it was waited.
        timeout: Duration,
    },
    /// The server, or the connection to it, answered with an error.
    #[error("{hint}")]
    Refused {
        /// What happened and what to do.
        hint: String,
        /// The answer.
        status: Box<Status>,
    },
    /// What the person gave makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Something asked for is not there.
    #[error("{0}")]
    NotFound(String),
    /// Anything else that ends a tool.
    #[error("{0}")]
    Failed(String),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// SIGTERM.
    #[error("terminated")]
    Terminated,
    /// Who read the output has gone, as `head` does: not an error.
    #[error("nobody reads the output")]
    OutputClosed,
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    /// A command run under a lease ended with this code.
    #[error("the command ended with exit code {0}")]
    Command(u8),
}

impl Failure {
    /// What an error while connecting means.
    pub fn connect(address: &Uri, source: tonic::transport::Error) -> Self {
        let hint = transport_hint(address, &chain(&source));
        Self::Connect { hint, source: Box::new(source) }
    }

    /// What a status means.
    pub fn status(address: &Uri, status: Status) -> Self {
        let hint = match status.code() {
            Code::Unauthenticated => format!(
                "the server at {address} refuses the shared secret ({}): give the server's own with --shared-secret-file, \
                 SHARED_SECRET or --data-dir, and check that the clocks agree",
                status.message()
            ),
            _ => match status.source() {
                // The connection broke: the server said nothing.
                Some(source) => transport_hint(address, &chain(source)),
                None => format!("the server answers {}: {}", code_name(status.code()), status.message()),
            },
        };
        Self::Refused { hint, status: Box::new(status) }
    }

    /// What an error of the output means.
    pub fn output(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Output(source),
        }
    }

    /// The status behind it, if a server answered.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { status, .. } => Some(status.code()),
            _ => None,
        }
    }

    /// Whether the connection broke rather than a server answered.
    pub fn is_broken_connection(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.source().is_some())
    }

    /// What the process exits with; see [`EXIT_CODES`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::MalformedAddress { .. } | Self::NoSecret { .. } | Self::MalformedSecret { .. } => 2,
            Self::NotFound(_) => 3,
            Self::Connect { source, .. } if refuses_certificate(&chain(source.as_ref())) => 4,
            Self::Connect { .. } | Self::NoAnswer { .. } => 5,
            Self::Refused { status, .. } => match status.code() {
                Code::NotFound => 3,
                Code::Unauthenticated => 4,
                _ if status.source().is_some_and(|source| refuses_certificate(&chain(source))) => 4,
                Code::Unavailable | Code::DeadlineExceeded => 5,
                _ if status.source().is_some() => 5,
                _ => 1,
            },
            Self::Read { .. } | Self::Write { .. } | Self::Tls { .. } | Self::Failed(_) | Self::Output(_) => 1,
            Self::OutputClosed => 0,
            Self::Command(code) => *code,
            // What shells report for a process ended by SIGINT or SIGTERM.
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }

    /// Tells a person on standard error, and ends the tool.
    pub fn report(&self) -> ExitCode {
        if !matches!(self, Self::OutputClosed) {
            notice(&format!("error: {self}"));
        }
        ExitCode::from(self.exit_code())
    }
}

/// An error and its causes in one line, each said once.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    // Bounded because a chain of causes may in theory be a ring.
    for _ in 0..16 {
        let Some(error) = cause else { break };
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}

/// Whether a certificate is what is wrong, by the transport's words.
fn refuses_certificate(causes: &str) -> bool {
    const WORDS: [&str; 7] = [
        "certificate",
        "UnknownIssuer",
        "BadSignature",
        "native certs",
        "not valid for",
        "NotValidForName",
        "CaUsedAsEndEntity",
    ];
    WORDS.iter().any(|words| causes.contains(words))
}

/// The usual troubles, told apart by the transport's words: their types are not public.
fn transport_hint(address: &Uri, causes: &str) -> String {
    let host = address.authority().map_or("", |authority| authority.as_str());
    let plain = address.scheme_str() != Some("https");
    let has = |words: &str| causes.contains(words);
    if has("Connection refused") {
        format!("no server at {address} (connection refused): is `databroker serve` running?")
    } else if has("InvalidContentType") || has("corrupt message") {
        format!("the server at {host} does not speak TLS: use http://{host}")
    } else if has("invalid size") || has("FRAME_SIZE_ERROR") {
        format!("the server at {host} does not speak plaintext HTTP/2, most likely TLS: use https://{host}")
    } else if plain && ["broken pipe", "Connection reset", "connection closed"].iter().any(|words| has(words)) {
        format!(
            "the connection to {host} broke off ({causes}): is the server going down, or does it speak TLS (https://{host})?"
        )
    } else if refuses_certificate(causes) {
        certificate_hint(host, causes)
    } else if has("dns error") || has("failed to lookup") {
        format!("there is no host of the name in {address} ({causes})")
    } else {
        format!("no connection to {address}: {causes}")
    }
}

fn certificate_hint(host: &str, causes: &str) -> String {
    let has = |words: &str| causes.contains(words);
    if has("UnknownIssuer") || has("BadSignature") || has("native certs") {
        format!(
            "the certificate of {host} is from an authority that is not trusted here: give it with --ca-file ({causes})"
        )
    } else if has("not valid for") || has("NotValidForName") {
        format!("the certificate of {host} is for another name: give that with --server-name ({causes})")
    } else if has("CaUsedAsEndEntity") {
        format!(
            "the certificate of {host} is one of an authority (CA:TRUE), which no server may show: make one without it, \
             as with `openssl req -x509 -addext basicConstraints=critical,CA:FALSE` ({causes})"
        )
    } else {
        format!("the certificate of {host} is refused: {causes}")
    }
}

fn read_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => " (run as the user of the server, or let yourself read it)",
        _ => "",
    }
}

/// A status code as the interface writes it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_with_the_certificate_of_an_authority_is_told_apart() {
        let address = Uri::from_static("https://broker:5443");
        let hint = transport_hint(&address, "invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))");
        assert!(hint.contains("CA:FALSE") && hint.contains("broker:5443"), "{hint}");
    }
}
