//! Images whose sources give nothing, beside others.

use super::*;
use crate::bounds::Bounds;

/// So slow that no stall is noticed.
const EVERY: Duration = Duration::from_millis(200);

/// Chunks whose stored bytes are more than all images together may have in flight of a prefetch list.
const MANY: u32 = 300;

fn listed() -> Image {
    Image::with_prefetch(MANY, vec![PrefetchRange { first: ChunkIndex(0), count: MANY }])
}

impl Image {
    fn process_within(&self, bounds: &Bounds, source: &Arc<Registry>) -> Process<'_> {
        let source: Arc<dyn BlobSource> = Arc::<Registry>::clone(source);
        let parts = Parts::new(self.index(), vec![source], self.cache(), Handle::current());
        Process { image: self, reader: Arc::new(Reader::new(Parts { bounds: bounds.clone(), ..parts })) }
    }
}

impl Process<'_> {
    fn given_up(&self) -> u64 {
        self.reader.metrics.source("test").slow.get()
    }
}

fn drips() -> impl Iterator<Item = Trick> {
    (0..1000).map(|_| Trick::Drip(EVERY))
}

#[tokio::test(flavor = "multi_thread")]
async fn images_whose_sources_drip_do_not_stop_anothers_prefetch() {
    let bounds = Bounds::default();
    let evil = [listed(), listed(), listed()];
    let registries = evil.each_ref().map(Image::registry);
    let evil: Vec<_> =
        evil.iter().zip(&registries).map(|(image, registry)| image.process_within(&bounds, registry)).collect();
    for (process, registry) in evil.iter().zip(&registries) {
        registry.play(drips());
        process.reader.start_prefetch(Prefetch::Hints);
    }
    let asked = || registries.iter().flat_map(|registry| registry.requests()).map(|r| r.end - r.start).sum::<u64>();
    evil[0].until("they have all that there is", |_| asked() >= 8 << 20).await;
    let good = listed();
    let registry = good.registry();
    let process = good.process_within(&bounds, &registry);
    process.reader.start_prefetch(Prefetch::Hints);
    process.until("the list is there", |reader| reader.stats().chunks == u64::from(MANY)).await;
    assert_eq!(registry.bytes_once(), good.blob.len() as u64);
    assert!(evil.iter().all(|process| process.given_up() == 0), "it did not wait until they were given up");
    // Readers of another image have its neighbours brought along, too.
    let scattered = Image::new(200);
    let registry = scattered.registry();
    let process = scattered.process_within(&bounds, &registry);
    process.read_chunk(100).await.unwrap();
    let stored = scattered.stored(100..101);
    assert!(registry.requests()[0].end > stored.end, "{:?}", registry.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_from_a_source_that_drips_fails_in_a_stated_time() {
    let image = Image::new(100);
    let registry = image.registry();
    let process = image.frugal_process(&registry);
    registry.play(drips());
    let error = process.read_chunk(50).await.unwrap_err();
    let source = std::error::Error::source(&*error).expect("a cause").to_string();
    assert!(source.contains("16 KiB a second"), "{error}: {source}");
    registry.script.lock().unwrap().clear();
    process.read_chunk(51).await.unwrap();
    process.read_chunk(50).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_the_prefetch_list_did_not_get_is_asked_for_again() {
    let image = listed();
    let registry = image.registry();
    let process = image.process(&registry);
    registry.play([Trick::Refuse, Trick::Refuse]);
    process.reader.start_prefetch(Prefetch::Hints);
    process.until("all is there", |reader| reader.stats().chunks == u64::from(MANY)).await;
    assert!(process.reader.fetcher.missed() > 0);
}
