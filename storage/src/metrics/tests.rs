//! The text, read by a strict little parser.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;

type Labels = BTreeMap<String, String>;

/// What a scraper makes of the text; panics where the format is not kept.
#[derive(Debug, Default)]
struct Parsed {
    types: BTreeMap<String, String>,
    samples: Vec<(String, Labels, f64)>,
}

impl Parsed {
    fn of(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("the mark of the end");
        let mut parsed = Self::default();
        let (mut helped, mut family) = (BTreeSet::new(), String::new());
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let mut words = rest.splitn(3, ' ');
                let (keyword, name, text) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
                match keyword {
                    "HELP" => {
                        assert!(helped.insert(name.to_owned()), "{name} twice");
                        assert!(text.ends_with('.') && !text.ends_with(".."), "{line}");
                    }
                    "TYPE" => {
                        assert!(helped.contains(name), "TYPE before HELP: {line}");
                        assert!(["counter", "gauge", "histogram", "info"].contains(&text), "{line}");
                        parsed.types.insert(name.to_owned(), text.to_owned());
                        name.clone_into(&mut family);
                    }
                    "UNIT" => assert!(name == family && name.ends_with(&format!("_{text}")), "{line}"),
                    _ => panic!("no such comment: {line}"),
                }
            } else {
                let (name, labels, value) = sample(line);
                let suffix = name.strip_prefix(&family).unwrap_or_else(|| panic!("{name} among {family}"));
                let suffixes: &[&str] = match parsed.types[&family].as_str() {
                    "counter" => &["_total"],
                    "info" => &["_info"],
                    "histogram" => &["_bucket", "_sum", "_count"],
                    _ => &[""],
                };
                assert!(suffixes.contains(&suffix), "{line}");
                assert!(parsed.get(&name, &labels).is_none(), "twice: {line}");
                parsed.samples.push((name, labels, value));
            }
        }
        parsed
    }

    fn get(&self, name: &str, labels: &Labels) -> Option<f64> {
        self.samples.iter().find(|(n, l, _)| n == name && l == labels).map(|(_, _, value)| *value)
    }

    #[track_caller]
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels = labels.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        self.get(name, &labels).unwrap_or_else(|| panic!("no {name}{labels:?}"))
    }
}

/// `NAME{LABEL="VALUE",…} NUMBER`
fn sample(line: &str) -> (String, Labels, f64) {
    let end = line.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap();
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, value) = rest.split_once("=\"").unwrap();
            assert!(!label.is_empty() && label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
            let (value, after) = quoted(value);
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            let (next, after) = after.split_at(1);
            rest = after;
            match next {
                "," => {}
                "}" => break,
                _ => panic!("{line}"),
            }
        }
    }
    (name.to_owned(), labels, rest.strip_prefix(' ').unwrap().parse().unwrap())
}

/// The text up to the closing quote, escapes undone, and what is behind it.
fn quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.push(match chars.next().unwrap().1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                c => panic!("no such escape: {c}"),
            }),
            c => value.push(c),
        }
    }
    panic!("no closing quote: {text}")
}

