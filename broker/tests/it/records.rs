//! Records, queries, options and leases, as a client sees them.

use std::time::{Duration, Instant};

use databroker::store::command::{FIELDS_MAX, PATHS_MAX, RECORDS_MAX};
use databroker_proto::{
    EncodedRecord,
    databroker::{
        AcquireLeaseRequest, GetOptionsRequest, GetRequest, Options, PatchRequest, PutRequest, QueryRequest,
        ReleaseLeaseRequest, RenewLeaseRequest, SetOptionsRequest,
    },
};
use prost_types::{Struct, Value, value::Kind};
use tonic::{Code, Request, Status};

use crate::broker::{Broker, Client, deleted, put, record, versions};

fn get(id: &str) -> GetRequest {
    GetRequest { r#type: "t".into(), id: id.into() }
}

async fn query(client: &mut Client, offset: i64, limit: i64) -> Result<(usize, i64), Status> {
    let request = QueryRequest { r#type: "t".into(), offset, limit, ..QueryRequest::default() };
    let found = client.query(request).await?.into_inner();
    Ok((found.records.len(), found.total_count))
}

#[tokio::test]
async fn put_answers_each_record_in_order_with_contiguous_versions() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let first = put(client, vec![record("t", "b", "1"), record("t", "a", "2"), record("t", "b", "3")]).await;
    assert_eq!(versions(&first.records), [1, 2, 3]);
    assert_ne!(first.server_version, 0);
    let second = put(client, vec![record("u", "a", "4")]).await;
    assert_eq!((versions(&second.records), second.server_version), (vec![4], first.server_version));
    let got = client.get(get("b")).await.unwrap().into_inner().record.unwrap();
    assert_eq!(got, first.records[2]);
    let info = client.server_info(()).await.unwrap().into_inner();
    assert_eq!((info.server_version, info.latest_record_version), (first.server_version, 4));
    broker.stop().await;
}

#[tokio::test]
async fn put_of_nothing_answers_the_server_version() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let empty = put(client, vec![]).await;
    let info = client.server_info(()).await.unwrap().into_inner();
    assert_eq!((empty.records.len(), empty.server_version), (0, info.server_version));
    broker.stop().await;
}

#[tokio::test]
async fn fields_that_nobody_knows_come_back() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let mut bytes = record("t", "a", "1").into_bytes().to_vec();
    prost::encoding::string::encode(2000, &"kept".to_owned(), &mut bytes);
    put(client, vec![EncodedRecord::from_bytes(bytes)]).await;
    let got = client.get(get("a")).await.unwrap().into_inner().record.unwrap();
    assert!(got.as_bytes().windows(4).any(|part| part == b"kept"));
    broker.stop().await;
}

#[tokio::test]
async fn what_is_missing_or_deleted_is_not_found() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let error = client.get(get("a")).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "record not found"));
    // Deleting what is not there changes nothing, and is echoed.
    let echo = put(client, vec![deleted("t", "a")]).await;
    assert_eq!(versions(&echo.records), [0]);
    put(client, vec![record("t", "a", "1"), deleted("t", "a")]).await;
    assert_eq!(client.get(get("a")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.list_types(()).await.unwrap().into_inner().types, [""; 0]);
    broker.stop().await;
}

#[tokio::test]
async fn a_batch_with_a_malformed_record_is_refused_as_a_whole() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    // The type is not UTF-8.
    let malformed = EncodedRecord::from_bytes(vec![0x12, 1, 0xff]);
    let error = client.put(PutRequest { records: vec![record("t", "a", "1"), malformed] }).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().starts_with("invalid record 1: "), "{error}");
    assert_eq!(client.server_info(()).await.unwrap().into_inner().latest_record_version, 0);
    broker.stop().await;
}

#[tokio::test]
async fn a_patch_without_a_mask_touches_and_skips_what_is_missing() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    put(client, vec![record("t", "a", "1")]).await;
    let request = PatchRequest { records: vec![record("t", "b", ""), record("t", "a", "")], field_mask: None };
    let patched = client.patch(request).await.unwrap().into_inner();
    assert_eq!(versions(&patched.records), [2]);
    let got = client.get(get("a")).await.unwrap().into_inner().record.unwrap().to_record().unwrap();
    assert_eq!((got.version, got.data.unwrap().value), (2, b"1".to_vec()));
    broker.stop().await;
}

