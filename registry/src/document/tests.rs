use super::*;
use crate::platform;

fn document(media_type: &str, json: &str) -> Document {
    Document::new(media_type.into(), json.as_bytes().to_vec())
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
const CONFIG: &str = r#""config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,
    "digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}"#;

#[test]
fn tells_kinds_apart() {
    let manifest = document(MANIFEST, &format!(r#"{{"schemaVersion":2,{CONFIG},"layers":[]}}"#));
    assert!(matches!(manifest.content().unwrap(), Content::Manifest(_)));
    let index = document(INDEX, r#"{"schemaVersion":2,"manifests":[]}"#);
    assert!(matches!(index.content().unwrap(), Content::Index(_)));
    assert_eq!(media_type_within(&manifest.bytes), Some(MediaType::ImageManifest));
    assert_eq!(media_type_within(&index.bytes), Some(MediaType::ImageIndex));
    assert_eq!(media_type_within(br#"{"mediaType":"x/y","config":{}}"#), Some("x/y".into()));
    assert_eq!(media_type_within(b"{}"), None);
}

/// Each of these is read by containerd 1.6 and umoci.
#[test]
fn takes_what_runtimes_take() {
    let layer = format!(
        r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{DIGEST}","size":2,"urls":null,"annotations":null,
        "platform":null,"data":null,"artifactType":null}}"#
    );
    for (count, rest) in [
        (0, String::new()),
        (0, r#","layers":null"#.to_owned()),
        (0, r#","layers":[],"annotations":null,"subject":null,"mediaType":null,"schemaVersion":null"#.to_owned()),
        (1, format!(r#","layers":[{layer}],"schemaVersion":3,"mediaType":"","annotations":{{"a":null}}"#)),
        (1, format!(r#","LAYERS":[{layer}],"schemaVersion":1"#)),
        (1, format!(r#","layers":[{layer}],"mediaType":"application/vnd.docker.distribution.manifest.v2+json""#)),
        (1, format!(r#","layers":[{layer}],"mediaType":"foo/bar""#)),
    ] {
        let document = document(MANIFEST, &format!("{{{CONFIG}{rest}}}"));
        let content = document.content().unwrap_or_else(|error| panic!("{rest}: {error}"));
        let Content::Manifest(manifest) = content else { panic!("{rest}: an index") };
        assert_eq!(manifest.layers().len(), count, "{rest}");
    }
    for (shown, platform) in [
        (None, "null"),
        (None, "{}"),
        (None, r#"{"os":"linux"}"#),
        (Some("linux/amd64"), r#"{"architecture":"amd64","os":null}"#),
        (
            Some("linux/arm/v6"),
            r#"{"architecture":"arm","os":"linux","variant":"v6","os.features":null,"features":["x"]}"#,
        ),
    ] {
        let entry = format!(r#"{{"mediaType":"{MANIFEST}","digest":"{DIGEST}","size":2,"platform":{platform}}}"#);
        let Content::Index(index) = document(INDEX, &format!(r#"{{"manifests":[{entry}]}}"#)).content().unwrap() else {
            panic!("an index")
        };
        let found = index.manifests()[0].platform().as_ref().map(platform::shown);
        assert_eq!(found.as_deref(), shown, "{platform}");
    }
    assert!(matches!(document(INDEX, r#"{"manifests":null}"#).content(), Ok(Content::Index(_))));
}

#[test]
fn refuses_by_name_and_place() {
    let both = format!(r#"{{"schemaVersion":2,{CONFIG},"layers":[],"manifests":[]}}"#);
    let layer = |fields: &str| format!(r#"{{{CONFIG},"layers":[{{"size":1,"digest":"{DIGEST}"}},{{{fields}}}]}}"#);
    for (media_type, json, reason) in [
        (MANIFEST, both.clone(), "both"),
        (INDEX, both, "both"),
        (MANIFEST, format!(r#"{{{CONFIG},"manifests":null}}"#), "both"),
        (INDEX, r#"{"config":null}"#.to_owned(), "both"),
        (MANIFEST, r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), "schemaVersion 1"),
        (MANIFEST, format!(r#"{{{CONFIG},"mediaType":"{INDEX}"}}"#), "calls itself"),
        (INDEX, format!(r#"{{"mediaType":"{MANIFEST}"}}"#), "calls itself"),
        ("application/json", r#"{"schemaVersion":2}"#.to_owned(), "neither"),
        (MANIFEST, "{".to_owned(), "EOF"),
        (MANIFEST, r#"{"schemaVersion":2}"#.to_owned(), "it has no config"),
        (MANIFEST, format!(r#"{{{CONFIG},"schemaVersion":"2"}}"#), "schemaVersion (byte"),
        (MANIFEST, format!(r#"{{{CONFIG},"layers":{{}}}}"#), "layers (byte"),
        (MANIFEST, layer(r#""size":1"#), "layers[1] (byte 268): it has no digest"),
        (MANIFEST, layer(r#""size":1,"digest":"md5""#), "layers[1].digest (byte"),
        (MANIFEST, layer(&format!(r#""digest":"{DIGEST}""#)), "layers[1] (byte 268): it has no size"),
        (MANIFEST, layer(&format!(r#""size":-1,"digest":"{DIGEST}""#)), "it is negative"),
        (MANIFEST, layer(&format!(r#""size":1.5,"digest":"{DIGEST}""#)), "expected a whole number"),
        (MANIFEST, layer(&format!(r#""size":1,"digest":"{DIGEST}","Digest":"{DIGEST}""#)), "digest is there twice"),
        (MANIFEST, format!(r#"{{{CONFIG},"layers":[],"Layers":[]}}"#), "layers is there twice"),
        (INDEX, r#"{"manifests":[1]}"#.to_owned(), "manifests[0] (byte 14): expected an object, found a number"),
    ] {
        let document = document(media_type, &json);
        let error = document.content().unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(document.descriptor.digest().as_ref()), "{json}: {error}");
    }
}

#[test]
fn checks_size_and_digest() {
    let good = document(MANIFEST, "{}");
    assert!(good.clone().check("it").is_ok());
    let mut long = good.clone();
    long.bytes.push(b' ');
    assert!(matches!(long.check("it"), Err(Error::SizeMismatch { expected: 2, actual: 3, .. })));
    let mut wrong = good;
    wrong.bytes = b"[]".to_vec();
    assert!(matches!(wrong.check("it"), Err(Error::DigestMismatch { .. })));
}

#[test]
fn json_is_sorted() {
    let map: std::collections::HashMap<_, _> = (0..20).map(|n| (format!("k{n:02}"), n)).collect();
    let json = String::from_utf8(to_json(&map).unwrap()).unwrap();
    assert!(json.starts_with(r#"{"k00":0,"k01":1,"#), "{json}");
}
