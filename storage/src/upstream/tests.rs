//! Every clause of the policy against sources that follow a script, under a clock that jumps to the next event.

mod changing;
mod dripping;
mod hedging;
mod order;
mod random;
mod speed;
mod waiting;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Once};

use bytes::Bytes;
use futures_util::future::{self, BoxFuture};
use futures_util::stream::{self, StreamExt as _};
use lazo_format::ChunkIndex;

use super::*;
use crate::source::ByteStream;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// What a test asks for if nothing else is said, and the pieces in which it comes.
const LENGTH: u64 = 64 << 10;
const PIECE: u64 = 4 << 10;

/// How a source answers.
#[derive(Debug, Clone)]
struct Plan {
    head: Head,
    body: Flow,
}

#[derive(Debug, Clone)]
enum Head {
    After(Duration),
    At(Instant),
    Never,
    Fail(ErrorKind, Option<Duration>),
}

#[derive(Debug, Clone)]
enum Flow {
    All,
    /// In one piece.
    Whole,
    /// So many bytes, then an error.
    Cut(u64),
    /// So many bytes, then none until then.
    Stall(u64, Option<Instant>),
    /// So many bytes, then the end.
    End(u64),
    /// A byte too many.
    Long,
    /// Through a line that all bodies share.
    Line(Arc<Line>),
    /// A byte each time that so long has passed.
    Drip(Duration),
}

/// A line of some bytes a second.
#[derive(Debug)]
struct Line {
    rate: AtomicUsize,
    /// Until when it is taken.
    taken: Mutex<Instant>,
}

impl Line {
    fn new(rate: usize) -> Arc<Self> {
        Arc::new(Self { rate: AtomicUsize::new(rate), taken: Mutex::new(Instant::now()) })
    }

    /// What it carries in ten milliseconds: the clock has no fractions of one.
    fn piece(&self) -> u64 {
        self.rate.load(Ordering::Relaxed) as u64 / 100
    }

    async fn carry(&self, bytes: u64) {
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let seconds = bytes as f64 / self.rate.load(Ordering::Relaxed) as f64;
        let until = {
            let mut taken = self.taken.lock().unwrap();
            *taken = (*taken).max(Instant::now()) + Duration::from_secs_f64(seconds);
            *taken
        };
        time::sleep_until(until).await;
    }
}

fn serve() -> Plan {
    after(5 * MS)
}

fn after(head: Duration) -> Plan {
    Plan { head: Head::After(head), body: Flow::All }
}

fn hang() -> Plan {
    Plan { head: Head::Never, body: Flow::All }
}

fn fail(kind: ErrorKind) -> Plan {
    Plan { head: Head::Fail(kind, None), body: Flow::All }
}

fn flow(body: Flow) -> Plan {
    Plan { body, ..serve() }
}

/// A source that follows a plan.
#[derive(Debug)]
struct Scripted {
    name: String,
    plan: Mutex<Plan>,
    special: Mutex<HashMap<Digest, Plan>>,
    /// When requests were made.
    calls: Mutex<Vec<Instant>>,
    running: Arc<()>,
}

impl Scripted {
    fn new(name: &str, plan: Plan) -> Arc<Self> {
        let name = name.to_owned();
        let (plan, special, calls) = (Mutex::new(plan), Mutex::default(), Mutex::default());
        Arc::new(Self { name, plan, special, calls, running: Arc::new(()) })
    }

    fn set(&self, plan: Plan) {
        *self.plan.lock().unwrap() = plan;
    }

    /// How one blob is answered.
    fn set_for(&self, blob: &BlobRecord, plan: Plan) {
        self.special.lock().unwrap().insert(blob.digest, plan);
    }

    fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// Requests and bodies that were not dropped.
    fn running(&self) -> usize {
        Arc::strong_count(&self.running) - 1
    }
}

impl BlobSource for Scripted {
    fn name(&self) -> &str {
        &self.name
    }

    fn open_range<'a>(
        &'a self,
        blob: &'a BlobRecord,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        self.calls.lock().unwrap().push(Instant::now());
        let special = self.special.lock().unwrap().get(&blob.digest).cloned();
        let plan = special.unwrap_or_else(|| self.plan.lock().unwrap().clone());
        let running = Arc::clone(&self.running);
        Box::pin(async move {
            let _running = &running;
            match plan.head {
                Head::After(delay) => time::sleep(delay).await,
                Head::At(when) => time::sleep_until(when).await,
                Head::Never => future::pending().await,
                Head::Fail(kind, retry_after) => {
                    time::sleep(MS).await;
                    let mut error = SourceError::new(kind, format!("scripted {kind}"));
                    error.retry_after = retry_after;
                    return Err(error);
                }
            }
            Ok(body(plan.body, range, running))
        })
    }
}

