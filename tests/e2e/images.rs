//! Images with odd documents, and the choice among several: what `umoci unpack` and containerd's `ctr images import` make of
//! them is what lazo makes of them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::support::{
    Scratch,
    containerd::Site,
    crafted::{Layer, TAR, blob},
    layout::{self, Manifest},
    mounted::Mounted,
    node::Node,
    output_of,
    registry::Registry,
    run,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TAG: &str = "org.opencontainers.image.ref.name";
const NAME: &str = "io.containerd.image.name";

/// Names and contents of the files of a tree.
type Files = BTreeMap<PathBuf, Vec<u8>>;

fn files(root: &Path) -> Files {
    let relative = |path: PathBuf| path.strip_prefix(root).expect("a path below the root").to_owned();
    layout::snapshot(root).into_iter().map(|(path, content)| (relative(path), content)).collect()
}

fn layer(layout: &Path, name: &str) -> Value {
    blob(layout, TAR, &Layer::new().file(name, 0o644, name.as_bytes()).bytes())
}

/// Adds an image to a layout; its descriptor. Of a config without `rootfs`, that of the layers is added.
fn image(layout: &Path, config: Value, layers: &[Value]) -> Value {
    let mut config = config;
    if config.get("rootfs").is_none() {
        let ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        config["rootfs"] = json!({"type": "layers", "diff_ids": ids});
    }
    let config = blob(layout, CONFIG, config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
    blob(layout, MANIFEST, manifest.to_string().as_bytes())
}

fn for_platform(mut entry: Value, os: &str, architecture: &str) -> Value {
    entry["platform"] = json!({"os": os, "architecture": architecture});
    entry
}

fn annotated(mut entry: Value, annotations: &[(&str, &str)]) -> Value {
    entry["annotations"] = annotations.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    entry
}

fn write_index(layout: &Path, entries: &[Value]) {
    let index = json!({"schemaVersion": 2, "manifests": entries});
    fs::write(layout.join("index.json"), index.to_string()).expect("the index");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).expect("the mark");
}

/// An image of one layer whose config and manifest are changed. What `change` leaves `null` it wants to be `null`; what it
/// removes is absent.
struct Odd {
    name: &'static str,
    /// Whether lazo takes it, where containerd and umoci differ.
    takes: bool,
    layers: usize,
    change: fn(&mut Value, &mut Value),
}

/// `odd!(name, takes, layers, |config, manifest| change)`.
macro_rules! odd {
    ($name:literal, $takes:literal, $layers:literal, $change:expr) => {
        Odd { name: $name, takes: $takes, layers: $layers, change: $change }
    };
}

fn remove(value: &mut Value, field: &str) {
    value.as_object_mut().expect("an object").remove(field);
}

