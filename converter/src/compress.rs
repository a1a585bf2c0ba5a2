//! Compresses chunks on all cores and writes them to spool files in their order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use lazo_format::{Algorithm, ChunkDigest, ChunkEncoder, ChunkError, Digest, EncodedChunk, Encoding, Hasher};

use crate::error::Problem;

/// Work waiting for each thread: enough that none idles while the parser reads, and bounded memory.
const QUEUE_PER_THREAD: usize = 4;
/// Buffer in front of a spool file.
const SPOOL_BUFFER: usize = 1 << 20;

struct Job {
    sequence: u32,
    data: Vec<u8>,
    result: Sender<Done>,
}

struct Done {
    sequence: u32,
    size: u32,
    encoded: Result<EncodedChunk, ChunkError>,
}

/// Threads that compress chunks, shared by all layers of a conversion.
pub(crate) struct Pool {
    jobs: Option<Sender<Job>>,
    /// Buffers that were compressed and can be filled again.
    empty: Receiver<Vec<u8>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads` of them.
    pub(crate) fn start(threads: usize, level: i32) -> Result<Self, ChunkError> {
        let (jobs, queue) = crossbeam_channel::bounded::<Job>(threads * QUEUE_PER_THREAD);
        let (give_back, empty) = crossbeam_channel::bounded(threads * (QUEUE_PER_THREAD + 1));
        let encoders = (0..threads).map(|_| ChunkEncoder::new(level)).collect::<Result<Vec<_>, _>>()?;
        let threads = encoders
            .into_iter()
            .map(|mut encoder| {
                let (queue, give_back) = (queue.clone(), give_back.clone());
                std::thread::spawn(move || {
                    for job in queue.iter() {
                        let size = u32::try_from(job.data.len()).unwrap_or(u32::MAX);
                        let encoded = encoder.encode(&job.data);
                        // Whoever does not listen any more has failed and says so itself.
                        let _ = give_back.try_send(job.data);
                        let _ = job.result.send(Done { sequence: job.sequence, size, encoded });
                    }
                })
            })
            .collect();
        Ok(Self { jobs: Some(jobs), empty, threads })
    }

    /// An empty buffer, used before if there is one.
    pub(crate) fn buffer(&self) -> Vec<u8> {
        let mut buffer = self.empty.try_recv().unwrap_or_default();
        buffer.clear();
        buffer
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// One chunk as it lies in a spool.
#[derive(Clone, Debug)]
pub(crate) struct SpooledChunk {
    pub(crate) compressed_size: u32,
    pub(crate) device_size: u32,
    pub(crate) encoding: Encoding,
    pub(crate) digest: ChunkDigest,
}

/// A finished spool file.
#[derive(Debug)]
pub(crate) struct Spool {
    pub(crate) path: PathBuf,
    pub(crate) chunks: Vec<SpooledChunk>,
    pub(crate) size: u64,
    /// Of the whole file.
    pub(crate) digest: Digest,
}

/// A sequence of chunks on its way into a spool file.
pub(crate) struct ChunkWriter<'p> {
    pool: &'p Pool,
    next: u32,
    results: Sender<Done>,
    writer: JoinHandle<Result<Spool, Problem>>,
}

impl<'p> ChunkWriter<'p> {
    /// Begins a spool at `path`.
    pub(crate) fn create(pool: &'p Pool, path: &Path) -> Result<Self, Problem> {
        let file = File::create_new(path).map_err(Problem::Spool)?;
        let (results, done) = crossbeam_channel::unbounded();
        let path = path.to_owned();
        let writer = std::thread::spawn(move || write_in_order(&done, file, path));
        Ok(Self { pool, next: 0, results, writer })
    }

    /// Takes the next number. Whatever has a higher one waits in memory until this chunk is pushed.
    pub(crate) fn reserve(&mut self) -> Result<u32, Problem> {
        let sequence = self.next;
        let limit = u64::from(u32::MAX);
        self.next = sequence.checked_add(1).ok_or(Problem::TooMany { what: "chunks in a blob", limit })?;
        Ok(sequence)
    }

    /// Hands over the chunk of a reserved number. Waits while the threads have enough to do.
    pub(crate) fn push(&mut self, sequence: u32, data: Vec<u8>) -> Result<(), Problem> {
        let jobs = self.pool.jobs.as_ref().ok_or(Problem::Panicked)?;
        let job = Job { sequence, data, result: self.results.clone() };
        jobs.send(job).map_err(|_| Problem::Panicked)?;
        if self.writer.is_finished() {
            // Only a failure ends the writer before the last result: `finish` returns it.
            return Err(Problem::Interrupted);
        }
        Ok(())
    }

    /// The number that is reserved next.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    pub(crate) fn pool(&self) -> &'p Pool {
        self.pool
    }

    /// What the writer itself failed of, when the chunks do not all come any more.
    pub(crate) fn failure(self) -> Option<Problem> {
        drop(self.results);
        self.writer.join().map_or(Some(Problem::Panicked), Result::err)
    }

    /// Waits for all chunks.
    pub(crate) fn finish(self) -> Result<Spool, Problem> {
        drop(self.results);
        let spool = self.writer.join().map_err(|_| Problem::Panicked)??;
        match spool.chunks.len() == self.next as usize {
            true => Ok(spool),
            false => Err(Problem::Panicked),
        }
    }
}

/// Writes results by ascending sequence. Those that come early wait; there are never more than were under way at once.
fn write_in_order(done: &Receiver<Done>, file: File, path: PathBuf) -> Result<Spool, Problem> {
    let mut file = BufWriter::with_capacity(SPOOL_BUFFER, file);
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut early = BTreeMap::new();
    let mut chunks = Vec::new();
    let mut size = 0;
    for result in done.iter() {
        let encoded = result.encoded.map_err(Problem::Encode)?;
        early.insert(result.sequence, (result.size, encoded));
        while let Some((device_size, chunk)) = u32::try_from(chunks.len()).ok().and_then(|next| early.remove(&next)) {
            file.write_all(&chunk.bytes).map_err(Problem::Spool)?;
            hasher.update(&chunk.bytes);
            size += chunk.bytes.len() as u64;
            let compressed_size = u32::try_from(chunk.bytes.len()).unwrap_or(u32::MAX);
            let (encoding, digest) = (chunk.encoding, chunk.digest);
            chunks.push(SpooledChunk { compressed_size, device_size, encoding, digest });
        }
    }
    file.flush().map_err(Problem::Spool)?;
    Ok(Spool { path, chunks, size, digest: hasher.finish() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_that_is_given_up_has_not_failed_itself() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::start(1, 1).unwrap();
        let begin = |name| {
            let mut writer = ChunkWriter::create(&pool, &dir.path().join(name)).unwrap();
            let (first, _) = (writer.reserve().unwrap(), writer.reserve().unwrap());
            (writer, first)
        };
        let (writer, _) = begin("given up");
        assert!(writer.failure().is_none());
        let (mut writer, first) = begin("failed");
        writer.push(first, vec![0; 100]).unwrap();
        assert!(matches!(writer.failure(), Some(Problem::Encode(_))), "100 bytes are no chunk");
    }
}
