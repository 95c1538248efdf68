//! Calls with prebuilt bytes, and answers of which only what the benchmark counts is read. The client shares the machine
//! with the server it measures, so each cycle it saves is the server's.

use std::{error::Error as _, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes};
use databroker_proto::{EncodedRecord, databroker as pb};
use http::uri::PathAndQuery;
use prost::{
    Message as _,
    encoding::{WireType, decode_key, decode_varint},
};
use tokio::time::{Instant, sleep};
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::super::{
    connect::{ConnectArgs, Connection, MESSAGE_BYTES_MAX, Transport},
    failure::Failure,
};

/// A method of `databroker.DataBrokerService`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// Unary.
    Put,
    /// Unary.
    Get,
    /// Unary.
    Query,
    /// Unary.
    Patch,
    /// Server stream.
    Sync,
    /// Server stream.
    SyncLatest,
}

impl Method {
    fn path(self) -> PathAndQuery {
        PathAndQuery::from_static(match self {
            Self::Put => "/databroker.DataBrokerService/Put",
            Self::Get => "/databroker.DataBrokerService/Get",
            Self::Query => "/databroker.DataBrokerService/Query",
            Self::Patch => "/databroker.DataBrokerService/Patch",
            Self::Sync => "/databroker.DataBrokerService/Sync",
            Self::SyncLatest => "/databroker.DataBrokerService/SyncLatest",
        })
    }
}

/// Before a call is tried again: nodes that are all away must not be asked a million times.
const PAUSE_BEFORE_RETRY: Duration = Duration::from_millis(10);

/// Several connections to one server; callers are dealt out over them.
#[derive(Clone)]
pub(super) struct Lanes(Arc<[Connection]>);

impl Lanes {
    /// Opens `count` connections.
    ///
    /// # Errors
    /// As [`ConnectArgs::connect`].
    pub(super) async fn open(connect: &ConnectArgs, count: usize) -> Result<Self, Failure> {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count.max(1) {
            connections.push(connect.connect().await?);
        }
        Ok(Self(connections.into()))
    }

    /// The connection of the `caller`-th caller.
    pub(super) fn connection(&self, caller: usize) -> &Connection {
        &self.0[caller % self.0.len()]
    }

    /// A lane on that connection.
    pub(super) fn lane(&self, caller: usize) -> Lane {
        let connection = self.connection(caller);
        let grpc = Grpc::new(connection.transport()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Lane { grpc, patience: connection.has_others().then(|| connection.timeout()), retried: 0 }
    }
}

/// One caller's way to the server.
#[derive(Clone)]
pub(super) struct Lane {
    grpc: Grpc<Transport>,
    /// How long a call is tried again, where there is another address to try it on.
    patience: Option<Duration>,
    retried: u64,
}

impl Lane {
    /// One call. Where there are several addresses and one is away, it is tried on the next until its time is up: what
    /// is called here may be done twice.
    ///
    /// # Errors
    /// The server's status, or UNAVAILABLE when there is no connection.
    pub(super) async fn unary<A: Answer>(&mut self, method: Method, request: Bytes) -> Result<A, Status> {
        let Some(patience) = self.patience else { return self.attempt(method, request).await };
        let deadline = Instant::now() + patience;
        loop {
            match self.attempt(method, request.clone()).await {
                Err(status) if is_away(&status) && Instant::now() < deadline => {
                    self.retried += 1;
                    sleep(PAUSE_BEFORE_RETRY).await;
                }
                result => return result,
            }
        }
    }

    /// How many attempts were made again since this was last asked.
    pub(super) fn take_retried(&mut self) -> u64 {
        std::mem::take(&mut self.retried)
    }

    async fn attempt<A: Answer>(&mut self, method: Method, request: Bytes) -> Result<A, Status> {
        self.ready().await?;
        let response = self.grpc.unary(Request::new(request), method.path(), Prebuilt::new()).await?;
        Ok(response.into_inner())
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// As [`Lane::unary`].
    pub(super) async fn stream<A: Answer>(&mut self, method: Method, request: Bytes) -> Result<Streaming<A>, Status> {
        self.ready().await?;
        let response = self.grpc.server_streaming(Request::new(request), method.path(), Prebuilt::new()).await?;
        Ok(response.into_inner())
    }

    async fn ready(&mut self) -> Result<(), Status> {
        self.grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))
    }
}

/// Whether it is the server, or the connection to it, that is away: another may do what was asked.
fn is_away(status: &Status) -> bool {
    status.code() == Code::Unavailable || status.source().is_some()
}

/// What is read of an answer.
pub(super) trait Answer: Sized + Send + Sync + 'static {
    /// Reads an encoded message.
    ///
    /// # Errors
    /// INTERNAL when it is not what was expected.
    fn read(message: &[u8]) -> Result<Self, Status>;
}

