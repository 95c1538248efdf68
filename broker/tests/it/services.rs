//! Registry, checkpoint, health, reflection and the HTTP side, as a client sees them.

use databroker::node::Bootstrap;
use databroker_proto::{
    databroker::{
        Checkpoint, GetCheckpointRequest, Options, SetCheckpointRequest, SetOptionsRequest, SyncRequest, sync_response,
    },
    registry::{ListRequest, RegisterRequest, Service, ServiceKind, ServiceList},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::broker::{Broker, Options as BrokerOptions, put, record, server_version, soon};

fn report(endpoint: &str) -> RegisterRequest {
    let service = Service { kind: ServiceKind::Authorize.into(), endpoint: endpoint.into() };
    RegisterRequest { services: vec![service], ..RegisterRequest::default() }
}

fn endpoints(list: &ServiceList) -> Vec<&str> {
    list.services.iter().map(|service| service.endpoint.as_str()).collect()
}

#[tokio::test]
async fn a_watcher_gets_the_list_at_once_and_then_each_that_differs() {
    let broker = Broker::start().await;
    let registry = &mut broker.registry().await;
    let mut all = registry.watch(ListRequest::default()).await.unwrap().into_inner();
    let proxies = ListRequest { kinds: vec![ServiceKind::Proxy.into()] };
    let mut proxies = registry.watch(proxies).await.unwrap().into_inner();
    assert_eq!(endpoints(&soon(all.message()).await.unwrap().unwrap()), [""; 0]);
    assert_eq!(endpoints(&soon(proxies.message()).await.unwrap().unwrap()), [""; 0]);

    let answer = registry.report(report("http://b")).await.unwrap().into_inner();
    assert_eq!(answer.call_back_after.unwrap().seconds, 15);
    assert_eq!(endpoints(&soon(all.message()).await.unwrap().unwrap()), ["http://b"]);
    registry.report(report("http://a")).await.unwrap();
    assert_eq!(endpoints(&soon(all.message()).await.unwrap().unwrap()), ["http://a", "http://b"]);
    let list = registry.list(ListRequest::default()).await.unwrap().into_inner();
    assert_eq!(endpoints(&list), ["http://a", "http://b"]);

    broker.close();
    // The list of proxies has not changed: what comes next is the end.
    assert_eq!(soon(proxies.message()).await.unwrap_err().code(), tonic::Code::Unavailable);
    broker.stop().await;
}

#[tokio::test]
async fn a_watcher_names_few_kinds_and_a_report_few_services() {
    let broker = Broker::start().await;
    let registry = &mut broker.registry().await;
    let refused = registry.watch(ListRequest { kinds: vec![1; 65] }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let service = |n| Service { kind: ServiceKind::Proxy.into(), endpoint: format!("http://{n}") };
    let services = (0..70_000).map(service).collect();
    let refused = registry.report(RegisterRequest { services, ..RegisterRequest::default() }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("at most 65536 are allowed"), "{}", refused.message());
    broker.stop().await;
}

#[tokio::test]
async fn a_checkpoint_is_kept_and_a_lone_node_leads_nobody() {
    let broker = Broker::start().await;
    let checkpoints = &mut broker.checkpoints().await;
    let got = checkpoints.get_checkpoint(GetCheckpointRequest {}).await.unwrap().into_inner();
    assert_eq!((got.checkpoint, got.is_leader), (Some(Checkpoint::default()), false));
    let checkpoint = Some(Checkpoint { server_version: u64::MAX, record_version: 2 });
    checkpoints.set_checkpoint(SetCheckpointRequest { checkpoint }).await.unwrap();
    let got = checkpoints.get_checkpoint(GetCheckpointRequest {}).await.unwrap().into_inner();
    assert_eq!(got.checkpoint, checkpoint);
    broker.stop().await;
}

#[tokio::test]
async fn health_answers_for_any_service_without_a_token() {
    let broker = Broker::start().await;
    let mut health = HealthClient::new(broker.channel().await);
    for service in ["", "pomerium-databroker", "whatever"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap();
        assert_eq!(answer.into_inner().status, 1, "{service}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_node_without_records_sends_streams_and_balancers_elsewhere_and_no_client_starts_anew() {
    let mut options = BrokerOptions::default();
    options.node.bootstrap = Bootstrap::Explicit;
    let broker = Broker::start_with(options).await;
    // A wiped disk that is being filled again: the position is good, wherever it is from.
    let request = SyncRequest { server_version: 7, record_version: 3, ..SyncRequest::default() };
    let refused = soon(broker.client().await.sync(request)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    assert!(refused.message().starts_with("NOT_INITIALIZED"), "{refused}");
    assert_eq!(health(&broker).await, ServingStatus::NotServing);
    broker.stop().await;
}

#[tokio::test]
async fn a_broker_that_is_leaving_says_so_takes_no_streams_and_still_answers() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    assert_eq!(health(&broker).await, ServingStatus::Serving);
    let server_version = server_version(client).await;
    let request = || SyncRequest { server_version, ..SyncRequest::default() };
    let mut open = soon(client.sync(request())).await.unwrap().into_inner();

    broker.leave();
    assert_eq!(health(&broker).await, ServingStatus::NotServing);
    assert!(http_get(&broker, "readyz").await.contains("503"), "ready");
    assert_eq!(soon(client.sync(request())).await.unwrap_err().code(), tonic::Code::Unavailable);
    let watched = broker.registry().await.watch(ListRequest::default()).await;
    assert_eq!(watched.unwrap_err().code(), tonic::Code::Unavailable);
    // While leadership goes over, what is here goes on.
    put(client, vec![record("t", "a", "1")]).await;
    let got = soon(async {
        while let Some(message) = open.message().await.unwrap() {
            if matches!(message.response, Some(sync_response::Response::Record(_))) {
                return true;
            }
        }
        false
    });
    assert!(got.await, "the open stream has ended");
    broker.stop().await;
}

async fn health(broker: &Broker) -> ServingStatus {
    let request = HealthCheckRequest { service: "databroker".into() };
    HealthClient::new(broker.channel().await).check(request).await.unwrap().into_inner().status()
}

#[tokio::test]
async fn reflection_lists_the_services_without_a_token() {
    let broker = Broker::start().await;
    let mut reflection = ServerReflectionClient::new(broker.channel().await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let stream = reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let answer = soon(stream.into_inner().message()).await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["databroker.DataBrokerService", "databroker.CheckpointService", "registry.Registry"] {
        assert!(names.contains(&name), "{names:?}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn the_http_side_tells_how_the_broker_is() {
    let broker = Broker::start().await;
    for (path, content) in
        [("healthz", "alive"), ("readyz", "ready"), ("startupz", "started"), ("metrics", "databroker_streams 0\n")]
    {
        let answer = http_get(&broker, path).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(content), "{path}: {answer}");
    }
    assert!(http_get(&broker, "metrics").await.ends_with("# EOF\n"));
    broker.stop().await;
}

#[tokio::test]
async fn the_metrics_tell_sizes_and_evictions() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let options = Some(Options { capacity: Some(1), ..Options::default() });
    client.set_options(SetOptionsRequest { r#type: "t".into(), options }).await.unwrap();
    put(client, ["a", "b", "c"].map(|id| record("t", id, "1")).to_vec()).await;
    let answer = http_get(&broker, "metrics").await;
    assert!(answer.contains("databroker_evictions_total 2\n"), "{answer}");
    assert!(answer.contains("databroker_records 1\n") && answer.contains("databroker_store_bytes "), "{answer}");
    broker.stop().await;
}

#[tokio::test]
async fn connections_that_say_nothing_do_not_keep_those_who_watch_out() {
    let broker = Broker::start().await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(tokio::net::TcpStream::connect(broker.addresses.health).await.unwrap());
    }
    assert!(http_get(&broker, "healthz").await.contains("alive"));
    drop(silent);
    broker.stop().await;
}

pub(crate) async fn http_get(broker: &Broker, path: &str) -> String {
    let mut socket = tokio::net::TcpStream::connect(broker.addresses.health).await.unwrap();
    socket.write_all(format!("GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(socket.read_to_string(&mut answer)).await.unwrap();
    answer
}
