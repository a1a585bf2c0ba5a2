//! The figures of `lazo stats`, taken from the metrics' text: a daemon's and a mount's of its own process are then read alike,
//! whatever version of lazo serves them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `GET /v1/stats`. Sums are over the life of the serving process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Stats {
    /// When the serving process began, seconds since 1970.
    pub since: u64,
    /// Times that a worker ended and another took over, upgrades aside.
    pub restarts: u64,
    /// Times that a worker was replaced on demand.
    pub upgrades: u64,
    /// Mounts.
    pub mounts: u64,
    /// Images that they show.
    pub images: u64,
    /// Those of them that cannot be served.
    pub failed_images: u64,
    /// Reads that were answered with data.
    pub reads: u64,
    /// Those that were answered from the cache.
    pub cached_reads: u64,
    /// Reads that failed with an I/O error.
    pub failed_reads: u64,
    /// Bytes answered to readers. What the kernel reads from plain cache files is not among them.
    pub read_bytes: u64,
    /// Stored (compressed) bytes received.
    pub fetched_bytes: u64,
    /// Those that readers waited for, or were about to.
    pub demanded_bytes: u64,
    /// Uncompressed bytes decoded.
    pub decoded_bytes: u64,
    /// Fetched bytes for each byte read; missing before the first read.
    pub fetched_per_read: Option<f64>,
    /// Decoded bytes for each byte read; missing before the first read.
    pub decoded_per_read: Option<f64>,
    /// Reads that wait for data now.
    pub stalled_readers: u64,
    /// Reads that have waited.
    pub stalls: u64,
    /// How long they waited in all, seconds.
    pub stall_seconds: f64,
    /// Disk space of the cache, bytes.
    pub cache_bytes: u64,
    /// Its limit; 0 if there is none.
    pub cache_limit_bytes: u64,
    /// Disk space given back to stay within it.
    pub evicted_bytes: u64,
    /// Memory of the serving process, bytes.
    pub resident_bytes: u64,
    /// In the order of their names.
    pub sources: Vec<SourceStats>,
}

/// A source of data.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SourceStats {
    /// As messages and metrics call it.
    pub name: String,
    /// Whether it is used, and not left alone after errors.
    pub up: bool,
    /// Requests made.
    pub requests: u64,
    /// Stored bytes received.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Chunks that came with wrong bytes.
    pub wrong_chunks: u64,
    /// Mean time to the first byte of an answer, milliseconds; missing before the first.
    pub first_byte_ms: Option<f64>,
}

impl Stats {
    /// What the text of a process's metrics says. Samples that it lacks count as 0.
    #[must_use]
    pub fn scraped(text: &str) -> Self {
        let samples: Vec<Sample<'_>> = text.lines().filter_map(Sample::parse).collect();
        let of = |name: &'static str| samples.iter().filter(move |sample| sample.name == name);
        let sum = |name: &'static str| of(name).map(|sample| sample.value).sum::<f64>();
        let with = |name: &'static str, label: &str, value: &str| {
            of(name).filter(|s| s.label(label) == Some(value)).map(|s| s.value).sum::<f64>()
        };
        let fetched = "lazo_fetched_bytes_total";
        let (read, decoded) = (sum("lazo_read_bytes_total"), sum("lazo_decoded_bytes_total"));
        let per_read = |bytes: f64| (read > 0.0).then_some(bytes / read);
        Self {
            mounts: whole(sum("lazo_mounts")),
            reads: whole(sum("lazo_reads_total")),
            cached_reads: whole(with("lazo_reads_total", "from", "cache")),
            failed_reads: whole(sum("lazo_failed_reads_total")),
            read_bytes: whole(read),
            fetched_bytes: whole(sum(fetched)),
            demanded_bytes: whole(with(fetched, "priority", "demand") + with(fetched, "priority", "ahead")),
            decoded_bytes: whole(decoded),
            fetched_per_read: per_read(sum(fetched)),
            decoded_per_read: per_read(decoded),
            stalled_readers: whole(sum("lazo_stalled_readers")),
            stalls: whole(sum("lazo_stall_seconds_count")),
            stall_seconds: sum("lazo_stall_seconds_sum"),
            cache_bytes: whole(sum("lazo_cache_bytes")),
            cache_limit_bytes: whole(sum("lazo_cache_limit_bytes")),
            evicted_bytes: whole(sum("lazo_cache_evicted_bytes_total")),
            resident_bytes: whole(sum("process_resident_memory_bytes")),
            sources: sources(&samples),
            ..Self::default()
        }
    }
}

