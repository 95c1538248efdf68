//! When a `Databroker` is visited: when it changes, when something of it does, and again after a while. The only file that
//! knows kube's runtime, and the Lease that one replica of the operator holds.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::DeserializeGuard,
    runtime::{
        Controller, WatchStreamExt as _,
        controller::{self, Action},
        events::{Recorder, Reporter},
        reflector::{self, ObjectRef, Store, store::WriterDropped},
        watcher,
    },
};
use kube_lease_manager::LeaseManagerBuilder;
use rand::RngExt as _;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::{
    api::Databroker,
    brokers::Brokers,
    config::Config,
    context::{Caches, Context},
    metrics::{self, Metrics},
    reconcile::{self, validate::Names},
    resources::meta,
};

/// Visits at a time: each waits for brokers most of its time.
const CONCURRENCY: u16 = 8;
/// Changes within this are one: an apply makes several.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// After an error, at first; twice as long after each that follows would need a memory: this is often enough.
const AFTER_ERROR: Duration = Duration::from_secs(5);
/// How long a visit waits for the caches to be filled.
const CACHES_MAX: Duration = Duration::from_secs(10);
/// How long the Lease is good without being renewed, and how long before its end it is, in seconds.
const LEASE_SECONDS: u64 = 15;
const LEASE_GRACE_SECONDS: u64 = 5;

/// How long visits under way may take once the operator is to end.
const LAST_VISITS_MAX: Duration = Duration::from_secs(10);

/// Why the operator ends other than as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No API server.
    #[error("cannot find an API server: {0}")]
    Client(#[source] kube::Error),
    /// No configuration to find one.
    #[error("cannot find out where the API server is: {0}")]
    Infer(#[source] kube::config::InferConfigError),
    /// The port of metrics.
    #[error("cannot serve metrics on {address}: {source}")]
    Metrics {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The Lease.
    #[error("cannot take part in the election of a replica: {0}")]
    Lease(#[source] kube_lease_manager::LeaseManagerError),
    /// Another replica may work now.
    #[error("the Lease was lost: another replica goes on")]
    LeaseLost,
}

type Guarded = DeserializeGuard<Databroker>;

/// Runs until `stop`, or until the Lease is lost.
///
/// # Errors
/// See [`Error`].
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), Error> {
    let metrics = Arc::new(Metrics::default());
    let address = config.metrics_address;
    let pages = tokio::spawn(metrics::serve(address, metrics.clone()));
    let client_config = kube::Config::infer().await.map_err(Error::Infer)?;
    let client = Client::try_from(client_config).map_err(Error::Client)?;
    client.apiserver_version().await.map_err(Error::Client)?;
    metrics.ready();

    let manager = LeaseManagerBuilder::new(client.clone(), &config.lease)
        .with_namespace(&config.namespace)
        .with_identity(&config.identity)
        .with_duration(LEASE_SECONDS)
        .with_grace(LEASE_GRACE_SECONDS)
        .build()
        .await
        .map_err(Error::Lease)?;
    let (mut held, keeping) = manager.watch().await;
    tracing::info!(identity = config.identity, lease = config.lease, "waiting for the Lease");
    let ended = tokio::select! {
        biased;
        // Visits under way are ended in order, within their time.
        () = late(&stop) => Ok(()),
        served = pages => Err(Error::Metrics { address, source: served.map_or_else(std::io::Error::other, ended) }),
        ended = async {
            while !*held.borrow_and_update() {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    changed = held.changed() => changed.map_err(|_| Error::LeaseLost)?,
                }
            }
            metrics.lead(true);
            tracing::info!("this replica works");
            tokio::select! {
                () = work(client, &config, metrics.clone(), stop.clone()) => Ok(()),
                // Whoever lost it must not work a moment longer.
                () = lost(&mut held) => Err(Error::LeaseLost),
            }
        } => ended,
    };
    metrics.lead(false);
    // Given back. The next looks when the Lease that it saw would have ended, and finds it free: nothing it does is urgent.
    drop(held);
    let _ = tokio::time::timeout(Duration::from_secs(3), keeping).await;
    ended
}

/// Returns when visits that were under way at the stop have had their time.
async fn late(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(LAST_VISITS_MAX).await;
}

/// Why the pages are no more.
fn ended(served: std::io::Result<()>) -> std::io::Error {
    served.err().unwrap_or_else(|| std::io::Error::other("the listener has ended"))
}

async fn lost(held: &mut tokio::sync::watch::Receiver<bool>) {
    while *held.borrow_and_update() {
        if held.changed().await.is_err() {
            return;
        }
    }
}

/// A cache of what has our label, and the news of it.
fn cached<K>(
    client: &Client,
    config: &Config,
) -> (Store<K>, impl Stream<Item = Result<K, watcher::Error>> + Send + use<K>)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let api: Api<K> = scoped(client, config);
    let (reader, writer) = reflector::store();
    let news = watcher(api, watcher::Config::default().labels(&meta::ours()))
        .default_backoff()
        // Half of what an object takes, and nobody reads it.
        .modify(|object| object.meta_mut().managed_fields = None)
        .reflect(writer)
        .touched_objects();
    (reader, news)
}

