//! Sealing as it happens by itself, behind the data path.

use super::*;
use crate::PlainBlob;

const CHUNKS: u32 = 100;

impl Process<'_> {
    async fn sealed(&self) -> PlainBlob {
        let begin = Instant::now();
        loop {
            if let Some(sealed) = self.reader.sealed(BLOB).await {
                return sealed;
            }
            assert!(begin.elapsed() < PATIENCE, "it is not sealed");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn assert_plain(&self, plain: &PlainBlob) {
        let mut bytes = vec![0; self.image.content.len()];
        plain.file().read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == self.image.content && plain.file().metadata().unwrap().len() == bytes.len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_sealed_as_soon_as_its_last_chunk_is_there() {
    let image = Image::new(CHUNKS);
    let registry = image.registry();
    let process = image.process(&registry);
    process.reader.start_sealing();
    process.read(0..99 * CHUNK).await.unwrap();
    // Neighbours may be staged or there: all there is, is asked for.
    process.read_chunk(99).await.unwrap();
    process.assert_plain(&process.sealed().await);
    assert_eq!(registry.bytes_once(), image.blob.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_filled_in_the_background_is_sealed_and_the_next_process_has_it_at_once() {
    let image = Image::new(CHUNKS);
    let registry = image.registry();
    let first = image.process(&registry);
    assert!(first.reader.sealed(BLOB).await.is_none());
    first.read(0..CHUNKS as usize * CHUNK).await.unwrap();
    drop(first);
    let second = image.process(&registry);
    assert!(second.reader.sealed(BLOB).await.is_none(), "nobody has verified it as a whole");
    second.reader.start_sealing();
    second.assert_plain(&second.sealed().await);
    drop(second);
    let third = image.process(&registry);
    third.assert_plain(&third.reader.sealed(BLOB).await.unwrap());
    assert_eq!(registry.bytes_once(), image.blob.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_fetched_again_and_then_sealed() {
    let image = Image::new(CHUNKS);
    let registry = image.registry();
    let first = image.process(&registry);
    first.read(0..CHUNKS as usize * CHUNK).await.unwrap();
    drop(first);
    let data = OpenOptions::new().write(true).open(image.cache_file("data")).unwrap();
    data.write_all_at(b"damaged", 50 * CHUNK as u64).unwrap();
    let second = image.process(&registry);
    second.reader.start_sealing();
    second.until("it is noticed", |reader| reader.cache.metrics().cache_damaged_chunks.get() > 0).await;
    assert!(second.reader.sealed(BLOB).await.is_none());
    second.read_chunk(50).await.unwrap();
    second.assert_plain(&second.sealed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn sealing_ends_with_the_reader() {
    let image = Image::new(CHUNKS);
    let registry = image.registry();
    let process = image.process(&registry);
    process.reader.start_sealing();
    process.read(0..CHUNKS as usize * CHUNK).await.unwrap();
    let cache = Arc::downgrade(&process.reader.cache);
    drop(process);
    let begin = Instant::now();
    while cache.strong_count() > 0 {
        assert!(begin.elapsed() < PATIENCE, "somebody still has the cache");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
