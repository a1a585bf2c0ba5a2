//! How a layer is packed: told by its first bytes, as runtimes do, whatever its media type says.

use std::io::{self, BufRead, Read};

const GZIP: &[u8] = &[0x1f, 0x8b, 0x08];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// A zstd stream may begin with a frame to be skipped: 0x184d2a50 to 0x184d2a5f, little-endian.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// Bytes that [`Compression::detect`] wants to see, if there are so many.
pub const DETECTED_BY: usize = 8;

/// How a tar is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A bare tar.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

impl Compression {
    /// How a stream is packed that begins so. What is too short to tell is a bare tar.
    #[must_use]
    pub fn detect(first: &[u8]) -> Self {
        let skippable =
            || first.len() >= DETECTED_BY && first[0] & 0xf0 == 0x50 && first[1..].starts_with(ZSTD_SKIPPABLE);
        if first.starts_with(GZIP) {
            Self::Gzip
        } else if first.starts_with(ZSTD) || skippable() {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "a plain tar",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// Largest window of a zstd stream, as the logarithm of its bytes: a decoder keeps so much of what it has unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZstdWindow(u32);

impl ZstdWindow {
    /// The largest that the format's own library knows: 2 GiB.
    pub const MAX: Self = Self(31);
    /// 512 MiB, which is containerd's. `zstd -19` makes 8 MiB, `--ultra -22` 128 MiB, `--long=N` what it is told.
    pub const DEFAULT: Self = Self(29);

    /// The window that holds so many bytes: rounded up to a power of two; `None` if that is over 2 GiB.
    #[must_use]
    pub fn of_bytes(bytes: u64) -> Option<Self> {
        let log = bytes.checked_next_power_of_two()?.ilog2();
        // The library's own least.
        (log <= Self::MAX.0).then_some(Self(log.max(10)))
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        1 << self.0
    }
}

impl Default for ZstdWindow {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A stream whose first bytes were looked at.
pub type Peeked<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

/// Looks at the first bytes of a stream, and gives it back whole.
///
/// # Errors
/// The stream's own.
pub fn detect<R: BufRead>(mut source: R) -> io::Result<(Compression, Peeked<R>)> {
    let mut first = Vec::with_capacity(DETECTED_BY);
    source.by_ref().take(DETECTED_BY as u64).read_to_end(&mut first)?;
    Ok((Compression::detect(&first), io::Cursor::new(first).chain(source)))
}

/// A stream, unpacked.
pub enum Decoder<R: BufRead> {
    /// As it is.
    None(R),
    /// By inflating it; several members behind one another are one stream.
    Gzip(Box<flate2::bufread::MultiGzDecoder<R>>),
    /// By zstd, several frames likewise.
    Zstd(Box<zstd::Decoder<'static, R>>),
}

impl<R: BufRead> Decoder<R> {
    /// Unpacks `source`. For zstd, memory is bounded by `window`; more is needed for nothing else.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(source: R, compression: Compression, window: ZstdWindow) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(source),
            Compression::Gzip => Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(source))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(source)?;
                decoder.window_log_max(window.0)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(source) => source.read(buffer),
            Self::Gzip(source) => source.read(buffer),
            Self::Zstd(source) => source.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        flate2::bufread::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut packed).unwrap();
        packed
    }

    /// One frame with a window of 2^`log` bytes, whose content is as long as that.
    fn zstd_frame(log: u32, bytes: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.include_contentsize(false).unwrap();
        io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpack(bytes: &[u8], window: ZstdWindow) -> io::Result<(Compression, Vec<u8>)> {
        let (compression, source) = detect(bytes)?;
        let mut unpacked = Vec::new();
        Decoder::new(source, compression, window)?.read_to_end(&mut unpacked)?;
        Ok((compression, unpacked))
    }

    #[test]
    fn first_bytes_tell() {
        let skippable = [&[0x5f, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd_frame(10, b"data")].concat();
        for (name, bytes, compression, content) in [
            ("plain", b"data".to_vec(), Compression::None, &b"data"[..]),
            ("nothing", vec![], Compression::None, b""),
            ("no gzip: its method is unknown", vec![0x1f, 0x8b, 7], Compression::None, &[0x1f, 0x8b, 7]),
            ("gzip", gzip(b"data"), Compression::Gzip, b"data"),
            ("gzip members", [gzip(b"da"), gzip(b"ta"), gzip(b"")].concat(), Compression::Gzip, b"data"),
            ("zstd", zstd_frame(10, b"data"), Compression::Zstd, b"data"),
            ("zstd frames", [zstd_frame(10, b"da"), zstd_frame(11, b"ta")].concat(), Compression::Zstd, b"data"),
            ("zstd behind a frame to skip", skippable, Compression::Zstd, b"data"),
        ] {
            assert_eq!(unpack(&bytes, ZstdWindow::DEFAULT).unwrap(), (compression, content.to_vec()), "{name}");
        }
    }

    #[test]
    fn what_follows_a_stream_is_refused() {
        for tail in [&[0; 700][..], &[0; 3], b"g", b"garbage behind it all", &[0x1f, 0x8b]] {
            for packed in [gzip(b"data"), zstd_frame(10, b"data")] {
                let error = unpack(&[&packed, tail].concat(), ZstdWindow::DEFAULT);
                assert!(error.is_err(), "{:x?} behind {:x?}", tail, &packed[..2]);
            }
        }
    }

    #[test]
    fn windows_are_bounded() {
        for (log, bytes, good) in [(27, 1 << 27, true), (27, 1 << 26, false), (29, 1 << 29, true), (30, 1 << 29, false)]
        {
            let window = ZstdWindow::of_bytes(bytes).unwrap();
            assert_eq!(unpack(&zstd_frame(log, b"data"), window).is_ok(), good, "2^{log} in {bytes}");
        }
        assert_eq!(ZstdWindow::of_bytes(3 << 20).map(ZstdWindow::bytes), Some(4 << 20));
        assert_eq!(ZstdWindow::of_bytes(1 << 31), Some(ZstdWindow::MAX));
        assert_eq!(ZstdWindow::of_bytes((1 << 31) + 1), None);
        assert_eq!(ZstdWindow::of_bytes(u64::MAX), None);
    }
}