#[test]
fn the_text_is_what_scrapers_read() {
    const NAME: &str = "oci:/a \"b\"\\c\nd,e}é";
    let metrics = Metrics::new();
    let source = metrics.source(NAME);
    source.requests.inc();
    source.failed(ErrorKind::Timeout);
    source.failed(ErrorKind::Timeout);
    source.first_byte.observe(Duration::from_millis(15));
    metrics.fetched_bytes[Priority::Prefetch].inc_by(7);
    metrics.in_flight_bytes[Priority::Fill].set(9);
    metrics.cache_evicted_bytes[Evicted::Chunks].inc_by(4096);
    metrics.reads[From::Cache].inc();
    metrics.stalls.observe(Duration::from_secs(90));

    let parsed = Parsed::of(&metrics.encode());
    assert_eq!(parsed.value("lazo_source_requests_total", &[("source", NAME)]), 1.0);
    assert_eq!(parsed.value("lazo_source_errors_total", &[("source", NAME), ("kind", "timeout")]), 2.0);
    assert_eq!(parsed.value("lazo_source_up", &[("source", NAME)]), 1.0);
    let bucket = |le| parsed.value("lazo_source_first_byte_seconds_bucket", &[("source", NAME), ("le", le)]);
    assert_eq!((bucket("0.01"), bucket("0.02"), bucket("+Inf")), (0.0, 1.0, 1.0));
    assert_eq!(parsed.value("lazo_fetched_bytes_total", &[("priority", "prefetch")]), 7.0);
    assert_eq!(parsed.value("lazo_fetched_bytes_total", &[("priority", "demand")]), 0.0, "there before it counts");
    assert_eq!(parsed.value("lazo_in_flight_bytes", &[("priority", "fill")]), 9.0);
    assert_eq!(parsed.value("lazo_cache_evicted_bytes_total", &[("how", "chunks")]), 4096.0);
    assert_eq!(parsed.value("lazo_reads_total", &[("from", "cache")]), 1.0);
    assert_eq!(parsed.value("lazo_stall_seconds_bucket", &[("le", "60.0")]), 0.0);
    assert_eq!(parsed.value("lazo_stall_seconds_sum", &[]), 90.0);
    assert_eq!(parsed.value("lazo_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert!(parsed.value("process_resident_memory_bytes", &[]) > 0.0);
}

#[test]
fn the_table_describes_what_is_scraped() {
    let metrics = Metrics::new();
    let source = metrics.source("s");
    source.failed(ErrorKind::Server);
    let parsed = Parsed::of(&metrics.encode());
    let mut names = BTreeSet::new();
    for metric in METRICS {
        assert!(names.insert(metric.name), "{} twice", metric.name);
        let is_of = |name: &str| {
            name.strip_prefix(metric.name).is_some_and(|rest| ["", "_bucket", "_sum", "_count"].contains(&rest))
        };
        let samples: Vec<_> = parsed.samples.iter().filter(|(name, ..)| is_of(name)).collect();
        assert!(!samples.is_empty(), "no sample of {}", metric.name);
        for (name, labels, _) in samples {
            let labels: BTreeSet<&str> = labels.keys().map(String::as_str).filter(|&label| label != "le").collect();
            assert_eq!(labels, metric.labels.iter().copied().collect(), "labels of {name}");
        }
        assert!(metric.help().ends_with('.') && !metric.help().contains('|'), "{}", metric.help());
    }
    assert_eq!(names.len(), parsed.types.len());
}

#[test]
fn sums_are_over_all_labels() {
    let metrics = Metrics::new();
    for (number, source) in [(1, "a"), (2, "b")] {
        metrics.source(source).requests.inc_by(number);
        metrics.source(source).wrong_chunks.inc_by(10 * number);
    }
    for priority in Priority::ALL {
        metrics.fetched_bytes[*priority].inc_by(5);
        metrics.decoded_bytes[*priority].inc_by(50);
        metrics.decoded_chunks[*priority].inc();
    }
    metrics.read_bytes.inc_by(6);
    metrics.failed_reads.inc();
    let wanted = Stats {
        requests: 3,
        fetched_bytes: 20,
        chunks: 4,
        decoded_bytes: 200,
        read_bytes: 6,
        wrong_chunks: 30,
        failed_reads: 1,
    };
    assert_eq!(metrics.stats(), wanted);
}

#[test]
fn a_source_is_up_while_all_who_have_it_say_so_and_gone_with_the_last() {
    let metrics = Metrics::new();
    let up = || {
        let parsed = Parsed::of(&metrics.encode());
        parsed.get("lazo_source_up", &Labels::from([("source".into(), "s".into())]))
    };
    assert_eq!(up(), None);
    let (one, two) = (metrics.source("s"), metrics.source("s"));
    assert_eq!(up(), Some(1.0));
    for _ in 0..2 {
        one.up.set(false);
        one.up.set(false);
        two.up.set(true);
        assert_eq!(up(), Some(0.0), "one of two leaves it alone");
        one.up.set(true);
        assert_eq!(up(), Some(1.0));
    }
    one.up.set(false);
    two.up.set(false);
    drop(one);
    assert_eq!(up(), Some(0.0));
    two.up.set(true);
    assert_eq!(up(), Some(1.0), "what one left behind does not count");
    two.requests.inc();
    drop(two);
    assert_eq!(up(), None);
    assert_eq!(metrics.stats().requests, 1, "what was counted stays");
    assert!(metrics.source_up.is_empty());
}

#[test]
fn what_is_counted_while_it_is_held_is_no_longer_counted_then() {
    let metrics = Metrics::new();
    let held = [(); 3].map(|()| Counted::new(&metrics.fill_complete));
    assert_eq!(metrics.fill_complete.get(), 3);
    drop(held);
    assert_eq!(metrics.fill_complete.get(), 0);
}
