//! docs/CONFIGURATION.md and packaging/lazo.toml are made of the table of settings.

use std::fmt::Write as _;
use std::path::Path;

use super::{Config, SETTINGS};

const BEGIN: &str =
    "<!-- Made from daemon/src/node/config.rs: UPDATE_DOCS=1 cargo test -p lazo-daemon config::docs -->\n";
const END: &str = "<!-- End of what is made. -->\n";

/// Longest line of a comment.
const WIDTH: usize = 100;

fn table() -> String {
    let mut text = String::from("\n| key | default | meaning |\n|---|---|---|\n");
    for setting in SETTINGS {
        let default = if setting.has_default { format!("`{}`", setting.value) } else { String::new() };
        let example = if setting.has_default { String::new() } else { format!(" Example: `{}`", setting.value) };
        writeln!(text, "| `{}` | {default} | {}{example} |", setting.name, setting.help.trim()).unwrap();
    }
    text + "\n"
}

fn sample() -> String {
    let mut text = String::from(
        "# lazo's node daemon. Each line that is commented out shows a default, or an example where there is none.\n",
    );
    for setting in SETTINGS {
        text.push('\n');
        let mut line = String::from("#");
        for word in setting.help.split_whitespace() {
            if line.len() + word.len() > WIDTH {
                writeln!(text, "{line}").unwrap();
                line = String::from("#");
            }
            write!(line, " {word}").unwrap();
        }
        writeln!(text, "{line}").unwrap();
        writeln!(text, "#{} = {}", setting.name, setting.value).unwrap();
    }
    text
}

fn compare(file: &str, wanted: impl FnOnce(&str) -> String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let wanted = wanted(&text);
    if update {
        std::fs::write(&path, wanted).unwrap();
    } else {
        assert!(text == wanted, "{file} is old; run this test with UPDATE_DOCS=1");
    }
}

#[test]
fn the_documentation_has_every_setting() {
    compare("docs/CONFIGURATION.md", |text| {
        let (before, rest) = text.split_once(BEGIN).expect("the mark where the table begins");
        let (_, after) = rest.split_once(END).expect("the mark where the table ends");
        [before, BEGIN, &table(), END, after].concat()
    });
}

#[test]
fn the_sample_has_every_setting() {
    compare("packaging/lazo.toml", |_| sample());
    assert_eq!(Config::parse(&sample()), Ok(Config::default()));
}

#[test]
fn defaults_and_examples_are_right() {
    let default = Config::default();
    for setting in SETTINGS {
        let line = format!("{} = {}", setting.name, setting.value);
        let config = Config::parse(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(config == default, setting.has_default, "{line}");
    }
}

#[test]
fn examples_in_the_documentation_are_right() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/CONFIGURATION.md");
    let text = std::fs::read_to_string(path).unwrap();
    let examples: Vec<&str> =
        text.split("```toml\n").skip(1).map(|rest| rest.split_once("```").expect("an end").0).collect();
    assert!(!examples.is_empty());
    for example in examples {
        Config::parse(example).unwrap_or_else(|error| panic!("{example}: {error}"));
    }
}
