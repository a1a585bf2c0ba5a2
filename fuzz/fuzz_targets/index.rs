//! Every accessor of the chunk index.
#![no_main]

use lazo_format::{BlobIndex, ChunkIndex, DeviceAddr, Index};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(index) = Index::parse(data) else { return };
    let valid = index.validate().is_ok();
    let mut chunks = 0;
    for blob in (0..=index.blob_count()).filter_map(|number| u16::try_from(number).ok()).map(BlobIndex) {
        let Ok(record) = index.blob(blob) else {
            assert!(!valid || usize::from(blob.0) == index.blob_count(), "a valid index has a bad blob");
            continue;
        };
        chunks += record.chunk_count;
        for at in [0, 4095, 4096, record.device_size / 2, record.device_size.wrapping_sub(1)] {
            let found = index.chunk_at(blob, DeviceAddr(at));
            assert!(!valid || found.is_ok() == (at < record.device_size), "{at:#x} of {record:?}: {found:?}");
            let _ = index.chunks_in(blob, 0..at);
            let _ = index.chunks_in(blob, at..u64::MAX);
        }
        for at in [record.device_size, u64::MAX] {
            assert!(index.chunk_at(blob, DeviceAddr(at)).is_err());
        }
    }
    assert!(!valid || chunks == index.chunk_count());
    for chunk in (0..index.chunk_count()).chain([index.chunk_count(), u32::MAX]).map(ChunkIndex) {
        let (record, blob) = (index.chunk(chunk), index.blob_of(chunk));
        if valid && chunk.0 < index.chunk_count() {
            let (record, blob) = (record.unwrap(), blob.unwrap());
            assert_eq!(index.chunk_at(blob, record.device_offset).unwrap().0, chunk);
        }
    }
    for range in index.prefetch() {
        assert!(range.is_ok() || !valid);
    }
});
