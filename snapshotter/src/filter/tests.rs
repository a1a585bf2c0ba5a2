//! The language, compared with what containerd's own parser takes and refuses.

use std::collections::BTreeMap;

use proptest::prelude::{Strategy, any, prop_assert_eq, proptest};

use super::{Fields, Filter};

fn matches(expression: &str, name: &str, labels: &[(&str, &str)]) -> bool {
    let labels: BTreeMap<String, String> = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let fields = Fields { name, parent: "", kind: "active", labels: &labels };
    Filter::parse(&[expression]).unwrap().matches(&fields)
}

#[test]
fn values() {
    for (expression, name) in [
        ("name==foo", "foo"),
        ("name == foo", "foo"),
        (" name==foo", "foo"),
        ("name==sha256:ab/cd-e.f", "sha256:ab/cd-e.f"),
        (r#"name=="a,b \"c\" \\ \x41\101\u00e4\U0001F600\t""#, "a,b \"c\" \\ AA\u{e4}\u{1F600}\t"),
        (r#"name=="\xc3\xa4""#, "\u{e4}"),
        ("name~=o+", "foo"),
        ("name~=|^f/o$|", "f/o"),
        (r"name~=/^a\/b$/", "a/b"),
        (r"name~=/^\\d+$/", "123"),
        ("name==\u{e4}\u{2192}", "\u{e4}\u{2192}"),
        ("kind==active,name!=bar,labels", "foo"),
        ("name.more==foo", "foo"),
    ] {
        let labels: &[(&str, &str)] = if expression.ends_with("labels") { &[("", "x")] } else { &[] };
        assert!(matches(expression, name, labels), "{expression}");
    }
}

#[test]
fn fields() {
    let labels = [("a.b", "1"), ("x/y z", "2")];
    for (expression, expected) in [
        ("labels.a.b", true),
        ("labels.a.b==1", true),
        ("labels.a.c", false),
        ("labels.a.c!=1", true),
        ("labels.a.c==\"\"", false),
        ("labels.a.c~=/^$/", true),
        (r#"labels."a.b"==1"#, true),
        (r#"labels."x/y z"==2,labels.a.b==1"#, true),
        (r#"labels."x/y z"==2,labels.a.b==2"#, false),
        ("parent", true),
        ("parent==\"\"", true),
        ("other", false),
        ("other!=x", true),
        ("kind!=active", false),
    ] {
        assert_eq!(matches(expression, "n", &labels), expected, "{expression}");
    }
}

#[test]
fn what_is_refused() {
    for (expression, position) in [
        ("name=foo", 4),
        ("name===foo", 4),
        ("name==", 6),
        ("name==foo,", 10),
        ("name==foo bar", 9),
        ("name==a ,kind", 7),
        (",name", 0),
        ("name.", 5),
        ("name..x", 5),
        ("=x", 0),
        ("name==/foo/", 6),
        ("name==\"foo", 6),
        ("name==\"\\q\"", 8),
        ("name==\"\\/\"", 8),
        ("name==\"\\x4\"", 9),
        ("name==\"\\ud800\"", 8),
        ("name==\"\\400\"", 8),
        ("name==\"\\xff\"", 6),
        ("|name|", 0),
        ("na-me", 2),
        ("n\u{e4}me", 1),
        ("name==.x", 6),
        ("name==\u{7}", 6),
    ] {
        let error = Filter::parse(&[expression]).map(drop).unwrap_err();
        assert_eq!(error.position, position, "{error}");
    }
}

proptest! {
    #[test]
    fn nothing_panics(expression in any::<String>()) {
        let _ = Filter::parse(&[expression]);
    }

    #[test]
    fn nothing_that_looks_right_panics(expression in "[a-z\"/|\\\\.,=!~ x0-9\u{e4}]{0,24}") {
        let _ = Filter::parse(&[expression]);
    }

    /// containerd quotes names as Go does.
    #[test]
    fn quoted_names_come_back(name in any::<String>().prop_map(|name| name.replace('\0', ""))) {
        let quoted: String = name.chars().map(|c| match c {
            '"' | '\\' => format!("\\{c}"),
            c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
            c => c.to_string(),
        }).collect();
        let (same, other) = (format!("name==\"{quoted}\""), format!("name!=\"{quoted}\",kind==active"));
        prop_assert_eq!((matches(&same, &name, &[]), matches(&other, &name, &[])), (true, false));
    }
}

#[test]
fn costs_are_bounded() {
    let refused = |expressions: &[String]| Filter::parse(expressions).unwrap_err().reason;
    assert_eq!(refused(&["name~=a,".repeat(16) + "name~=a"]), "there are more than 16 regular expressions");
    assert_eq!(refused(&vec!["name~=a".to_owned(); 17]), "there are more than 16 regular expressions");
    Filter::parse(&vec!["name~=a"; 16]).unwrap();
    assert_eq!(refused(&vec!["name==a".to_owned(); 10_000]), "filters are longer than 64 KiB");
    Filter::parse(&vec!["name==a"; 9_000]).unwrap();
    assert!(!matches(r"name~=\w{10000}", "a", &[]), "it would take many megabytes");
    assert!(matches(r"name~=/^\\w{20}/", &"a".repeat(20), &[]));
}
