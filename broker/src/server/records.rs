//! `databroker.DataBrokerService`: records, options, leases. Each method decodes, calls, encodes.
//!
//! Not here: the streams (`sync`), queries (`query`), and what a command does (`store::apply`).

use databroker_proto::{
    EncodedRecord,
    databroker::{
        AcquireLeaseRequest, AcquireLeaseResponse, ClearResponse, GetOptionsRequest, GetOptionsResponse, GetRequest,
        GetResponse, ListTypesResponse, Options, PatchRequest, PatchResponse, PutRequest, PutResponse, QueryRequest,
        QueryResponse, ReleaseLeaseRequest, RenewLeaseRequest, ServerInfoResponse, SetOptionsRequest,
        SetOptionsResponse, SyncLatestRequest, SyncLatestResponse, SyncRequest, SyncResponse,
        data_broker_service_server::DataBrokerService,
    },
    internal,
};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{
    edge::Edge,
    query,
    status::Error,
    sync::{self, Responses},
};
use crate::store::{
    command::{Answer, Kind, outcome},
    wire,
};

/// The service.
pub(super) struct Records(pub(super) Edge);

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl DataBrokerService for Records {
    type SyncStream = Responses<SyncResponse>;
    type SyncLatestStream = Responses<SyncLatestResponse>;

    async fn put(&self, request: Request<PutRequest>) -> Reply<PutResponse> {
        let records = storable(request.into_inner().records)?;
        let (server_version, records) = self.write(Kind::Put(internal::Put { records })).await?;
        Ok(Response::new(PutResponse { server_version, records }))
    }

    async fn patch(&self, request: Request<PatchRequest>) -> Reply<PatchResponse> {
        let PatchRequest { records, field_mask } = request.into_inner();
        let (records, paths) = (storable(records)?, field_mask.unwrap_or_default().paths);
        let (server_version, records) = self.write(Kind::Patch(internal::Patch { records, paths })).await?;
        Ok(Response::new(PatchResponse { server_version, records }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Reply<GetResponse> {
        let snapshot = self.0.snapshot(request.metadata()).await?;
        let GetRequest { r#type, id } = request.into_inner();
        // Read here: changing the thread costs many times what the read does.
        let record = snapshot.get(&r#type, &id).map_err(Error::Store)?.ok_or(Error::NoRecord)?;
        Ok(Response::new(GetResponse { record: Some(record) }))
    }

    async fn query(&self, request: Request<QueryRequest>) -> Reply<QueryResponse> {
        Ok(Response::new(query::answer(&self.0, request).await?))
    }

    async fn list_types(&self, request: Request<()>) -> Reply<ListTypesResponse> {
        let snapshot = self.0.snapshot(request.metadata()).await?;
        let types = self.0.chunks.read(move || snapshot.types()).await?;
        Ok(Response::new(ListTypesResponse { types }))
    }

    async fn server_info(&self, request: Request<()>) -> Reply<ServerInfoResponse> {
        let progress = self.0.snapshot(request.metadata()).await?.progress();
        Ok(Response::new(ServerInfoResponse {
            server_version: progress.server_version,
            earliest_record_version: progress.earliest_record_version,
            latest_record_version: progress.latest_record_version,
        }))
    }

    async fn clear(&self, _request: Request<()>) -> Reply<ClearResponse> {
        // Chosen here, because every node has to come to the same one.
        let server_version = rand::random_range(1..=u64::MAX);
        let answer = self.0.propose(Kind::Clear(internal::Clear { server_version })).await?;
        let Some(outcome::Kind::Cleared(cleared)) = answer.outcome.kind else {
            return Err(Error::ForeignAnswer.into());
        };
        Ok(Response::new(ClearResponse {
            old_server_version: cleared.old_server_version,
            new_server_version: cleared.new_server_version,
        }))
    }

    async fn get_options(&self, request: Request<GetOptionsRequest>) -> Reply<GetOptionsResponse> {
        if request.get_ref().r#type.is_empty() {
            return Err(Error::NoOptionsType.into());
        }
        let snapshot = self.0.snapshot(request.metadata()).await?;
        let options = snapshot.options(&request.get_ref().r#type).ok_or(Error::NoOptions)?;
        Ok(Response::new(GetOptionsResponse { options: Some(options) }))
    }

    async fn set_options(&self, request: Request<SetOptionsRequest>) -> Reply<SetOptionsResponse> {
        let SetOptionsRequest { r#type, options } = request.into_inner();
        if r#type.is_empty() {
            return Err(Error::NoOptionsType.into());
        }
        // Absent and empty options mean the same: none, which is also what encodes to nothing.
        let options = options.unwrap_or_default();
        let encoded = Options::encode_to_vec(&options).into();
        self.0.propose(Kind::SetOptions(internal::SetOptions { r#type, options: encoded })).await?;
        Ok(Response::new(SetOptionsResponse { options: Some(options) }))
    }

    async fn acquire_lease(&self, request: Request<AcquireLeaseRequest>) -> Reply<AcquireLeaseResponse> {
        let AcquireLeaseRequest { name, duration } = request.into_inner();
        // Chosen here, because every node has to come to the same one.
        let id = uuid::Uuid::new_v4().to_string();
        let lease = internal::Lease { name, id: id.clone(), ttl_nanos: nanos(duration) };
        if self.lease(lease).await? {
            Ok(Response::new(AcquireLeaseResponse { id }))
        } else {
            Err(Error::LeaseTaken.into())
        }
    }

    async fn renew_lease(&self, request: Request<RenewLeaseRequest>) -> Reply<()> {
        let RenewLeaseRequest { name, id, duration } = request.into_inner();
        let held = self.lease(internal::Lease { name, id, ttl_nanos: nanos(duration) }).await?;
        if held { Ok(Response::new(())) } else { Err(Error::LeaseLost.into()) }
    }

    async fn release_lease(&self, request: Request<ReleaseLeaseRequest>) -> Reply<()> {
        let ReleaseLeaseRequest { name, id } = request.into_inner();
        // Whoever does not hold it has nothing to release, and is told that all is well.
        self.lease(internal::Lease { name, id, ttl_nanos: -1 }).await?;
        Ok(Response::new(()))
    }

    async fn sync(&self, request: Request<SyncRequest>) -> Reply<Self::SyncStream> {
        Ok(Response::new(sync::sync(&self.0, request.into_inner()).await?))
    }

    async fn sync_latest(&self, request: Request<SyncLatestRequest>) -> Reply<Self::SyncLatestStream> {
        let (metadata, _, request) = request.into_parts();
        Ok(Response::new(sync::sync_latest(&self.0, &metadata, request).await?))
    }
}

impl Records {
    async fn write(&self, kind: Kind) -> Result<(u64, Vec<EncodedRecord>), Error> {
        let Answer { outcome, records } = self.0.propose(kind).await?;
        match outcome.kind {
            Some(outcome::Kind::Written(written)) => Ok((written.server_version, records)),
            _ => Err(Error::ForeignAnswer),
        }
    }

    async fn lease(&self, lease: internal::Lease) -> Result<bool, Error> {
        match self.0.propose(Kind::Lease(lease)).await?.outcome.kind {
            Some(outcome::Kind::Leased(leased)) => Ok(leased.acquired),
            _ => Err(Error::ForeignAnswer),
        }
    }
}

/// The records as they go into the log; whatever is wrong with one is told before it gets there.
fn storable(records: Vec<EncodedRecord>) -> Result<Vec<bytes::Bytes>, Error> {
    let storable = |(index, record): (usize, EncodedRecord)| match wire::validate(&record) {
        Ok(()) => Ok(record.into_bytes()),
        Err(error) => Err(Error::BadRecord(index, error)),
    };
    records.into_iter().enumerate().map(storable).collect()
}

/// A duration in nanoseconds; one that is too long is as good as the longest.
fn nanos(duration: Option<prost_types::Duration>) -> i64 {
    let prost_types::Duration { seconds, nanos } = duration.unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_duration_has_a_number_of_nanoseconds() {
        let of = |seconds, nanos| super::nanos(Some(prost_types::Duration { seconds, nanos }));
        assert_eq!(super::nanos(None), 0);
        assert_eq!(of(1, 5), 1_000_000_005);
        assert_eq!(of(-1, 0), -1_000_000_000);
        assert_eq!(of(i64::MAX, i32::MAX), i64::MAX);
        assert_eq!(of(i64::MIN, i32::MIN), i64::MIN);
    }

    #[test]
    fn the_first_record_that_cannot_be_stored_is_named() {
        let good = EncodedRecord::from_bytes(vec![0x12, 1, b't']);
        let bad = EncodedRecord::from_bytes(vec![0x12, 1, 0xff]);
        assert!(storable(vec![good.clone()]).is_ok());
        assert!(matches!(storable(vec![good, bad]), Err(Error::BadRecord(1, _))));
    }
}
