//! Sync and SyncLatest, as a client sees them.

use std::time::Duration;

use databroker_proto::databroker::{
    SyncLatestRequest, SyncLatestResponse, SyncRequest, SyncResponse, sync_latest_response, sync_response,
};
use futures::TryStreamExt as _;
use tonic::{Code, Streaming, service::interceptor::InterceptedService};

use crate::{
    broker::{Broker, Client, Options, Token, deleted, put, record, server_version, soon},
    services::http_get,
};

async fn sync(client: &mut Client, server_version: u64, record_version: u64, wait: bool) -> Streaming<SyncResponse> {
    sync_type("t", client, server_version, record_version, wait).await
}

async fn sync_type(
    record_type: &str,
    client: &mut Client,
    server_version: u64,
    record_version: u64,
    wait: bool,
) -> Streaming<SyncResponse> {
    let request = SyncRequest { server_version, record_version, r#type: record_type.into(), wait: Some(wait) };
    soon(client.sync(request)).await.unwrap().into_inner()
}

/// The code a Sync stream is refused with, or ends with.
async fn refused(client: &mut Client, server_version: u64, record_version: u64) -> (Code, String) {
    let request = SyncRequest { server_version, record_version, ..SyncRequest::default() };
    let status = soon(client.sync(request)).await.unwrap_err();
    (status.code(), status.message().to_owned())
}

/// The next record's version, options left out.
async fn next_version(stream: &mut Streaming<SyncResponse>) -> u64 {
    loop {
        if let Some(sync_response::Response::Record(record)) = soon(stream.message()).await.unwrap().unwrap().response {
            return record.to_record().unwrap().version;
        }
    }
}

async fn latest(client: &mut Client, record_type: &str) -> Vec<sync_latest_response::Response> {
    let request = SyncLatestRequest { r#type: record_type.into() };
    let stream = client.sync_latest(request).await.unwrap().into_inner();
    let frames: Vec<SyncLatestResponse> = soon(stream.try_collect()).await.unwrap();
    frames.into_iter().map(|frame| frame.response.unwrap()).collect()
}

#[tokio::test]
async fn sync_latest_ends_with_exactly_one_versions_frame_even_when_empty() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let server_version = server_version(client).await;
    let empty = latest(client, "").await;
    assert!(matches!(&empty[..], [sync_latest_response::Response::Versions(v)] if v.server_version == server_version));

    let binding = "type.googleapis.com/session.SessionBinding";
    put(client, vec![record("t", "b", "1"), record("t", "a", "2"), record(binding, "x", "3"), deleted("t", "b")]).await;
    let frames = latest(client, "").await;
    let kinds: Vec<_> = frames
        .iter()
        .map(|frame| match frame {
            sync_latest_response::Response::Record(record) => record.to_record().unwrap().id,
            sync_latest_response::Response::Options(options) => format!("options of {}", options.type_url),
            sync_latest_response::Response::Versions(versions) => format!("at {}", versions.latest_record_version),
        })
        .collect();
    assert_eq!(kinds, ["a", "x", &format!("options of {binding}"), "at 4"]);
    assert_eq!(latest(client, "t").await.len(), 2);
    broker.stop().await;
}

#[tokio::test]
async fn sync_latest_sends_every_record_of_many_chunks_in_order() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let data = "x".repeat(1000);
    put(client, (0..2000).map(|n| record("t", &format!("{n:05}"), &data)).collect()).await;
    let frames = latest(client, "t").await;
    let ids: Vec<_> = frames
        .iter()
        .filter_map(|frame| match frame {
            sync_latest_response::Response::Record(record) => Some(record.to_record().unwrap().id),
            _ => None,
        })
        .collect();
    assert_eq!(ids, (0..2000).map(|n| format!("{n:05}")).collect::<Vec<_>>());
    broker.stop().await;
}

