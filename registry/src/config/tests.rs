use super::*;

const DIFF_ID: &str = "sha256:f5d13ad28e60d5a25fb72db8c65d31c862a176e0c869cf254fb3b8f75b2405ef";

fn parse(json: &str) -> Result<Config, String> {
    Config::parse("sha256:x", json.as_bytes()).map_err(|error| error.to_string())
}

/// Each of these is unpacked by containerd 1.6 and umoci, or by containerd alone.
#[test]
fn takes_what_runtimes_take() {
    for json in [
        "{}",
        r#"{"architecture":null,"os":null,"variant":null,"created":null,"author":null,"history":null,"config":null,"rootfs":null}"#,
        r#"{"rootfs":{}}"#,
        r#"{"rootfs":{"type":null,"diff_ids":null}}"#,
        r#"{"rootfs":{"type":"layers","diff_ids":[]}}"#,
        r#"{"config":{"Volumes":null,"ExposedPorts":null,"Env":null,"Entrypoint":null,"Cmd":null,"Labels":null,"User":null}}"#,
        r#"{"config":{"Volumes":{"/a":null,"/b":{},"/c":{"x":1}},"ExposedPorts":{"80/tcp":{}},"Labels":{"a":null},"Env":[null]}}"#,
        r#"{"history":[null,{},{"created":null,"empty_layer":null},{"created":"2020-02-29T23:59:59.123456789+02:00"}]}"#,
        r#"{"created":"0001-01-01T00:00:00Z","os.version":"1","os.features":["a"],"unknown":[[{"Layers":1}]]}"#,
        r#"{"container_config":{"Env":7},"docker_version":"1.2","Size":0}"#,
    ] {
        let config = parse(json).unwrap_or_else(|error| panic!("{json}: {error}"));
        assert_eq!((config.diff_ids(), config.platform()), (&[][..], None), "{json}");
    }
    let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(5000), "]".repeat(5000));
    assert!(parse(&deep).is_ok());
    assert!(Config::parse("x", b"{\"author\":\"\xff\"}").is_ok(), "Go replaces what is no UTF-8");
}

#[test]
fn reads_what_counts() {
    for names in [["os", "rootfs", "diff_ids"], ["OS", "RootFS", "Diff_IDs"], ["o\u{17f}", "ROOTFS", "DIFF_IDS"]] {
        let [os, rootfs, diff_ids] = names;
        let json = format!(
            r#"{{"{os}":"linux","architecture":"arm","variant":"v7","{rootfs}":{{"type":"layers","{diff_ids}":["{DIFF_ID}"]}}}}"#
        );
        let config = parse(&json).unwrap();
        assert_eq!(config.diff_ids(), [DIFF_ID.parse().unwrap()], "{json}");
        let platform = config.platform().unwrap();
        assert_eq!(crate::shown_platform(&platform), "linux/arm/v7");
    }
}

