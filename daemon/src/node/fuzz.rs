//! The readers of this crate's foreign bytes, with what must hold of whatever they accept: for the fuzz targets in `fuzz/`, and
//! for the test that keeps these and their seeds working.
//!
//! The first byte of an input to [`node_file`] picks the reader, in the order of the table there, `a` being the first. The rest is for
//! the reader.

use std::os::unix::ffi::OsStrExt as _;

use super::config::{Config, MAX_OUTAGE_LIMIT};
use super::stats::Stats;
use super::{api, mounter, worker};
use crate::endpoint::MetricsAddr;
use crate::kernel::table;
use crate::record::Content;

/// What a client of the control API sends over one connection.
///
/// # Panics
/// When something does not hold.
pub fn requests(data: &[u8]) {
    api::fuzz::requests(data);
}

/// Files and texts on the node: configuration, records, the mount table and the like.
///
/// # Panics
/// When something does not hold.
pub fn node_file(data: &[u8]) {
    const READERS: [fn(&[u8]); 10] = [
        config,
        worker::fuzz::record,
        mount_table,
        mounter::fuzz::id_map,
        metrics,
        mount_record,
        worker::fuzz::blob_name,
        api::fuzz::group,
        mounter::fuzz::messages,
        address,
    ];
    if let Some((choice, rest)) = data.split_first() {
        READERS[usize::from(choice.wrapping_sub(b'a')) % READERS.len()](rest);
    }
}

/// Mount points of a table that are looked for in it, each of which goes through all of it.
const MAX_POINTS: usize = 16;

fn config(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Ok(config) = Config::parse(text) else { return };
    // As the supervisor hands it on.
    let json = serde_json::to_string(&config).expect("paths from TOML are UTF-8");
    assert_eq!(serde_json::from_str::<Config>(&json).ok().as_ref(), Some(&config), "{json}");
    assert!(config.outage_limit <= MAX_OUTAGE_LIMIT && config.source_specs().is_ok());
    assert!(config.state_dir.is_absolute() && config.run_dir.is_absolute());
}

fn mount_table(table: &[u8]) {
    let mut points = Vec::new();
    for line in table::lines(table) {
        assert!(line.path.as_os_str().len() <= table.len());
        points.push(line.path);
    }
    for point in points.into_iter().take(MAX_POINTS) {
        let found = table::on_top(table, &point);
        assert!(found.is_none_or(|line| line.path == point), "{}", point.display());
    }
    let escaped = table.iter().flat_map(|byte| match byte {
        b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
        byte => vec![*byte],
    });
    let path = table::unescape(&escaped.collect::<Vec<u8>>());
    assert_eq!(path.as_os_str().as_bytes(), table, "an escaped path is another one");
}

fn metrics(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let stats = Stats::scraped(&text);
    assert!(stats.sources.len() <= text.len() && stats.sources.is_sorted_by(|a, b| a.name <= b.name));
    // As metrics are written.
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let stats = Stats::scraped(&format!("lazo_source_up{{source=\"{escaped}\"}} 1\n"));
    assert_eq!(stats.sources.first().map(|source| &*source.name), Some(&*text));
}

fn mount_record(text: &[u8]) {
    let Some(content) = Content::parse(text) else { return };
    let again = serde_json::to_vec(&content).expect("strings and numbers");
    assert_eq!(Content::parse(&again), Some(content));
}

fn address(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Ok(address) = text.parse::<MetricsAddr>() {
        assert_eq!(address.to_string().parse(), Ok(address), "{text:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    /// Every seed, and every beginning of one.
    #[test]
    fn readers_hold_on_their_seeds() {
        for (target, read) in [("api", super::requests as fn(&[u8])), ("node_files", super::node_file)] {
            let seeds = fs::read_dir(format!("{}/../fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"))).unwrap();
            let seeds: Vec<Vec<u8>> = seeds.map(|seed| fs::read(seed.unwrap().path()).unwrap()).collect();
            assert!(!seeds.is_empty());
            for seed in seeds {
                (0..=seed.len()).for_each(|length| read(&seed[..length]));
            }
        }
    }
}
