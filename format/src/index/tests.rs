use super::*;

/// Blob `n` has `n + 1` chunks, of one block, two blocks, and so on.
fn contents(blobs: u16) -> IndexContents {
    let mut contents = IndexContents { entries: 12, file_bytes: 34, has_acls: true, ..IndexContents::default() };
    for blob in 0..blobs {
        let first_chunk = ChunkIndex(u32::try_from(contents.chunks.len()).unwrap());
        let (mut device, mut stored) = (0, 0);
        for number in 0..=u32::from(blob) {
            let encoding = if number % 2 == 0 { Encoding::Raw } else { Encoding::Zstd };
            let device_size = (number + 1) * 4096;
            let compressed_size = if encoding == Encoding::Raw { device_size } else { 100 + number };
            let digest = ChunkDigest::of(&number.to_le_bytes());
            let device_offset = DeviceAddr(device);
            contents.chunks.push(ChunkRecord {
                compressed_offset: stored,
                compressed_size,
                device_offset,
                device_size,
                encoding,
                digest,
            });
            device += u64::from(device_size);
            stored += u64::from(compressed_size);
        }
        contents.blobs.push(BlobRecord {
            digest: Digest::sha256_of(&blob.to_le_bytes()),
            compressed_size: stored,
            device_size: device,
            first_chunk,
            chunk_count: u32::from(blob) + 1,
        });
        contents.prefetch.push(PrefetchRange { first: first_chunk, count: u32::from(blob) / 2 + 1 });
    }
    contents
}

#[test]
fn widths_are_those_of_the_spec() {
    let empty = encode_index(&IndexContents::default(), b"").unwrap();
    assert_eq!(empty.len(), HEADER_SIZE);
    for blobs in [1, 2, 30] {
        let contents = contents(blobs);
        let expected = HEADER_SIZE
            + contents.blobs.len() * BLOB_SIZE
            + contents.chunks.len() * CHUNK_SIZE
            + contents.prefetch.len() * PREFETCH_SIZE;
        assert_eq!(encode_index(&contents, b"").unwrap().len(), expected);
    }
}

#[test]
fn reads_back_what_was_written() {
    let contents = contents(30);
    let bytes = encode_index(&contents, b"bootstrap").unwrap();
    let index = Index::parse(bytes).unwrap();
    let expected = Header {
        bootstrap_size: 9,
        bootstrap_digest: ChunkDigest::of(b"bootstrap"),
        entries: 12,
        file_bytes: 34,
        has_xattrs: false,
        has_acls: true,
    };
    assert_eq!(index.header(), &expected);
    assert_eq!(index.blob_count(), 30);
    assert_eq!(index.chunk_count(), 30 * 31 / 2);
    for (number, blob) in (0..).map(BlobIndex).zip(&contents.blobs) {
        assert_eq!(index.blob(number).as_ref(), Ok(blob));
        for chunk in blob.chunks().map(ChunkIndex) {
            assert_eq!(index.blob_of(chunk), Ok(number));
        }
    }
    for (number, chunk) in (0..).map(ChunkIndex).zip(&contents.chunks) {
        assert_eq!(index.chunk(number).as_ref(), Ok(chunk));
    }
    assert_eq!(index.prefetch().collect::<Result<Vec<_>, _>>().as_ref(), Ok(&contents.prefetch));
    let late: Vec<_> = index.prefetch_from(28).map(Result::unwrap).collect();
    assert_eq!((late.as_slice(), index.prefetch_from(31).len()), (&contents.prefetch[28..], 0));
    assert_eq!(index.blob(BlobIndex(30)), Err(IndexError::NoBlob(BlobIndex(30))));
    assert_eq!(index.chunk(ChunkIndex(465)), Err(IndexError::NoChunk(ChunkIndex(465))));
    assert_eq!(index.blob_of(ChunkIndex(465)), Err(IndexError::NoChunk(ChunkIndex(465))));
}

#[test]
fn finds_chunks_by_address() {
    let contents = contents(9);
    let index = Index::parse(encode_index(&contents, b"").unwrap()).unwrap();
    let (blob, record) = (BlobIndex(8), &contents.blobs[8]);
    for number in record.chunks() {
        let chunk = contents.chunks[number as usize];
        for at in [chunk.device_range().start, chunk.device_range().start + 1, chunk.device_range().end - 1] {
            assert_eq!(index.chunk_at(blob, DeviceAddr(at)), Ok((ChunkIndex(number), chunk)));
        }
    }
    let end = record.device_size;
    assert_eq!(index.chunk_at(blob, DeviceAddr(end)), Err(IndexError::NoAddress(blob, DeviceAddr(end))));
    let first = record.first_chunk.0;
    assert_eq!(index.chunks_in(blob, 0..end), Ok(first..first + 9));
    assert_eq!(index.chunks_in(blob, 4095..4097), Ok(first..first + 2));
    assert_eq!(index.chunks_in(blob, 4096..4097), Ok(first + 1..first + 2));
    assert_eq!(index.chunks_in(blob, 7..7), Ok(0..0));
    assert!(index.chunks_in(blob, 0..end + 1).is_err());
}