/// Whether an answer of Put, Get, Query or Patch holds a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HoldsRecord(pub(super) bool);

impl Answer for HoldsRecord {
    fn read(message: &[u8]) -> Result<Self, Status> {
        // The record is field 1 in answers of Get and Query, field 2 in those of Put and Patch, after a number.
        let mut rest = message;
        while rest.has_remaining() {
            match decode_key(&mut rest).map_err(malformed)? {
                (1 | 2, WireType::LengthDelimited) => return Ok(Self(true)),
                (_, WireType::Varint) => decode_varint(&mut rest).map_err(malformed)?,
                _ => break,
            };
        }
        Ok(Self(false))
    }
}

/// The version of the last record in an answer of Put; 0 if there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PutVersion(pub(super) u64);

impl Answer for PutVersion {
    fn read(message: &[u8]) -> Result<Self, Status> {
        let answer = pb::PutResponse::decode(message).map_err(malformed)?;
        let record = answer.records.last().map(EncodedRecord::to_record).transpose().map_err(malformed)?;
        Ok(Self(record.map_or(0, |record| record.version)))
    }
}

/// One frame of a Sync or SyncLatest stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A record, of this version.
    Record(u64),
    /// Anything else: options, the versions at the end.
    Other,
}

impl Answer for Frame {
    fn read(message: &[u8]) -> Result<Self, Status> {
        let mut rest = message;
        if !rest.has_remaining() || decode_key(&mut rest).map_err(malformed)? != (1, WireType::LengthDelimited) {
            return Ok(Self::Other);
        }
        decode_varint(&mut rest).map_err(malformed)?;
        // All known servers write fields in the order of their numbers; if not, the slow way.
        match decode_key(&mut rest).map_err(malformed)? {
            (1, WireType::Varint) => Ok(Self::Record(decode_varint(&mut rest).map_err(malformed)?)),
            _ => slow_version(message),
        }
    }
}

fn slow_version(message: &[u8]) -> Result<Frame, Status> {
    match pb::SyncResponse::decode(message).map_err(malformed)?.response {
        Some(pb::sync_response::Response::Record(record)) => {
            Ok(Frame::Record(record.to_record().map_err(malformed)?.version))
        }
        _ => Ok(Frame::Other),
    }
}

fn malformed(error: prost::DecodeError) -> Status {
    Status::internal(format!("malformed answer: {error}"))
}

/// Sends bytes as they are, and reads an [`Answer`] in place.
struct Prebuilt<A>(std::marker::PhantomData<A>);

impl<A> Prebuilt<A> {
    fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<A: Answer> Codec for Prebuilt<A> {
    type Encode = Bytes;
    type Decode = A;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::new()
    }

    fn decoder(&mut self) -> Self {
        Self::new()
    }
}

impl<A: Answer> Encoder for Prebuilt<A> {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl<A: Answer> Decoder for Prebuilt<A> {
    type Item = A;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<A>, Status> {
        let answer = A::read(buffer.chunk())?;
        buffer.advance(buffer.remaining());
        Ok(Some(answer))
    }
}

#[cfg(test)]
mod tests {
    use databroker_proto::Record;

    use super::*;

    #[test]
    fn a_frame_shows_the_version_of_its_record() {
        let record = Record { version: 70_000, r#type: "t".into(), ..Default::default() };
        let frame = |response| Frame::read(&pb::SyncResponse { response: Some(response) }.encode_to_vec()).unwrap();
        assert_eq!(frame(pb::sync_response::Response::Record(record.into())), Frame::Record(70_000));
        assert_eq!(frame(pb::sync_response::Response::Options(pb::TypedOptions::default())), Frame::Other);
        // Type first, version second.
        let reversed = EncodedRecord::from_bytes(vec![0x12, 1, b't', 0x08, 9]);
        assert_eq!(frame(pb::sync_response::Response::Record(reversed)), Frame::Record(9));
    }

    #[test]
    fn an_answer_shows_whether_it_holds_a_record() {
        let record = EncodedRecord::from(Record { id: "i".into(), ..Default::default() });
        let put = pb::PutResponse { server_version: 300, records: vec![record.clone()] };
        assert_eq!(HoldsRecord::read(&put.encode_to_vec()).unwrap(), HoldsRecord(true));
        let query = pb::QueryResponse { records: vec![record], total_count: 1, ..Default::default() };
        assert_eq!(HoldsRecord::read(&query.encode_to_vec()).unwrap(), HoldsRecord(true));
        let none = pb::QueryResponse { server_version: 300, record_version: 7, ..Default::default() };
        assert_eq!(HoldsRecord::read(&none.encode_to_vec()).unwrap(), HoldsRecord(false));
    }
}
