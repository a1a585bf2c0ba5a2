//! Read-ahead: whether a blob is being read in order, and how far ahead of its readers to fetch.
//!
//! Everything here counts in the blob's stored (compressed) bytes. A read that continues no earlier one asks for nothing
//! ahead. One that does may ask for as much again as its stream has read so far, up to [`MAX_WINDOW`]: so what is read ahead
//! in vain is never more than what was read, and a long reader reaches the full window within some ten requests.

use std::ops::Range;

/// Most stored bytes that are fetched ahead of one reader. Two requests of the largest size on their way while two more are
/// being read: enough for 200 MB/s of stored bytes at 40 ms a request.
pub const MAX_WINDOW: u64 = 16 << 20;

/// How far from where a stream stands a read may be and still continue it, in stored bytes, to either side. Kernel read-ahead
/// comes in pieces of up to 1 MiB and out of order; a directory's files lie near each other but seldom in the order of names.
const SLACK: u64 = 512 << 10;

/// Streams told apart in one blob; the one longest unused gives way. More readers than this at a time read without read-ahead.
const MAX_STREAMS: usize = 16;

/// Who reads a blob in order, and how far each is.
#[derive(Debug)]
pub(crate) struct Streams {
    size: u64,
    streams: Vec<Stream>,
    clock: u64,
}

#[derive(Debug)]
struct Stream {
    /// Behind the last byte that was read.
    next: u64,
    /// Behind the last byte that was asked for, `next` or beyond.
    ahead: u64,
    /// Bytes that this stream went through.
    read: u64,
    used: u64,
}

/// What to do for a stream that goes on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ahead {
    /// The bytes to fetch now.
    pub(crate) fetch: Range<u64>,
    /// When a reader arrives here, [`Streams::read`] should be told.
    pub(crate) mark: u64,
}

impl Streams {
    /// For a blob of `size` stored bytes.
    pub(crate) fn new(size: u64) -> Self {
        Self { size, streams: Vec::new(), clock: 0 }
    }

    /// Somebody reads `range`: says what to fetch ahead of him.
    pub(crate) fn read(&mut self, range: &Range<u64>) -> Option<Ahead> {
        self.clock += 1;
        let found = self
            .streams
            .iter_mut()
            .find(|s| range.start.saturating_add(SLACK) >= s.next && range.start <= s.ahead.saturating_add(SLACK));
        let Some(stream) = found else {
            self.begin(range);
            return None;
        };
        stream.used = self.clock;
        if range.end <= stream.next {
            // Several who want the same, or a piece out of order: no step ahead.
            return None;
        }
        stream.read += range.end.saturating_sub(stream.next);
        stream.next = stream.next.max(range.end);
        let window = stream.read.min(MAX_WINDOW);
        let from = stream.ahead.max(stream.next);
        let to = stream.next.saturating_add(window).min(self.size);
        // Half a window at least, so that requests are large; the rest of the blob however short.
        if to <= from || (to < self.size && to - from < window / 2) {
            return None;
        }
        stream.ahead = to;
        Some(Ahead { fetch: from..to, mark: (to - (to - from).min(window / 2)).max(from) })
    }

    fn begin(&mut self, range: &Range<u64>) {
        let stream = Stream { next: range.end, ahead: range.end, read: range.end - range.start, used: self.clock };
        if self.streams.len() < MAX_STREAMS {
            self.streams.push(stream);
        } else if let Some(oldest) = self.streams.iter_mut().min_by_key(|s| s.used) {
            *oldest = stream;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 400 * MIB;

    #[test]
    fn scattered_reads_fetch_nothing_ahead() {
        let mut streams = Streams::new(SIZE);
        for at in [300, 5, 90, 200, 42, 7, 120, 0, 390] {
            assert_eq!(streams.read(&(at * MIB..at * MIB + 80_000)), None, "at {at} MiB");
        }
    }

    #[test]
    fn a_sequential_reader_gets_ahead_but_no_further_than_it_has_read() {
        let mut streams = Streams::new(SIZE);
        let step = 100_000;
        let (mut at, mut fetched, mut requests) = (0, 0, 0);
        while at < SIZE {
            let range = at..(at + step).min(SIZE);
            at = range.end;
            if let Some(ahead) = streams.read(&range) {
                assert!(ahead.fetch.start >= fetched.max(at), "nothing is asked for twice");
                assert!(ahead.fetch.end - at <= at.min(MAX_WINDOW));
                assert!(ahead.fetch.contains(&ahead.mark));
                fetched = ahead.fetch.end;
                requests += 1;
            }
        }
        assert_eq!(fetched, SIZE, "the end is reached");
        assert!(requests < SIZE / (MAX_WINDOW / 2) + 16, "{requests} plans are too many");
    }

    #[test]
    fn the_same_place_again_is_no_sequence() {
        let mut streams = Streams::new(SIZE);
        for _ in 0..5 {
            assert_eq!(streams.read(&(MIB..MIB + 100_000)), None);
        }
    }

    #[test]
    fn readers_at_several_places_do_not_disturb_each_other() {
        let mut streams = Streams::new(SIZE);
        let mut plans = [0; 3];
        for step in 0..20 {
            for (reader, plans) in (0..).zip(&mut plans) {
                let at = reader * 100 * MIB + step * 100_000;
                *plans += u32::from(streams.read(&(at..at + 100_000)).is_some());
            }
        }
        assert!(plans.iter().all(|&p| p >= 4), "{plans:?}");
    }

    #[test]
    fn pieces_out_of_order_are_one_stream() {
        let mut streams = Streams::new(SIZE);
        for at in [0, 300_000, 100_000, 200_000] {
            streams.read(&(at..at + 100_000));
        }
        assert_eq!(streams.streams.len(), 1);
        assert_eq!(streams.streams[0].next, 400_000);
    }
}
