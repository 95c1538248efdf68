//! Every call from start to end: counted, timed, and, if it fails, logged under an id that the client sees too.
//!
//! A tower layer around everything else. A call ends with its trailers, so the response body is followed as well.
//! A panic, which is a bug, ends its own call with INTERNAL: unguarded, the client would see CANCELLED, which some take
//! for "stop for ever".
//! Not here: how metrics are kept and shown (`metrics`).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use pin_project_lite::pin_project;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::metrics::{Calls, Method};

/// Carries the id of a failed call, in the request if the client has one, and in the trailers of the answer.
const REQUEST_ID: &str = "x-request-id";

/// A longer id is the client's own affair.
const REQUEST_ID_BYTES_MAX: usize = 64;

/// Observes the calls of a service.
#[derive(Clone)]
pub(super) struct CallLayer {
    pub(super) calls: Calls,
    pub(super) closing: CancellationToken,
}

impl<S> Layer<S> for CallLayer {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, layer: self.clone() }
    }
}

/// A service whose calls are observed.
#[derive(Clone)]
pub(super) struct Observed<S> {
    inner: S,
    layer: CallLayer,
}

impl<S, B> Service<Request<B>> for Observed<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Responding<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let method = Method::of(request.uri().path());
        self.layer.calls.started(method);
        let id = request.headers().get(REQUEST_ID).filter(|id| id.len() <= REQUEST_ID_BYTES_MAX).cloned();
        let call = Call { method, started: Instant::now(), layer: self.layer.clone(), id, ended: false };
        Responding { inner: self.inner.call(request), call: Some(call) }
    }
}

pin_project! {
    /// A call whose response has not begun.
    pub(super) struct Responding<F> {
        #[pin]
        inner: F,
        call: Option<Call>,
    }
}

impl<F, E> Future for Responding<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let polled = catch_unwind(AssertUnwindSafe(|| this.inner.poll(cx)));
        let mut response = ready!(polled.unwrap_or_else(|_| Poll::Ready(Ok(bug().into_http()))))?;
        let Some(mut call) = this.call.take() else { return Poll::Ready(Ok(response)) };
        // A status among the headers: the call is over, and there is no body.
        if response.headers().contains_key(Status::GRPC_STATUS) {
            call.end(response.headers_mut());
            return Poll::Ready(Ok(response));
        }
        Poll::Ready(Ok(response.map(|inner| Body::new(Followed { inner, call }))))
    }
}

/// A response body that ends its call.
struct Followed {
    inner: Body,
    call: Call,
}

impl http_body::Body for Followed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.call.ended {
            return Poll::Ready(None);
        }
        let polled = catch_unwind(AssertUnwindSafe(|| http_body::Body::poll_frame(Pin::new(&mut this.inner), cx)));
        let mut frame = ready!(polled.unwrap_or_else(|_| Poll::Ready(Some(Ok(bug_frame())))));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            this.call.end(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        http_body::Body::is_end_stream(&self.inner)
    }
}

/// One call.
struct Call {
    method: Method,
    started: Instant,
    layer: CallLayer,
    id: Option<HeaderValue>,
    ended: bool,
}

impl Call {
    /// Counts the call under the status among these headers, and puts its id beside an error.
    fn end(&mut self, headers: &mut HeaderMap) {
        let code = headers.get(Status::GRPC_STATUS).map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()));
        self.count(code);
        if code != Code::Ok {
            let id = self.id.take().unwrap_or_else(new_id);
            self.log(code, &message(headers), &id);
            headers.insert(REQUEST_ID, id);
        }
    }

    fn count(&mut self, code: Code) {
        self.ended = true;
        self.layer.calls.ended(self.method, code, self.started.elapsed());
    }

    /// Only the broker's own failures are worth a person's attention; and only their texts never repeat what a client
    /// sent.
    fn log(&self, code: Code, message: &str, id: &HeaderValue) {
        let (method, id) = (self.method.name(), id.to_str().unwrap_or_default());
        match code {
            // Every open stream ends like this when the server is told to stop.
            Code::Unavailable if self.layer.closing.is_cancelled() => {}
            Code::Internal | Code::Unknown | Code::Unavailable | Code::DataLoss | Code::ResourceExhausted => {
                tracing::warn!(method, ?code, message, request_id = id, "a call failed");
            }
            _ => tracing::debug!(method, ?code, request_id = id, "a call was refused"),
        }
    }
}

/// The text of a status among headers, where it is percent-encoded.
fn message(headers: &HeaderMap) -> String {
    Status::from_header_map(headers).map(|status| status.message().to_owned()).unwrap_or_default()
}

