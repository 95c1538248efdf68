//! What the server does to requests that are too large, too many or too late, as bytes on the wire show it.
//!
//! Below the usual client, which ends calls by its own clock and cannot send half a message.

use std::sync::Arc;

use bytes::Bytes;
use databroker_proto::databroker::{GetRequest, SyncRequest};
use futures::{StreamExt as _, stream};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{body::Frame, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status, body::Body, service::Interceptor as _};

use crate::broker::{Broker, Options, Token, server_version, soon};

const PUT: &str = "/databroker.DataBrokerService/Put";
const GET: &str = "/databroker.DataBrokerService/Get";
const SYNC: &str = "/databroker.DataBrokerService/Sync";

/// A connection, closed when the last clone is dropped.
#[derive(Clone)]
struct Wire {
    sender: http2::SendRequest<Body>,
    _connection: Arc<AbortOnDropHandle<()>>,
}

impl Wire {
    async fn open(broker: &Broker) -> Self {
        let tcp = tokio::net::TcpStream::connect(broker.addresses.grpc).await.unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) });
        Self { sender, _connection: Arc::new(AbortOnDropHandle::new(connection)) }
    }

    /// The status with which a call ends, and how many bytes were answered.
    async fn call(&mut self, path: &str, headers: &[(&'static str, &'static str)], body: Body) -> (Status, usize) {
        let mut request = Request::post(format!("http://broker{path}")).header("content-type", "application/grpc");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(body).unwrap();
        let token = Token.call(tonic::Request::new(())).unwrap().into_parts().0;
        request.headers_mut().extend(token.into_headers());
        let response = self.sender.send_request(request).await.unwrap();
        if let Some(status) = Status::from_header_map(response.headers()) {
            return (status, 0);
        }
        let answer = response.into_body().collect().await.unwrap();
        let status = Status::from_header_map(answer.trailers().unwrap_or(&HeaderMap::new())).unwrap();
        (status, answer.to_bytes().len())
    }
}

/// The start of a message that announces so many bytes.
fn announced(bytes: usize) -> Vec<u8> {
    let mut head = vec![0];
    head.extend_from_slice(&u32::try_from(bytes).unwrap().to_be_bytes());
    head
}

fn message(message: &impl Message) -> Body {
    let mut bytes = announced(message.encoded_len());
    message.encode(&mut bytes).unwrap();
    Body::new(http_body_util::Full::new(bytes.into()))
}

/// A message that is sent up to `sent` of its bytes, and then no more.
fn unfinished(bytes: usize, sent: usize) -> Body {
    let mut start = announced(bytes);
    start.resize(start.len() + sent, 0x0a);
    let frames = stream::iter([Ok::<_, Status>(Frame::data(Bytes::from(start)))]);
    Body::new(StreamBody::new(frames.chain(stream::pending())))
}

#[tokio::test]
async fn requests_on_their_way_in_share_one_bound_and_small_ones_always_pass() {
    const MIB: usize = 1 << 20;
    let mut options = Options::default();
    options.limits.request_bytes_max = 5 * MIB;
    let broker = Broker::start_with(options).await;
    // Room for four of the largest. Each on a connection of its own: a connection has a window, too. They race for the
    // room, with the probe below as well: whoever is refused comes again, until four are in.
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut wire = Wire::open(&broker).await;
        stalled.push(tokio::spawn(async move {
            loop {
                let (status, _) = wire.call(PUT, &[], unfinished(5 * MIB, 4 * MIB + MIB / 2)).await;
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            }
        }));
    }
    let wire = &mut Wire::open(&broker).await;
    let refused = async {
        loop {
            let (status, _) = wire.call(PUT, &[("grpc-timeout", "50m")], unfinished(5 * MIB, 3 * MIB)).await;
            if status.code() == Code::ResourceExhausted {
                return status;
            }
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        }
    };
    let status = soon(refused).await;
    assert!(status.message().contains("send fewer records at once"), "{status:?}");
    // What is there takes nothing from small requests, and those that go away leave their room.
    server_version(&mut broker.client().await).await;
    stalled.iter().for_each(tokio::task::JoinHandle::<()>::abort);
    let wire = &mut Wire::open(&broker).await;
    let free = async {
        loop {
            let (status, _) = wire.call(PUT, &[("grpc-timeout", "50m")], unfinished(5 * MIB, 4 * MIB)).await;
            if status.code() == Code::DeadlineExceeded {
                return;
            }
        }
    };
    soon(free).await;
    broker.stop().await;
}

#[tokio::test]
async fn a_message_over_the_bound_is_resource_exhausted() {
    let mut options = Options::default();
    options.limits.request_bytes_max = 1 << 20;
    let broker = Broker::start_with(options).await;
    let wire = &mut Wire::open(&broker).await;
    let (status, _) = soon(wire.call(PUT, &[], unfinished((1 << 20) + 1, 0))).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    // Whoever has no token has no use for large messages.
    for path in
        ["/grpc.health.v1.Health/Check", "/registry.Registry/List", "/databroker.CheckpointService/GetCheckpoint"]
    {
        let (status, _) = soon(wire.call(path, &[], unfinished(5 << 20, 0))).await;
        assert_eq!(status.code(), Code::ResourceExhausted, "{path} {status:?}");
    }
    let (status, _) = soon(wire.call("/grpc.health.v1.Health/Check", &[], unfinished(20 << 10, 0))).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    broker.stop().await;
}

#[tokio::test]
async fn a_call_ends_when_its_deadline_has_passed() {
    let broker = Broker::start().await;
    let wire = &mut Wire::open(&broker).await;
    let (status, _) = soon(wire.call(PUT, &[("grpc-timeout", "20m")], unfinished(100, 10))).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    // One that is answered in time is not disturbed, nor one whose deadline cannot be read.
    for timeout in ["30S", "99999999H", "1X", "-1S", "999999999S", ""] {
        let get = message(&GetRequest { r#type: "t".into(), id: "none".into() });
        let (status, _) = soon(wire.call(GET, &[("grpc-timeout", timeout)], get)).await;
        assert_eq!(status.code(), Code::NotFound, "{timeout:?} {status:?}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_stream_with_a_deadline_ends_at_it_and_one_without_stays_open() {
    let broker = Broker::start().await;
    let server_version = server_version(&mut broker.client().await).await;
    let sync = || message(&SyncRequest { server_version, ..SyncRequest::default() });
    let wire = &mut Wire::open(&broker).await;
    let mut unlimited = wire.clone();
    let mut open = Box::pin(unlimited.call(SYNC, &[], sync()));
    assert!(futures::poll!(&mut open).is_pending());
    let (status, _) = soon(wire.call(SYNC, &[("grpc-timeout", "100m")], sync())).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(futures::poll!(&mut open).is_pending());
    drop(open);
    broker.stop().await;
}
