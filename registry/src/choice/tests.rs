use std::collections::HashMap;

use lazo_format::Digest;
use oci_spec::image::{ImageManifestBuilder, Platform as OciPlatform};

use super::*;
use crate::document::descriptor;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An entry with the digest of `content`. `platform` as `os/architecture[/variant]`, empty for none.
fn entry(content: &str, media_type: &str, platform: &str, annotations: &[(&str, &str)]) -> Descriptor {
    let mut entry = descriptor(media_type.into(), &Digest::sha256_of(content.as_bytes()), 1);
    let parts: Vec<&str> = platform.split('/').collect();
    if let [os, architecture, variant @ ..] = parts.as_slice() {
        let mut platform = OciPlatform::default();
        platform.set_os((*os).into()).set_architecture((*architecture).into());
        platform.set_variant(variant.first().map(|variant| (*variant).to_owned()));
        entry.set_platform(Some(platform));
    }
    let annotations: HashMap<String, String> =
        annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    entry.set_annotations((!annotations.is_empty()).then_some(annotations));
    entry
}

fn image(content: &str, platform: &str, tag: &str, name: &str) -> Descriptor {
    let annotations = [(REF_NAME, tag), (IMAGE_NAME, name)];
    let given: Vec<_> = annotations.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    entry(content, MANIFEST, platform, &given)
}

fn attestation(content: &str) -> Descriptor {
    entry(content, MANIFEST, "unknown/unknown", &[(ATTESTATION, "attestation-manifest"), (ATTESTED, "sha256:about")])
}

fn number(digest_of: &str) -> String {
    format!("@{}", Digest::sha256_of(digest_of.as_bytes()))
}

#[test]
fn one_of_a_layout() {
    let signature = format!("sha256-{}.sig", "a".repeat(64));
    let two_names = || vec![image("a", "", "1", "docker.io/a/x:1"), image("b", "", "1", "docker.io/library/y:1")];
    let one = |number| Ok(Choice::One(number));
    for (what, entries, name, expected) in [
        ("the only one", vec![image("a", "", "", "")], None, one(0)),
        ("by tag", vec![image("a", "", "1", ""), image("b", "", "2", "")], Some("2".to_owned()), one(1)),
        ("by whole name", two_names(), Some("docker.io/a/x:1".into()), one(0)),
        ("by short name", two_names(), Some("y:1".into()), one(1)),
        ("a whole name as the tag", vec![image("a", "", "docker.io/library/z:1", "")], Some("z:1".into()), one(0)),
        ("by number", two_names(), Some("@1".into()), one(1)),
        ("by digest", two_names(), Some(number("b")), one(1)),
        ("listed twice", vec![image("a", "", "1", ""), image("a", "linux/amd64", "1", "")], Some("1".into()), one(0)),
        ("listed under two tags", vec![image("a", "", "1", ""), image("a", "", "2", "")], None, one(0)),
        ("beside its attestation", vec![attestation("x"), image("a", "linux/amd64", "", "")], None, one(1)),
        ("beside its signature", vec![image("a", "", "1", ""), image("s", "", &signature, "")], None, one(0)),
        (
            "a signature by name",
            vec![image("a", "", "1", ""), image("s", "", &signature, "")],
            Some(signature.clone()),
            one(1),
        ),
        (
            "one a platform",
            vec![image("a", "linux/amd64", "", ""), attestation("x"), image("b", "linux/arm64", "", "")],
            None,
            Ok(Choice::Platforms(vec![0, 2])),
        ),
        (
            "one a platform with one tag",
            vec![image("a", "linux/amd64", "1", ""), image("b", "linux/arm64", "1", ""), image("c", "", "2", "")],
            Some("1".into()),
            Ok(Choice::Platforms(vec![0, 1])),
        ),
    ] {
        assert_eq!(choose(&entries, name.as_deref()), expected, "{what}");
    }
}

#[test]
fn says_what_there_is() {
    let two = || vec![image("a", "", "1", "docker.io/a/x:1"), image("b", "linux/arm64", "1", "docker.io/b/y:1")];
    let both = "@0 docker.io/a/x:1 (tag 1); @1 docker.io/b/y:1 (tag 1) for linux/arm64";
    let several = |entries: &[Descriptor], name: Option<&str>| match choose(entries, name) {
        Err(NoChoice::Several(text)) => text,
        other => panic!("{name:?}: {other:?}"),
    };
    let missing = |entries: &[Descriptor], name: Option<&str>| match choose(entries, name) {
        Err(NoChoice::Missing(text)) => text,
        other => panic!("{name:?}: {other:?}"),
    };
    assert_eq!(
        several(&two(), Some("1")),
        format!("it holds 2 images named 1; name one by its tag, its whole name, @NUMBER or @DIGEST: {both}")
    );
    assert!(several(&two(), None).ends_with(both));
    for name in ["2", "docker.io/a/x:2", "@2", "@-1", "@sha256:0", &number("c")] {
        assert_eq!(missing(&two(), Some(name)), format!("it has: {both}"), "{name}");
    }
    assert_eq!(missing(&[], None), "it holds no image");
    let same_platform = vec![image("a", "linux/arm64", "", ""), image("b", "linux/arm64/v8", "", "")];
    assert!(several(&same_platform, None).contains("@1 platform linux/arm64, sha256:"));
    let many: Vec<Descriptor> = (0..40).map(|n| image(&n.to_string(), "", &n.to_string(), "")).collect();
    assert!(several(&many, None).ends_with("@31 31; and 8 more"));
}

