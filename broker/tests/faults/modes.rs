//! What metadata `pomerium-cluster-request-mode` makes of a request, on a node that leads and on one that does not.

use databroker_proto::databroker::{
    GetOptionsRequest, GetRequest, PutRequest, QueryRequest, SetOptionsRequest, SyncLatestRequest, SyncRequest,
};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use crate::{
    clients::{TYPE, record},
    cluster::Cluster,
    trial::addresses,
};

/// A type that has options from the start.
const BINDING: &str = "type.googleapis.com/session.SessionBinding";

fn in_mode<T>(mode: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("pomerium-cluster-request-mode", mode.parse().unwrap());
    request
}

fn get() -> GetRequest {
    GetRequest { r#type: TYPE.into(), id: "x".into() }
}

fn put() -> PutRequest {
    PutRequest { records: vec![record("x", "text").into()] }
}

fn set_options() -> SetOptionsRequest {
    SetOptionsRequest { r#type: TYPE.into(), options: None }
}

#[track_caller]
fn assert_refused<T>(answer: Result<Response<T>, Status>, code: Code, reason: &str, text: &str) {
    let status = answer.err().expect("it is refused");
    assert_eq!((status.code(), status.message()), (code, &*format!("{reason}: {text}")));
    let info = status.get_details_error_info().expect("programs are told the reason, too");
    assert_eq!((&*info.reason, &*info.domain), (reason, "pomerium.com"));
}

#[track_caller]
fn assert_not_leader<T>(answer: Result<Response<T>, Status>) {
    let text = "request cannot be handled because the node is not the leader";
    assert_refused(answer, Code::FailedPrecondition, "NODE_IS_NOT_LEADER", text);
}

#[track_caller]
fn assert_unknown_mode<T>(answer: Result<Response<T>, Status>) {
    assert_refused(answer, Code::InvalidArgument, "UNKNOWN_CLUSTER_REQUEST_MODE", "unknown cluster request mode");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_refuses_what_is_the_leaders_and_unknown_modes_and_answers_local_reads_by_itself() {
    let cluster = Cluster::start_directly(3, "").await;
    let leader = cluster.leader().unwrap();
    let (follower, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let (mut client, mut at_leader) = (addresses(&cluster).client(follower), addresses(&cluster).client(leader));

    // Without a mode it takes everything. After a read there, it has what was read.
    client.put(put()).await.unwrap();
    client.get(in_mode("default", get())).await.unwrap();
    let before = client.server_info(()).await.unwrap().into_inner();

    for mode in ["leader", "local"] {
        assert_not_leader(client.put(in_mode(mode, put())).await);
        assert_not_leader(client.set_options(in_mode(mode, set_options())).await);
    }
    assert_not_leader(client.get(in_mode("leader", get())).await);
    assert_not_leader(client.query(in_mode("leader", QueryRequest::default())).await);
    assert_not_leader(client.sync(in_mode("leader", SyncRequest::default())).await);
    assert_not_leader(client.sync_latest(in_mode("leader", SyncLatestRequest::default())).await);
    for mode in ["LEADER", "follower"] {
        assert_unknown_mode(client.put(in_mode(mode, put())).await);
        assert_unknown_mode(client.get(in_mode(mode, get())).await);
        assert_unknown_mode(client.sync_latest(in_mode(mode, SyncLatestRequest::default())).await);
    }
    // Its last value counts.
    let mut twice = in_mode("local", get());
    twice.metadata_mut().append("pomerium-cluster-request-mode", "leader".parse().unwrap());
    assert_not_leader(client.get(twice).await);
    assert_eq!(client.server_info(()).await.unwrap().into_inner(), before, "what was refused was written");

    for mode in ["leader", "local"] {
        at_leader.put(in_mode(mode, put())).await.unwrap();
        at_leader.get(in_mode(mode, get())).await.unwrap();
    }

    // Nobody is left whom it could ask.
    cluster.freeze(leader);
    cluster.freeze(third);
    let found = client.get(in_mode("local", get())).await.unwrap().into_inner();
    assert_eq!(found.record.unwrap().to_record().unwrap().id, "x");
    let query = QueryRequest { r#type: TYPE.into(), limit: 1, ..QueryRequest::default() };
    assert_eq!(client.query(in_mode("local", query)).await.unwrap().into_inner().total_count, 1);
    client.get_options(in_mode("local", GetOptionsRequest { r#type: BINDING.into() })).await.unwrap();
    let mut copy = client.sync_latest(in_mode("local", SyncLatestRequest::default())).await.unwrap().into_inner();
    assert!(copy.message().await.unwrap().is_some());
}