#[tokio::test]
async fn a_stream_of_another_server_version_is_aborted() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let server_version = server_version(client).await;
    let aborted = (Code::Aborted, "invalid server version".to_owned());
    assert_eq!(refused(client, server_version ^ 1, 0).await, aborted);
    assert_eq!(refused(client, 0, 0).await, aborted);
    assert_eq!(refused(client, 0, u64::MAX).await, aborted);
    broker.stop().await;
}

#[tokio::test]
async fn a_stream_shows_that_it_is_connected_and_then_every_change_of_its_type() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let server_version = server_version(client).await;
    // Nothing is there to be sent, and yet the headers come.
    let mut stream = sync(client, server_version, 0, true).await;
    put(client, vec![record("t", "a", "1"), record("u", "a", "2"), record("t", "a", "3")]).await;
    assert_eq!(next_version(&mut stream).await, 1);
    assert_eq!(next_version(&mut stream).await, 3);
    put(client, vec![deleted("t", "a")]).await;
    let frame = soon(stream.message()).await.unwrap().unwrap();
    let Some(sync_response::Response::Record(tombstone)) = frame.response else { panic!("{frame:?}") };
    let tombstone = tombstone.to_record().unwrap();
    assert!(tombstone.deleted_at.is_some() && tombstone.version == 4);
    assert_eq!(tombstone.data.unwrap().value, b"3");
    broker.stop().await;
}

#[tokio::test]
async fn a_stream_that_does_not_wait_ends_once_it_has_caught_up() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let server_version = put(client, vec![record("t", "a", "1"), record("t", "b", "2")]).await.server_version;
    let stream = sync(client, server_version, 1, false).await;
    let frames: Vec<_> = soon(stream.try_collect()).await.unwrap();
    assert_eq!(frames.len(), 1);
    for ahead in [2, 3, u64::MAX - 1, u64::MAX] {
        let stream = sync(client, server_version, ahead, false).await;
        let frames: Vec<_> = soon(stream.try_collect()).await.unwrap();
        assert_eq!(frames, [], "{ahead}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn clear_aborts_open_streams() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let server_version = server_version(client).await;
    let mut stream = sync(client, server_version, 0, true).await;
    client.clear(()).await.unwrap();
    // The new history begins at once, with the version the stream waits for.
    put(client, vec![record("t", "a", "1")]).await;
    let status = soon(stream.message()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Aborted, "invalid server version"));
    broker.stop().await;
}

#[tokio::test]
async fn shutdown_ends_open_streams_with_unavailable_and_finishes() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let server_version = server_version(client).await;
    let mut stream = sync(client, server_version, 0, true).await;
    broker.close();
    let status = soon(stream.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    broker.stop().await;
}

