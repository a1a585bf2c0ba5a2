//! Sources that ignore ranges and send whole blobs.

use tokio::sync::Semaphore;

use super::*;
use crate::cache::Limit;
use crate::metrics::Priority;
use crate::source::Answer;

/// A source that answers with the whole blob as long as it is told to, and counts what it sends.
struct Whole {
    registry: Arc<Registry>,
    /// Answers to come that are whole blobs.
    whole: Mutex<usize>,
    /// Pieces that may be sent.
    pieces: Arc<Semaphore>,
    /// How many whole answers were begun, and how many of their bytes were taken.
    begun: Mutex<usize>,
    taken: Arc<Mutex<usize>>,
    /// The next whole answer breaks off after so many bytes.
    cut: Mutex<Option<usize>>,
    /// The blob as it is sent: perhaps not the one that it should be.
    sent: Mutex<Bytes>,
}

impl Whole {
    fn new(image: &Image, times: usize) -> Arc<Self> {
        Arc::new(Self {
            registry: image.registry(),
            whole: Mutex::new(times),
            pieces: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS / 2)),
            begun: Mutex::default(),
            taken: Arc::default(),
            cut: Mutex::default(),
            sent: Mutex::new(image.blob.clone()),
        })
    }

    /// Sends no more until pieces are allowed.
    fn hold(&self) {
        self.pieces.forget_permits(usize::MAX);
    }

    fn begun(&self) -> usize {
        *self.begun.lock().unwrap()
    }

    fn taken(&self) -> usize {
        *self.taken.lock().unwrap()
    }

    fn answer(&self) -> Answer {
        *self.begun.lock().unwrap() += 1;
        let blob = self.sent.lock().unwrap().clone();
        let end = self.cut.lock().unwrap().take();
        let (pieces, taken) = (Arc::clone(&self.pieces), Arc::clone(&self.taken));
        let state = (blob.slice(..end.unwrap_or(blob.len())), end.is_some());
        let stream = stream::unfold(state, move |(mut rest, cut)| {
            let (pieces, taken) = (Arc::clone(&pieces), Arc::clone(&taken));
            async move {
                if rest.is_empty() {
                    let error = SourceError::new(ErrorKind::Unreachable, "cut on purpose");
                    return cut.then_some((Err(error), (rest, false)));
                }
                pieces.acquire().await.unwrap().forget();
                let piece = rest.split_to(rest.len().min(PIECE));
                *taken.lock().unwrap() += piece.len();
                Some((Ok(piece), (rest, cut)))
            }
        });
        Answer { stream: stream.boxed(), whole: true }
    }
}

impl BlobSource for Whole {
    fn name(&self) -> &str {
        "whole"
    }

    fn open_range<'a>(
        &'a self,
        blob: &'a BlobRecord,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        self.registry.open_range(blob, range)
    }

    fn open<'a>(&'a self, blob: &'a BlobRecord, range: Range<u64>) -> BoxFuture<'a, Result<Answer, SourceError>> {
        let whole = self.whole.lock().unwrap().checked_sub(1);
        let Some(left) = whole else {
            let stream = self.registry.open_range(blob, range);
            return Box::pin(async move { Ok(Answer { stream: stream.await?, whole: false }) });
        };
        *self.whole.lock().unwrap() = left;
        Box::pin(async move {
            tokio::task::yield_now().await;
            Ok(self.answer())
        })
    }
}

impl Process<'_> {
    /// Waits until a source that is held is known to send a whole blob, of which it may send a piece.
    async fn until_it_comes(&self, source: &Whole) {
        source.pieces.add_permits(1);
        self.until("a whole answer comes", |_| source.taken() > 0).await;
    }
}

