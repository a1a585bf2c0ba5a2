//! The tables of docs/METRICS.md are made of the table of metrics.

use std::fmt::Write as _;
use std::path::Path;

use super::METRICS;

const BEGIN: &str =
    "<!-- Made from storage/src/metrics.rs: UPDATE_DOCS=1 cargo test -p lazo-storage metrics::docs -->\n";
const END: &str = "<!-- End of what is made. -->\n";

fn tables() -> String {
    let mut text = String::new();
    let mut section = "";
    for metric in METRICS {
        if metric.section != section {
            section = metric.section;
            write!(text, "\n## {section}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n").unwrap();
        }
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, labels, help) = (metric.name, metric.kind.as_str(), labels.join(", "), metric.help());
        writeln!(text, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
    }
    text + "\n"
}

#[test]
fn the_documentation_has_every_metric() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/METRICS.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the mark where the tables begin");
    let (_, after) = rest.split_once(END).expect("the mark where the tables end");
    let wanted = [before, BEGIN, &tables(), END, after].concat();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, wanted).unwrap();
    } else {
        assert!(text == wanted, "docs/METRICS.md is old; run this test with UPDATE_DOCS=1");
    }
}