fn odd_images() -> Vec<Odd> {
    vec![
        odd!("ordinary", true, 1, |_, _| {}),
        odd!("no-layers", true, 0, |_, _| {}),
        odd!("no-layers-null-ids", true, 0, |config, _| config["rootfs"]["diff_ids"] = Value::Null),
        odd!("no-layers-no-ids", true, 0, |config, _| remove(&mut config["rootfs"], "diff_ids")),
        odd!("no-layers-no-rootfs", true, 0, |config, _| remove(config, "rootfs")),
        odd!("no-layers-null-rootfs", true, 0, |config, _| config["rootfs"] = Value::Null),
        odd!("no-layers-empty-config", true, 0, |config, _| *config = json!({})),
        odd!("layers-null", true, 0, |_, manifest| manifest["layers"] = Value::Null),
        odd!("layers-absent", true, 0, |_, manifest| remove(manifest, "layers")),
        odd!("no-rootfs", false, 1, |config, _| remove(config, "rootfs")),
        odd!("no-ids", false, 1, |config, _| remove(&mut config["rootfs"], "diff_ids")),
        odd!("null-ids", false, 1, |config, _| config["rootfs"]["diff_ids"] = Value::Null),
        odd!("empty-ids", false, 1, |config, _| config["rootfs"]["diff_ids"] = json!([])),
        odd!("fewer-ids", false, 2, |config, _| drop(config["rootfs"]["diff_ids"].as_array_mut().expect("ids").pop())),
        odd!("rootfs-type-absent", true, 1, |config, _| remove(&mut config["rootfs"], "type")),
        odd!("rootfs-type-other", false, 1, |config, _| config["rootfs"]["type"] = json!("other")),
        odd!("no-platform", true, 1, |config, _| {
            remove(config, "os");
            remove(config, "architecture");
        }),
        odd!("null-platform", true, 1, |config, _| {
            config["os"] = Value::Null;
            config["architecture"] = Value::Null;
        }),
        odd!("architecture-number", false, 1, |config, _| config["architecture"] = json!(1)),
        odd!("config-null", true, 1, |config, _| config["config"] = Value::Null),
        odd!("config-absent", true, 1, |config, _| remove(config, "config")),
        odd!("nulls-within", true, 1, |config, _| {
            config["config"] = json!({"Volumes": null, "ExposedPorts": null, "Env": null, "Entrypoint": null,
                "Cmd": null, "Labels": null, "User": null, "WorkingDir": null});
            config["history"] = Value::Null;
            config["created"] = Value::Null;
        }),
        odd!("null-members", true, 1, |config, _| {
            config["config"] =
                json!({"Volumes": {"/a": null}, "ExposedPorts": {"80/tcp": null}, "Labels": {"a": null}});
            config["history"] = json!([null]);
        }),
        odd!("env-string", false, 1, |config, _| config["config"] = json!({"Env": "A=b"})),
        odd!("volumes-list", false, 1, |config, _| config["config"] = json!({"Volumes": ["/a"]})),
        odd!("created-empty", false, 1, |config, _| config["created"] = json!("")),
        odd!("history-object", false, 1, |config, _| config["history"] = json!({})),
        odd!("history-longer", true, 1, |config, _| config["history"] = json!([{}, {"created_by": "x"}])),
        odd!("unknown-fields", true, 1, |config, manifest| {
            config["x"] = json!([[[{"Layers": 1.5}]]]);
            manifest["x"] = json!({"layers": 7});
        }),
        odd!("no-schema-version", true, 1, |_, manifest| remove(manifest, "schemaVersion")),
        odd!("schema-version-3", true, 1, |_, manifest| manifest["schemaVersion"] = json!(3)),
        odd!("schema-version-string", false, 1, |_, manifest| manifest["schemaVersion"] = json!("2")),
        odd!("no-media-type", true, 1, |_, manifest| remove(manifest, "mediaType")),
        odd!("dockers-media-type", true, 1, |_, manifest| {
            manifest["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
        }),
        odd!("calls-itself-index", false, 1, |_, manifest| manifest["mediaType"] = json!(INDEX)),
        odd!("manifests-too", false, 1, |_, manifest| manifest["manifests"] = json!([])),
        odd!("null-annotations", true, 1, |_, manifest| {
            manifest["annotations"] = Value::Null;
            for field in ["annotations", "urls", "platform", "data"] {
                manifest["layers"][0][field] = Value::Null;
            }
        }),
        odd!("dockers-types-within", true, 1, |_, manifest| {
            manifest["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
            manifest["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar");
        }),
        odd!("layer-type-other", false, 1, |_, manifest| manifest["layers"][0]["mediaType"] = json!("text/plain")),
        odd!("layer-size-wrong", false, 1, |_, manifest| manifest["layers"][0]["size"] = json!(7)),
        odd!("case-of-names", true, 1, |config, manifest| {
            let rootfs = config["rootfs"].take();
            remove(config, "rootfs");
            config["RootFS"] = rootfs;
            let layers = manifest["layers"].take();
            remove(manifest, "layers");
            manifest["LAYERS"] = layers;
        }),
    ]
}

impl Odd {
    /// Writes it into a layout of its own, as the tag `odd`.
    fn write(&self, layout: &Path) {
        let layers: Vec<Value> = (0..self.layers).map(|number| layer(layout, &format!("file-{number}"))).collect();
        let ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let mut config = json!({"os": "linux", "architecture": "amd64", "config": {},
            "rootfs": {"type": "layers", "diff_ids": ids}});
        let mut manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": null, "layers": layers});
        // The config's descriptor is filled in before the change to the manifest, its content after that to the config.
        let mut scratch = json!({"config": {}, "layers": [{}]});
        (self.change)(&mut config, &mut scratch);
        manifest["config"] = blob(layout, CONFIG, config.to_string().as_bytes());
        let mut ignored = json!({"rootfs": {"diff_ids": [0, 0]}});
        (self.change)(&mut ignored, &mut manifest);
        let entry = blob(layout, MANIFEST, manifest.to_string().as_bytes());
        write_index(layout, &[annotated(entry, &[(TAG, "odd"), (NAME, &format!("odd.test/{}:1", self.name))])]);
    }
}

/// What umoci unpacks; `None` when it refuses.
fn by_umoci(layout: &Path, at: &Path) -> Option<Files> {
    let image = format!("{}:odd", layout.display());
    let output = output_of(Command::new("umoci").args(["unpack", "--image", &image]).arg(at));
    output.status.success().then(|| files(&at.join("rootfs")))
}

/// What containerd unpacks; `None` when it refuses.
fn by_containerd(site: &Site<'_>, name: &str, layout: &Path, at: &Path) -> Option<Files> {
    let archive = layout.with_extension("tar");
    run("tar", ["-C", layout.to_str()?, "-cf", archive.to_str()?, "blobs", "index.json", "oci-layout"]);
    let import = ["images", "import", "--snapshotter", "native", archive.to_str()?];
    if !output_of(&mut site.ctr(import)).status.success() {
        return None;
    }
    fs::create_dir_all(at).expect("a directory");
    let image = format!("odd.test/{name}:1");
    site.ctr_ok(["images", "mount", "--snapshotter", "native", &image, at.to_str()?]);
    let found = files(at);
    site.ctr_ok(["images", "unmount", at.to_str()?]);
    Some(found)
}

#[test]
fn odd_documents_are_read_as_runtimes_read_them() {
    let scratch = Scratch::new();
    let _node = Node::start(&scratch, "fuse");
    let site = Site::start(&scratch);
    let mut complaints = Vec::new();
    for odd in odd_images() {
        let name = odd.name;
        let layout = scratch.dir(&format!("odd-{name}"));
        odd.write(&layout);
        let (source, target) = (format!("oci:{}:odd", layout.display()), scratch.join(&format!("lazo-{name}")));
        let judges = [
            by_umoci(&layout, &scratch.join(&format!("umoci-{name}"))),
            by_containerd(&site, name, &layout, &scratch.join(&format!("containerd-{name}"))),
        ];
        let lazo = format!("oci:{}:lazo", target.display());
        let converted = output_of(&mut scratch.lazo(["convert", &source, &lazo]));
        let said = String::from_utf8_lossy(&converted.stderr).into_owned();
        let takes = match &judges {
            [Some(umoci), Some(containerd)] if umoci != containerd => panic!("{name}: the judges differ"),
            [Some(_), Some(_)] => true,
            [None, None] => false,
            _ => odd.takes,
        };
        assert_eq!(takes, odd.takes, "{name}: the judges have changed");
        if converted.status.success() != takes {
            complaints.push(format!("{name}: taken is {}, and not {takes}: {said}", !takes));
            continue;
        }
        if !takes {
            let named = ["config sha256:", "manifest sha256:", "layer 1 of 1 (sha256:"];
            if !named.iter().any(|part| said.contains(part)) || said.contains("panicked") {
                complaints.push(format!("{name}: the error names nothing: {said}"));
            }
            continue;
        }
        scratch.lazo_ok(["check", &lazo]);
        scratch.lazo_ok(["inspect", &lazo]);
        let mounted = Mounted::with(&scratch, &lazo, &format!("mount-{name}"), &["--standalone"]);
        let expected = judges.iter().flatten().next().expect("one that takes it");
        if files(mounted.path()) != *expected {
            complaints.push(format!("{name}: another tree"));
        }
        mounted.umount();
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn an_image_without_layers_is_pulled() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let layout = scratch.dir("layout");
    let entry = image(&layout, json!({"os": "linux", "architecture": "amd64"}), &[]);
    write_index(&layout, &[annotated(entry, &[(TAG, "plain")])]);
    let (plain, lazo) = (registry.push(&layout, "plain", "app:plain"), registry.image("app:lazo"));
    scratch.lazo_ok(["convert", &plain, &lazo]);
    let _node = Node::start(&scratch, "fuse");
    let site = Site::start(&scratch);
    let pulled = site.pull(&plain, &["--snapshotter", "native", "--platform", "amd64"]);
    assert_eq!((&pulled["snapshot"], &pulled["layers"]), (&json!(""), &json!([])));
    let pulled = site.pull(&lazo, &["--platform", "x86_64"]);
    assert_eq!(files(&site.mount(&pulled, "view")), Files::new());
}

#[test]
fn a_converted_config_keeps_what_lazo_does_not_know() {
    let scratch = Scratch::new();
    let layout = scratch.dir("layout");
    let layer = layer(&layout, "file");
    let text = format!(
        r#"{{"number":12345678901234567890123,"float":1.50,"deep":{deep},"history":[{{"x":1.0,"created_by":"a"}}],
        "RootFS":{{"type":"layers","diff_ids":[{id}]}},"os":null}}"#,
        deep = "[".repeat(300) + &"]".repeat(300),
        id = layer["digest"]
    );
    let config = blob(&layout, CONFIG, text.as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    write_index(&layout, &[blob(&layout, MANIFEST, manifest.to_string().as_bytes())]);
    let target = scratch.join("lazo");
    scratch.lazo_ok(["convert", &format!("oci:{}", layout.display()), &format!("oci:{}:lazo", target.display())]);
    let digest = layout::text(&Manifest::of(&target, "lazo").document["config"]["digest"]);
    let written = fs::read_to_string(layout::blob_path(&target, &digest)).expect("the config");
    for kept in [r#""number":12345678901234567890123"#, r#""float":1.50"#, "[[[[", r#""x":1.0"#, r#""os":null"#] {
        assert!(written.contains(kept), "{kept} is not in {written}");
    }
    assert!(!written.contains("RootFS") && written.matches("diff_ids").count() == 1, "{written}");
}

/// A check that finds nothing wrong means that the image can be mounted.
#[test]
fn check_and_mount_agree() {
    let scratch = Scratch::new();
    let plain = scratch.dir("plain");
    write_index(&plain, &[image(&plain, json!({"os": "linux", "architecture": "amd64"}), &[layer(&plain, "file")])]);
    let good = scratch.join("good");
    scratch.lazo_ok(["convert", &format!("oci:{}", plain.display()), &format!("oci:{}:lazo", good.display())]);
    type Change = fn(&mut Value, &mut Value);
    let changes: [(&str, bool, Change); 12] = [
        ("nothing", true, |_, _| {}),
        ("no-platform", true, |config, _| {
            remove(config, "os");
            remove(config, "architecture");
        }),
        ("null-fields", true, |config, _| config["config"] = json!({"Volumes": null, "Env": null})),
        ("docker-types", true, |_, manifest| {
            manifest["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
            manifest["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
        }),
        ("no-ids", false, |config, _| remove(config, "rootfs")),
        ("fewer-ids", false, |config, _| drop(config["rootfs"]["diff_ids"].as_array_mut().expect("ids").remove(0))),
        ("other-ids", false, |config, _| config["rootfs"]["diff_ids"][0] = config["rootfs"]["diff_ids"][1].clone()),
        ("env-string", false, |config, _| config["config"] = json!({"Env": "A=b"})),
        ("version", false, |_, manifest| {
            manifest["layers"][1]["annotations"]["containerd.io/snapshot/lazo.bootstrap"] = json!("v9");
        }),
        ("blob-type", false, |_, manifest| manifest["layers"][0]["mediaType"] = json!(TAR)),
        ("blob-annotation", false, |_, manifest| remove(&mut manifest["layers"][0], "annotations")),
        ("bootstrap-type", false, |_, manifest| manifest["layers"][1]["mediaType"] = json!(TAR)),
    ];
    for (name, is_good, change) in changes {
        let copy = scratch.join(name);
        layout::copy(&good, &copy);
        let mut manifest = Manifest::of(&copy, "lazo").document;
        let mut config = layout::json(&copy, &layout::text(&manifest["config"]["digest"]));
        change(&mut config, &mut manifest.clone());
        manifest["config"] = blob(&copy, CONFIG, config.to_string().as_bytes());
        change(&mut config.clone(), &mut manifest);
        write_index(&copy, &[blob(&copy, MANIFEST, manifest.to_string().as_bytes())]);
        let reference = format!("oci:{}", copy.display());
        let checked = output_of(&mut scratch.lazo(["check", &reference]));
        assert_eq!(checked.status.success(), is_good, "{name}: {}", String::from_utf8_lossy(&checked.stdout));
        match is_good {
            true => Mounted::new(&scratch, &reference, &format!("at-{name}")).umount(),
            false => {
                let said = Mounted::failure(&scratch, &reference, &format!("at-{name}"));
                assert!(said.contains("manifest") || said.contains("config"), "{name}: {said}");
            }
        }
    }
}

#[test]
fn one_of_several_images_in_a_layout_or_archive() {
    let scratch = Scratch::new();
    let layout = scratch.dir("layout");
    let config = || json!({"os": "linux", "architecture": "amd64"});
    let named = |file: &str, name: &str| {
        let entry = image(&layout, config(), &[layer(&layout, file)]);
        annotated(entry, &[(TAG, "1"), (NAME, name)])
    };
    let entries =
        [named("x", "docker.io/library/x:1"), named("y", "registry.test/y:1"), named("x", "docker.io/library/x:1")];
    write_index(&layout, &entries);
    let archive = scratch.join("archive.tar");
    let path = |path: &Path| path.display().to_string();
    run("tar", ["-C", &path(&layout), "-cf", &path(&archive), "blobs", "index.json", "oci-layout"]);
    let digest = layout::text(&entries[1]["digest"]);
    for transport in [format!("oci:{}", path(&layout)), format!("oci-archive:{}", path(&archive))] {
        for (number, (name, file)) in [
            ("docker.io/library/x:1", "x"),
            ("x:1", "x"),
            ("registry.test/y:1", "y"),
            ("@0", "x"),
            ("@1", "y"),
            (&format!("@{digest}"), "y"),
        ]
        .into_iter()
        .enumerate()
        {
            let target = format!("oci:{}:lazo", scratch.join(&number.to_string()).display());
            scratch.lazo_ok(["convert", &format!("{transport}:{name}"), &target]);
            let mounted = Mounted::new(&scratch, &target, "mount");
            assert_eq!(files(mounted.path()).into_values().next().expect("a file"), file.as_bytes(), "{name}");
            mounted.umount();
        }
        let target = format!("oci:{}:bad", scratch.join("bad").display());
        for (name, reason) in [(":1", "it holds 2 images named 1"), ("", "it holds 2 images"), (":2", "not found")] {
            let said = scratch.lazo_err(["convert", &format!("{transport}{name}"), &target]);
            let listed = "@0 docker.io/library/x:1 (tag 1); @1 registry.test/y:1 (tag 1)";
            assert!(said.contains(reason) && said.contains(listed), "{name}: {said}");
        }
    }
    let said =
        scratch.lazo_err(["convert", &format!("oci:{}:@0", path(&layout)), &format!("oci:{}:@1", path(&layout))]);
    assert!(said.contains("name a tag to write one"), "{said}");
}

/// An index as builders push it: two images, one nested, an attestation, a signature and an artifact.
fn published(layout: &Path) -> (Value, Vec<String>) {
    let own = |architecture: &str| {
        image(layout, json!({"os": "linux", "architecture": architecture}), &[layer(layout, architecture)])
    };
    let (amd64, arm64, riscv) = (own("amd64"), own("arm64"), own("riscv64"));
    let artifact = |config: &str, kind: &str| {
        let (config, layer) = (blob(layout, config, b"{}"), blob(layout, kind, b"text"));
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        blob(layout, MANIFEST, manifest.to_string().as_bytes())
    };
    let attestation = for_platform(artifact(CONFIG, "application/vnd.in-toto+json"), "unknown", "unknown");
    let attestation = annotated(attestation, &[("vnd.docker.reference.type", "attestation-manifest")]);
    let signature = artifact(CONFIG, "application/vnd.dev.cosign.simplesigning.v1+json");
    let mut bill = artifact("application/vnd.oci.empty.v1+json", "application/spdx+json");
    bill["artifactType"] = json!("application/spdx+json");
    let others = [&attestation, &signature, &bill].map(|entry| layout::text(&entry["digest"])).to_vec();
    // Without platforms, these have to be looked into.
    let inner = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [signature, riscv, for_platform(arm64, "linux", "arm64")]});
    let inner = blob(layout, INDEX, inner.to_string().as_bytes());
    let outer = json!({"schemaVersion": 2, "mediaType": INDEX, "annotations": {"a": "b"},
        "manifests": [attestation, bill, inner, for_platform(amd64.clone(), "linux", "amd64"), for_platform(amd64, "linux", "amd64")]});
    (blob(layout, INDEX, outer.to_string().as_bytes()), others)
}

#[test]
fn platforms_are_chosen_beside_attestations_and_artifacts() {
    let scratch = Scratch::new();
    let layout = scratch.dir("layout");
    let (index, others) = published(&layout);
    write_index(&layout, &[index]);
    let source = format!("oci:{}", layout.display());
    for (number, (options, platforms, left_out)) in [
        (&["--platform", "amd64"][..], &["linux/amd64"][..], 3),
        (&["--platform", "aarch64"], &["linux/arm64"], 5),
        (&["--platform", "linux/riscv64"], &["linux/riscv64"], 5),
        (&["--platform", "arm64/v8,linux/x86_64,arm64"], &["linux/arm64", "linux/amd64"], 4),
        (&["--all-platforms"], &["linux/riscv64", "linux/arm64", "linux/amd64"], 3),
    ]
    .into_iter()
    .enumerate()
    {
        let target = format!("oci:{}:lazo", scratch.join(&number.to_string()).display());
        let summary = scratch.lazo_ok(["convert", "--json", &source, &target].iter().chain(options));
        let summary: Value = serde_json::from_str(&summary).expect("JSON");
        let found: Vec<&str> =
            summary["images"].as_array().expect("images").iter().filter_map(|i| i["platform"].as_str()).collect();
        assert_eq!(found, platforms, "{options:?}");
        assert_eq!(
            summary["left_out"].as_array().map(Vec::len),
            Some(left_out),
            "{options:?}: {}",
            summary["left_out"]
        );
        if options == ["--all-platforms"] {
            let named: Vec<&str> =
                summary["left_out"].as_array().expect("a list").iter().filter_map(|o| o["digest"].as_str()).collect();
            assert!(others.iter().all(|other| named.contains(&other.as_str())), "{named:?}");
        }
        scratch.lazo_ok(["check", &target]);
        for platform in platforms {
            let mounted = Mounted::with(&scratch, &target, "mount", &["--platform", platform]);
            let architecture = platform.split('/').nth(1).expect("an architecture");
            assert_eq!(files(mounted.path()).into_values().next().expect("a file"), architecture.as_bytes());
            mounted.umount();
        }
    }
    let said = scratch.lazo_err([
        "convert",
        "--platform",
        "amd64,s390x",
        &source,
        &format!("oci:{}:x", scratch.join("x").display()),
    ]);
    assert!(said.contains("no image for linux/s390x") && said.contains("--platform"), "{said}");
    assert!(said.contains("linux/amd64") && said.contains("linux/arm64"), "{said}");
    let text =
        scratch.lazo_ok(["convert", "--platform", "amd64", &source, &format!("oci:{}:y", scratch.join("y").display())]);
    assert!(text.contains("left out: attestation, sha256:") && text.contains("left out: artifact"), "{text}");
}

#[test]
fn an_untagged_image_beside_its_attestation() {
    let scratch = Scratch::new();
    let layout = scratch.dir("layout");
    let amd64 = image(&layout, json!({"os": "linux", "architecture": "amd64"}), &[layer(&layout, "file")]);
    let about = layout::text(&amd64["digest"]);
    let attestation = for_platform(image(&layout, json!({"os": "unknown"}), &[]), "unknown", "unknown");
    let attestation = annotated(
        attestation,
        &[("vnd.docker.reference.type", "attestation-manifest"), ("vnd.docker.reference.digest", &about)],
    );
    write_index(&layout, &[for_platform(amd64, "linux", "amd64"), attestation]);
    let target = format!("oci:{}:lazo", scratch.join("lazo").display());
    scratch.lazo_ok(["convert", &format!("oci:{}", layout.display()), &target]);
    scratch.lazo_ok(["check", &target]);
}

#[test]
fn an_ordinary_image_is_replaced_only_by_force() {
    let scratch = Scratch::new();
    let layout = scratch.dir("layout");
    let entry = |file: &str, tag: &str| {
        let entry = image(&layout, json!({"os": "linux", "architecture": "amd64"}), &[layer(&layout, file)]);
        annotated(entry, &[(TAG, tag)])
    };
    write_index(&layout, &[entry("a", "app"), entry("b", "other")]);
    let before = layout::snapshot(&layout);
    let tagged = |tag: &str| format!("oci:{}:{tag}", layout.display());
    for tag in ["app", "other"] {
        let said = scratch.lazo_err(["convert", &tagged("app"), &tagged(tag)]);
        assert!(said.contains("holds an ordinary image") && said.contains("--force"), "{said}");
    }
    assert_eq!(layout::snapshot(&layout), before);
    scratch.lazo_ok(["convert", &tagged("app"), &tagged("lazo")]);
    scratch.lazo_ok(["convert", &tagged("other"), &tagged("lazo")]);
    scratch.lazo_ok(["convert", "--force", &tagged("app"), &tagged("app")]);
    scratch.lazo_ok(["check", &tagged("app")]);
    // An image with a layer of its own above a lazo image is somebody's work.
    let mut manifest = Manifest::of(&layout, "lazo").document;
    manifest["layers"].as_array_mut().expect("layers").push(layer(&layout, "own"));
    let derived = annotated(blob(&layout, MANIFEST, manifest.to_string().as_bytes()), &[(TAG, "derived")]);
    let index = fs::read(layout.join("index.json")).expect("the index");
    let mut index: Value = serde_json::from_slice(&index).expect("JSON");
    index["manifests"].as_array_mut().expect("entries").push(derived);
    fs::write(layout.join("index.json"), index.to_string()).expect("the index");
    let said = scratch.lazo_err(["convert", &tagged("other"), &tagged("derived")]);
    assert!(said.contains("holds an ordinary image"), "{said}");
    assert_eq!(layout::digest_of(&layout, "other"), layout::text(&entry("b", "other")["digest"]));
}

#[test]
fn prefetch_lines_that_name_nothing_are_named() {
    let scratch = Scratch::new();
    let layout = scratch.dir("layout");
    let config = json!({"os": "linux", "architecture": "amd64"});
    write_index(&layout, &[image(&layout, config, &[layer(&layout, "usr/bin/program")])]);
    let list = scratch.join("list");
    fs::write(&list, "# comment\n/usr/bin/program\n/usr/bin/missing\n/usr/lib/*\n/usr/b*/pro*\n").expect("the list");
    let target = format!("oci:{}:lazo", scratch.join("lazo").display());
    let source = format!("oci:{}", layout.display());
    let list = list.display().to_string();
    let output = output_of(&mut scratch.lazo(["convert", "--json", "--prefetch", &list, &source, &target]));
    let summary: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let unmatched = &summary["images"][0]["prefetch_unmatched"];
    assert_eq!(*unmatched, json!({"count": 2, "lines": ["3: /usr/bin/missing", "4: /usr/lib/*"]}));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("2 prefetch lines name no file of the image: 3: /usr/bin/missing, 4: /usr/lib/*"), "{said}");
}