#[tokio::test]
async fn many_streams_see_every_change_once_and_in_order() {
    const STREAMS: usize = 50;
    const PUTS: u64 = 200;
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let server_version = server_version(client).await;
    let mut readers = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = sync(client, server_version, 0, true).await;
        readers.push(tokio::spawn(async move {
            for expected in 1..=PUTS {
                assert_eq!(next_version(&mut stream).await, expected);
            }
        }));
    }
    for n in 0..PUTS {
        put(client, vec![record("t", &format!("{}", n % 7), "1")]).await;
    }
    for reader in readers {
        soon(reader).await.unwrap();
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_stream_resumes_after_its_changes_have_left_memory() {
    let broker = Broker::start().await;
    let client = &mut broker.client().await;
    let server_version = server_version(client).await;
    // More than the changes that are kept in memory.
    let data = "x".repeat(100_000);
    for n in 0..30 {
        put(client, (0..10).map(|m| record("t", &format!("{n} {m}"), &data)).collect()).await;
    }
    let mut stream = sync(client, server_version, 0, true).await;
    for expected in 1..=300 {
        assert_eq!(next_version(&mut stream).await, expected);
    }
    broker.stop().await;
}

#[tokio::test]
async fn no_more_streams_open_than_allowed_and_a_closed_one_makes_room() {
    let mut options = Options::default();
    options.limits.streams_max = 1;
    let broker = Broker::start_with(options).await;
    let client = &mut broker.client().await;
    let server_version = server_version(client).await;
    let stream = sync(client, server_version, 0, true).await;
    let error = client.sync_latest(SyncLatestRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    drop(stream);
    let reopened = async {
        while client.sync_latest(SyncLatestRequest::default()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon(reopened).await;
    broker.stop().await;
}

/// A client with an HTTP/2 window of 64 KiB: the server soon has to wait until it reads.
async fn narrow_client(broker: &Broker) -> Client {
    let endpoint = broker.endpoint().initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    Client::new(InterceptedService::new(endpoint.connect().await.unwrap(), Token))
}

#[tokio::test]
async fn streams_that_are_not_read_end_aborted_below_the_floor_and_delay_nobody() {
    const SLOW: usize = 20;
    const PUTS: u64 = 400;
    let mut options = Options::default();
    options.node.change_log_bytes_max = Some(1 << 20);
    options.node.store.tail_bytes_max = 1 << 20;
    let broker = Broker::start_with(options).await;
    let client = &mut broker.client().await;
    let server_version = server_version(client).await;
    let mut unread = Vec::new();
    for slow in 0..SLOW {
        // Of one type and of all: the change log has them in different places.
        let record_type = ["t", ""][slow % 2];
        unread.push(sync_type(record_type, &mut narrow_client(&broker).await, server_version, 0, true).await);
    }
    let mut fast = sync(client, server_version, 0, true).await;

    // 16 MiB: far more than the change log may hold, and what is under way to a client. Each write is answered and seen
    // before the next begins.
    let data = "x".repeat(40 << 10);
    for expected in 1..=PUTS {
        soon(put(client, vec![record("t", "a", &data)])).await;
        assert_eq!(next_version(&mut fast).await, expected);
    }
    broker.sweep_soon().await;
    let floor = soon(async {
        loop {
            let info = client.server_info(()).await.unwrap().into_inner();
            if info.earliest_record_version > PUTS / 2 {
                return info.earliest_record_version;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;

    for mut stream in unread {
        let mut read = 0;
        let status = loop {
            match soon(stream.message()).await {
                Ok(frame) => {
                    let Some(sync_response::Response::Record(record)) = frame.unwrap().response else { continue };
                    read += 1;
                    assert_eq!(record.to_record().unwrap().version, read, "a change is missing");
                }
                Err(status) => break status,
            }
        };
        assert_eq!((status.code(), status.message()), (Code::Aborted, "invalid record version"));
        assert!(read + 1 < floor, "it has read up to {read}, and the floor is at {floor}");
    }
    // Nor does a stream begin there.
    assert_eq!(refused(client, server_version, floor - 2).await, (Code::Aborted, "invalid record version".to_owned()));
    // The others' streams go on.
    put(client, vec![record("t", "a", "last")]).await;
    assert_eq!(next_version(&mut fast).await, PUTS + 1);
    broker.stop().await;
}

#[tokio::test]
async fn a_stream_of_everything_that_is_not_read_gives_back_its_snapshot_and_is_counted() {
    let mut options = Options::default();
    options.limits.stalled_max = Duration::from_millis(200);
    let broker = Broker::start_with(options).await;
    let client = &mut broker.client().await;
    // More than client and server buffer for a stream.
    let data = "x".repeat(100_000);
    for n in 0..20 {
        put(client, (0..10).map(|m| record("t", &format!("{n} {m}"), &data)).collect()).await;
    }
    let mut stream = client.sync_latest(SyncLatestRequest::default()).await.unwrap().into_inner();
    let counted = async {
        while !http_get(&broker, "metrics").await.contains("databroker_streams_stalled_total 1\n") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(counted).await;
    let ended = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                other => return other,
            }
        }
    };
    let status = soon(ended).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "the stream was not read for too long"));
    broker.stop().await;
}
