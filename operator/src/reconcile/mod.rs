//! From a `Databroker` to a cluster, again and again, without memory in between.
//!
//! ```text
//!   validate ─▶ observe ─▶ plan ─▶ build ─▶ apply ─▶ status
//!   (no client) (client)   (no client)     (client)  (client)
//!                  ◀── again, past the caches, where something is to go away
//! ```
//!
//! A crash between any two calls is repaired by the next run. Not here: when it runs (`controller`).

pub mod apply;
pub mod difference;
pub mod observe;
pub mod plan;
pub mod status;
pub mod validate;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use self::{
    apply::Done,
    observe::{Answers, There},
    plan::{Plan, Seen, Step, Waiting, plan},
    status::{Failure, News, Visit},
    validate::{Invalid, Valid, record, validate},
};
use crate::{
    api::{Databroker, DatabrokerStatus},
    brokers::Address,
    context::{CallError, Context, call},
    resources::{
        self, certificates, meta,
        secrets::{self, Admin, Secrets},
    },
};
use jiff::Timestamp;
use kube::{
    Api, ResourceExt as _,
    api::PostParams,
    runtime::events::{Event, EventType},
};

/// While something is on its way.
const SOON: Duration = Duration::from_secs(1);
/// When all is well: brokers are asked, and the API server is not.
const CALM: Duration = Duration::from_secs(10);
/// When nothing happens without a person.
const IDLE: Duration = Duration::from_secs(30);

