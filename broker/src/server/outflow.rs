//! What answers hold in memory: so many bytes over all of those that are large and not taken by their clients yet.
//!
//! ```text
//!   message, encoded ─▶ large: charged to the room of all ─▶ in pieces, as its client takes them ─▶ given back
//!                                   └▶ no room: refused
//! ```
//!
//! HTTP/2 takes over whatever it is handed, however little its client's window lets through. So a large message goes out in
//! pieces, and what is left of it stays here: counted, and given up if its client does not read.
//! Not here: the bound on a single answer (`store::query`), and the streams' snapshots (`pinned`).

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::{Status, body::Body};

use super::{
    pinned::Pinned,
    room::{Room, Share},
    status::Error,
};

/// What is handed over at once.
const PIECE_BYTES: usize = 64 << 10;

/// A message that is not larger is not charged: as much is buffered for each stream anyway, and the bounds on connections and
/// their streams cover it.
const FREE_BYTES: usize = 512 << 10;

/// Room for four answers of the largest size.
const ROOM_BYTES: usize = 256 << 20;

/// The room of all answers. Cloning shares it.
#[derive(Clone)]
pub(super) struct OutflowRoom {
    room: Room,
    unread_max: Duration,
}

impl OutflowRoom {
    /// `unread_max`: how long a client may leave a large answer unread. A slow one takes a piece now and then.
    pub(super) fn new(unread_max: Duration) -> Self {
        Self { room: Room::new(ROOM_BYTES), unread_max }
    }

    /// The same body, with its large messages charged.
    pub(super) fn charge(&self, inner: Body) -> Body {
        // The status was among the headers: nothing follows.
        if http_body::Body::is_end_stream(&inner) {
            return inner;
        }
        Body::new(Outflow { inner, outflow: self.clone(), large: None, over: false })
    }
}

/// A large message, charged.
struct Charged {
    bytes: Bytes,
    _share: Share,
}

struct Large {
    held: Pinned<Charged>,
    sent: usize,
}

impl Large {
    /// The next piece, unless all have gone. A copy: a part of the message would keep the whole of it.
    fn piece(&mut self) -> Result<Option<Bytes>, Error> {
        let charged = self.held.get().map_err(|_| Error::Unread)?;
        let rest = charged.bytes.get(self.sent..).unwrap_or_default();
        let piece = rest.get(..PIECE_BYTES).unwrap_or(rest);
        self.sent += piece.len();
        Ok((!piece.is_empty()).then(|| Bytes::copy_from_slice(piece)))
    }
}

/// An answer on its way out.
struct Outflow {
    inner: Body,
    outflow: OutflowRoom,
    /// The message that is on its way.
    large: Option<Large>,
    over: bool,
}

impl Outflow {
    /// Ends with an error in place of the rest.
    fn end(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        (self.large, self.over) = (None, true);
        Poll::Ready(Some(Ok(error.into_trailers())))
    }
}

impl http_body::Body for Outflow {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        loop {
            if let Some(large) = &mut this.large {
                match large.piece() {
                    Ok(Some(piece)) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                    Ok(None) => this.large = None,
                    Err(error) => return this.end(error),
                }
            }
            let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
            let bytes = match frame {
                Some(Ok(frame)) if frame.data_ref().is_some_and(|bytes| bytes.len() > FREE_BYTES) => frame.into_data(),
                small => return Poll::Ready(small),
            };
            let Ok(bytes) = bytes else { continue };
            let Some(share) = this.outflow.room.take(bytes.len()) else { return this.end(Error::OutflowFull) };
            let charged = Arc::new(Charged { bytes, _share: share });
            this.large = Some(Large { held: Pinned::new(charged, this.outflow.unread_max, || {}), sent: 0 });
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || (self.large.is_none() && self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};
    use tonic::Code;

    use super::*;

    const UNREAD_MAX: Duration = Duration::from_secs(60);

    fn outflow(bytes: usize) -> OutflowRoom {
        OutflowRoom { room: Room::new(bytes), unread_max: UNREAD_MAX }
    }

    fn body(outflow: &OutflowRoom, bytes: usize) -> Body {
        let message: Vec<u8> = (0..bytes).map(|index| (index / 7) as u8).collect();
        outflow.charge(Body::new(Full::new(Bytes::from(message))))
    }

    /// Room is given back by a task that is told to end.
    async fn has_left(outflow: &OutflowRoom, bytes: usize) -> bool {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        outflow.room.left() == bytes
    }

    async fn status(body: &mut Body) -> Code {
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        let status = Status::from_header_map(&trailers).unwrap();
        assert!(body.frame().await.is_none());
        status.code()
    }

    #[tokio::test]
    async fn a_large_message_leaves_in_pieces_and_is_charged_until_the_last() {
        let outflow = outflow(1 << 20);
        let mut whole = body(&outflow, FREE_BYTES + 1);
        let (mut pieces, mut bytes) = (Vec::new(), Vec::new());
        while let Some(frame) = whole.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            pieces.push((data.len(), outflow.room.left()));
            bytes.extend_from_slice(&data);
        }
        let charged = (1024 - 513) << 10;
        assert_eq!(
            (pieces.len(), pieces[0], pieces[7], pieces[8]),
            (9, (PIECE_BYTES, charged), (PIECE_BYTES, charged), (1, charged))
        );
        assert_eq!(bytes.len(), FREE_BYTES + 1);
        assert!(bytes.iter().enumerate().all(|(index, byte)| *byte == (index / 7) as u8));
        assert!(has_left(&outflow, 1 << 20).await);
    }

    #[tokio::test]
    async fn what_has_no_room_is_refused_and_small_messages_need_none() {
        let outflow = outflow(1000 << 10);
        let mut first = body(&outflow, FREE_BYTES + 1);
        assert!(first.frame().await.unwrap().unwrap().is_data());
        assert_eq!(status(&mut body(&outflow, FREE_BYTES + 1)).await, Code::ResourceExhausted);
        assert!(body(&outflow, FREE_BYTES).frame().await.unwrap().unwrap().is_data());
        // A client that goes away gives its room back.
        drop(first);
        assert!(has_left(&outflow, 1000 << 10).await);
        assert!(body(&outflow, FREE_BYTES + 1).frame().await.unwrap().unwrap().is_data());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_read_is_given_up() {
        let outflow = outflow(1 << 20);
        let mut unread = body(&outflow, FREE_BYTES + 1);
        assert!(unread.frame().await.unwrap().unwrap().is_data());
        tokio::time::sleep(UNREAD_MAX - Duration::from_secs(1)).await;
        assert!(unread.frame().await.unwrap().unwrap().is_data());
        tokio::time::sleep(UNREAD_MAX + Duration::from_secs(1)).await;
        assert_eq!(outflow.room.left(), 1 << 20);
        assert_eq!(status(&mut unread).await, Code::Unavailable);
    }
}
