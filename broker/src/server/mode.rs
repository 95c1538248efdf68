//! Refuses requests that ask for a node of another role than this one: metadata `pomerium-cluster-request-mode`.
//!
//! A tower layer, before any body is read. Not here: what is decided (`node::route`), and that a read in mode `local`
//! needs no fence (`edge`).

use std::task::{Context, Poll};

use futures::future::{Either, Ready, ready};
use http::{HeaderMap, Request, Response};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::status::Error;
use crate::node::{
    Node,
    route::{Access, RequestMode, Route, route},
};

/// What a client asks for; its last value counts.
const REQUEST_MODE: &str = "pomerium-cluster-request-mode";

/// The mode that a request asks for.
pub(super) fn request_mode(headers: &HeaderMap) -> RequestMode {
    let mode = headers.get_all(REQUEST_MODE).iter().next_back();
    // What cannot be read is a mode that nobody knows.
    RequestMode::parse(mode.map(|mode| mode.to_str().unwrap_or("unreadable")))
}

/// What a method does to the store, where the mode matters: not for a checkpoint that is read, and health and reflection
/// have nothing to do with it.
fn access(path: &str) -> Option<Access> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    match (service, method) {
        (
            "databroker.DataBrokerService",
            "Put" | "Patch" | "Clear" | "SetOptions" | "AcquireLease" | "RenewLease" | "ReleaseLease",
        )
        | ("databroker.CheckpointService", "SetCheckpoint")
        | ("registry.Registry", "Report") => Some(Access::Write),
        ("databroker.DataBrokerService" | "registry.Registry", _) => Some(Access::Read),
        _ => None,
    }
}

/// Refuses what is for another node.
#[derive(Clone)]
pub(super) struct ModeLayer(pub(super) Node);

impl<S> Layer<S> for ModeLayer {
    type Service = Placed<S>;

    fn layer(&self, inner: S) -> Placed<S> {
        Placed { inner, node: self.0.clone() }
    }
}

/// A service that only sees what this node may answer.
#[derive(Clone)]
pub(super) struct Placed<S> {
    inner: S,
    node: Node,
}

impl<S, B> Service<Request<B>> for Placed<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mode = request_mode(request.headers());
        let route = access(request.uri().path()).map(|access| route(self.node.route_role(), mode, access));
        match route {
            Some(Route::Reject(why)) => Either::Right(ready(Ok(Status::from(Error::OtherNode(why)).into_http()))),
            Some(Route::Local | Route::Leader) | None => Either::Left(self.inner.call(request)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use databroker_proto::SERVICES_DESCRIPTOR_SET;
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_method_of_the_interface_but_one_reads_or_writes() {
        let set = prost_types::FileDescriptorSet::decode(SERVICES_DESCRIPTOR_SET).unwrap();
        let mut found = BTreeMap::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    found.insert(format!("{}/{}", service.name(), method.name()), access(&path));
                }
            }
        }
        let writes: Vec<_> =
            found.iter().filter(|(_, access)| **access == Some(Access::Write)).map(|(name, _)| name).collect();
        let any: Vec<_> = found.iter().filter(|(_, access)| access.is_none()).map(|(name, _)| name).collect();
        let expected = [
            "CheckpointService/SetCheckpoint",
            "DataBrokerService/AcquireLease",
            "DataBrokerService/Clear",
            "DataBrokerService/Patch",
            "DataBrokerService/Put",
            "DataBrokerService/ReleaseLease",
            "DataBrokerService/RenewLease",
            "DataBrokerService/SetOptions",
            "Registry/Report",
        ];
        assert_eq!(writes, expected);
        assert_eq!(any, ["CheckpointService/GetCheckpoint"]);
        assert!(found.len() > 15, "{found:?}");
        assert_eq!(access("/grpc.health.v1.Health/Check"), None);
    }

    #[test]
    fn the_last_request_mode_counts() {
        let mut headers = HeaderMap::new();
        assert_eq!(request_mode(&headers), RequestMode::Default);
        for (text, mode) in [
            ("leader", RequestMode::Leader),
            ("local", RequestMode::Local),
            ("default", RequestMode::Default),
            ("LOCAL", RequestMode::Unknown),
        ] {
            headers.append(REQUEST_MODE, text.parse().unwrap());
            assert_eq!(request_mode(&headers), mode, "{text}");
        }
    }
}