/// The entries that are looked at for a platform, as positions, with a `!` behind what is sure.
fn order(entries: &[Descriptor], wanted: &str) -> String {
    let place = |candidate: Candidate<'_>| {
        let place = entries.iter().position(|entry| entry.digest() == candidate.entry.digest()).unwrap();
        format!("{place}{}", if candidate.is_sure { "!" } else { "" })
    };
    candidates(entries, &wanted.parse().unwrap()).into_iter().map(place).collect::<Vec<_>>().join(" ")
}

#[test]
fn candidates_in_order() {
    let image = |content: &str, platform: &str| entry(content, MANIFEST, platform, &[]);
    let nested = |content: &str| entry(content, INDEX, "", &[]);
    for (entries, wanted, expected) in [
        (vec![image("a", "linux/arm64"), image("b", "linux/amd64")], "linux/amd64", "1!"),
        (vec![image("a", "linux/amd64"), image("b", "linux/amd64")], "linux/amd64", "0! 1!"),
        (vec![image("a", "linux/amd64"), image("b", "linux/amd64/v2")], "linux/amd64/v3", "1! 0!"),
        (vec![attestation("x"), image("a", "linux/arm64")], "linux/amd64", ""),
        (vec![attestation("x"), image("a", "")], "linux/amd64", "1!"),
        (vec![nested("n")], "linux/amd64", "0!"),
        (vec![nested("n"), image("a", "linux/amd64")], "linux/amd64", "1! 0"),
        (vec![image("a", ""), nested("n"), image("b", "linux/arm64")], "linux/amd64", "0 1"),
        (vec![image("a", ""), image("a", "")], "linux/amd64", "0!"),
        (vec![entry("a", "application/x", "linux/amd64", &[]), image("b", "")], "linux/amd64", "1!"),
    ] {
        assert_eq!(order(&entries, wanted), expected, "{entries:?}");
    }
}

#[test]
fn names_what_is_left_out() {
    let mut artifact = entry("a", MANIFEST, "", &[]);
    artifact.set_artifact_type(Some("application/spdx+json".into()));
    let tag = format!("sha256-{}", "0".repeat(64));
    for (entry, shown) in [
        (image("a", "linux/arm/v6", "", ""), "platform linux/arm/v6, "),
        (image("a", "", "", ""), "image of no named platform, "),
        (entry("a", INDEX, "", &[]), "index of no named platform, "),
        (attestation("a"), "attestation (sha256:about), "),
        (image("a", "unknown/unknown", "", ""), "attestation, "),
        (artifact, "artifact (application/spdx+json), "),
        (
            entry("a", "application/vnd.oci.artifact.manifest.v1+json", "", &[]),
            "artifact (application/vnd.oci.artifact.",
        ),
        (image("a", "", &tag, ""), "artifact (sha256-000"),
    ] {
        assert!(LeftOut::entry(&entry).to_string().starts_with(shown), "{}", LeftOut::entry(&entry));
        assert!(LeftOut::entry(&entry).to_string().ends_with(Digest::sha256_of(b"a").to_string().as_str()));
    }
}

#[test]
fn tells_artifacts_from_images() {
    let image_config = "application/vnd.oci.image.config.v1+json";
    for (config, layers, expected) in [
        (image_config, vec![], None),
        (media::DOCKER_CONFIG, vec!["application/vnd.docker.image.rootfs.diff.tar.gzip"], None),
        (image_config, vec![lazo_format::media::LAZO_BLOB], None),
        (
            image_config,
            vec!["application/vnd.dev.cosign.simplesigning.v1+json"],
            Some("application/vnd.dev.cosign.simplesigning.v1+json"),
        ),
        (image_config, vec!["application/vnd.oci.image.layer.v1.tar", "application/x"], None),
        ("application/vnd.oci.empty.v1+json", vec!["application/x"], Some("application/vnd.oci.empty.v1+json")),
        (
            "application/vnd.cncf.helm.config.v1+json",
            vec!["application/vnd.oci.image.layer.v1.tar"],
            Some("application/vnd.cncf.helm.config.v1+json"),
        ),
    ] {
        let part = |media_type: &str| descriptor(media_type.into(), &Digest::sha256_of(b""), 0);
        let layers: Vec<Descriptor> = layers.into_iter().map(part).collect();
        let manifest = ImageManifestBuilder::default().schema_version(2u32).config(part(config)).layers(layers);
        assert_eq!(artifact_type(&manifest.build().unwrap()).as_deref(), expected);
    }
}
