use super::*;

fn oci(text: &str) -> OciPlatform {
    let p: Platform = text.parse().unwrap();
    let mut out = OciPlatform::default();
    out.set_os(p.os.as_str().into()).set_architecture(p.architecture.as_str().into()).set_variant(p.variant);
    out
}

/// Forms that containerd's `platforms.Parse` takes give what it gives, but for `arm/v7`, which it takes for a system "arm".
#[test]
fn parses_and_prints() {
    let host = Platform::host().architecture;
    for (text, shown) in [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/x86-64", "linux/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/i386", "linux/386"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64/v9"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm/7", "linux/arm/v7"),
        ("macos/arm64", "darwin/arm64"),
        ("amd64", "linux/amd64"),
        ("x86_64", "linux/amd64"),
        ("arm64", "linux/arm64"),
        ("aarch64", "linux/arm64"),
        ("arm/v7", "linux/arm/v7"),
        ("arm/6", "linux/arm/v6"),
        ("arm64/v8", "linux/arm64"),
        ("armhf", "linux/arm/v7"),
        ("s390x", "linux/s390x"),
        ("386", "linux/386"),
        ("linux", &format!("linux/{host}")),
        ("windows", &format!("windows/{host}")),
        ("unknown/unknown", "unknown/unknown"),
    ] {
        assert_eq!(text.parse::<Platform>().unwrap().to_string(), shown, "{text}");
        assert_eq!(shown.parse::<Platform>().unwrap().to_string(), shown, "{text}: its own form");
    }
    for bad in ["", "linux/", "/amd64", "linux//v8", "a/b/c/d", "linux/amd 64", "vax", "*", "linux/*", "linux,arm64"] {
        let error = bad.parse::<Platform>().unwrap_err().to_string();
        assert!(error.contains("OS/ARCHITECTURE"), "{bad}: {error}");
    }
}

fn best(wanted: &Platform, have: &[&'static str]) -> Option<&'static str> {
    let suiting = have.iter().filter_map(|h| Some((wanted.suits(&oci(h))?, *h)));
    suiting.max_by_key(|candidate| candidate.0).map(|candidate| candidate.1)
}

#[test]
fn chooses_by_variant() {
    let best = |wanted: &str, have: &[&'static str]| best(&wanted.parse().unwrap(), have);
    let arm = ["linux/arm/v5", "linux/arm/v7", "linux/arm/v6", "linux/arm64"];
    assert_eq!(best("linux/arm", &arm), Some("linux/arm/v7"));
    assert_eq!(best("linux/arm/v6", &arm), Some("linux/arm/v6"));
    assert_eq!(best("linux/arm/v8", &arm), Some("linux/arm/v7"));
    assert_eq!(best("linux/arm64", &["linux/arm64/v8"]), Some("linux/arm64/v8"));
    assert_eq!(best("linux/arm64/v8", &["linux/arm64"]), Some("linux/arm64"));
    assert_eq!(best("linux/amd64", &["linux/amd64/v3", "linux/amd64"]), Some("linux/amd64"));
    assert_eq!(best("linux/amd64/v3", &["linux/amd64/v3", "linux/amd64"]), Some("linux/amd64/v3"));
    assert_eq!(best("linux/amd64", &["linux/386"]), None, "asked for by name, it is what was asked for");
    assert_eq!(best("linux/s390x", &arm), None);
    assert_eq!(best("windows/arm", &arm), None);
}

#[test]
fn a_machine_takes_kin_for_want_of_its_own() {
    let machine = |architecture| Platform { takes_kin: true, ..Platform::normalized("linux", architecture, None) };
    assert_eq!(best(&machine("amd64"), &["linux/386", "linux/arm64"]), Some("linux/386"));
    assert_eq!(best(&machine("amd64"), &["linux/386", "linux/amd64"]), Some("linux/amd64"));
    assert_eq!(best(&machine("arm64"), &["linux/arm/v6", "linux/arm/v7"]), Some("linux/arm/v7"));
    assert_eq!(best(&machine("386"), &["linux/amd64"]), None);
}
