/// Puts length and checksum right, so that changes elsewhere get past the superblock.
pub fn mend(bytes: &mut Vec<u8>) {
    if bytes.len() < 4096 {
        return;
    }
    bytes.truncate(bytes.len() / 4096 * 4096);
    let blocks = (bytes.len() / 4096) as u32;
    bytes[1024 + 36..1024 + 40].copy_from_slice(&blocks.to_le_bytes());
    bytes[1024 + 4..1024 + 8].fill(0);
    // EROFS leaves out the final inversion that the crate does.
    let checksum = !crc32c::crc32c(&bytes[1024..4096]);
    bytes[1024 + 4..1024 + 8].copy_from_slice(&checksum.to_le_bytes());
}
