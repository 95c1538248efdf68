//! `registry.Registry`: who serves what, and where.
//!
//! Not here: when an entry expires (`store::apply`, by the leader's Sweep).

use std::time::Duration;

use databroker_proto::{
    internal,
    registry::{ListRequest, RegisterRequest, RegisterResponse, Service, ServiceList, registry_server::Registry},
};
use futures::stream::{self, BoxStream, TryStreamExt as _};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{edge::Edge, status::Error, streams::Guard};
use crate::store::{Progress, command::Kind};

/// How long a report holds.
const TTL: Duration = Duration::from_secs(30);

/// When a service should report again: well before its entry expires.
const CALL_BACK_AFTER: Duration = Duration::from_secs(15);

/// The service.
pub(super) struct Services(pub(super) Edge);

#[tonic::async_trait]
impl Registry for Services {
    type WatchStream = BoxStream<'static, Result<ServiceList, Status>>;

    async fn report(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        let reported = |Service { kind, endpoint }| internal::ReportedService { kind, endpoint };
        let services = request.into_inner().services.into_iter().map(reported).collect();
        let ttl_nanos = i64::try_from(TTL.as_nanos()).unwrap_or(i64::MAX);
        self.0.propose(Kind::Report(internal::Report { services, ttl_nanos })).await?;
        let call_back_after = prost_types::Duration::try_from(CALL_BACK_AFTER).ok();
        Ok(Response::new(RegisterResponse { call_back_after }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ServiceList>, Status> {
        let snapshot = self.0.snapshot(request.metadata()).await?;
        let kinds = request.into_inner().kinds;
        let services = self.0.chunks.read(move || snapshot.services(&kinds)).await?;
        Ok(Response::new(ServiceList { services }))
    }

    async fn watch(&self, request: Request<ListRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if self.0.closing.is_cancelled() {
            return Err(Error::Closing.into());
        }
        let guard = self.0.streams.open()?;
        let kinds = request.into_inner().kinds;
        let watcher = Watcher { pulse: self.0.pulse(), edge: self.0.clone(), kinds, sent: None, _guard: guard };
        Ok(Response::new(Box::pin(stream::try_unfold(watcher, Watcher::next).map_err(Status::from))))
    }
}

/// A Watch stream: the list at once, even if it is empty, then every list that differs from the last one sent.
struct Watcher {
    edge: Edge,
    pulse: watch::Receiver<Progress>,
    kinds: Vec<i32>,
    sent: Option<(u64, ServiceList)>,
    _guard: Guard,
}

impl Watcher {
    async fn next(mut self) -> Result<Option<(ServiceList, Self)>, Error> {
        loop {
            let (generation, list) = self.list().await?;
            let differs = self.sent.as_ref().is_none_or(|(_, sent)| *sent != list);
            self.sent = Some((generation, list.clone()));
            if differs {
                return Ok(Some((list, self)));
            }
            // The pulse ends when the server is about to.
            let newer = |progress: &Progress| progress.services_generation != generation;
            self.pulse.wait_for(newer).await.map_err(|_| Error::Closing)?;
        }
    }

    async fn list(&self) -> Result<(u64, ServiceList), Error> {
        let (snapshot, kinds) = (self.edge.node.reader().snapshot(), self.kinds.clone());
        let generation = snapshot.progress().services_generation;
        let services = self.edge.chunks.read(move || snapshot.services(&kinds)).await?;
        Ok((generation, ServiceList { services }))
    }
}
