//! The whole on a Kubernetes: the chart, the operator, brokers, and clients inside the cluster. Each test is one story, told
//! in order. Those in `together` need a namespace and no more, and several are told at once; all others one after the other,
//! because they measure, or take away what all share: nodes, and the operator. Run by `e2e/test kubernetes`.
//!
//! Environment:
//!
//! - `KUBECONFIG`: the cluster. Nothing is done to any other.
//! - `E2E_TAG`: the tag of the images that `e2e/images tests` built (default: this version).
//! - `E2E_CLUSTER`: the script that cuts nodes off their network; without it the stories that need it say that they are
//!   left out.
//! - `E2E_KEEP=1`: leaves the namespace of a story that failed.
//!
//! Not here: what needs no cluster (unit tests of the operator, and `broker/tests`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

mod together {
    mod certificates;
    mod chart;
    mod operations;
    mod peers;
    mod remove;
    mod rules;
}

mod dark;
mod drain;
mod failover;
mod idle;
mod install;
mod namespaced;
mod roll;
mod scale;
mod upgrade;
mod volume;