/// Each of these is refused by containerd 1.6 and umoci, but for the fields that are there twice.
#[test]
fn refuses_by_name_and_place() {
    for (json, place, reason) in [
        ("null", "config sha256:x", "no object"),
        ("[]", "config sha256:x", "expected an object, found a list"),
        ("{", "config sha256:x", "EOF"),
        ("\u{feff}{}", "config sha256:x", "expected value"),
        ("{} x", "config sha256:x", "trailing characters"),
        (r#"{"architecture":1}"#, "architecture (byte 16)", "expected a string, found a number"),
        (r#"{"created":""}"#, "created (byte 11)", "no time"),
        (r#"{"created":"yesterday"}"#, "created (byte 11)", "no time"),
        (r#"{"created":"2020-01-01T00:00:00"}"#, "created", "no time"),
        (r#"{"config":{"Env":"A=b"}}"#, "config.Env (byte 17)", "expected a list, found a string"),
        (r#"{"config":{"Env":[1]}}"#, "config.Env[0]", "expected a string"),
        (r#"{"config":{"Entrypoint":"/bin/sh"}}"#, "config.Entrypoint", "expected a list"),
        (r#"{"config":{"Volumes":["/a"]}}"#, "config.Volumes", "expected an object, found a list"),
        (r#"{"config":{"Volumes":{"/a":1}}}"#, r#"config.Volumes["/a"]"#, "expected an object"),
        (r#"{"config":{"Labels":{"a":true}}}"#, r#"config.Labels["a"]"#, "found a boolean"),
        (r#"{"history":{}}"#, "history", "expected a list"),
        (r#"{"history":[{},{"created":"x"}]}"#, "history[1].created", "no time"),
        (r#"{"history":[{"empty_layer":"yes"}]}"#, "history[0].empty_layer", "expected true or false"),
        (r#"{"rootfs":{"type":"foo"}}"#, "rootfs", r#"its type is "foo""#),
        (r#"{"rootfs":{"diff_ids":"x"}}"#, "rootfs.diff_ids", "expected a list"),
        (r#"{"rootfs":{"diff_ids":[""]}}"#, "rootfs.diff_ids[0]", ""),
        (r#"{"rootfs":{},"RootFS":{}}"#, "config sha256:x", "the field rootfs is there twice"),
        (r#"{"rootfs":{"diff_ids":[],"diff_ids":[]}}"#, "rootfs", "the field diff_ids is there twice"),
    ] {
        let error = parse(json).unwrap_err();
        assert!(
            error.contains(place) && error.contains(reason) && error.contains("config sha256:x"),
            "{json}: {error}"
        );
    }
    let sha512 = format!(r#"{{"rootfs":{{"diff_ids":["sha512:{}"]}}}}"#, "0".repeat(128));
    assert!(parse(&sha512).unwrap_err().contains("SHA-256"));
    let long = format!(r#"{{"history":[{}{{}}]}}"#, "{},".repeat(70_000));
    assert!(parse(&long).unwrap_err().contains("more than 65536 elements"));
}

#[test]
fn knows_times() {
    for good in ["2006-01-02T15:04:05Z", "2024-02-29T00:00:00.1-07:30", "2000-02-29T00:00:00Z", "0001-01-01T00:00:00Z"]
    {
        assert!(is_time(good), "{good}");
    }
    for bad in [
        "",
        "2006-01-02",
        "2006-01-02T15:04:05",
        "2006-01-02 15:04:05Z",
        "2006-13-02T15:04:05Z",
        "2006-00-02T15:04:05Z",
        "2006-01-32T15:04:05Z",
        "2006-02-29T15:04:05Z",
        "1900-02-29T15:04:05Z",
        "2006-01-02T24:00:00Z",
        "2006-01-02T15:60:05Z",
        "2006-01-02T15:04:60Z",
        "2006-01-02T15:04:05.Z",
        "2006-01-02T15:04:05+0700",
        "2006-01-02T15:04:05Zx",
        "06-01-02T15:04:05Z",
        "2006-1-2T15:04:05Z",
        "2006-01-02T15:04:05+24:00",
        "T",
        "TZ",
    ] {
        assert!(!is_time(bad), "{bad}");
    }
}

#[test]
fn counts_layers() {
    let layer = r#"{"mediaType":"application/vnd.oci.image.layer.v1.tar","size":1,"digest":"sha256:f5d13ad28e60d5a25fb72db8c65d31c862a176e0c869cf254fb3b8f75b2405ef"}"#;
    for (layers, ids, reason) in [
        (0, 0, None),
        (1, 1, None),
        (1, 0, Some("rootfs.diff_ids is missing or empty, but the manifest has 1 layer;")),
        (2, 1, Some("rootfs.diff_ids has 1 entries, but the manifest 2 layers;")),
        (1, 2, Some("rootfs.diff_ids has 2 entries, but the manifest 1 layer;")),
    ] {
        let manifest = format!(r#"{{"config":{layer},"layers":[{}]}}"#, vec![layer; layers].join(","));
        let manifest = crate::parse_manifest("m", manifest.as_bytes()).unwrap();
        let ids = vec![format!("{DIFF_ID:?}"); ids].join(",");
        let config = parse(&format!(r#"{{"rootfs":{{"diff_ids":[{ids}]}}}}"#)).unwrap();
        let found = config.diff_ids_for(&manifest);
        match reason {
            None => assert_eq!(found.unwrap().len(), layers),
            Some(reason) => {
                let error = found.unwrap_err().to_string();
                assert!(error.contains(reason) && error.contains("config sha256:x"), "{error}");
            }
        }
    }
}
