//! Read-ahead: whether a blob is being read in order, and how far beyond its readers to fetch.
//!
//! Everything here counts in the blob's stored (compressed) bytes. A read that continues no earlier one asks for nothing
//! ahead, nor does one whose stream is shorter than what a miss brings along anyhow. One that does, in either direction, may ask for as much again as its stream has read so far, up to what the network
//! makes worthwhile ([`crate::window`]): so what is read ahead in vain is never more than what was read, and a long reader
//! reaches the full window within some ten requests.
//!
//! Order means order in the blob, in which a directory's files lie together. So a walk over a tree is a stream, and a stream
//! that runs backwards is what comes of programs that put directories on a stack.

use std::ops::Range;

/// How far from a stream's end a read may be and still continue it, in stored bytes; for a short stream, what it has read.
/// Kernel read-ahead comes in pieces of up to 1 MiB and out of order; a directory's files lie near each other but not always in
/// the order of names.
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
    /// From the first to behind the last byte that was read.
    read: Range<u64>,
    /// The same for bytes that were asked for: around `read`.
    asked: Range<u64>,
    /// Bytes that were read, without those passed over.
    volume: u64,
    used: u64,
}

/// What to fetch for a stream that goes on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ahead {
    /// The bytes to fetch now.
    pub(crate) fetch: Range<u64>,
    /// When a reader arrives at the chunk with this byte, [`Streams::read`] should be told.
    pub(crate) mark: u64,
}

impl Streams {
    /// For a blob of `size` stored bytes.
    pub(crate) fn new(size: u64) -> Self {
        Self { size, streams: Vec::new(), clock: 0 }
    }

    /// Somebody reads `range`: says what to fetch ahead of him, at most `most` bytes, once he has read `least`.
    pub(crate) fn read(&mut self, range: &Range<u64>, least: u64, most: u64) -> Option<Ahead> {
        self.clock += 1;
        let Some(stream) = self.streams.iter_mut().find(|s| s.goes_on_with(range)) else {
            self.begin(range);
            return None;
        };
        stream.used = self.clock;
        if range.end > stream.read.end {
            stream.forwards(range, self.size, least, most)
        } else if range.start < stream.read.start {
            stream.backwards(range, least, most)
        } else {
            // Several who want the same, or a piece out of order: no step ahead.
            None
        }
    }

    fn begin(&mut self, range: &Range<u64>) {
        let volume = range.end - range.start;
        let stream = Stream { read: range.clone(), asked: range.clone(), volume, used: self.clock };
        if self.streams.len() < MAX_STREAMS {
            self.streams.push(stream);
        } else if let Some(oldest) = self.streams.iter_mut().min_by_key(|s| s.used) {
            *oldest = stream;
        }
    }
}

impl Stream {
    fn goes_on_with(&self, range: &Range<u64>) -> bool {
        let slack = SLACK.min(self.volume);
        range.start <= self.asked.end.saturating_add(slack) && range.end.saturating_add(slack) >= self.asked.start
    }

    fn forwards(&mut self, range: &Range<u64>, size: u64, least: u64, most: u64) -> Option<Ahead> {
        // What was asked for ahead has been read on the way; what was passed over beyond that has not.
        let from = if range.start <= self.asked.end { self.read.end } else { range.start };
        self.volume += range.end - from;
        self.read.end = range.end;
        self.asked.end = self.asked.end.max(range.end);
        let from = self.asked.end;
        let window = self.volume.min(most);
        let to = range.end.saturating_add(window).min(size);
        // Half a window at least, so that requests are large; the rest of the blob however short.
        if self.volume < least || to <= from || (to < size && to - from < window / 2) {
            return None;
        }
        self.asked.end = to;
        Some(Ahead { fetch: from..to, mark: (to - (to - from).min(window / 2)).max(from) })
    }