fn sources(samples: &[Sample<'_>]) -> Vec<SourceStats> {
    #[derive(Default)]
    struct FirstBytes {
        seconds: f64,
        count: f64,
        /// A source that no image has any more counts no longer.
        in_use: bool,
    }
    let mut sources: BTreeMap<&str, (SourceStats, FirstBytes)> = BTreeMap::new();
    for sample in samples {
        let Some(name) = sample.label("source") else { continue };
        let (source, first) = sources.entry(name).or_default();
        match sample.name {
            "lazo_source_up" => (source.up, first.in_use) = (sample.value > 0.0, true),
            "lazo_source_requests_total" => add(&mut source.requests, sample.value),
            "lazo_source_bytes_total" => add(&mut source.bytes, sample.value),
            "lazo_source_errors_total" => add(&mut source.errors, sample.value),
            "lazo_wrong_chunks_total" => add(&mut source.wrong_chunks, sample.value),
            "lazo_source_first_byte_seconds_sum" => first.seconds += sample.value,
            "lazo_source_first_byte_seconds_count" => first.count += sample.value,
            _ => {}
        }
    }
    let finish = |(name, (mut source, first)): (&str, (SourceStats, FirstBytes))| {
        source.name = unescaped(name);
        source.first_byte_ms = (first.count > 0.0).then_some(first.seconds * 1000.0 / first.count);
        source
    };
    let mut sources: Vec<SourceStats> =
        sources.into_iter().filter(|(_, (_, first))| first.in_use).map(finish).collect();
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    sources
}

/// A line of the text: `NAME VALUE` or `NAME{LABEL="VALUE",...} VALUE`.
#[derive(Debug, PartialEq)]
struct Sample<'a> {
    name: &'a str,
    /// What is in the braces.
    labels: &'a str,
    value: f64,
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}')?),
            None => (series, ""),
        };
        Some(Self { name, labels, value: value.parse().ok()? })
    }

    /// The value of a label, as it is escaped in the text.
    fn label(&self, wanted: &str) -> Option<&'a str> {
        let mut rest = self.labels;
        while let Some((name, behind)) = rest.split_once("=\"") {
            let mut escaped = false;
            let end = behind.bytes().position(|byte| {
                let ends = byte == b'"' && !escaped;
                escaped = byte == b'\\' && !escaped;
                ends
            })?;
            if name == wanted {
                return behind.get(..end);
            }
            rest = behind.get(end + 1..)?.trim_start_matches(',');
        }
        None
    }
}

fn unescaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        text.push(match character {
            '\\' => characters.next().map_or('\\', |escaped| if escaped == 'n' { '\n' } else { escaped }),
            other => other,
        });
    }
    text
}

/// Of a sum that may come from any text, so that it can be beyond what fits.
fn add(sum: &mut u64, value: f64) {
    *sum = sum.saturating_add(whole(value));
}

/// Sums are whole numbers, and below the 2^53 up to which an `f64` has all of them.
fn whole(value: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; negative is 0")]
    let whole = value as u64;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use lazo_storage::metrics::{From, Metrics, Priority};
    use std::time::Duration;

    #[test]
    fn real_metrics_are_read_as_counted() {
        let metrics = Metrics::new();
        metrics.reads[From::Cache].inc_by(3);
        metrics.reads[From::Source].inc();
        metrics.read_bytes.inc_by(1000);
        metrics.fetched_bytes[Priority::Demand].inc_by(400);
        metrics.fetched_bytes[Priority::Fill].inc_by(100);
        metrics.decoded_bytes[Priority::Demand].inc_by(1500);
        metrics.failed_reads.inc();
        metrics.stalls.observe(Duration::from_millis(250));
        metrics.stalled_readers.set(2);
        metrics.cache_limit.set(5 << 30);
        let odd = metrics.source("oci:/a \"b\", {c}=d");
        odd.requests.inc_by(7);
        odd.first_byte.observe(Duration::from_millis(20));
        odd.first_byte.observe(Duration::from_millis(40));
        odd.failed(lazo_storage::ErrorKind::Busy);
        let down = metrics.source("docker://down");
        down.up.set(false);
        metrics.source("docker://gone").requests.inc();
        let stats = Stats::scraped(&metrics.encode());
        assert_eq!((stats.reads, stats.cached_reads, stats.failed_reads), (4, 3, 1));
        assert_eq!((stats.fetched_bytes, stats.demanded_bytes), (500, 400));
        assert_eq!((stats.fetched_per_read, stats.decoded_per_read), (Some(0.5), Some(1.5)));
        assert_eq!((stats.stalled_readers, stats.stalls, stats.stall_seconds), (2, 1, 0.25));
        assert_eq!(stats.cache_limit_bytes, 5 << 30);
        assert!(stats.resident_bytes > 1 << 20);
        let [down, odd] = &*stats.sources else { panic!("{:?}", stats.sources) };
        assert_eq!((&*down.name, down.up, down.first_byte_ms), ("docker://down", false, None));
        assert_eq!((&*odd.name, odd.up, odd.requests, odd.errors), ("oci:/a \"b\", {c}=d", true, 7, 1));
        assert!(odd.first_byte_ms.is_some_and(|ms| (ms - 30.0).abs() < 0.01), "{odd:?}");
    }

    #[test]
    fn sums_beyond_all_numbers_are_the_greatest() {
        let up = "lazo_source_up{source=\"a\"} 1\n";
        let requests = "lazo_source_requests_total{source=\"a\"} 1e300\n";
        let stats = Stats::scraped(&format!("{up}{requests}{requests}"));
        assert_eq!(stats.sources[0].requests, u64::MAX);
    }

    #[test]
    fn names_are_those_that_were_written_and_in_their_order() {
        let written = [r"oci:/a\\nb", r"oci:/a\nb", r#"oci:/a\"b"#, "oci:/aZ", r"oci:/\\"];
        let text = written.map(|name| format!("lazo_source_up{{source=\"{name}\"}} 1\n")).concat();
        let found: Vec<String> = Stats::scraped(&text).sources.into_iter().map(|source| source.name).collect();
        assert_eq!(found, [r"oci:/\", "oci:/a\nb", "oci:/a\"b", "oci:/aZ", r"oci:/a\nb"]);
    }

    #[test]
    fn nonsense_is_nothing() {
        assert_eq!(Stats::scraped("x\n# lazo_mounts 3\nlazo_mounts{ 3\nlazo_mounts{a=\"b 3\n\n"), Stats::default());
    }
}
