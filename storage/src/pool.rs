//! Threads for decompressing and hashing, apart from those that talk to the kernel or the network.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lazo_format::{ChunkDecoder, ChunkError};

use crate::flight::Flight;
use crate::metrics::{Label as _, Priority};

/// Fewest and most threads; between them, as many as there are cores. Two overlap one's cache write with the other's
/// decompression; more than four outrun every network that was measured (a core decodes 430 MB/s).
const THREADS: std::ops::RangeInclusive<usize> = 2..=4;

/// A thread without work ends after this long, and gives its zstd context and buffer back.
const IDLE: Duration = Duration::from_secs(5);

/// Jobs of one image that are looked through for one that somebody has come to wait for. A request brings some tens of chunks of a usual
/// size; an image with more and smaller ones must not make each look at the queue longer.
const LOOKED_AT: usize = 64;

/// How many [`Priority`] there are.
const PRIORITIES: usize = Priority::ALL.len();

fn most_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(*THREADS.start(), usize::from);
    cores.clamp(*THREADS.start(), *THREADS.end())
}

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// What a job works with; kept from job to job.
pub(crate) struct Worker {
    decoder: Option<ChunkDecoder>,
    pub(crate) buffer: Vec<u8>,
}

impl Worker {
    /// Decodes and verifies a chunk into the worker's buffer.
    pub(crate) fn decode(&mut self, record: &lazo_format::ChunkRecord, stored: &[u8]) -> Result<(), ChunkError> {
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            empty => empty.insert(ChunkDecoder::new()?),
        };
        decoder.decode(record, stored, &mut self.buffer)
    }
}

/// A pool of threads that start when there is work and end when there has been none for a while.
///
/// The queue is bounded by what feeds it: each job holds a part of its request's budget of bytes in flight, in which a chunk counts for
/// at least [`crate::blob::MIN_WEIGHT`].
#[derive(Debug, Clone, Default)]
pub(crate) struct DecodePool(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queues: [Queue; PRIORITIES],
    /// Jobs in all queues.
    queued: usize,
    threads: usize,
    idle: usize,
}

impl State {
    /// What is demanded goes first, however it was queued.
    fn next(&mut self) -> Option<Job> {
        let [demanded, others @ ..] = &mut self.queues;
        let job = demanded
            .pop()
            .or_else(|| others.iter_mut().find_map(Queue::pop_wanted))
            .or_else(|| others.iter_mut().find_map(Queue::pop));
        self.queued -= usize::from(job.is_some());
        job
    }
}

/// Jobs of one priority. Images take turns, so that one with a thousand chunks to decode makes another wait for one of them.
#[derive(Default)]
struct Queue {
    /// The image whose turn is next comes first. None of them is empty.
    images: VecDeque<(u64, Jobs)>,
}

type Jobs = VecDeque<(Option<Arc<Flight>>, Job)>;

impl Queue {
    fn push(&mut self, image: u64, flight: Option<Arc<Flight>>, job: Job) {
        match self.images.iter_mut().find(|(known, _)| *known == image) {
            Some((_, jobs)) => jobs.push_back((flight, job)),
            None => self.images.push_back((image, VecDeque::from([(flight, job)]))),
        }
    }

    fn pop(&mut self) -> Option<Job> {
        self.take(0, 0)
    }

    /// A job that somebody has come to wait for.
    fn pop_wanted(&mut self) -> Option<Job> {
        let wanted = |jobs: &Jobs| {
            let mut flights = jobs.iter().take(LOOKED_AT).map(|(flight, _)| flight);
            flights.position(|flight| flight.as_ref().is_some_and(|flight| flight.is_wanted()))
        };
        let (turn, place) = self.images.iter().enumerate().find_map(|(turn, (_, jobs))| Some((turn, wanted(jobs)?)))?;
        self.take(turn, place)
    }

    /// Takes a job of an image, whose next turn comes after all others'.
    fn take(&mut self, turn: usize, place: usize) -> Option<Job> {
        let (image, mut jobs) = self.images.remove(turn)?;
        let job = jobs.remove(place);
        if !jobs.is_empty() {
            self.images.push_back((image, jobs));
        }
        job.map(|(_, job)| job)
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecodePool").field("threads", &self.lock().threads).finish_non_exhaustive()
    }
}

