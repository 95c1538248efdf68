//! One channel over the addresses of a cluster: calls take turns, an address that failed is left out for a moment, and
//! a call that was not sent, since there was no connection, is sent to the next.
//!
//! As a proxy with health checks does it. Not here: calls that were sent and failed, which only their maker may repeat
//! (`bench::wire`), and addresses that take calls and never answer.

use std::{
    error::Error as StdError,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use parking_lot::Mutex;
use tonic::{ConnectError, body::Body, transport::Channel};
use tower::{Service, ServiceExt as _};

type BoxError = Box<dyn StdError + Send + Sync>;
type Answer = Result<http::Response<Body>, BoxError>;

/// How long an address that failed is left out: a process that was killed is back no sooner.
const LEFT_OUT: Duration = Duration::from_millis(500);

/// Causes of an error that are looked at: in theory they may be a ring.
const CAUSES_MAX: usize = 16;

/// Clones share the connections and the turns.
#[derive(Clone)]
pub struct Failover {
    channels: Arc<[Channel]>,
    rota: Arc<Mutex<Rota>>,
}

impl Failover {
    /// Over a channel for each address; `first` has the first turn.
    pub fn new(channels: Vec<Channel>, first: usize) -> Self {
        let rota = Rota { turn: first, out_until: vec![None; channels.len()] };
        Self { channels: channels.into(), rota: Arc::new(Mutex::new(rota)) }
    }

    /// Whether there is another address to go to.
    pub fn has_others(&self) -> bool {
        self.channels.len() > 1
    }

    /// The body is gathered, so that it can be sent again: calls of the tools have one message.
    async fn send(self, request: http::Request<Body>) -> Answer {
        if let [only] = &self.channels[..] {
            return Ok(only.clone().oneshot(request).await?);
        }
        let (head, body) = request.into_parts();
        let body: Bytes = body.collect().await?.to_bytes();
        let order = self.rota.lock().order(Instant::now());
        let mut failed: BoxError = "there is no address".into();
        for at in order {
            let request = http::Request::from_parts(head.clone(), Body::new(Full::new(body.clone())));
            match self.channels[at].clone().oneshot(request).await {
                Ok(answer) => {
                    self.rota.lock().take_in(at);
                    return Ok(answer);
                }
                Err(error) => {
                    self.rota.lock().leave_out(at, Instant::now());
                    if !is_unsent(&error) {
                        return Err(error.into());
                    }
                    failed = error.into();
                }
            }
        }
        Err(failed)
    }
}

impl Service<http::Request<Body>> for Failover {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Which address takes a call is seen when it is made.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

/// Whether a call failed for want of a connection: nobody can have seen it.
fn is_unsent(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    for _ in 0..CAUSES_MAX {
        let Some(error) = cause else { break };
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whose turn it is.
struct Rota {
    turn: usize,
    out_until: Vec<Option<Instant>>,
}

impl Rota {
    /// Whom a call tries, one after the other. Those left out come last: when all are, somebody has to be asked.
    fn order(&mut self, now: Instant) -> Vec<usize> {
        let count = self.out_until.len();
        let mut order: Vec<usize> = (0..count).map(|step| (self.turn + step) % count).collect();
        order.sort_by_key(|at| self.out_until[*at].filter(|until| now < *until));
        // After the one that is asked: else the one behind an address that is left out would get its calls, too.
        self.turn = order.first().map_or(0, |asked| (asked + 1) % count);
        order
    }

    fn leave_out(&mut self, at: usize, now: Instant) {
        self.out_until[at] = Some(now + LEFT_OUT);
    }

    fn take_in(&mut self, at: usize) {
        self.out_until[at] = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rota(count: usize) -> Rota {
        Rota { turn: 0, out_until: vec![None; count] }
    }

    /// Whom the next calls ask first.
    fn asked(rota: &mut Rota, calls: usize, now: Instant) -> Vec<usize> {
        (0..calls).map(|_| rota.order(now)[0]).collect()
    }

    #[test]
    fn calls_take_turns() {
        assert_eq!(asked(&mut rota(3), 6, Instant::now()), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn an_address_that_failed_is_left_out_for_a_moment_and_the_others_share_its_calls() {
        let (mut rota, now) = (rota(3), Instant::now());
        rota.leave_out(1, now);
        assert_eq!(asked(&mut rota, 6, now), [0, 2, 0, 2, 0, 2]);
        assert_eq!(rota.order(now), [0, 2, 1]);
        let later = now + LEFT_OUT;
        let mut then = asked(&mut rota, 3, later);
        then.sort_unstable();
        assert_eq!(then, [0, 1, 2]);
        rota.leave_out(1, later);
        rota.take_in(1);
        assert!(asked(&mut rota, 3, later).contains(&1));
    }

    #[test]
    fn when_all_have_failed_the_one_that_failed_first_is_asked() {
        let (mut rota, now) = (rota(3), Instant::now());
        for (at, millis) in [(2, 0), (0, 1), (1, 2)] {
            rota.leave_out(at, now + Duration::from_millis(millis));
        }
        assert_eq!(rota.order(now + Duration::from_millis(3)), [2, 0, 1]);
    }
}
