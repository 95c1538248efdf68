//! Bytes as they are, sent as a gRPC message or on a bare connection.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

use super::support::{Broker, MESSAGE_BYTES_MAX, PATIENCE};

/// How long a stream is read that may stay open: long enough for its first frames, and then it is dropped.
pub const STREAM_READ: Duration = Duration::from_millis(200);

/// What came back. The fields are for the message of a failed test, too.
#[allow(dead_code)]
#[derive(Debug)]
pub enum Answer {
    /// The call ended with this code and so many messages.
    Code(Code, usize),
    /// A stream was opened and had not ended.
    Open,
    /// The connection broke instead of an answer.
    Broken(Status),
}

impl Answer {
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Code(code, _) => Some(*code),
            Self::Open | Self::Broken(_) => None,
        }
    }
}

/// A connection with a valid token.
pub struct Caller {
    grpc: Grpc<Channel>,
    token: MetadataValue<Ascii>,
}

impl Caller {
    pub async fn new(broker: &Broker) -> Self {
        let grpc = Grpc::new(broker.channel().await)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        Self { grpc, token: broker.token().0 }
    }

    pub async fn call(&mut self, method: &'static str, message: Bytes, quiet_max: Duration) -> Answer {
        self.call_with(method, message, Some(self.token.clone()), quiet_max).await
    }

    /// Every method is called as if it answered with a stream: on the wire there is no difference. One that says nothing for
    /// `quiet_max` counts as open.
    pub async fn call_with(
        &mut self,
        method: &'static str,
        message: Bytes,
        token: Option<MetadataValue<Ascii>>,
        quiet_max: Duration,
    ) -> Answer {
        let mut request = Request::new(message);
        if let Some(token) = token {
            request.metadata_mut().insert("jwt", token);
        }
        self.grpc.ready().await.expect("a connection is always ready");
        let call = self.grpc.server_streaming(request, PathAndQuery::from_static(method), Raw);
        let opened = match tokio::time::timeout(PATIENCE, call).await {
            Ok(opened) => opened,
            // A stream without frames sends no headers before its first one.
            Err(_) => panic!("{method} does not answer"),
        };
        let mut stream = match opened {
            Ok(response) => response.into_inner(),
            Err(status) => return ended(status, 0),
        };
        let mut frames = 0;
        loop {
            match tokio::time::timeout(quiet_max, stream.message()).await {
                Err(_) => return Answer::Open,
                Ok(Ok(Some(_))) => frames += 1,
                Ok(Ok(None)) => return Answer::Code(Code::Ok, frames),
                Ok(Err(status)) => return ended(status, frames),
            }
        }
    }
}

/// A status that the client made up has a source: what broke.
fn ended(status: Status, frames: usize) -> Answer {
    if std::error::Error::source(&status).is_some() {
        Answer::Broken(status)
    } else {
        Answer::Code(status.code(), frames)
    }
}

/// Messages as bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(bytes.copy_to_bytes(bytes.remaining())))
    }
}

/// A connection without any protocol.
pub struct Bare(TcpStream);

impl Bare {
    pub async fn open(broker: &Broker) -> Self {
        let address = broker.address.trim_start_matches("http://");
        Self(TcpStream::connect(address).await.expect("the broker takes connections"))
    }

    /// Sends as much as the broker takes: it may close at any byte.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = tokio::time::timeout(Duration::from_secs(5), self.0.write_all(bytes)).await;
    }

    /// Whatever the broker says, it must close.
    pub async fn closed_within(mut self, patience: Duration) {
        let mut read = [0; 1024];
        let end = async { while self.0.read(&mut read).await.is_ok_and(|bytes| bytes > 0) {} };
        tokio::time::timeout(patience, end).await.expect("a silent connection is closed");
    }
}
