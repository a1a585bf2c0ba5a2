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
    queues: [VecDeque<(Option<Arc<Flight>>, Job)>; PRIORITIES],
    threads: usize,
    idle: usize,
}

impl State {
    /// What is demanded goes first, however it was queued. The queues have some thousand jobs at most.
    fn next(&mut self) -> Option<Job> {
        let [demanded, others @ ..] = &mut self.queues;
        if let Some((_, job)) = demanded.pop_front() {
            return Some(job);
        }
        let wanted = |(flight, _): &(Option<Arc<Flight>>, Job)| flight.as_ref().is_some_and(|f| f.is_wanted());
        for queue in &mut *others {
            if let Some(place) = queue.iter().position(wanted) {
                return queue.remove(place).map(|(_, job)| job);
            }
        }
        others.iter_mut().find_map(VecDeque::pop_front).map(|(_, job)| job)
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecodePool").field("threads", &self.lock().threads).finish_non_exhaustive()
    }
}

impl DecodePool {
    /// Hands a job to the pool; when somebody wants what is in `flight`, it becomes one that is demanded. It is dropped unrun only if no thread can be started at all.
    pub(crate) fn submit(
        &self,
        priority: Priority,
        flight: Option<Arc<Flight>>,
        job: impl FnOnce(&mut Worker) + Send + 'static,
    ) {
        let mut state = self.0.lock();
        state.queues[priority as usize].push_back((flight, Box::new(job)));
        // An idle thread that was notified is idle until it wakes: there must be one for each job.
        let queued: usize = state.queues.iter().map(VecDeque::len).sum();
        if state.idle >= queued || state.threads >= most_threads() {
            self.0.work.notify_one();
            return;
        }
        state.threads += 1;
        let shared = Arc::clone(&self.0);
        let started = std::thread::Builder::new().name("lazo-decode".into()).spawn(move || shared.run());
        if let Err(error) = started {
            state.threads -= 1;
            if state.threads == 0 {
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
            if timeout.timed_out() && state.queues.iter().all(VecDeque::is_empty) {
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
            pool.submit(Priority::Demand, None, move |_| gate.lock().unwrap().recv().unwrap());
        }
        let backwards = [Priority::Fill, Priority::Prefetch, Priority::Ahead, Priority::Demand];
        for priority in backwards {
            let done = done.clone();
            pool.submit(priority, None, move |_| done.send(priority).unwrap());
        }
        pool.submit(Priority::Demand, None, |_| panic!("a job that fails"));
        // One thread only works through the queue, so that the order can be seen.
        release.send(()).unwrap();
        let seen: Vec<_> = (0..4).map(|_| order.recv().unwrap()).collect();
        (1..most_threads()).for_each(|_| release.send(()).unwrap());
        assert_eq!(seen, Priority::ALL);
    }
}