fn scoped<K>(client: &Client, config: &Config) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match &config.watch_namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// The `Databroker` that an object of ours belongs to, by its labels: volumes and pods have other owners, and Secrets may
/// have none.
fn belongs<K: Resource<DynamicType = ()>>(object: K) -> Option<ObjectRef<Guarded>> {
    let name = object.labels().get(meta::INSTANCE_LABEL)?;
    Some(ObjectRef::new(name).within(&object.namespace()?))
}

async fn work(client: Client, config: &Config, metrics: Arc<Metrics>, stop: CancellationToken) {
    let (statefulsets, statefulset_news) = cached::<StatefulSet>(&client, config);
    let (pods, pod_news) = cached::<Pod>(&client, config);
    let (claims, claim_news) = cached::<PersistentVolumeClaim>(&client, config);
    let (secrets, secret_news) = cached::<Secret>(&client, config);
    let (config_maps, config_map_news) = cached::<ConfigMap>(&client, config);
    let (services, service_news) = cached::<Service>(&client, config);
    let (service_accounts, service_account_news) = cached::<ServiceAccount>(&client, config);
    let (pdbs, pdb_news) = cached::<PodDisruptionBudget>(&client, config);
    let (network_policies, network_policy_news) = cached::<NetworkPolicy>(&client, config);
    let reporter = Reporter { controller: meta::MANAGER.into(), instance: Some(config.identity.clone()) };
    let caches =
        Caches { statefulsets, pods, claims, secrets, config_maps, services, service_accounts, pdbs, network_policies };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        caches,
        brokers: Brokers::default(),
        names: Names { namespace: config.namespace.clone(), default_image: config.default_image.clone() },
        metrics,
        client: client.clone(),
    });
    let main: Api<Guarded> = scoped(&client, config);
    Controller::new(main, watcher::Config::default())
        .with_config(controller::Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE))
        .watches_stream(statefulset_news, belongs)
        .watches_stream(pod_news, belongs)
        .watches_stream(claim_news, belongs)
        .watches_stream(secret_news, belongs)
        .watches_stream(config_map_news, belongs)
        .watches_stream(service_news, belongs)
        .watches_stream(service_account_news, belongs)
        .watches_stream(pdb_news, belongs)
        .watches_stream(network_policy_news, belongs)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(visit, after_error, context)
        .for_each(|visited| async move {
            if let Err(error) = visited {
                tracing::debug!(%error, "a visit ended with an error");
            }
        })
        .await;
}

async fn visit(object: Arc<Guarded>, context: Arc<Context>) -> Result<Action, reconcile::Error> {
    let object = match &object.0 {
        Ok(object) => Arc::new(object.clone()),
        Err(invalid) => {
            // The API server would not store it; an older definition may have. The next change is waited for.
            let name = invalid.metadata.name.as_deref().unwrap_or_default();
            tracing::warn!(name, error = %invalid.error, "a Databroker cannot be read");
            return Ok(Action::await_change());
        }
    };
    // Before, everything would seem to be missing.
    if !matches!(tokio::time::timeout(CACHES_MAX, filled(&context.caches)).await, Ok(Ok(()))) {
        return Ok(Action::requeue(Duration::from_secs(1)));
    }
    let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
    let began = Instant::now();
    let visited = reconcile::reconcile(object, &context).await;
    context.metrics.reconciled(began.elapsed(), visited.is_err());
    match visited {
        Ok(again) => Ok(Action::requeue(spread(again))),
        Err(error) => {
            tracing::warn!(%error, name, namespace, "a Databroker could not be reconciled: it is tried again");
            Err(error)
        }
    }
}

/// Ends once all caches have been filled.
async fn filled(caches: &Caches) -> Result<(), WriterDropped> {
    let Caches { statefulsets, pods, claims, secrets, config_maps, services, service_accounts, pdbs, network_policies } =
        caches;
    statefulsets.wait_until_ready().await?;
    pods.wait_until_ready().await?;
    claims.wait_until_ready().await?;
    secrets.wait_until_ready().await?;
    config_maps.wait_until_ready().await?;
    services.wait_until_ready().await?;
    service_accounts.wait_until_ready().await?;
    pdbs.wait_until_ready().await?;
    network_policies.wait_until_ready().await
}

/// A little earlier or later, so that many are not visited at once.
fn spread(duration: Duration) -> Duration {
    duration.mul_f64(rand::rng().random_range(0.8..1.2))
}

fn after_error(_: Arc<Guarded>, _: &reconcile::Error, _: Arc<Context>) -> Action {
    Action::requeue(spread(AFTER_ERROR))
}
