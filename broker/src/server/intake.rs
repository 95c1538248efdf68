//! What requests bring with them: so many bytes over all of them, however many connections and streams there are.
//!
//! ```text
//!   body ─ frame ─ frame ─▶ counted ─▶ above what is free: charged to the room of all ─▶ no room: refused
//! ```
//!
//! A tower layer behind the token check. A request is charged as its bytes arrive, not by what it announces, and until
//! its answer begins: until then it waits, and its bytes with it. Then its answer is charged (`outflow`).
//! Not here: the bound on a single message, which the decoder knows.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    auth::is_open,
    outflow::OutflowRoom,
    room::{Room, Share},
    status::{Error, name_as_clients_know},
};

/// What a request may bring without being charged: one frame of HTTP/2 at its default size. Nearly all requests are
/// smaller, and the bounds on connections and their streams cover them. Larger ones are not taken without a token.
pub(super) const FREE_BYTES: usize = 16 << 10;

/// How many requests of the largest size may be on their way in at once. One is written while the next ones arrive:
/// more would only wait, for the log takes about one of them at a time.
const LARGEST_AT_ONCE: usize = 4;

/// The least room there is, for a server that takes small requests only: hundreds of medium ones at once.
const ROOM_BYTES_MIN: usize = 16 << 20;

/// Bounds what all requests bring.
#[derive(Clone)]
pub(super) struct IntakeLayer {
    room: Room,
    outflow: OutflowRoom,
}

impl IntakeLayer {
    /// For a server that takes requests of at most so many bytes. `unread_max`: see [`OutflowRoom::new`].
    pub(super) fn new(request_bytes_max: usize, unread_max: Duration) -> Self {
        let bytes = request_bytes_max.saturating_mul(LARGEST_AT_ONCE).max(ROOM_BYTES_MIN);
        Self { room: Room::new(bytes), outflow: OutflowRoom::new(unread_max) }
    }
}

impl<S> Layer<S> for IntakeLayer {
    type Service = Intake<S>;

    fn layer(&self, inner: S) -> Intake<S> {
        Intake { inner, layer: self.clone() }
    }
}

/// A service whose requests are charged.
#[derive(Clone)]
pub(super) struct Intake<S> {
    inner: S,
    layer: IntakeLayer,
}

impl<S> Service<Request<Body>> for Intake<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let outflow = self.layer.outflow.clone();
        // Whoever has no token must not take the room of those who have one: there, each message is held down instead.
        if is_open(request.uri().path()) {
            return Answering { inner: self.inner.call(request), charge: None, outflow };
        }
        let charge = Arc::new(Charge { room: self.layer.room.clone(), taken: Mutex::default() });
        let metered = |inner| Body::new(Metered { inner, received: 0, charge: charge.clone() });
        Answering { inner: self.inner.call(request.map(metered)), charge: Some(charge), outflow }
    }
}

pin_project! {
    /// A call whose answer has not begun.
    pub(super) struct Answering<F> {
        #[pin]
        inner: F,
        // Held for as long as the request waits.
        charge: Option<Arc<Charge>>,
        // What answers may hold.
        outflow: OutflowRoom,
    }
}

impl<F, E> Future for Answering<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        *this.charge = None;
        name_as_clients_know(response.headers_mut());
        Poll::Ready(Ok(response.map(|body| this.outflow.charge(body))))
    }
}

/// What one request has taken of the room, given back when it is dropped.
struct Charge {
    room: Room,
    taken: Mutex<Option<Share>>,
}

impl Charge {
    /// Whether there is room for a request that has brought so many bytes.
    fn covers(&self, received: usize) -> bool {
        if received <= FREE_BYTES {
            return true;
        }
        let mut taken = self.taken.lock();
        match &mut *taken {
            Some(share) => share.grow(&self.room, received),
            none => {
                *none = self.room.take(received);
                none.is_some()
            }
        }
    }
}

/// A request's body, counted.
struct Metered {
    inner: Body,
    received: usize,
    charge: Arc<Charge>,
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            this.received = this.received.saturating_add(frame.data_ref().map_or(0, Bytes::len));
            if !this.charge.covers(this.received) {
                return Poll::Ready(Some(Err(Error::IntakeFull.into())));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt as _, Full};
    use tokio::sync::watch;
    use tonic::Code;
    use tower::ServiceExt as _;

    use super::*;

    /// Takes a request whole, and answers once it is let go.
    fn service(
        bytes: usize,
        go: watch::Receiver<bool>,
    ) -> (Room, impl Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone) {
        let room = Room::new(bytes);
        let inner = tower::service_fn(move |request: Request<Body>| {
            let mut go = go.clone();
            async move {
                let response = match request.into_body().collect().await {
                    Ok(_) => Response::new(Body::default()),
                    Err(status) => status.into_http(),
                };
                go.wait_for(|go| *go).await.unwrap();
                Ok(response)
            }
        });
        (room.clone(), IntakeLayer { room, outflow: OutflowRoom::new(Duration::from_secs(1)) }.layer(inner))
    }

    fn request(path: &str, bytes: usize) -> Request<Body> {
        Request::builder().uri(format!("http://h{path}")).body(Body::new(Full::new(vec![0; bytes].into()))).unwrap()
    }

    const PUT: &str = "/databroker.DataBrokerService/Put";

    #[tokio::test]
    async fn a_request_is_charged_until_its_answer_begins_and_a_small_one_never() {
        let (let_go, go) = watch::channel(false);
        let (room, service) = service(64 << 10, go);
        let mut calls: Vec<_> = [FREE_BYTES, FREE_BYTES + 1, 40 << 10]
            .map(|bytes| Box::pin(service.clone().oneshot(request(PUT, bytes))))
            .into();
        for (call, left) in calls.iter_mut().zip([64, 64 - 17, 64 - 17 - 40].map(|kib| kib << 10)) {
            assert!(futures::poll!(call).is_pending());
            assert_eq!(room.left(), left);
        }
        let_go.send_replace(true);
        for call in calls {
            call.await.unwrap();
        }
        assert_eq!(room.left(), 64 << 10);
    }

    #[tokio::test]
    async fn what_has_no_room_is_refused_and_leaves_none_taken() {
        let (let_go, go) = watch::channel(true);
        let (room, service) = service(32 << 10, go);
        let refused = service.clone().oneshot(request(PUT, 33 << 10)).await.unwrap();
        let status = Status::from_header_map(refused.headers()).unwrap();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(room.left(), 32 << 10);
        let taken = service.clone().oneshot(request(PUT, 32 << 10)).await.unwrap();
        assert!(taken.headers().is_empty());
        drop(let_go);
    }

    #[tokio::test]
    async fn what_needs_no_token_takes_no_room() {
        let (_let_go, go) = watch::channel(false);
        let (room, service) = service(32 << 10, go);
        let call = std::pin::pin!(service.oneshot(request("/grpc.health.v1.Health/Check", 1 << 20)));
        assert!(futures::poll!(call).is_pending());
        assert_eq!(room.left(), 32 << 10);
    }
}
