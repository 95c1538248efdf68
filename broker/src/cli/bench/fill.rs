//! Brings a store to a known content: so many records of a type, or none.

use std::{ops::Range, sync::Arc, time::Instant};

use bytes::Bytes;
use databroker_proto::{EncodedRecord, databroker as pb};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tonic::Status;

use super::{
    super::failure::Failure,
    drive::Outcome,
    request::{Template, deletion},
    tally::Tally,
    usage::Meter,
    wire::{HoldsRecord, Lane, Lanes, Method},
};

/// Puts in flight while filling: enough to keep a group commit busy.
const FILLERS: usize = 8;

/// Records in one Put while filling; with records of up to 1 KB this stays far below the 1 MiB that clients keep to.
const FILL_BATCH: u64 = 500;

/// The most bytes that clients put into one Put.
const PUT_BYTES_MAX: usize = 1 << 20;

/// How many records of a type there are.
///
/// # Errors
/// What the server answered.
pub(super) async fn count(lanes: &Lanes, record_type: &str) -> Result<u64, Failure> {
    let connection = lanes.connection(0);
    // Limit 0 asks for the number alone.
    let request = pb::QueryRequest { r#type: record_type.to_owned(), ..Default::default() };
    let answer = connection.call(connection.records().query(request)).await?;
    Ok(u64::try_from(answer.total_count).unwrap_or(0))
}

/// Puts the records numbered `from..to`, in batches, and counts them.
///
/// # Errors
/// The first refusal.
pub(super) async fn load(
    lanes: &Lanes,
    record_type: &str,
    size: usize,
    records: Range<u64>,
    server: Option<u32>,
) -> Result<Outcome, Failure> {
    let (record_type, batch) = (record_type.to_owned(), batch_for(size));
    let requests = records.clone().step_by(batch as usize).map(move |first| {
        let mut numbers = first..records.end.min(first + batch);
        let count = numbers.end - numbers.start;
        let request = Template::put(&record_type, size, count as usize).each(|| numbers.next().unwrap_or(0));
        (request, count)
    });
    put_all(lanes, requests, FILLERS, server).await
}

/// Sends Puts, several at once, in no order. Each comes with the number of its records.
///
/// # Errors
/// The first refusal.
pub(super) async fn put_all(
    lanes: &Lanes,
    requests: impl Iterator<Item = (Bytes, u64)> + Send + 'static,
    callers: usize,
    server: Option<u32>,
) -> Result<Outcome, Failure> {
    let requests = Arc::new(Mutex::new(requests));
    let meter = Meter::start(server);
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for caller in 0..callers {
        tasks.spawn(put_until_none(lanes.lane(caller), requests.clone()));
    }
    let mut tally = Tally::new();
    while let Some(joined) = tasks.join_next().await {
        let result = joined.map_err(|error| Failure::Failed(format!("a putting task failed: {error}")))?;
        tally.add(&result.map_err(|status| lanes.connection(0).refused(status))?);
    }
    Ok(Outcome { tally, elapsed: started.elapsed(), longest_gap: None, usage: meter.stop() })
}

async fn put_until_none(
    mut lane: Lane,
    requests: Arc<Mutex<impl Iterator<Item = (Bytes, u64)> + Send>>,
) -> Result<Tally, Status> {
    let mut tally = Tally::new();
    loop {
        let next = requests.lock().next();
        let Some((request, count)) = next else { return Ok(tally) };
        let asked = Instant::now();
        lane.unary::<HoldsRecord>(Method::Put, request).await?;
        tally.succeeded(count, asked.elapsed());
        tally.retried += lane.take_retried();
    }
}

fn batch_for(size: usize) -> u64 {
    FILL_BATCH.min((PUT_BYTES_MAX / (size + 256)) as u64).max(1)
}

/// Sees to it that at least `records` are there, numbered from 0: that every id a workload may choose exists.
///
/// # Errors
/// As [`load`].
pub(super) async fn ensure(
    lanes: &Lanes,
    record_type: &str,
    size: usize,
    records: u64,
    server: Option<u32>,
) -> Result<(), Failure> {
    if count(lanes, record_type).await? < records {
        load(lanes, record_type, size, 0..records, server).await?;
    }
    Ok(())
}

/// Deletes every record of a type. Returns how many there were.
///
/// # Errors
/// What the server answered.
pub(super) async fn clear(lanes: &Lanes, record_type: &str) -> Result<u64, Failure> {
    let connection = lanes.connection(0);
    let mut records = connection.records();
    let request = pb::SyncLatestRequest { r#type: record_type.to_owned() };
    let mut stream = connection.call(records.sync_latest(request)).await?;
    let mut deleted = 0;
    let mut batch = Vec::new();
    while let Some(frame) = stream.message().await.map_err(|status| connection.refused(status))? {
        if let Some(pb::sync_latest_response::Response::Record(record)) = frame.response {
            let record = record.to_record().map_err(|error| Failure::Failed(format!("malformed record: {error}")))?;
            batch.push(deletion(record_type, &record.id));
            deleted += 1;
        }
        if batch.len() as u64 >= FILL_BATCH {
            put(lanes, std::mem::take(&mut batch)).await?;
        }
    }
    put(lanes, batch).await?;
    Ok(deleted)
}

async fn put(lanes: &Lanes, records: Vec<EncodedRecord>) -> Result<(), Failure> {
    let connection = lanes.connection(0);
    if !records.is_empty() {
        connection.call(connection.records().put(pb::PutRequest { records })).await?;
    }
    Ok(())
}

/// Cuts records into Puts of at most 1 MiB, as clients do.
pub(super) fn batches(records: impl IntoIterator<Item = EncodedRecord>) -> Vec<pb::PutRequest> {
    // Key and length of a record of any sensible size.
    const FRAMING_BYTES: usize = 6;
    let mut batches = Vec::new();
    let mut current = pb::PutRequest::default();
    let mut bytes = 0;
    for record in records {
        let length = record.as_bytes().len() + FRAMING_BYTES;
        if bytes + length > PUT_BYTES_MAX && !current.records.is_empty() {
            batches.push(std::mem::take(&mut current));
            bytes = 0;
        }
        bytes += length;
        current.records.push(record);
    }
    if !current.records.is_empty() {
        batches.push(current);
    }
    batches
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn batches_stay_within_a_mebibyte_and_lose_nothing() {
        let record = |n: usize| EncodedRecord::from_bytes(vec![0x1a; 1 + n * 7919 % 4000]);
        let batches = batches((0..2000).map(record));
        assert!(batches.len() > 1);
        assert!(batches.iter().all(|batch| batch.encoded_len() <= PUT_BYTES_MAX));
        assert_eq!(batches.iter().map(|batch| batch.records.len()).sum::<usize>(), 2000);
    }

    #[test]
    fn filling_with_large_records_keeps_requests_small() {
        assert_eq!(batch_for(200), FILL_BATCH);
        assert!(batch_for(100_000) * 100_000 <= PUT_BYTES_MAX as u64);
        assert_eq!(batch_for(10 << 20), 1);
    }
}
