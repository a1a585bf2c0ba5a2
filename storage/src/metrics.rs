//! Every metric: name, meaning, labels. Nothing else defines one; docs/METRICS.md is made of this file.
//!
//! One [`Metrics`] is made a process and handed to whoever counts; nothing is global. Who counts often holds a clone of what
//! it counts with, so that no label is looked up in a read. A name's ending is its unit: `_bytes`, `_seconds`, and `_total` for
//! counters. All sums are over the life of the process.

#[cfg(test)]
mod docs;
mod kinds;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

pub use kinds::{BySource, BySourceAndKind, Counted, Description, Each, Label, Seconds, Standing, Up};

use crate::source::ErrorKind;
use kinds::{describe, labels, register};

labels! {
    /// Why bytes are fetched. What is first goes first.
    Priority "priority" {
        /// A reader waits for them.
        Demand "demand",
        /// A reader is expected to want them soon.
        Ahead "ahead",
        /// The image's prefetch list names them.
        Prefetch "prefetch",
        /// The whole image is wanted in the cache.
        Fill "fill",
    }
}

labels! {
    /// What a read was answered from.
    From "from" {
        /// All of it was in the cache, so that the answer was given at once; or all of it lies in holes.
        Cache "cache",
        /// Some of it had to be fetched, or was on its way.
        Source "source",
    }
}

labels! {
    /// How room was made in the cache.
    Evicted "how" {
        /// A blob that no mount used was removed whole.
        Blob "blob",
        /// Cold chunks of a blob in use were punched out of its file.
        Chunks "chunks",
    }
}

