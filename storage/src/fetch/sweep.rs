//! Whole blobs on their way, as sources send them that ignore ranges.
//!
//! Such an answer is taken apart from its first byte on. Every chunk that is neither in the cache nor on its way is kept as it passes; and a
//! request for chunks that have not passed yet *joins* the answer, so that one download serves all readers of the blob. What has passed
//! and is wanted again is asked for anew. When the answer ends before its time, the requests that joined it are made by those who
//! have them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use lazo_format::Digest;
use tokio::sync::{Notify, oneshot};

use super::request::{Load, Request};
use super::room::{Granted, kib};
use super::{Attempt, Fetcher, Job};
use crate::blob::{Blob, Claim, weight};
use crate::metrics::Priority;
use crate::source::SourceError;
use crate::upstream::pace::{LEAST_WANTED, TooSlow};
use crate::upstream::{Body, SourceId, Urgency};

/// Between two looks whether another source could send just what readers wait for: as long as a body may stall while there is one.
const LOOK: Duration = Duration::from_secs(1);

/// Those that can be joined: one a blob.
#[derive(Debug, Default)]
pub(super) struct Sweeps(Mutex<HashMap<Digest, Arc<Sweep>>>);

/// A whole blob on its way, or about to be asked for.
#[derive(Debug, Default)]
struct Sweep {
    state: Mutex<State>,
    /// A request has joined.
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The first chunk that has not passed.
    next: u32,
    joined: Vec<Joined>,
    /// Something that passed was of use, or what has joined is better asked for elsewhere: that is done without a pause.
    brought: bool,
    came: Option<Came>,
    ended: bool,
}

/// How far an answer came, and when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Came {
    /// The place in the blob that follows its last byte.
    end: u64,
    when: Instant,
}

/// When a request's answers last got further.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) last: Instant,
    /// As far as any whole answer came. One that breaks off there again and again is no progress.
    furthest: u64,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { last: Instant::now(), furthest: 0 }
    }

    /// A whole answer has ended. What passes before the bytes that are wanted shows that it was on its way to them.
    pub(super) fn whole_answer(&mut self, came: Option<Came>) {
        if let Some(came) = came.filter(|came| came.end > self.furthest) {
            self.furthest = came.end;
            self.last = self.last.max(came.when);
        }
    }
}

/// What becomes of a request that is to join an answer.
pub(super) enum Joining {
    /// It has joined, and comes back if the answer does not bring all of it.
    Waiting(oneshot::Receiver<Back>),
    /// There is no such answer, or what it wants has passed.
    Alone(Request),
}

/// A request that comes back, as what was joined has ended.
#[derive(Debug)]
pub(super) struct Back {
    pub(super) request: Request,
    /// It was of use to somebody.
    pub(super) brought: bool,
    pub(super) came: Option<Came>,
}

/// A request that is not made, as what it wants is on its way.
#[derive(Debug)]
struct Joined {
    request: Request,
    /// Gets it back if it was not satisfied. Dropped when it was.
    back: oneshot::Sender<Back>,
}

impl Sweep {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, request: Request) -> Joining {
        let mut state = self.state();
        if state.ended || request.first() < state.next {
            return Joining::Alone(request);
        }
        let (back, waiting) = oneshot::channel();
        state.joined.push(Joined { request, back });
        drop(state);
        self.news.notify_one();
        Joining::Waiting(waiting)
    }

    /// A chunk passes. The request that wants it next, if there is one.
    fn pass(&self, chunk: u32) -> Option<Joined> {
        let mut state = self.state();
        state.next = chunk + 1;
        let place = state.joined.iter().position(|joined| joined.request.first() == chunk)?;
        Some(state.joined.swap_remove(place))
    }

    /// Whether requests have joined, and whether somebody waits for what they bring.
    fn is_joined(&self) -> (bool, bool) {
        let state = self.state();
        (!state.joined.is_empty(), state.joined.iter().any(|joined| joined.request.is_wanted()))
    }

    /// Counts what came for all that have joined. Those for which it is too little.
    fn count(&self, waited: Duration, bytes: usize, grace: Duration) -> Vec<Joined> {
        let mut state = self.state();
        state.joined.iter_mut().for_each(|joined| joined.request.count(waited, bytes));
        state.joined.extract_if(.., |joined| joined.request.is_too_slow(grace)).collect()
    }
}

/// The charge of a whole answer. When it is dropped, those that have joined it get their requests back.
#[derive(Debug)]
pub(super) struct Lead<'a> {
    sweep: Arc<Sweep>,
    listed: Option<(&'a Sweeps, Digest)>,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        if let Some((sweeps, blob)) = self.listed {
            sweeps.lock().remove(&blob);
        }
        let (joined, brought, came) = {
            let mut state = self.sweep.state();
            state.ended = true;
            (std::mem::take(&mut state.joined), state.brought, state.came)
        };
        for Joined { request, back } in joined {
            // Nobody waits for it when its reader has gone.
            let _ = back.send(Back { request, brought, came });
        }
    }
}

