//! The connections to one peer: two, so that a heartbeat never waits behind a store.
//!
//! Not here: which peers there are (`client`).

use std::{sync::Arc, time::Instant};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::{
    dial::{DialError, Open},
    material::Material,
    tls::Expected,
};

/// Calls under way on one connection; more wait, as long as their callers are patient. Far more than a healthy peer ever
/// has, and few enough for one that is slow.
const CALLS_MAX: usize = 128;

/// A connection that is being made, or is made. Whoever needs it waits for the same one.
type Dialling = Shared<BoxFuture<'static, Result<Open, DialError>>>;

/// Where a peer is reached, and who should answer there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) address: String,
    pub(super) expected: Expected,
}

/// One peer.
pub(super) struct Link {
    /// Votes, heartbeats, read indices, Hello: small and urgent.
    pub(super) control: Lane,
    /// Entries, forwarded commands, stores.
    pub(super) bulk: Lane,
    used: Mutex<Instant>,
}

impl Link {
    pub(super) fn new(target: &Target) -> Self {
        Self { control: Lane::new(target), bulk: Lane::new(target), used: Mutex::new(Instant::now()) }
    }

    /// Notes that somebody wants something of this peer.
    pub(super) fn touch(&self) {
        *self.used.lock() = Instant::now();
    }

    pub(super) fn used(&self) -> Instant {
        *self.used.lock()
    }
}

/// One connection, made when it is needed, and made again when it has broken.
pub(super) struct Lane {
    target: Target,
    dialling: Mutex<Option<Dialling>>,
    calls: Arc<Semaphore>,
}

impl Lane {
    fn new(target: &Target) -> Self {
        Self { target: target.clone(), dialling: Mutex::default(), calls: Arc::new(Semaphore::new(CALLS_MAX)) }
    }

    /// An open connection, and the right to make one call on it.
    pub(super) async fn open(
        &self,
        material: &Material,
        runtime: &Handle,
    ) -> Result<(Open, OwnedSemaphorePermit), DialError> {
        let interrupted = |_| DialError::Unreachable("the node is stopping".into());
        let permit = self.calls.clone().acquire_owned().await.map_err(interrupted)?;
        let dialling = self.dialling(material, runtime);
        Ok((dialling.await?, permit))
    }

    fn dialling(&self, material: &Material, runtime: &Handle) -> Dialling {
        let mut current = self.dialling.lock();
        match current.as_ref().map(|dialling| (dialling, dialling.peek())) {
            Some((dialling, None)) => return dialling.clone(),
            Some((dialling, Some(Ok(open)))) if !open.is_closed() => return dialling.clone(),
            _ => {}
        }
        let (target, material) = (self.target.clone(), material.clone());
        // A task of its own: a caller that loses patience leaves it to the next one.
        let task = runtime.spawn(async move { Open::tls(&target.address, &material, target.expected.clone()).await });
        let dialling = task
            .map(|ended| ended.unwrap_or_else(|_| Err(DialError::Unreachable("connecting was interrupted".into()))))
            .boxed()
            .shared();
        *current = Some(dialling.clone());
        dialling
    }
}
