//! `grpc.health.v1.Health`: whether requests should come here, whatever service they ask for.
//!
//! NOT_SERVING while the server is leaving, and before the node belongs to a cluster and has its records, so that
//! balancers go elsewhere; not during an election, when all nodes would say so at once and requests are held anyway.

use futures::stream::BoxStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health as Service,
};

use super::edge::Edge;
use crate::{node::Node, store::Progress};

/// The service.
pub(super) struct Health {
    node: Node,
    leaving: CancellationToken,
}

impl Health {
    pub(super) fn new(edge: &Edge) -> Self {
        Self { node: edge.node.clone(), leaving: edge.leaving.clone() }
    }
}

fn status(is_leaving: bool, progress: &Progress) -> ServingStatus {
    // A store has a server version as soon as it holds anything of its cluster.
    if is_leaving || progress.server_version == 0 { ServingStatus::NotServing } else { ServingStatus::Serving }
}

#[tonic::async_trait]
impl Service for Health {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(&self, _request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let status = status(self.leaving.is_cancelled(), &self.node.reader().progress());
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn watch(&self, _request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("health is checked, not watched"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balancers_are_sent_elsewhere_by_a_server_that_leaves_and_by_a_node_without_records() {
        let founded = Progress { server_version: 7, ..Progress::default() };
        assert_eq!(status(false, &founded), ServingStatus::Serving);
        assert_eq!(status(true, &founded), ServingStatus::NotServing);
        assert_eq!(status(false, &Progress::default()), ServingStatus::NotServing);
    }
}
