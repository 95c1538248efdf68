//! Ends calls whose deadline has passed: what they wait for, and what they hold, is given up.
//!
//! A tower layer. The client's `grpc-timeout` counts from the moment its request is seen here; without one a call may
//! take as long as it likes, unless it needs no token. A write that was proposed is not taken back: its client is told that the deadline has
//! passed, and finds out by reading whether the write took effect.
//! Not here: how long a call without a deadline is held while there is no leader (`node`).

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{auth::is_open, status::Error};

/// Says how long the client waits.
const TIMEOUT: &str = "grpc-timeout";

/// What a call without a token may take at most: streams among them would cost memory for as long as their client likes.
const OPEN_MAX: Duration = Duration::from_secs(60);

/// More digits are no timeout (the protocol of gRPC over HTTP/2, "Timeout").
const DIGITS_MAX: usize = 8;

/// Ends the calls of a service at their deadlines.
#[derive(Clone, Copy)]
pub(super) struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Timely<S>;

    fn layer(&self, inner: S) -> Timely<S> {
        Timely(inner)
    }
}

/// A service whose calls end at their deadlines.
#[derive(Clone)]
pub(super) struct Timely<S>(S);

impl<S, B> Service<Request<B>> for Timely<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Until<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let asked = timeout(request.headers());
        let limit = if is_open(request.uri().path()) {
            Some(asked.map_or(OPEN_MAX, |asked| asked.min(OPEN_MAX)))
        } else {
            asked
        };
        let deadline = limit.map(|limit| Deadline(Box::pin(sleep(limit))));
        Until { inner: self.0.call(request), deadline }
    }
}

/// How long the client waits; `None` if it does not say, or says what cannot be understood.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT).map(HeaderValue::to_str)?.ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > DIGITS_MAX || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 60 * 60)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// When a call is to end. Costs the timer nothing until somebody has to wait.
struct Deadline(Pin<Box<Sleep>>);

impl Deadline {
    fn has_passed(&self) -> bool {
        self.0.deadline() <= Instant::now()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

pin_project! {
    /// A call whose answer has not begun.
    pub(super) struct Until<F> {
        #[pin]
        inner: F,
        deadline: Option<Deadline>,
    }
}

impl<F, E> Future for Until<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(answered) = this.inner.poll(cx) {
            let Some(deadline) = this.deadline.take() else { return Poll::Ready(answered) };
            return Poll::Ready(answered.map(|response| response.map(|inner| limited(inner, deadline))));
        }
        let Some(deadline) = this.deadline else { return Poll::Pending };
        ready!(deadline.poll(cx));
        Poll::Ready(Ok(Status::from(Error::TooLate).into_http()))
    }
}

fn limited(inner: Body, deadline: Deadline) -> Body {
    // The status was among the headers: nothing follows.
    if http_body::Body::is_end_stream(&inner) { inner } else { Body::new(Limited { inner, deadline, over: false }) }
}

/// An answer that ends at a deadline. Looked at when there is room for more of it: one that its client does not read
/// ends when the client reads on, or is gone.
struct Limited {
    inner: Body,
    deadline: Deadline,
    over: bool,
}

impl http_body::Body for Limited {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        // A stream that always has more must end, too.
        if !this.deadline.has_passed()
            && let Poll::Ready(frame) = http_body::Body::poll_frame(Pin::new(&mut this.inner), cx)
        {
            return Poll::Ready(frame);
        }
        ready!(this.deadline.poll(cx));
        this.over = true;
        this.inner = Body::empty();
        Poll::Ready(Some(Ok(Error::TooLate.into_trailers())))
    }

    fn is_end_stream(&self) -> bool {
        self.over || http_body::Body::is_end_stream(&self.inner)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Arc};

    use futures::StreamExt as _;
    use http_body_util::{BodyExt as _, StreamBody};
    use tonic::Code;
    use tower::ServiceExt as _;

    use super::*;

    fn request(timeout: &str) -> Request<()> {
        Request::builder().header(TIMEOUT, timeout).body(()).unwrap()
    }

    #[test]
    fn a_timeout_has_eight_digits_and_a_unit() {
        let of = |text: &str| super::timeout(request(text).headers());
        assert_eq!(of("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(of("3M"), Some(Duration::from_secs(180)));
        assert_eq!(of("4S"), Some(Duration::from_secs(4)));
        assert_eq!(of("5m"), Some(Duration::from_millis(5)));
        assert_eq!(of("6u"), Some(Duration::from_micros(6)));
        assert_eq!(of("7n"), Some(Duration::from_nanos(7)));
        assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for none in ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "123456789S"] {
            assert_eq!(of(none), None, "{none:?}");
        }
        assert_eq!(super::timeout(&HeaderMap::new()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_waits_for_ever_ends_at_its_deadline_and_lets_go() {
        let held = Arc::new(());
        let weak = Arc::downgrade(&held);
        let service = DeadlineLayer.layer(tower::service_fn(move |_: Request<()>| {
            let held = held.clone();
            async move {
                std::future::pending::<()>().await;
                drop(held);
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        }));
        let began = Instant::now();
        let response = service.oneshot(request("3S")).await.unwrap();
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(began.elapsed().as_secs(), 3);
        assert!(weak.upgrade().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_at_its_deadline_whether_it_is_quiet_or_always_has_more() {
        for busy in [false, true] {
            let service = DeadlineLayer.layer(tower::service_fn(move |_: Request<()>| async move {
                let frame = || Ok::<_, Status>(Frame::data(Bytes::from_static(b"x")));
                let frames = futures::stream::unfold((), move |()| async move {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    Some((frame(), ()))
                });
                let frames = if busy { frames.boxed() } else { futures::stream::pending().boxed() };
                Ok::<_, Infallible>(Response::new(Body::new(StreamBody::new(frames))))
            }));
            let began = Instant::now();
            let response = service.oneshot(request("2S")).await.unwrap();
            let collected = response.into_body().collect().await.unwrap();
            let status = Status::from_header_map(collected.trailers().unwrap()).unwrap();
            assert_eq!(status.code(), Code::DeadlineExceeded);
            assert_eq!(began.elapsed().as_secs(), 2);
            assert_eq!(collected.to_bytes().is_empty(), !busy);
        }
    }
}
