//! What the demo found out, as a table and as JSON.

use std::fmt;
use std::time::Duration;

use serde_json::json;

use super::image::Built;
use super::measure::Start;

/// A conversion by `lazo convert`.
pub(crate) struct Conversion {
    pub(crate) elapsed: Duration,
    /// Everything in the destination's blobs directory.
    pub(crate) bytes: u64,
}

/// All figures.
pub(crate) struct Report {
    /// Mbit/s.
    pub(crate) bandwidth: u64,
    /// Milliseconds a request.
    pub(crate) latency: u64,
    pub(crate) built: Built,
    pub(crate) conversion: Conversion,
    /// Entries in which the mounted and the unpacked tree are equal.
    pub(crate) entries: u64,
    /// The full pull first, then the lazy ways.
    pub(crate) starts: Vec<(&'static str, Start)>,
}

impl Report {
    /// Seconds and bytes; ratios against the full pull.
    pub(crate) fn json(&self) -> serde_json::Value {
        let start = |(name, start): &(&'static str, Start)| {
            json!({
                "name": name,
                "ready_seconds": start.ready.as_secs_f64(),
                "run_seconds": start.run.as_secs_f64(),
                "total_seconds": start.total().as_secs_f64(),
                "requests": start.traffic.requests,
                "bytes": start.traffic.bytes,
                "times_sooner": self.times_sooner(start),
                "share_of_bytes": self.share_of_bytes(start),
            })
        };
        json!({
            "bandwidth_mbit": self.bandwidth,
            "latency_ms": self.latency,
            "image": {
                "layers": self.built.layers,
                "entries": self.built.entries,
                "uncompressed_bytes": self.built.uncompressed,
                "compressed_bytes": self.built.compressed,
            },
            "conversion": { "seconds": self.conversion.elapsed.as_secs_f64(), "bytes": self.conversion.bytes },
            "equal_entries": self.entries,
            "starts": self.starts.iter().map(start).collect::<Vec<_>>(),
        })
    }

    fn times_sooner(&self, start: &Start) -> f64 {
        self.starts[0].1.total().as_secs_f64() / start.total().as_secs_f64()
    }

    fn share_of_bytes(&self, start: &Start) -> f64 {
        start.traffic.bytes as f64 / self.starts[0].1.traffic.bytes as f64
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bandwidth, latency, built, conversion, entries, starts } = self;
        writeln!(
            f,
            "image      {} layers of {} entries, {:.0} MB, {:.0} MB as tar+gzip",
            built.layers,
            built.entries,
            megabytes(built.uncompressed),
            megabytes(built.compressed)
        )?;
        writeln!(
            f,
            "converted  {:.0} MB in {:.1} s ({:.0} MB/s)",
            megabytes(conversion.bytes),
            conversion.elapsed.as_secs_f64(),
            megabytes(built.uncompressed) / conversion.elapsed.as_secs_f64()
        )?;
        writeln!(f, "same tree  {entries} entries equal in the mount and in the unpacked image")?;
        writeln!(f, "registry   {bandwidth} Mbit/s, {latency} ms a request")?;
        writeln!(f, "program    {}", starts[0].1.output)?;
        writeln!(f)?;
        writeln!(f, "{:<20} {:>9} {:>9} {:>9} {:>9} {:>9}", "", "ready", "program", "total", "requests", "received")?;
        for (name, start) in starts {
            write!(
                f,
                "{name:<20} {:>7.2} s {:>7.2} s {:>7.2} s {:>9} {:>6.1} MB",
                start.ready.as_secs_f64(),
                start.run.as_secs_f64(),
                start.total().as_secs_f64(),
                start.traffic.requests,
                megabytes(start.traffic.bytes)
            )?;
            if std::ptr::eq(start, &raw const starts[0].1) {
                writeln!(f)?;
            } else {
                let share = self.share_of_bytes(start) * 100.0;
                writeln!(f, "   {:.1}x sooner, {share:.0} % of the bytes", self.times_sooner(start))?;
            }
        }
        Ok(())
    }
}
