//! The bytes of a range, or of a whole blob, as they come.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::time::{self, Instant};

use super::meter::Transfer;
use super::pace::{AHEAD_WINDOW, HANDOVER_WINDOW, LEAST_AHEAD, LEAST_WANTED, TooSlow, Window};
use super::request::Ticket;
use super::{SourceId, Urgency};
use crate::source::{Answer, ByteStream, ErrorKind, SourceError};

/// How long a body may stall while another source is healthy: far above the pauses of a working connection, repeated packets
/// included, and short for a reader.
const HANDOVER: Duration = Duration::from_secs(1);

/// A range on its way, or the whole blob if the source ignores ranges, from a source that was found good. To drop it is to cancel the request.
pub struct Body {
    source: SourceId,
    whole: bool,
    running: Option<Running>,
    /// Bytes to come.
    rest: u64,
    avoid: Box<[SourceId]>,
    /// Since when a byte is waited for.
    waiting: Option<Instant>,
    /// It was given up as it came too slowly, and nobody waited for it.
    too_slow: bool,
}

struct Running {
    stream: ByteStream,
    ticket: Ticket,
    transfer: Transfer,
    /// For another source to take over, and for giving up.
    handover: Window,
    ahead: Window,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("source", &self.source).field("rest", &self.rest).finish_non_exhaustive()
    }
}

impl Body {
    pub(super) fn new(ticket: Ticket, answer: Answer, length: u64, avoid: &[SourceId]) -> Self {
        let Answer { stream, whole } = answer;
        let source = ticket.source();
        let transfer = ticket.named().meter.transfer();
        let (handover, ahead) = (Window::new(HANDOVER_WINDOW, LEAST_WANTED), Window::new(AHEAD_WINDOW, LEAST_AHEAD));
        let running = Some(Running { stream, ticket, transfer, handover, ahead });
        let mut body =
            Self { source, whole, running, rest: length, avoid: avoid.into(), waiting: None, too_slow: false };
        if length == 0 {
            body.complete();
        }
        body
    }

    /// Where it comes from.
    #[must_use]
    pub fn source(&self) -> SourceId {
        self.source
    }

    /// Whether it is all of the blob, from its first byte on, whatever range was asked for.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// The next piece, never an empty one; nothing after the last. May be cancelled and called again.
    ///
    /// # Errors
    /// The source failed: what came so far is as good as any, and the rest is to be opened anew, at another source or at this one
    /// after a pause. It ends with [`ErrorKind::Timeout`] when no byte comes for the stall timeout, or for a second while another source is
    /// healthy; when too few come and another source is healthy; and when too few come and the body was opened [`Urgency::Ahead`].
    /// After an error there is no more.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let Some(running) = &mut self.running else {
            return if self.rest == 0 { Ok(None) } else { Err(SourceError::new(ErrorKind::Unreachable, Ended)) };
        };
        if running.is_left_for_later() {
            self.too_slow = true;
            // Nothing is wrong with the source for those who do wait.
            self.running = None;
            return Err(SourceError::new(ErrorKind::Timeout, TooSlow(LEAST_AHEAD)));
        }
        if running.is_handed_over(&self.avoid) {
            let error = SourceError::new(ErrorKind::Timeout, TooSlow(LEAST_WANTED));
            self.fail(&error);
            return Err(error);
        }
        let since = *self.waiting.get_or_insert_with(Instant::now);
        let piece = running.piece(since, &self.avoid).await;
        self.waiting = None;
        running.waited(since.elapsed(), piece.as_ref().ok().and_then(Option::as_ref).map_or(0, Bytes::len));
        let piece = piece.and_then(|piece| match piece {
            None => Err(SourceError::new(ErrorKind::Unreachable, Cut(self.rest))),
            Some(piece) if piece.len() as u64 > self.rest => Err(SourceError::new(ErrorKind::BadAnswer, TooLong)),
            Some(piece) => Ok(piece),
        });
        match piece {
            Ok(piece) => {
                running.count(piece.len());
                self.rest -= piece.len() as u64;
                if self.rest == 0 {
                    self.complete();
                }
                Ok(Some(piece))
            }
            Err(error) => {
                self.fail(&error);
                Err(error)
            }
        }
    }

    /// Whether it has ended because too little came of what nobody waited for.
    pub(crate) fn was_too_slow(&self) -> bool {
        self.too_slow
    }

    /// Whether somebody waits for what comes now, which may change on the way through a whole blob.
    pub(crate) fn set_urgency(&mut self, urgency: Urgency) {
        if let Some(running) = &mut self.running {
            running.ticket.set_urgency(urgency);
        }
    }

    /// Ends it well: all that was wanted of it has come.
    pub(crate) fn finish(mut self) {
        self.complete();
    }

    /// Ends it as a failure of its source.
    pub(crate) fn fail(&mut self, error: &SourceError) {
        if let Some(running) = self.running.take() {
            running.ticket.failed(error);
        }
    }

    fn complete(&mut self) {
        if let Some(running) = self.running.take() {
            running.ticket.completed();
        }
    }
}

impl Running {
    /// The next piece that is not empty, or nothing at the end of the stream.
    async fn piece(&mut self, since: Instant, avoid: &[SourceId]) -> Result<Option<Bytes>, SourceError> {
        let limit = since + self.ticket.shared().policy.stall_timeout;
        let mut look = since + HANDOVER;
        loop {
            match time::timeout_at(look.min(limit), self.stream.next()).await {
                Ok(Some(Ok(piece))) if piece.is_empty() => {}
                Ok(piece) => return piece.transpose(),
                Err(_) if Instant::now() >= limit || self.is_better_elsewhere(avoid) => {
                    let stalled = Stalled(Instant::now() - since);
                    return Err(SourceError::new(ErrorKind::Timeout, stalled));
                }
                Err(_) => look = Instant::now() + HANDOVER,
            }
        }
    }

    fn waited(&mut self, time: Duration, bytes: usize) {
        self.handover.count(time, bytes);
        self.ahead.count(time, bytes);
    }

    fn is_handed_over(&mut self, avoid: &[SourceId]) -> bool {
        self.handover.is_slow() && self.is_better_elsewhere(avoid)
    }

    fn is_left_for_later(&mut self) -> bool {
        let slow = self.ticket.urgency() == Urgency::Ahead && self.ahead.is_slow();
        if slow {
            self.ticket.shared().too_slow(self.ticket.named(), self.ticket.blob());
        }
        slow
    }

    fn is_better_elsewhere(&self, avoid: &[SourceId]) -> bool {
        let (shared, blob) = (self.ticket.shared(), self.ticket.blob());
        let barred = |source| avoid.contains(&source);
        shared.board().other_healthy(blob, self.ticket.source(), barred, Instant::now()).is_some()
    }

    fn count(&mut self, bytes: usize) {
        self.ticket.progressed();
        self.transfer.count(bytes);
        self.ticket.named().metrics.bytes.inc_by(bytes as u64);
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no byte came for {0:.1?}")]
struct Stalled(Duration);

#[derive(Debug, thiserror::Error)]
#[error("the answer was cut: {0} bytes are missing")]
struct Cut(u64);

#[derive(Debug, thiserror::Error)]
#[error("more bytes came than were asked for")]
struct TooLong;

#[derive(Debug, thiserror::Error)]
#[error("the answer has ended with an error")]
struct Ended;