impl Image {
    fn process_of(&self, sources: Vec<Arc<dyn BlobSource>>) -> Process<'_> {
        let mut parts = Parts::new(self.index(), sources.clone(), self.cache(), Handle::current());
        let policy = Policy { stall_timeout: OUTAGE_LIMIT, ..Policy::default() };
        parts.upstream = Upstream::new(sources, policy, Arc::clone(&parts.metrics));
        Process { image: self, reader: Arc::new(Reader::new(parts)) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whole_answer_serves_all_readers_and_fills_the_cache() {
    let image = Image::new(300);
    let source = Whole::new(&image, usize::MAX);
    let process = image.process_of(vec![source.clone()]);
    process.read_chunk(250).await.unwrap();
    let reads = (0..300).rev().map(|chunk| process.read_chunk(chunk));
    for read in join_all(reads).await {
        read.unwrap();
    }
    assert_eq!((source.begun(), source.taken()), (1, image.blob.len()), "one download");
    assert_eq!(process.reader.metrics.source("whole").whole.get(), 1);
    assert_eq!(process.reader.stats().chunks, 300, "nothing is decoded twice");
    assert!(source.registry.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_what_comes_wait_for_it_and_those_of_what_has_passed_ask_anew() {
    let image = Image::new(300);
    let source = Whole::new(&image, 1);
    source.hold();
    let process = image.process_of(vec![source.clone()]);
    let first = process.read_chunk(20);
    let last = async {
        process.until_it_comes(&source).await;
        process.read_chunk(290).await
    };
    let steps = async {
        process.until_it_comes(&source).await;
        // Up to the middle of the blob.
        source.pieces.add_permits(image.blob.len() / 2 / PIECE);
        process.until("half of it has passed", |_| source.taken() >= image.blob.len() / 2 - PIECE).await;
        process.read(0..20 * CHUNK).await.unwrap();
        assert_eq!(source.begun(), 1, "what has passed is in the cache");
        source.pieces.add_permits(image.blob.len());
    };
    let (first, last, ()) = tokio::join!(first, last, steps);
    first.unwrap();
    last.unwrap();
    process.read(0..300 * CHUNK).await.unwrap();
    assert_eq!((source.begun(), source.taken()), (1, image.blob.len()));
    assert!(source.registry.requests().is_empty(), "{:?}", source.registry.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_lie_before_the_range_are_no_stall_and_no_failure() {
    // Longer on its way than the stall timeout, and nothing of what is wanted before the end.
    let image = Image::new(300);
    let source = Whole::new(&image, usize::MAX);
    source.hold();
    let process = image.process_of(vec![source.clone()]);
    let pieces = image.blob.len().div_ceil(PIECE);
    let drip = async {
        for _ in 0..pieces {
            tokio::time::sleep(OUTAGE_LIMIT * 3 / u32::try_from(pieces).unwrap()).await;
            source.pieces.add_permits(1);
        }
    };
    let (read, ()) = tokio::join!(process.read_chunk(299), drip);
    read.unwrap();
    assert_eq!((source.begun(), source.taken()), (1, image.blob.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bound_on_what_nobody_waits_for_holds_up_no_reader() {
    let image = Image::new(300);
    let source = Whole::new(&image, usize::MAX);
    let sources: Vec<Arc<dyn BlobSource>> = vec![source.clone()];
    let mut parts = Parts::new(image.index(), sources.clone(), image.cache(), Handle::current());
    parts.upstream = Upstream::new(sources, Policy::default(), Arc::clone(&parts.metrics));
    parts.rate = RateLimiter::new(NonZeroU64::new(1), None);
    assert!(parts.rate.try_admit(1 << 40), "and no more for a long time");
    let process = Process { image: &image, reader: Arc::new(Reader::new(parts)) };
    process.read_chunk(100).await.unwrap();
    process.read_chunk(200).await.unwrap();
    process.read_chunk(50).await.unwrap();
    // One of these is the chunk that is held up just then.
    for chunk in 200..240 {
        tokio::time::timeout(PATIENCE, process.read_chunk(chunk)).await.expect("a reader is not held up").unwrap();
    }
    assert_eq!(source.begun(), 1);
    assert!(source.taken() < image.blob.len(), "nobody has asked for the rest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_that_breaks_off_keeps_what_came_and_its_readers_go_on() {
    let image = Image::new(300);
    let source = Whole::new(&image, usize::MAX);
    *source.cut.lock().unwrap() = Some(image.blob.len() / 2 + 10);
    source.hold();
    let process = image.process_of(vec![source.clone()]);
    let (first, ()) = tokio::join!(process.read_chunk(290), async {
        process.until_it_comes(&source).await;
        let others = join_all([280, 10, 299].map(|chunk| process.read_chunk(chunk)));
        let (others, ()) = tokio::join!(others, async { source.pieces.add_permits(image.blob.len()) });
        others.into_iter().for_each(|read| read.unwrap());
    });
    first.unwrap();
    process.read(0..300 * CHUNK).await.unwrap();
    assert_eq!(source.begun(), 2, "one more for all of them");
    assert_eq!(process.reader.stats().chunks, 300, "nothing is decoded twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_heeds_ranges_is_preferred_and_one_that_does_again_is_as_any() {
    let image = Image::new(300);
    let (whole, ranges) = (Whole::new(&image, 1), image.registry());
    let process = image.process_of(vec![whole.clone(), ranges.clone()]);
    whole.hold();
    // Asked first, as nobody knows. Then the other one serves, though the whole answer has not come to its end.
    let (late, ()) = tokio::join!(process.read_chunk(299), async {
        process.until_it_comes(&whole).await;
        process.read_chunk(5).await.unwrap();
        assert!(!ranges.requests().is_empty());
        whole.pieces.add_permits(image.blob.len());
    });
    late.unwrap();
    assert_eq!(whole.begun(), 1);

    let image = Image::new(300);
    let alone = Whole::new(&image, 1);
    *alone.cut.lock().unwrap() = Some(image.blob.len() / 3);
    let process = image.process_of(vec![alone.clone()]);
    process.read_chunk(200).await.unwrap();
    assert_eq!(alone.begun(), 1);
    let requests = alone.registry.requests();
    assert!(requests.iter().all(|range| range.end - range.start < image.blob.len() as u64), "{requests:?}");
    assert!(!process.reader.upstream().expects_whole(&image.contents.blobs[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_and_wrong_lengths_of_whole_answers_reach_nobody() {
    let image = Image::new(100);
    let source = Whole::new(&image, usize::MAX);
    let mut wrong = image.blob.to_vec();
    let place = image.stored(40..41).start as usize;
    wrong[place + 100] ^= 0x10;
    *source.sent.lock().unwrap() = wrong.into();
    let process = image.process_of(vec![source.clone()]);
    process.read_chunk(30).await.unwrap();
    let error = process.read_chunk(40).await.unwrap_err();
    assert!(matches!(*error, ReadError::Verify { .. }), "{error}");
    process.read_chunk(60).await.unwrap();

    let longer = Whole::new(&image, usize::MAX);
    *longer.sent.lock().unwrap() = [&image.blob[..], b"more"].concat().into();
    let other = Image::new(100);
    let process = other.process_of(vec![longer.clone()]);
    process.read_chunk(90).await.unwrap();
    process
        .until("that it is too long is noticed", |reader| {
            reader.metrics.source_errors.get("whole", "bad_answer").get() > 0
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_after_a_long_time_is_followed_by_another_sources() {
    // Nothing of what passes is of use, as the cache does not keep the blob; and it takes longer than an outage may last.
    let image = Image::new(300);
    let (whole, ranges) = (Whole::new(&image, 1), image.registry());
    *whole.cut.lock().unwrap() = Some(image.blob.len() - PIECE);
    whole.hold();
    // Out of order when the read begins, so that it is not preferred before anybody has asked it again.
    ranges.play([Trick::Refuse]);
    let sources: Vec<Arc<dyn BlobSource>> = vec![ranges.clone(), whole.clone()];
    let options = CacheOptions { limit: Limit::Bytes(1 << 20) };
    let cache = Cache::open(&image.state(), options, Arc::default()).unwrap();
    let mut parts = Parts::new(image.index(), sources.clone(), cache, Handle::current());
    let policy = Policy { outage_limit: OUTAGE_LIMIT, ..Policy::default() };
    parts.upstream = Upstream::new(sources, policy, Arc::clone(&parts.metrics));
    let process = Process { image: &image, reader: Arc::new(Reader::new(parts)) };
    let pieces = image.blob.len().div_ceil(PIECE);
    let drip = async {
        for _ in 0..pieces {
            tokio::time::sleep(OUTAGE_LIMIT * 2 / u32::try_from(pieces).unwrap()).await;
            whole.pieces.add_permits(1);
        }
    };
    let (read, ()) = tokio::join!(process.read_chunk(299), drip);
    read.unwrap();
    assert_eq!((whole.begun(), whole.taken()), (1, image.blob.len() - PIECE));
    assert!(ranges.requests().len() > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_ends_when_nothing_is_left_to_come() {
    let image = Image::new(300);
    let source = Whole::new(&image, 0);
    let process = image.process_of(vec![source.clone()]);
    process.read(100 * CHUNK..300 * CHUNK).await.unwrap();
    *source.whole.lock().unwrap() = 1;
    process.read_chunk(20).await.unwrap();
    process.until("the answer ends", |reader| reader.metrics.in_flight_requests[Priority::Demand].get() == 0).await;
    assert_eq!(source.begun(), 1);
    assert!(source.taken() < image.blob.len() / 2, "{} bytes", source.taken());
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_leave_a_whole_answer_for_a_source_that_heeds_ranges() {
    let image = Image::new(300);
    let (whole, ranges) = (Whole::new(&image, usize::MAX), image.registry());
    whole.hold();
    let process = image.process_of(vec![whole.clone()]);
    let (read, ()) = tokio::join!(process.read_chunk(299), async {
        process.until_it_comes(&whole).await;
        process.reader.upstream().add(vec![ranges.clone()]);
        // Slow, but it neither stalls nor is it slower than a reader can bear.
        while ranges.requests().is_empty() && whole.taken() < image.blob.len() {
            whole.pieces.add_permits(1);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    read.unwrap();
    assert!(!ranges.requests().is_empty());
    assert!(whole.taken() < image.blob.len(), "and the rest of it is not waited for");
}