impl Sweeps {
    /// Lets a request wait for what is on its way.
    pub(super) fn join(&self, blob: Digest, request: Request) -> Joining {
        let sweep = self.lock().get(&blob).cloned();
        match sweep {
            Some(sweep) => sweep.join(request),
            None => Joining::Alone(request),
        }
    }

    /// Takes the lead of a blob's whole answer, unless there is one under way. `next` is the blob's first chunk.
    pub(super) fn lead(&self, blob: Digest, next: u32) -> Option<Lead<'_>> {
        let mut sweeps = self.lock();
        let Entry::Vacant(place) = sweeps.entry(blob) else { return None };
        let sweep = Arc::new(Sweep { state: Mutex::new(State { next, ..State::default() }), news: Notify::new() });
        place.insert(Arc::clone(&sweep));
        Some(Lead { sweep, listed: Some((self, blob)) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Sweep>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a request whose answer was a whole blob.
pub(super) struct Swept {
    /// What it did not bring, if anything.
    pub(super) left: Option<Request>,
    /// How the answer ended; `None` when the reader has gone.
    pub(super) ended: Option<Result<(), SourceError>>,
    /// Something of it was of use.
    pub(super) brought: bool,
    pub(super) came: Option<Came>,
    pub(super) too_slow: bool,
}

impl Fetcher {
    /// Waits for a whole answer that is under way and has what a request wants. `None` if it brought all of it.
    pub(super) async fn ride_along(&self, mut request: Request, progress: &mut Progress) -> Option<Request> {
        loop {
            let record = request.blob().record();
            // Those that heed ranges are asked as soon as they can be.
            if !self.upstream.expects_whole(record) {
                return Some(request);
            }
            match self.sweeps.join(record.digest, request) {
                Joining::Alone(request) => return Some(request),
                Joining::Waiting(waiting) => {
                    let back = waiting.await.ok()?;
                    progress.whole_answer(back.came);
                    request = back.request;
                }
            }
        }
    }

    /// Takes apart a whole blob that is the answer to a request. Goes on as long as somebody has joined it; and if others can join it,
    /// as long as what is to come of it is not in the cache and can be kept there.
    pub(super) async fn sweep(self: &Arc<Self>, request: Request, mut body: Body, lead: Option<Lead<'_>>) -> Swept {
        let blob = Arc::clone(request.blob());
        let lead = lead.unwrap_or_else(|| Lead { sweep: Arc::default(), listed: None });
        let mut waiting = match lead.sweep.join(request) {
            Joining::Waiting(waiting) => waiting,
            Joining::Alone(left) => {
                return Swept { left: Some(left), ended: Some(Ok(())), brought: false, came: None, too_slow: false };
            }
        };
        let ended = self.take_apart(&blob, &mut body, &lead).await;
        let too_slow = body.was_too_slow();
        if matches!(ended, Some(Ok(()))) {
            body.finish();
        }
        let (brought, came) = {
            let state = lead.sweep.state();
            (state.brought, state.came)
        };
        drop(lead);
        Swept { left: waiting.try_recv().ok().map(|back| back.request), ended, brought, came, too_slow }
    }

    async fn take_apart(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        body: &mut Body,
        lead: &Lead<'_>,
    ) -> Option<Result<(), SourceError>> {
        let sweep = &*lead.sweep;
        let (mut stream, record) = (Stream { at: 0, piece: Bytes::new(), look: Instant::now() + LOOK }, blob.record());
        let mut missing = Missing { blob, next: record.first_chunk.0 };
        for chunk in record.chunks() {
            // Those for whom the index is damaged are told when they ask for themselves.
            let Ok(place) = blob.chunk(chunk).map(|record| record.compressed_range()) else { return Some(Ok(())) };
            let mut is_kept = || lead.listed.is_some() && self.keeps(blob) && missing.is_any_from(chunk);
            if !sweep.is_joined().0 && !is_kept() {
                return Some(Ok(()));
            }
            let mut stored = BytesMut::with_capacity(usize::try_from(place.end - place.start).unwrap_or(0));
            while stream.at < place.end {
                if stream.piece.is_empty() {
                    match self.next_piece(blob, body, sweep, &mut stream).await? {
                        Ok(Some(piece)) => stream.piece = piece,
                        Ok(None) => return Some(Ok(())),
                        Err(error) => return Some(Err(error)),
                    }
                }
                let part = stream.take(place.end);
                // Of what lies between two chunks, nothing is of use.
                let gap = place.start.saturating_sub(part.0);
                let used = part.1.slice(usize::try_from(gap).unwrap_or(usize::MAX).min(part.1.len())..);
                stored.extend_from_slice(&used);
            }
            let is_of_use = self.passed(blob, sweep, chunk, stored.freeze(), body.source()).await?;
            sweep.state().brought |= is_of_use;
        }
        // What follows the last chunk is looked at as well: an answer that is too long is wrong.
        loop {
            match self.unless_stopped(body.next()).await? {
                Ok(Some(_)) => {}
                Ok(None) => return Some(Ok(())),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The next piece of the answer; none after its last one, and when readers would do better without it.
    async fn next_piece(
        &self,
        blob: &Blob,
        body: &mut Body,
        sweep: &Sweep,
        stream: &mut Stream,
    ) -> Option<Result<Option<Bytes>, SourceError>> {
        let wanted = sweep.is_joined().1;
        if wanted && stream.look <= Instant::now() {
            stream.look = Instant::now() + LOOK;
            if self.upstream.heeds_elsewhere(body.source(), blob.record()) {
                tracing::debug!(blob = %blob.record().digest, "a whole answer is left for a source that heeds ranges");
                sweep.state().brought = true;
                return Some(Ok(None));
            }
        }
        body.set_urgency(if wanted { Urgency::Waiting } else { Urgency::Ahead });
        let since = Instant::now();
        let piece = self.unless_stopped(body.next()).await?;
        let bytes = piece.as_ref().ok().and_then(Option::as_ref).map_or(0, Bytes::len);
        if bytes > 0 {
            sweep.state().came = Some(Came { end: stream.at + bytes as u64, when: Instant::now() });
        }
        for slow in sweep.count(since.elapsed(), bytes, self.grace()) {
            self.fail(slow.request, TooSlow(LEAST_WANTED).into());
        }
        Some(piece)
    }

    /// A chunk has passed. Whether it is of use.
    async fn passed(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        sweep: &Sweep,
        chunk: u32,
        bytes: Bytes,
        source: SourceId,
    ) -> Option<bool> {
        let length = bytes.len() as u64;
        // Before the chunk has passed or is in this answer's charge, so that a reader that wants it meanwhile joins and goes on at once.
        if self.keeps(blob) && !blob.is_present(chunk) {
            self.admit(sweep, length).await?;
        }
        if let Some(mut joined) = sweep.pass(chunk) {
            self.metrics.fetched_bytes[joined.request.priority()].inc_by(length);
            joined.request.begin_anew(source);
            self.arrived(&mut joined.request, bytes).await;
            if !joined.request.is_done() {
                sweep.state().joined.push(joined);
            }
            return Some(true);
        }
        self.metrics.fetched_bytes[Priority::Fill].inc_by(length);
        if !self.keeps(blob) {
            return Some(false);
        }
        let Some(claim) = blob.claim_absent(chunk..chunk + 1).pop() else { return Some(false) };
        self.keep(claim, bytes, source).await;
        Some(true)
    }

    /// Waits until so many bytes that nobody wants are admitted, or somebody joins: what is wanted is not held up.
    async fn admit(&self, sweep: &Sweep, bytes: u64) -> Option<()> {
        let admitted = self.unless_stopped(self.rate.admit(bytes));
        tokio::pin!(admitted);
        // The news may be old: of requests that have been satisfied since.
        while !sweep.is_joined().0 {
            tokio::select! {
                admitted = &mut admitted => return admitted,
                () = sweep.news.notified() => {}
            }
        }
        Some(())
    }

    /// Keeps a chunk that nobody has asked for. Waits while others are decoded, so that they do not gather.
    async fn keep(self: &Arc<Self>, claim: Claim, bytes: Bytes, source: SourceId) {
        let length = bytes.len() as u64;
        let permit = Arc::clone(&self.bounds.surplus).acquire_many_owned(kib(weight(length, 1))).await;
        let mut load = Load::new(&self.metrics, Priority::Fill, length);
        load.hold(permit.ok().map(|permit| Arc::new(Granted::of(permit))));
        let attempt = Attempt { source: Some(source), passed: true, ..Attempt::default() };
        let (fetcher, load) = (Arc::clone(self), Arc::new(load));
        self.decode(Job { fetcher, claim, bytes, priority: Priority::Fill, attempt, load, _room: None });
    }

    /// Whether what passes of a blob is kept, though nobody has asked for it.
    fn keeps(&self, blob: &Blob) -> bool {
        blob.has_room() && blob.fits()
    }
}

/// The first chunk of a blob that is not in the cache, as far as was looked.
struct Missing<'a> {
    blob: &'a Blob,
    next: u32,
}

impl Missing<'_> {
    /// Whether a chunk is missing, of those from one on. All calls together look at each chunk once, and at one again for each call.
    fn is_any_from(&mut self, chunk: u32) -> bool {
        let mut rest = self.next.max(chunk)..self.blob.record().chunks().end;
        // One that is on its way counts: whoever asked for it may be about to join.
        self.next = rest.find(|chunk| !self.blob.is_present(*chunk)).unwrap_or(rest.end);
        self.next < rest.end
    }
}

/// The bytes of a whole blob.
struct Stream {
    /// Place of the next one.
    at: u64,
    piece: Bytes,
    /// When to look next for a better source.
    look: Instant,
}

impl Stream {
    /// What is at hand of the bytes before `end`, and the place of its first.
    fn take(&mut self, end: u64) -> (u64, Bytes) {
        let most = usize::try_from(end - self.at).unwrap_or(usize::MAX).min(self.piece.len());
        let part = (self.at, self.piece.split_to(most));
        self.at += most as u64;
        part
    }
}