/// Why a visit ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No certificates.
    #[error(transparent)]
    Certificates(#[from] certificates::Error),
    /// Something could not be made.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// What is there could not be read past the caches.
    #[error("cannot look again at what is there: {0}")]
    LookAgain(#[source] CallError),
    /// The status could not be written.
    #[error("cannot write the status: {0}")]
    Status(#[source] CallError),
}

/// One visit; returns when to come again.
///
/// # Errors
/// See [`Error`].
pub async fn reconcile(object: Arc<Databroker>, context: &Context) -> Result<Duration, Error> {
    if object.metadata.deletion_timestamp.is_some() {
        // What it owns goes by itself, and what is kept stays.
        return Ok(IDLE);
    }
    // No client.
    let valid = match validate(&object, &context.names) {
        Ok(valid) => valid,
        Err(invalid) => return refuse(&object, context, &invalid).await,
    };
    let now = Timestamp::now();

    // Client: the caches, and the brokers.
    let mut there = observe::there(&context.caches, &valid);
    observe::missed_secrets(context, &valid, &mut there.secrets).await.map_err(Error::LookAgain)?;
    let wanted_secrets = secrets::build(&valid, &there.secrets, now)?;
    let mut look = look(context, there, &object, &valid, &wanted_secrets.admin).await;
    if look.plan.is_disruptive(&look.seen) && !valid.spec.suspend {
        // Once more, past the caches.
        let there = observe::fresh(context, &valid, look.there.secrets).await.map_err(Error::LookAgain)?;
        look = self::look(context, there, &object, &valid, &wanted_secrets.admin).await;
    }

    // Client.
    let acted =
        if valid.spec.suspend { Ok(Done::default()) } else { act(context, &valid, &look, &wanted_secrets).await };

    let (done, failure) = match &acted {
        Ok(done) => (done.clone(), done.lacking.clone()),
        Err(error) => (Done::default(), Some(Failure::new(error))),
    };
    if done.reshaped {
        // Or the status would say of the new spec what is so of the old.
        look.seen.update_revision = None;
        look.plan = plan(valid.wanted(), &look.seen);
    }
    let visit = Visit {
        valid: &valid,
        there: &look.there,
        answers: &look.answers,
        seen: &look.seen,
        plan: &look.plan,
        done: &done,
        not_after: secrets::not_after(&valid, &look.there.secrets),
        failure,
    };
    let status = status::compute(&visit, object.status.as_ref(), now);
    // Client.
    write(&object, context, status).await?;
    acted?;
    Ok(match look.plan.step {
        _ if valid.spec.suspend => CALM,
        Step::Settled | Step::Wait(Waiting::Held) => CALM,
        Step::Stalled(_) => IDLE,
        _ => SOON,
    })
}

/// What was seen at one moment, and what follows from it.
struct Look {
    there: There,
    addresses: BTreeMap<u32, Address>,
    answers: Answers,
    seen: Seen,
    plan: Plan,
}

async fn look(context: &Context, there: There, object: &Databroker, valid: &Valid, admin: &Admin) -> Look {
    let addresses = observe::addresses(&there, valid);
    let answers = observe::ask(&addresses, &context.brokers, admin).await;
    let seen = observe::seen(&there, &answers, record(object), valid);
    let plan = plan(valid.wanted(), &seen);
    Look { there, addresses, answers, seen, plan }
}

async fn act(context: &Context, valid: &Valid, look: &Look, secrets: &Secrets) -> Result<Done, apply::Error> {
    let Look { there, addresses: _, answers: _, seen, plan } = look;
    // No client.
    let desired = resources::build(valid, plan.replicas);
    // Client.
    let lacking = match apply::named_secret(context, valid, &desired, there, plan).await {
        Err(error @ apply::Error::SecretMissing { .. }) => Some(Failure::new(&error)),
        asked => asked.map(|()| None)?,
    };
    apply::secrets(context, valid, secrets, &there.secrets).await?;
    let reshaped = apply::resources(context, valid, &desired, there, lacking.is_none()).await?;
    apply::volume_owners(context, valid, there).await?;
    apply::leader_label(context, valid, there, seen.cluster.as_ref().map(|cluster| cluster.leader)).await?;
    // No pod is stopped that could not start again.
    let stops_a_pod = matches!(plan.step, Step::Handover { .. } | Step::RestartPod { .. });
    let done = match &lacking {
        Some(_) if stops_a_pod => Done::default(),
        _ => apply::step(context, valid, look, secrets).await?,
    };
    Ok(Done { reshaped, lacking, ..done })
}

async fn refuse(object: &Databroker, context: &Context, invalid: &Invalid) -> Result<Duration, Error> {
    let generation = object.metadata.generation.unwrap_or_default();
    let status = status::refused(generation, invalid, object.status.as_ref(), Timestamp::now());
    write(object, context, status).await?;
    Ok(IDLE)
}

/// Writes the status, if it has changed, and tells what has.
async fn write(object: &Databroker, context: &Context, status: DatabrokerStatus) -> Result<(), Error> {
    if object.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let news = status::news(object.status.as_ref(), &status, object.spec.storage.ephemeral);
    let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
    let api: Api<Databroker> = Api::namespaced(context.client.clone(), &namespace);
    // The whole, with the version that it was computed from: a patch would leave what is no longer so, and a status that is
    // based on an older one could forget that the cluster was founded.
    let told = Databroker { status: Some(status.clone()), ..object.clone() };
    let params = PostParams { field_manager: Some(meta::MANAGER.into()), ..PostParams::default() };
    match call(api.replace_status(&name, &params, &told)).await {
        Ok(_) => {}
        // Another visit follows the change.
        Err(error) if error.is_outdated() => return Ok(()),
        Err(error) => return Err(Error::Status(error)),
    }
    for News { reason, note, warning } in news {
        let type_ = if warning { EventType::Warning } else { EventType::Normal };
        let event =
            Event { type_, reason: reason.into(), note: Some(note), action: "Reconcile".into(), secondary: None };
        // Told for people's convenience: that it cannot be is no reason to stop.
        let reference = kube::Resource::object_ref(object, &());
        if let Err(error) = call(context.recorder.publish(&event, &reference)).await {
            tracing::debug!(%error, reason, "an event could not be published");
        }
    }
    Ok(())
}