/// Defines [`Metrics`] and [`METRICS`] from one table: section, help text, field, type, name.
macro_rules! metrics {
    ($($section:literal { $($(#[doc = $help:literal])+ $field:ident: $type:ty = $name:literal;)* })*) => {
        /// All metrics of a process. [`Metrics::encode`] gives their text.
        #[derive(Debug)]
        pub struct Metrics {
            $($($(#[doc = $help])+ pub $field: $type,)*)*
            registry: Registry,
        }

        /// What there is, in the order of the text.
        pub const METRICS: &[Description] =
            &[$($(describe::<$type>($section, $name, concat!($($help),+)),)*)*];

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::default();
                $($(
                    let $field = <$type>::default();
                    register(&mut registry, &describe::<$type>($section, $name, concat!($($help),+)), &$field);
                )*)*
                Self { $($($field,)*)* registry }
            }
        }
    };
}

metrics! {
    "Sources" {
        /// Range requests made at a source, repeated and hedged ones included.
        source_requests: BySource<Counter> = "lazo_source_requests_total";
        /// Stored (compressed) bytes received from a source, those of answers that broke off or were not needed included.
        source_bytes: BySource<Counter> = "lazo_source_bytes_total";
        /// Requests that failed, by kind of error: unreachable, timeout, denied, not_found, busy, server, bad_answer, untrusted, local.
        source_errors: BySourceAndKind<Counter> = "lazo_source_errors_total";
        /// Time from a request to the first byte of its answer.
        source_first_byte: BySource<Seconds> = "lazo_source_first_byte_seconds";
        /// Whether a source is used: 1, or 0 while an image leaves it alone after errors. Each image finds that out by itself. Gone when no
        /// image has the source any more.
        source_up: BySource<kinds::Up> = "lazo_source_up";
        /// Second requests for the same bytes, made here because another source was slower than usual.
        source_hedged: BySource<Counter> = "lazo_source_hedged_total";
        /// Answers to requests that nobody waited for, given up as too few bytes a second came. What they did not bring is tried again later.
        source_slow: BySource<Counter> = "lazo_source_slow_total";
        /// Answers with a whole blob where a range was asked for, as the source ignores ranges. All that such an answer has is kept.
        source_whole: BySource<Counter> = "lazo_source_whole_answers_total";
        /// Chunks from a source whose bytes did not match the chunk index. They were fetched again, and reached nobody.
        wrong_chunks: BySource<Counter> = "lazo_wrong_chunks_total";
        /// Times that the outage limit of a blob ran out, so that its readers got an I/O error.
        outages: Counter = "lazo_outages_total";
        /// Requests for data of which readers wait, as no source serves the blob now. Beyond 0 for longer than a moment, the health is degraded.
        outage_requests: Gauge = "lazo_outage_requests";
    }
    "Reads" {
        /// Reads answered with data, by where it came from.
        reads: Each<From, Counter> = "lazo_reads_total";
        /// Bytes answered to readers. The kernel reads ahead and keeps pages, so that programs may have read fewer or more.
        read_bytes: Counter = "lazo_read_bytes_total";
        /// Reads that failed with an I/O error.
        failed_reads: Counter = "lazo_failed_reads_total";
        /// Time that reads waited for data that was not in the cache, failed reads included.
        stalls: Seconds = "lazo_stall_seconds";
        /// Reads that wait for data now.
        stalled_readers: Gauge = "lazo_stalled_readers";
    }
    "Fetching" {
        /// Stored (compressed) bytes received, by why they were fetched.
        fetched_bytes: Each<Priority, Counter> = "lazo_fetched_bytes_total";
        /// Uncompressed bytes of chunks that were decoded and verified, by why they were fetched.
        decoded_bytes: Each<Priority, Counter> = "lazo_decoded_bytes_total";
        /// Chunks that were decoded and verified, by why they were fetched.
        decoded_chunks: Each<Priority, Counter> = "lazo_decoded_chunks_total";
        /// Stored bytes that were asked for and are not decoded yet, by why they are fetched.
        in_flight_bytes: Each<Priority, Gauge> = "lazo_in_flight_bytes";
        /// Range requests under way, by why they were made.
        in_flight_requests: Each<Priority, Gauge> = "lazo_in_flight_requests";
        /// Chunks named by prefetch lists, as far as these have been worked through.
        prefetch_chunks: Counter = "lazo_prefetch_chunks_total";
        /// Images being served whose prefetch list has been worked through: the last of it has been asked for, or was in the cache.
        prefetch_complete: Gauge = "lazo_prefetch_complete";
        /// Images being served whose background fill has brought the whole image into the cache.
        fill_complete: Gauge = "lazo_fill_complete";
    }
    "Cache" {
        /// Disk space that the blobs of the state directory take.
        cache_bytes: Gauge = "lazo_cache_bytes";
        /// Limit of that; 0 when there is none.
        cache_limit: Gauge = "lazo_cache_limit_bytes";
        /// Disk space given back to stay within the limit, or because the disk was full.
        cache_evicted_bytes: Each<Evicted, Counter> = "lazo_cache_evicted_bytes_total";
        /// Chunks that could not be written to the cache: disk full, read-only or broken.
        cache_store_failures: Counter = "lazo_cache_store_failures_total";
        /// Memory that holds chunks which the cache could not take.
        cache_overflow_bytes: Gauge = "lazo_cache_overflow_bytes";
        /// Chunks that the cache had marked as ready, but whose bytes did not match the chunk index. They were fetched again.
        cache_damaged_chunks: Counter = "lazo_cache_damaged_chunks_total";
        /// Blobs that were there as a whole and were verified once more in the background, so that the kernel may read them by itself.
        cache_sealed: Counter = "lazo_cache_sealed_total";
    }
    "Process" {
        /// Always 1; its label is the version.
        build: kinds::Build = "lazo_build_info";
        /// Mounts that this process serves.
        mounts: Gauge = "lazo_mounts";
        /// Images that they show; one that has been unmounted counts as long as a copy of its mount is in use somewhere.
        images: Gauge = "lazo_images";
        /// Images that a node daemon had to leave unserved when it took over from an earlier worker.
        failed_images: Gauge = "lazo_failed_images";
        /// Times that a node daemon's worker ended and another one took over its mounts, upgrades aside.
        worker_restarts: Counter = "lazo_worker_restarts_total";
        /// Times that a node daemon's worker was replaced on demand.
        worker_upgrades: Counter = "lazo_worker_upgrades_total";
        /// Memory of this process that is in RAM.
        resident_memory: Gauge = "process_resident_memory_bytes";
    }
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What is counted for one source, to be kept by who uses that source for as long as he does. It counts as up.
    #[must_use]
    pub fn source(&self, name: &str) -> SourceMetrics {
        SourceMetrics {
            requests: self.source_requests.get(name),
            bytes: self.source_bytes.get(name),
            first_byte: self.source_first_byte.get(name),
            up: Standing::new(&self.source_up, name),
            hedged: self.source_hedged.get(name),
            slow: self.source_slow.get(name),
            whole: self.source_whole.get(name),
            wrong_chunks: self.wrong_chunks.get(name),
            errors: self.source_errors.clone(),
            name: name.into(),
        }
    }

    /// The text that a scraper reads, in the format [`CONTENT_TYPE`].
    #[must_use]
    pub fn encode(&self) -> String {
        self.resident_memory.set(kinds::resident_memory().unwrap_or_default());
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }

    /// The sums that tests, benchmarks and the log look at.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            requests: self.source_requests.sum(),
            fetched_bytes: self.fetched_bytes.sum(),
            chunks: self.decoded_chunks.sum(),
            decoded_bytes: self.decoded_bytes.sum(),
            read_bytes: self.read_bytes.get(),
            wrong_chunks: self.wrong_chunks.sum(),
            failed_reads: self.failed_reads.get(),
        }
    }
}

/// The format of [`Metrics::encode`], for an HTTP answer. Prometheus reads it since 2.5.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is counted for one source; see the fields of [`Metrics`].
#[derive(Debug)]
#[expect(missing_docs, reason = "described at Metrics")]
pub struct SourceMetrics {
    pub requests: Counter,
    pub bytes: Counter,
    pub first_byte: Seconds,
    pub up: Standing,
    pub hedged: Counter,
    pub slow: Counter,
    pub whole: Counter,
    pub wrong_chunks: Counter,
    errors: BySourceAndKind<Counter>,
    name: Arc<str>,
}

impl SourceMetrics {
    /// Counts a request that failed.
    pub fn failed(&self, kind: ErrorKind) {
        self.errors.get(&self.name, kind.label()).inc();
    }
}

/// Sums since the process began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Range requests made.
    pub requests: u64,
    /// Stored bytes received.
    pub fetched_bytes: u64,
    /// Chunks decoded and verified.
    pub chunks: u64,
    /// Uncompressed bytes of these.
    pub decoded_bytes: u64,
    /// Bytes answered to readers; counted where requests of the kernel are answered.
    pub read_bytes: u64,
    /// Chunks that came with wrong bytes.
    pub wrong_chunks: u64,
    /// Reads that failed.
    pub failed_reads: u64,
}