impl DecodePool {
    /// Hands an image's job to the pool; when somebody wants what is in `flight`, it becomes one that is demanded. It is dropped unrun only if no thread can be started at all.
    pub(crate) fn submit(
        &self,
        priority: Priority,
        image: u64,
        flight: Option<Arc<Flight>>,
        job: impl FnOnce(&mut Worker) + Send + 'static,
    ) {
        let mut state = self.0.lock();
        state.queues[priority as usize].push(image, flight, Box::new(job));
        state.queued += 1;
        // An idle thread that was notified is idle until it wakes: there must be one for each job.
        if state.idle >= state.queued || state.threads >= most_threads() {
            self.0.work.notify_one();
            return;
        }
        state.threads += 1;
        let shared = Arc::clone(&self.0);
        let started = std::thread::Builder::new().name("lazo-decode".into()).spawn(move || shared.run());
        if let Err(error) = started {
            state.threads -= 1;
            if state.threads == 0 {
                state.queued = 0;
                let jobs = std::mem::take(&mut state.queues);
                // Outside the lock: what a job holds may come back here when it is dropped.
                drop(state);
                drop(jobs);
                tracing::error!(%error, "cannot start a thread to decode chunks");
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut worker = Worker { decoder: None, buffer: Vec::new() };
        while let Some(job) = self.next() {
            // A job that panics has dropped its claim, which tells those who wait; the thread goes on.
            let run = std::panic::AssertUnwindSafe(|| job(&mut worker));
            if std::panic::catch_unwind(run).is_err() {
                worker = Worker { decoder: None, buffer: Vec::new() };
            }
        }
    }

    /// The next job, or `None` after which the thread must end.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.next() {
                return Some(job);
            }
            state.idle += 1;
            let (waited, timeout) = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = waited;
            state.idle -= 1;
            if timeout.timed_out() && state.queued == 0 {
                state.threads -= 1;
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn demand_overtakes_what_is_queued_and_a_panic_stops_nothing() {
        let pool = DecodePool::default();
        let (done, order) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        // As many as there are threads, so that all are held.
        for _ in 0..most_threads() {
            let gate = Arc::clone(&gate);
            pool.submit(Priority::Demand, 0, None, move |_| gate.lock().unwrap().recv().unwrap());
        }
        let backwards = [Priority::Fill, Priority::Prefetch, Priority::Ahead, Priority::Demand];
        for priority in backwards {
            let done = done.clone();
            pool.submit(priority, 0, None, move |_| done.send(priority).unwrap());
        }
        pool.submit(Priority::Demand, 0, None, |_| panic!("a job that fails"));
        // One thread only works through the queue, so that the order can be seen.
        release.send(()).unwrap();
        let seen: Vec<_> = (0..4).map(|_| order.recv().unwrap()).collect();
        (1..most_threads()).for_each(|_| release.send(()).unwrap());
        assert_eq!(seen, Priority::ALL);
    }

    #[test]
    fn images_take_turns() {
        let mut state = State::default();
        let (done, order) = mpsc::channel();
        let wanted = Arc::new(Flight::default());
        wanted.want();
        let mut push = |priority: Priority, image, name: &'static str, flight: Option<&Arc<Flight>>| {
            let done = done.clone();
            state.queues[priority as usize].push(image, flight.cloned(), Box::new(move |_| done.send(name).unwrap()));
            state.queued += 1;
        };
        (0..1000).for_each(|_| push(Priority::Demand, 1, "flood", None));
        push(Priority::Demand, 2, "good", None);
        push(Priority::Demand, 3, "other", None);
        push(Priority::Demand, 2, "good again", None);
        (0..1000).for_each(|_| push(Priority::Prefetch, 1, "ahead", None));
        push(Priority::Prefetch, 2, "wanted", Some(&wanted));
        let mut worker = Worker { decoder: None, buffer: Vec::new() };
        while let Some(job) = state.next() {
            job(&mut worker);
        }
        assert_eq!(state.queued, 0);
        let order: Vec<_> = order.try_iter().collect();
        assert_eq!(order[..6], ["flood", "good", "other", "flood", "good again", "flood"]);
        assert_eq!(order[1003..1005], ["wanted", "ahead"]);
        assert_eq!(order.len(), 2004);
    }
}