    fn backwards(&mut self, range: &Range<u64>, least: u64, most: u64) -> Option<Ahead> {
        let to = if range.end >= self.asked.start { self.read.start } else { range.end };
        self.volume += to - range.start;
        self.read.start = range.start;
        self.asked.start = self.asked.start.min(range.start);
        let to = self.asked.start;
        let window = self.volume.min(most);
        let from = range.start.saturating_sub(window);
        if self.volume < least || from >= to || (from > 0 && to - from < window / 2) {
            return None;
        }
        self.asked.start = from;
        Some(Ahead { fetch: from..to, mark: (from + (to - from).min(window / 2)).min(to - 1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 400 * MIB;
    const MOST: u64 = 16 * MIB;

    fn ahead(streams: &mut Streams, range: &Range<u64>) -> Option<Ahead> {
        streams.read(range, 0, MOST)
    }

    #[test]
    fn scattered_reads_fetch_nothing_ahead() {
        let mut streams = Streams::new(SIZE);
        for at in [300, 5, 90, 200, 42, 7, 120, 0, 390] {
            assert_eq!(ahead(&mut streams, &(at * MIB..at * MIB + 80_000)), None, "at {at} MiB");
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
            if let Some(ahead) = ahead(&mut streams, &range) {
                assert!(ahead.fetch.start >= fetched.max(at), "nothing is asked for twice");
                assert!(ahead.fetch.end - at <= at.min(MOST));
                assert!(ahead.fetch.contains(&ahead.mark));
                fetched = ahead.fetch.end;
                requests += 1;
            }
        }
        assert_eq!(fetched, SIZE, "the end is reached");
        assert!(requests < SIZE / (MOST / 2) + 16, "{requests} plans are too many");
    }

    #[test]
    fn a_reader_that_goes_backwards_gets_ahead_too() {
        let mut streams = Streams::new(SIZE);
        let step = 100_000;
        let (mut at, mut fetched) = (SIZE, SIZE);
        while at > 0 {
            let range = at.saturating_sub(step)..at;
            at = range.start;
            if let Some(ahead) = ahead(&mut streams, &range) {
                assert!(ahead.fetch.end <= fetched.min(at) && at - ahead.fetch.start <= (SIZE - at).min(MOST));
                assert!(ahead.fetch.contains(&ahead.mark));
                fetched = ahead.fetch.start;
            }
        }
        assert_eq!(fetched, 0);
        assert_eq!(streams.streams.len(), 1);
    }

    #[test]
    fn a_short_stream_is_left_to_the_neighbours_of_its_misses() {
        let mut streams = Streams::new(SIZE);
        for step in 0..10 {
            let range = step * 100_000..(step + 1) * 100_000;
            let is_ahead = streams.read(&range, 600_000, MOST).is_some();
            assert!(if range.end < 600_000 { !is_ahead } else { range.end > 600_000 || is_ahead }, "{range:?}");
        }
    }

    #[test]
    fn the_same_place_again_is_no_sequence() {
        let mut streams = Streams::new(SIZE);
        for _ in 0..5 {
            assert_eq!(ahead(&mut streams, &(MIB..MIB + 100_000)), None);
        }
    }

    #[test]
    fn readers_at_several_places_do_not_disturb_each_other() {
        let mut streams = Streams::new(SIZE);
        let mut plans = [0; 3];
        for step in 0..20 {
            for (reader, plans) in (0..).zip(&mut plans) {
                let at = reader * 100 * MIB + step * 100_000;
                *plans += u32::from(ahead(&mut streams, &(at..at + 100_000)).is_some());
            }
        }
        assert!(plans.iter().all(|&p| p >= 4), "{plans:?}");
    }

    #[test]
    fn pieces_out_of_order_are_one_stream() {
        let mut streams = Streams::new(SIZE);
        for at in [0, 100_000, 400_000, 200_000, 300_000] {
            ahead(&mut streams, &(at..at + 100_000));
        }
        assert_eq!(streams.streams.len(), 1);
        assert_eq!(streams.streams[0].read, 0..500_000);
    }
}