#[tokio::test]
async fn a_page_of_a_query_is_cut_by_offset_and_limit() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    put(client, ["a", "b", "c"].map(|id| record("t", id, "1")).into()).await;
    assert_eq!(query(client, 0, 0).await.unwrap(), (0, 3));
    assert_eq!(query(client, 0, 2).await.unwrap(), (2, 3));
    assert_eq!(query(client, 2, i64::MAX).await.unwrap(), (1, 3));
    assert_eq!(query(client, i64::MAX, 1).await.unwrap(), (0, 3));
    for (offset, limit) in [(-1, 1), (0, -1), (i64::MIN, i64::MIN)] {
        assert_eq!(query(client, offset, limit).await.unwrap_err().code(), Code::InvalidArgument);
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_filter_that_cannot_be_understood_is_an_invalid_argument() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let value = Value { kind: Some(Kind::StringValue("x".into())) };
    let filter = Some(Struct { fields: [("$and".to_owned(), value)].into() });
    let error = client.query(QueryRequest { filter, limit: 1, ..QueryRequest::default() }).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().starts_with("invalid query filter: "), "{error}");
    broker.stop().await;
}

#[tokio::test]
async fn a_local_query_waits_for_its_hint_but_not_for_ever() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let hinted = |hint| {
        let mut request = Request::new(QueryRequest { minimum_record_version_hint: Some(hint), ..Default::default() });
        request.metadata_mut().insert("pomerium-cluster-request-mode", "local".parse().unwrap());
        request
    };
    let started = Instant::now();
    client.query(hinted(u64::MAX)).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(100));
    put(client, vec![record("t", "a", "1")]).await;
    assert_eq!(client.query(hinted(1)).await.unwrap().into_inner().record_version, 1);
    broker.stop().await;
}

#[tokio::test]
async fn options_without_content_remove_the_entry() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let set = |options| SetOptionsRequest { r#type: "t".into(), options };
    let some = Some(Options { capacity: Some(5), ..Options::default() });
    for nothing in [Some(Options::default()), None] {
        let answer = client.set_options(set(some.clone())).await.unwrap().into_inner();
        assert_eq!(answer.options, some);
        let stored = client.get_options(GetOptionsRequest { r#type: "t".into() }).await.unwrap();
        assert_eq!(stored.into_inner().options, some);
        let answer = client.set_options(set(nothing)).await.unwrap().into_inner();
        assert_eq!(answer.options, Some(Options::default()));
        let error = client.get_options(GetOptionsRequest { r#type: "t".into() }).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
    }
    let error = client.get_options(GetOptionsRequest::default()).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::InvalidArgument, "options req type is empty"));
    let error = client.set_options(SetOptionsRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    broker.stop().await;
}

#[tokio::test]
async fn a_lease_has_one_holder() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let duration = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let acquire = || AcquireLeaseRequest { name: "l".into(), duration };
    let id = client.acquire_lease(acquire()).await.unwrap().into_inner().id;
    let error = client.acquire_lease(acquire()).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::AlreadyExists, "lease is already taken"));
    let renew = |id: &str| RenewLeaseRequest { name: "l".into(), id: id.into(), duration };
    client.renew_lease(renew(&id)).await.unwrap();
    let error = client.renew_lease(renew("other")).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::AlreadyExists, "lease no longer held"));
    let release = |id: &str| ReleaseLeaseRequest { name: "l".into(), id: id.into() };
    client.release_lease(release("other")).await.unwrap();
    assert!(client.acquire_lease(acquire()).await.is_err());
    client.release_lease(release(&id)).await.unwrap();
    client.acquire_lease(acquire()).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn clear_starts_a_new_history() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let before = put(client, vec![record("t", "a", "1")]).await.server_version;
    let cleared = client.clear(()).await.unwrap().into_inner();
    assert_eq!(cleared.old_server_version, before);
    assert!(cleared.new_server_version != before && cleared.new_server_version != 0);
    let info = client.server_info(()).await.unwrap().into_inner();
    assert_eq!((info.server_version, info.latest_record_version), (cleared.new_server_version, 0));
    let built_in = GetOptionsRequest { r#type: "type.googleapis.com/session.SessionBinding".into() };
    assert_eq!(client.get_options(built_in).await.unwrap().into_inner().options.unwrap().indexable_fields.len(), 2);
    broker.stop().await;
}

#[tokio::test]
async fn what_asks_for_too_much_is_refused_before_it_is_logged() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let empty = EncodedRecord::default();
    let error = client.put(PutRequest { records: vec![empty.clone(); RECORDS_MAX + 1] }).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    let field_mask = Some(prost_types::FieldMask { paths: vec!["a".into(); PATHS_MAX + 1] });
    let error = client.patch(PatchRequest { records: vec![empty], field_mask }).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    let indexable_fields = (0..=FIELDS_MAX).map(|field| format!("f{field}")).collect();
    let options = Some(Options { indexable_fields, ..Options::default() });
    let error = client.set_options(SetOptionsRequest { r#type: "t".into(), options }).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    assert_eq!(client.server_info(()).await.unwrap().into_inner().latest_record_version, 0);
    broker.stop().await;
}