#[test]
fn refuses_what_breaks_a_rule() {
    type Change = fn(&mut IndexContents);
    let changes: [(&str, Change); 19] = [
        ("sha256", |contents| contents.blobs[1].digest = Digest::sha512([0; 64])),
        ("do not follow", |contents| contents.blobs[1].first_chunk.0 += 1),
        ("beyond the chunk table", |contents| contents.blobs[2].chunk_count += 1),
        ("no blob has it", |contents| contents.chunks.push(contents.chunks[0])),
        ("not whole blocks", |contents| contents.blobs[0].device_size += 1),
        ("add up", |contents| contents.blobs[1].device_size += 4096),
        ("add up", |contents| contents.blobs[1].compressed_size += 1),
        ("space without chunks", |contents| contents.blobs[0].chunk_count = 0),
        ("not whole blocks", |contents| contents.chunks[0].device_size = 0),
        ("beyond the largest chunk", |contents| contents.chunks[0].device_size = MAX_CHUNK_SIZE + 4096),
        ("does not begin", |contents| contents.chunks[2].device_offset.0 += 4096),
        ("does not begin", |contents| contents.chunks[2].compressed_offset += 1),
        ("stored size", |contents| contents.chunks[0].compressed_size -= 1),
        ("stored size", |contents| contents.chunks[2].compressed_size = contents.chunks[2].device_size),
        ("over two blobs", |contents| contents.prefetch[0].count += 1),
        ("it is empty", |contents| contents.prefetch[0].count = 0),
        ("an earlier one names", |contents| contents.prefetch[1] = contents.prefetch[0]),
        ("an earlier one names", |contents| contents.prefetch[1] = PrefetchRange { first: ChunkIndex(4), count: 2 }),
        ("7 prefetch ranges, the format allows 6", |contents| contents.prefetch = vec![contents.prefetch[0]; 7]),
    ];
    for (expected, change) in changes {
        let mut contents = contents(3);
        change(&mut contents);
        let error = encode_index(&contents, b"").unwrap_err().to_string();
        assert!(error.contains(expected), "{error}, expected {expected}");
    }
}

#[test]
fn refuses_other_files() {
    let good = encode_index(&contents(3), b"").unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        Index::parse(bytes).unwrap_err()
    };
    assert_eq!(with(0, b'L'), IndexError::Magic);
    assert_eq!(with(8, 2), IndexError::Version(2));
    assert_eq!(with(12, 4), IndexError::Flags(4));
    assert!(matches!(with(72, 9), IndexError::Length { .. }));
    let many =
        IndexError::TooMany { what: "chunks (larger ones are fewer)", count: 0x0300_0006, max: MAX_CHUNKS.into() };
    assert_eq!(with(79, 3), many);
    assert_eq!(with(80, 7), IndexError::TooMany { what: "prefetch ranges", count: 7, max: 6 });
    assert_eq!(with(74, 1), IndexError::TooMany { what: "blobs", count: 0x1_0003, max: MAX_BLOBS as u64 });
    // An encoding of a later version is an error of that chunk alone.
    let mut later = good.clone();
    later[HEADER_SIZE + 3 * BLOB_SIZE + 24] = 3;
    let index = Index::parse(later).unwrap();
    assert!(index.chunk(ChunkIndex(0)).unwrap_err().to_string().contains("encoding"));
    assert!(index.chunk(ChunkIndex(1)).is_ok());
}

#[test]
fn the_blobs_are_known_from_the_start_alone() {
    for blobs in [0, 1, 30] {
        let contents = contents(blobs);
        let expected: Vec<Digest> = contents.blobs.iter().map(|blob| blob.digest).collect();
        let bytes = encode_index(&contents, b"").unwrap();
        let table = HEADER_SIZE + expected.len() * BLOB_SIZE;
        for length in [table, bytes.len()] {
            assert_eq!(blob_digests(&bytes[..length]).as_ref(), Ok(&expected));
        }
        for length in [0, 8, HEADER_SIZE - 1].into_iter().chain((blobs > 0).then_some(table - 1)) {
            assert!(blob_digests(&bytes[..length]).is_err(), "{length} bytes of {blobs} blobs");
        }
    }
}
