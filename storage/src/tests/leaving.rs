//! What an image leaves behind when it goes: nothing.

use super::*;
use crate::metrics::{Label as _, Metrics, Priority};

const CHUNKS: u32 = 600;

/// Open files of this process below a directory.
fn files_below(dir: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links.filter(|link| std::fs::read_link(link.path()).is_ok_and(|path| path.starts_with(dir))).count()
}

impl Image {
    /// A reader among others of a process.
    fn reader(&self, source: &Arc<Registry>, cache: &Arc<Cache>, metrics: &Arc<Metrics>) -> Process<'_> {
        let source: Arc<dyn BlobSource> = Arc::<Registry>::clone(source);
        let mut parts = Parts::new(self.index(), vec![Arc::clone(&source)], Arc::clone(cache), Handle::current());
        parts.metrics = Arc::clone(metrics);
        parts.upstream = Upstream::new(vec![source], Policy::default(), Arc::clone(metrics));
        Process { image: self, reader: Arc::new(Reader::new(parts)) }
    }
}

fn busy(metrics: &Metrics) -> i64 {
    let by_priority =
        Priority::ALL.iter().map(|&p| metrics.in_flight_bytes[p].get() + metrics.in_flight_requests[p].get());
    by_priority.sum::<i64>() + metrics.prefetch_complete.get() + metrics.fill_complete.get()
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_takes_gauges_tasks_and_files_with_it() {
    let everything = vec![PrefetchRange { first: ChunkIndex(0), count: CHUNKS }];
    let image = Image::with_prefetch(CHUNKS, everything);
    let (cache, metrics) = (image.cache(), Arc::<Metrics>::default());
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let (before, files) = (tasks(), files_below(&image.state()));
    for hung in [false, true] {
        let registry = image.registry();
        let process = image.reader(&registry, &cache, &metrics);
        if hung {
            registry.play((0..1000).map(|_| Trick::Hang));
        }
        process.reader.start_prefetch(Prefetch::All);
        process.reader.start_sealing();
        if hung {
            until("requests under way", || metrics.in_flight_requests[Priority::Prefetch].get() > 0).await;
        } else {
            process.read(0..20 * CHUNK).await.unwrap();
            until("the list is done", || metrics.prefetch_complete.get() == 1).await;
        }
        assert!(busy(&metrics) > 0 && metrics.encode().contains("lazo_source_up{"));
        let fetcher = Arc::downgrade(&process.reader.fetcher);
        drop(process);
        until("the fetcher goes", || fetcher.strong_count() == 0).await;
        until("gauges fall", || busy(&metrics) == 0).await;
        until("tasks end", || tasks() <= before).await;
        until("files are closed", || files_below(&image.state()) == files).await;
        assert!(!metrics.encode().contains("lazo_source_up{"));
        std::fs::remove_dir_all(image.state().join("blobs")).unwrap();
    }
}
