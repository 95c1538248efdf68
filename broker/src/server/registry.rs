//! `registry.Registry`: who serves what, and where.
//!
//! Not here: when an entry expires (`store::apply`, by the leader's Sweep).

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

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

/// How many kinds a request may name, which a stream keeps; the interface has about ten.
const KINDS_MAX: usize = 64;

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
        let kinds = few(request.into_inner().kinds)?;
        let services = self.0.chunks.read(move || snapshot.services(&kinds)).await?;
        Ok(Response::new(ServiceList { services }))
    }

    async fn watch(&self, request: Request<ListRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if self.0.leaving.is_cancelled() {
            return Err(Error::Closing.into());
        }
        let guard = self.0.streams.open()?;
        let kinds = few(request.into_inner().kinds)?;
        let (pulse, edge, hasher) = (self.0.pulse(), self.0.clone(), RandomState::new());
        let watcher = Watcher { pulse, edge, kinds, hasher, sent: None, _guard: guard };
        Ok(Response::new(Box::pin(stream::try_unfold(watcher, Watcher::next).map_err(Status::from))))
    }
}

/// The kinds, unless they are too many.
fn few(kinds: Vec<i32>) -> Result<Vec<i32>, Error> {
    if kinds.len() > KINDS_MAX { Err(Error::TooManyKinds(KINDS_MAX)) } else { Ok(kinds) }
}

/// A Watch stream: the list at once, even if it is empty, then every list that differs from the last one sent.
struct Watcher {
    edge: Edge,
    pulse: watch::Receiver<Progress>,
    kinds: Vec<i32>,
    /// Secret, so that nobody can make up a list that is taken for another.
    hasher: RandomState,
    /// The hash of the last list sent. Not the list: thousands of streams would each keep a copy.
    sent: Option<u64>,
    _guard: Guard,
}

impl Watcher {
    async fn next(mut self) -> Result<Option<(ServiceList, Self)>, Error> {
        loop {
            let (generation, list) = self.list().await?;
            let hash = self.hash(&list);
            if self.sent.replace(hash) != Some(hash) {
                return Ok(Some((list, self)));
            }
            // The pulse ends when the server is about to.
            let newer = |progress: &Progress| progress.services_generation != generation;
            self.pulse.wait_for(newer).await.map_err(|_| Error::Closing)?;
        }
    }

    fn hash(&self, list: &ServiceList) -> u64 {
        let services: Vec<(i32, &str)> = list.services.iter().map(|it| (it.kind, it.endpoint.as_str())).collect();
        self.hasher.hash_one(services)
    }

    async fn list(&self) -> Result<(u64, ServiceList), Error> {
        let (snapshot, kinds) = (self.edge.founded()?, self.kinds.clone());
        let generation = snapshot.progress().services_generation;
        let services = self.edge.chunks.read(move || snapshot.services(&kinds)).await?;
        Ok((generation, ServiceList { services }))
    }
}
