//! Tokens, ids of failed requests, and clients that speak something else.

use databroker_proto::databroker::{GetRequest, PutRequest, data_broker_service_client::DataBrokerServiceClient};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, Request};

use crate::broker::{Broker, Options, record, soon};

#[tokio::test]
async fn without_a_good_token_nothing_is_answered() {
    let broker = Broker::start().await;
    let mut client = DataBrokerServiceClient::new(broker.channel().await);
    let error = client.server_info(()).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unauthenticated, "unauthenticated"));
    let mut request = Request::new(());
    request.metadata_mut().insert("jwt", "x.y.z".parse().unwrap());
    let error = client.server_info(request).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unauthenticated, "invalid JWT"));
    broker.stop().await;
}

#[tokio::test]
async fn an_error_names_its_request() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let mut request = Request::new(GetRequest::default());
    request.metadata_mut().insert("x-request-id", "mine".parse().unwrap());
    let error = client.get(request).await.unwrap_err();
    assert_eq!(error.metadata().get("x-request-id").unwrap(), "mine");
    let error = client.get(GetRequest::default()).await.unwrap_err();
    assert_eq!(error.metadata().get("x-request-id").unwrap().len(), 16);
    broker.stop().await;
}

#[tokio::test]
async fn a_request_may_be_as_large_as_the_limit_and_not_larger() {
    let mut options = Options::default();
    options.limits.request_bytes_max = 5 << 20;
    let broker = Broker::start_with(options).await;
    let client = &mut broker.client().await;
    let put = |bytes| PutRequest { records: vec![record("t", "a", &"x".repeat(bytes))] };
    client.put(put((5 << 20) - 200)).await.unwrap();
    client.put(put(5 << 20)).await.unwrap_err();
    client.put(put(1)).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn whoever_speaks_something_else_is_hung_up_on_and_harms_nobody() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    for garbage in
        [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 100], &[0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8, 9]]
    {
        let mut socket = tokio::net::TcpStream::connect(broker.addresses.grpc).await.unwrap();
        socket.write_all(garbage).await.unwrap();
        socket.write_all(&[0; 64]).await.ok();
        let mut rest = Vec::new();
        // Ends with the connection, in good order or not.
        let _ = soon(socket.read_to_end(&mut rest)).await;
        client.server_info(()).await.unwrap();
    }
    // One that says nothing does not keep the server from stopping.
    let _silent = tokio::net::TcpStream::connect(broker.addresses.grpc).await.unwrap();
    client.server_info(()).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn who_comes_when_all_places_are_taken_waits_for_one() {
    let mut options = Options::default();
    options.limits.connections_max = 1;
    let broker = Broker::start_with(options).await;
    let mut first = broker.client().await;
    first.server_info(()).await.unwrap();
    let mut second = tokio::net::TcpStream::connect(broker.addresses.grpc).await.unwrap();
    second.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut byte = [0];
    let answered = second.read_exact(&mut byte);
    tokio::pin!(answered);
    for _ in 0..50 {
        first.server_info(()).await.unwrap();
        assert!(futures::poll!(answered.as_mut()).is_pending());
    }
    drop(first);
    soon(answered).await.unwrap();
    broker.close();
}
