use super::*;
use crate::ids::DeviceAddr;

fn record(chunk: &EncodedChunk, device_size: usize) -> ChunkRecord {
    ChunkRecord {
        compressed_offset: 0,
        compressed_size: u32::try_from(chunk.bytes.len()).unwrap(),
        device_offset: DeviceAddr(0),
        device_size: u32::try_from(device_size).unwrap(),
        encoding: chunk.encoding,
        digest: chunk.digest,
    }
}

/// Bytes that zstd cannot compress.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn round_trip() {
    let mut encoder = ChunkEncoder::new(3).unwrap();
    let mut decoder = ChunkDecoder::new().unwrap();
    let mut out = b"left over".to_vec();
    let largest = MAX_CHUNK_SIZE as usize;
    for (data, encoding) in [
        (vec![7; 4096], Encoding::Zstd),
        (noise(8192), Encoding::Raw),
        (vec![0; largest], Encoding::Zstd),
        (noise(largest), Encoding::Raw),
    ] {
        let chunk = encoder.encode(&data).unwrap();
        assert_eq!(chunk.encoding, encoding);
        assert_eq!(chunk, ChunkEncoder::new(3).unwrap().encode(&data).unwrap(), "a used context encodes differently");
        decoder.decode(&record(&chunk, data.len()), &chunk.bytes, &mut out).unwrap();
        assert!(out == data);
    }
    for size in [0, 1, 4095, 4097, largest + 4096] {
        assert!(matches!(encoder.encode(&vec![0; size]), Err(ChunkError::Size(found)) if found == size));
    }
}

#[test]
fn every_flipped_byte_is_noticed() {
    let data: Vec<u8> = noise(600).iter().cycle().take(4096).copied().collect();
    let mut encoder = ChunkEncoder::new(3).unwrap();
    let mut decoder = ChunkDecoder::new().unwrap();
    for raw in [false, true] {
        let mut chunk = encoder.encode(&data).unwrap();
        assert_eq!(chunk.encoding, Encoding::Zstd);
        if raw {
            (chunk.encoding, chunk.bytes) = (Encoding::Raw, data.clone());
        }
        for at in 0..chunk.bytes.len() {
            let mut stored = chunk.bytes.clone();
            stored[at] ^= 1;
            let mut out = Vec::new();
            // A frame has bits that do not matter: then the content is right.
            match decoder.decode(&record(&chunk, 4096), &stored, &mut out) {
                Ok(()) => assert!(out == data && !raw),
                Err(_) => assert!(out.is_empty()),
            }
        }
    }
}

#[test]
fn sizes_are_held_to() {
    let mut encoder = ChunkEncoder::new(3).unwrap();
    let mut decoder = ChunkDecoder::new().unwrap();
    let chunk = encoder.encode(&vec![0; 1 << 20]).unwrap();
    let mut out = Vec::new();
    // A frame that decodes to more than the index says must not take the memory it asks for.
    assert!(decoder.decode(&record(&chunk, 4096), &chunk.bytes, &mut out).is_err());
    assert!(out.is_empty() && out.capacity() < 1 << 16);
    let small = encoder.encode(&vec![0; 4096]).unwrap();
    let longer = decoder.decode(&record(&small, 8192), &small.bytes, &mut out);
    assert!(matches!(longer, Err(ChunkError::DecodedSize { actual: 4096, expected: 8192 })));
    let cut = decoder.decode(&record(&small, 4096), &small.bytes[1..], &mut out);
    assert!(matches!(cut, Err(ChunkError::StoredSize { .. })));
    assert!(matches!(verify(&record(&small, 4096), &[1; 4096]), Err(ChunkError::Digest { .. })));
    assert!(verify(&record(&small, 4096), &[0; 4096]).is_ok());
}
