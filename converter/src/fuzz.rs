//! The readers of this crate's foreign bytes apart from layers, with what must hold of whatever they accept: for the fuzz targets
//! in `fuzz/`, and for the test that keeps these and their seeds working.

use lazo_registry::Document;
use lazo_registry::oci_spec::image::MediaType;

use crate::PrefetchList;
use crate::manifest::Config;

/// An image's config, and the one that is made of it.
///
/// # Panics
/// When something does not hold.
pub fn config(bytes: &[u8]) {
    let parse = |bytes| Config::parse(&Document::new(MediaType::ImageConfig, bytes));
    let Ok(config) = parse(bytes.to_vec()) else { return };
    let diff_ids = config.parsed.diff_ids();
    // Every second layer is kept.
    let kept: Vec<bool> = (0..diff_ids.len()).map(|number| number % 2 == 0).collect();
    let wanted: Vec<_> = diff_ids.iter().step_by(2).copied().collect();
    let converted = config.clone().converted(&kept, &wanted).expect("a config");
    let again = parse(converted).expect("a config");
    assert_eq!(again.parsed.diff_ids(), wanted);
    assert_eq!(again.parsed.platform(), config.parsed.platform());
    assert_eq!(again.wants_direct_io(), config.wants_direct_io());
}

/// A prefetch list.
pub fn prefetch(text: &[u8]) {
    if let Ok(list) = PrefetchList::parse(text) {
        let is_pattern = |line: &[u8]| !matches!(line.strip_suffix(b"\r").unwrap_or(line), [] | [b'#', ..]);
        assert_eq!(list.is_empty(), !text.split(|byte| *byte == b'\n').any(is_pattern));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    /// Every seed, and every beginning of one.
    #[test]
    fn readers_hold_on_their_seeds() {
        for (target, read) in [("config", super::config as fn(&[u8])), ("prefetch", super::prefetch)] {
            let seeds = fs::read_dir(format!("{}/../fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"))).unwrap();
            let seeds: Vec<Vec<u8>> = seeds.map(|seed| fs::read(seed.unwrap().path()).unwrap()).collect();
            assert!(!seeds.is_empty());
            for seed in seeds {
                (0..=seed.len()).for_each(|length| read(&seed[..length]));
            }
        }
    }
}