/// The body of an answer. Keeps `running` until it is dropped.
fn body(flow: Flow, range: Range<u64>, running: Arc<()>) -> ByteStream {
    let most = match &flow {
        Flow::All | Flow::Whole | Flow::Line(_) | Flow::Drip(_) => range.end,
        Flow::Long => range.end + 1,
        Flow::Cut(bytes) | Flow::Stall(bytes, _) | Flow::End(bytes) => range.end.min(range.start + bytes),
    };
    let piece = match &flow {
        Flow::Whole | Flow::Long => u64::MAX,
        Flow::Line(line) => line.piece(),
        Flow::Drip(_) => 1,
        _ => PIECE,
    };
    stream::unfold((range.start, running, flow), move |(at, running, flow)| async move {
        if at < most {
            let length = piece.min(most - at);
            if let Flow::Drip(every) = &flow {
                time::sleep(*every).await;
            }
            if let Flow::Line(line) = &flow {
                line.carry(length).await;
                let zeros = Bytes::from(vec![0; usize::try_from(length).unwrap()]);
                return Some((Ok(zeros), (at + length, running, flow)));
            }
            return Some((Ok(content(at..at + length)), (at + length, running, flow)));
        }
        match flow {
            Flow::Cut(_) if at < range.end => {
                Some((Err(SourceError::new(ErrorKind::Unreachable, "scripted cut")), (at, running, Flow::End(0))))
            }
            Flow::Stall(_, until) if at < range.end => {
                match until {
                    Some(until) => time::sleep_until(until).await,
                    None => future::pending().await,
                }
                Some((Ok(content(at..range.end)), (range.end, running, Flow::All)))
            }
            _ => None,
        }
    })
    .boxed()
}

fn content(range: Range<u64>) -> Bytes {
    static CONTENT: LazyLock<Bytes> = LazyLock::new(|| (0..=250).cycle().take(1 << 20).collect());
    let (start, length) = (range.start % 251, range.end - range.start);
    CONTENT.slice(usize::try_from(start).unwrap()..usize::try_from(start + length).unwrap())
}

fn blob(number: u8) -> BlobRecord {
    BlobRecord {
        digest: Digest::sha256([number; 32]),
        compressed_size: 1 << 40,
        device_size: 1 << 40,
        first_chunk: ChunkIndex(0),
        chunk_count: 1,
    }
}

fn upstream<const N: usize>(sources: [&Arc<Scripted>; N]) -> Upstream {
    with_policy(sources, Policy::default())
}

fn with_policy<const N: usize>(sources: [&Arc<Scripted>; N], policy: Policy) -> Upstream {
    let sources = sources.map(|source| Arc::clone(source) as Arc<dyn BlobSource>);
    Upstream::new(sources.into(), policy, Arc::new(Metrics::new()))
}

/// Opens and reads all. Which source gave it, or what went wrong where; and how long that took.
async fn read(upstream: &Upstream, blob: &BlobRecord) -> Result<(u64, Duration), ReadError> {
    read_as(upstream, blob, Urgency::Waiting).await
}

async fn read_as(upstream: &Upstream, blob: &BlobRecord, urgency: Urgency) -> Result<(u64, Duration), ReadError> {
    let start = Instant::now();
    let mut body = upstream.open(blob, 0..LENGTH, urgency, &[]).await?;
    let got = drain(&mut body).await?;
    assert_eq!(got, content(0..LENGTH));
    Ok((body.source().0, start.elapsed()))
}

async fn drain(body: &mut Body) -> Result<Vec<u8>, SourceError> {
    let mut got = Vec::new();
    while let Some(piece) = body.next().await? {
        assert!(!piece.is_empty());
        got.extend_from_slice(&piece);
    }
    Ok(got)
}

/// Of an open or of a body.
type ReadError = Box<dyn std::error::Error + Send + Sync>;

/// The error of an open that must have failed.
fn refused<T: fmt::Debug>(result: Result<T, ReadError>) -> UpstreamError {
    *result.unwrap_err().downcast().unwrap()
}

/// Reads as the fetcher does: what a body did not bring is opened anew.
async fn persist(upstream: &Upstream, blob: &BlobRecord) -> Result<Duration, UpstreamError> {
    let (start, mut at) = (Instant::now(), 0);
    loop {
        let mut body = upstream.open(blob, at..LENGTH, Urgency::Waiting, &[]).await?;
        loop {
            match body.next().await {
                Ok(Some(piece)) => {
                    let end = at + piece.len() as u64;
                    assert_eq!(piece, content(at..end));
                    at = end;
                }
                Ok(None) => {
                    assert_eq!(at, LENGTH);
                    return Ok(start.elapsed());
                }
                Err(_) => break,
            }
        }
    }
}

thread_local! {
    static LINES: RefCell<Vec<tracing::Level>> = const { RefCell::new(Vec::new()) };
}

/// Counts the log lines of each thread, which is to say test. One for all threads: `tracing` remembers for each line whether anyone wants
/// it, and may ask the wrong thread.
#[derive(Debug)]
struct Log;

impl Log {
    fn begin() {
        static GLOBAL: Once = Once::new();
        GLOBAL.call_once(|| tracing::subscriber::set_global_default(Self).unwrap());
    }

    /// Warnings, errors and infos.
    fn lines() -> [usize; 3] {
        use tracing::Level;
        let count = |level| LINES.with_borrow(|lines| lines.iter().filter(|&&line| line == level).count());
        [Level::WARN, Level::ERROR, Level::INFO].map(count)
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().contains("upstream")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        LINES.with_borrow_mut(|lines| lines.push(*event.metadata().level()));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