impl Drop for Call {
    // The client went away, or the connection did.
    fn drop(&mut self) {
        if !self.ended {
            self.count(Code::Cancelled);
        }
    }
}

/// The panic itself is reported where it happens.
fn bug() -> Status {
    Status::internal("the server made a mistake: please report it")
}

fn bug_frame() -> Frame<Bytes> {
    let (head, _) = bug().into_http::<Body>().into_parts();
    Frame::trailers(head.headers)
}

fn new_id() -> HeaderValue {
    HeaderValue::try_from(format!("{:016x}", rand::random::<u64>())).unwrap_or(HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    const GET: &str = "/databroker.DataBrokerService/Get";

    fn observed<F>(answer: F) -> (Calls, impl Service<Request<()>, Response = Response<Body>, Error = ()>)
    where
        F: Fn() -> Response<Body> + Clone,
    {
        let calls = Calls::default();
        let service = tower::service_fn(move |_| {
            let answer = answer.clone();
            async move { Ok(answer()) }
        });
        (calls.clone(), CallLayer { calls, closing: CancellationToken::new() }.layer(service))
    }

    fn get() -> http::request::Builder {
        Request::builder().uri(format!("http://h{GET}"))
    }

    #[tokio::test]
    async fn an_error_carries_the_id_of_its_request() {
        let (calls, service) = observed(|| Status::not_found("x").into_http());
        let request = get().header(REQUEST_ID, "mine").body(()).unwrap();
        let response = service.oneshot(request).await.unwrap();
        assert_eq!(response.headers()[REQUEST_ID], "mine");
        assert_eq!(calls.count(Method::of(GET), Code::NotFound), 1);

        let (_, service) = observed(|| Status::not_found("x").into_http());
        let request = get().header(REQUEST_ID, "x".repeat(65)).body(()).unwrap();
        let response = service.oneshot(request).await.unwrap();
        assert_eq!(response.headers()[REQUEST_ID].len(), 16);
    }

    #[tokio::test]
    async fn a_stream_ends_with_its_trailers() {
        let trailers = |code: &'static str| {
            move || {
                let mut headers = HeaderMap::new();
                headers.insert(Status::GRPC_STATUS, HeaderValue::from_static(code));
                let frames = [Ok::<_, Status>(Frame::data(Bytes::from_static(b"x"))), Ok(Frame::trailers(headers))];
                Response::new(Body::new(http_body_util::StreamBody::new(futures::stream::iter(frames))))
            }
        };
        for (code, counted, has_id) in [("0", Code::Ok, false), ("10", Code::Aborted, true)] {
            let (calls, service) = observed(trailers(code));
            let response = service.oneshot(get().body(()).unwrap()).await.unwrap();
            assert_eq!(calls.in_flight(Method::of(GET)), 1);
            let collected = response.into_body().collect().await.unwrap();
            assert_eq!(collected.trailers().unwrap().contains_key(REQUEST_ID), has_id);
            assert_eq!(calls.count(Method::of(GET), counted), 1);
            assert_eq!(calls.in_flight(Method::of(GET)), 0);
        }
    }

    #[test]
    fn a_message_is_logged_as_a_person_reads_it() {
        let response: Response<Body> = Status::internal("the disk is full: \u{e4}").into_http();
        assert_ne!(response.headers()[Status::GRPC_MESSAGE], "the disk is full: \u{e4}");
        assert_eq!(message(response.headers()), "the disk is full: \u{e4}");
    }

    #[tokio::test]
    async fn a_panic_ends_its_call_with_internal() {
        let (calls, service) = observed(|| panic!("on purpose"));
        let response = service.oneshot(get().body(()).unwrap()).await.unwrap();
        assert_eq!(response.headers()[Status::GRPC_STATUS], "13");
        assert_eq!(calls.count(Method::of(GET), Code::Internal), 1);

        let (calls, service) = observed(|| {
            let frames =
                futures::stream::poll_fn(|_| -> Poll<Option<Result<Frame<Bytes>, Status>>> { panic!("on purpose") });
            Response::new(Body::new(http_body_util::StreamBody::new(frames)))
        });
        let response = service.oneshot(get().body(()).unwrap()).await.unwrap();
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()[Status::GRPC_STATUS], "13");
        assert_eq!(calls.count(Method::of(GET), Code::Internal), 1);
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_counts_as_cancelled() {
        let (calls, mut service) = observed(|| Response::new(Body::default()));
        drop(service.call(get().body(()).unwrap()));
        assert_eq!(calls.count(Method::of(GET), Code::Cancelled), 1);
        assert_eq!(calls.in_flight(Method::of(GET)), 0);
    }
}
