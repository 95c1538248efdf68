//! `grpc.health.v1.Health`: whether requests should come here, whatever service they ask for.
//!
//! NOT_SERVING only while the server is stopping, so that balancers move away; not during an election, when all nodes
//! would say so at once and requests are held anyway.

use futures::stream::BoxStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health as Service,
};

/// The service.
pub(super) struct Health(pub(super) CancellationToken);

#[tonic::async_trait]
impl Service for Health {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(&self, _request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let status = if self.0.is_cancelled() { ServingStatus::NotServing } else { ServingStatus::Serving };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn watch(&self, _request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("health is checked, not watched"))
    }
}
