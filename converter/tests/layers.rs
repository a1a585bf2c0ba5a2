//! Layers as odd writers pack them, converted from layouts on disk.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use lazo_converter::{Options, Silent, Summary, ZstdWindow, convert};
use lazo_format::Digest;
use serde_json::{Value, json};

const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

fn tar() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(4);
    tar.append_data(&mut header, "file", &b"data"[..]).unwrap();
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// One frame that asks for a window of 2^`log` bytes.
fn zstd(log: u32, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(log).unwrap();
    encoder.include_contentsize(false).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = Digest::sha256_of(bytes);
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    std::fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
}

/// Converts an image of one layer: what came of it, or the whole chain of errors.
async fn converted(media_type: &str, stored: &[u8], unpacked: &[u8], window: ZstdWindow) -> Result<Summary, String> {
    let directory = tempfile::tempdir().unwrap();
    let layout = directory.path().join("layout");
    let layer = blob(&layout, media_type, stored);
    let diff_ids = [Digest::sha256_of(unpacked).to_string()];
    let config =
        json!({ "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    let config = blob(&layout, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer] });
    let manifest = blob(&layout, kind, manifest.to_string().as_bytes());
    std::fs::write(layout.join("index.json"), json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string())
        .unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let reference = |name: &str| format!("oci:{}", directory.path().join(name).display()).parse().unwrap();
    let options = Options { zstd_window: window, jobs: 1, ..Options::default() };
    let (from, to) = (reference("layout"), reference("converted"));
    convert(&from, &to, &options, &lazo_registry::Options::default(), Arc::new(Silent)).await.map_err(|error| {
        let mut chain = vec![error.to_string()];
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            chain.push(error.to_string());
            source = error.source();
        }
        chain.join(": ")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn first_bytes_tell_how_a_layer_is_packed() {
    let tar = tar();
    let members = [gzip(&tar[..100]), gzip(&tar[100..]), gzip(b"")].concat();
    let frames = [zstd(10, &tar[..100]), zstd(20, &tar[100..])].concat();
    for (what, media_type, stored, unpacked, entries, mistyped) in [
        ("plain", PLAIN, &tar, &tar, 2, 0),
        ("gzip", GZIP, &gzip(&tar), &tar, 2, 0),
        ("gzip members", DOCKER, &members, &tar, 2, 0),
        ("zstd", ZSTD, &zstd(20, &tar), &tar, 2, 0),
        ("zstd frames", ZSTD, &frames, &tar, 2, 0),
        ("gzip that is a tar", GZIP, &tar, &tar, 2, 1),
        ("gzip that is zstd", DOCKER, &zstd(20, &tar), &tar, 2, 1),
        ("zstd that is gzip", ZSTD, &gzip(&tar), &tar, 2, 1),
        ("a tar that is gzip", PLAIN, &gzip(&tar), &tar, 2, 1),
        ("nothing", PLAIN, &vec![], &vec![], 1, 0),
        ("gzip of nothing", GZIP, &gzip(b""), &vec![], 1, 0),
        ("nothing as gzip", GZIP, &vec![], &vec![], 1, 1),
    ] {
        let summary = converted(media_type, stored, unpacked, ZstdWindow::DEFAULT).await;
        let image = &summary.unwrap_or_else(|error| panic!("{what}: {error}")).images[0];
        assert_eq!((image.entries, image.warnings.mistyped_layers), (entries, mistyped), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_unpacked_is_refused_by_name() {
    let tar = tar();
    let (packed, framed) = (gzip(&tar), zstd(20, &tar));
    let mebi = |mebi: u64| ZstdWindow::of_bytes(mebi << 20).unwrap();
    for (what, media_type, stored, window, expected) in [
        ("zeros behind gzip", GZIP, [&packed[..], &[0; 700]].concat(), mebi(512), "cannot unpack it as gzip, at byte"),
        (
            "garbage behind gzip",
            GZIP,
            [&packed[..], b"garbage behind"].concat(),
            mebi(512),
            "cannot unpack it as gzip, at byte",
        ),
        ("zeros behind zstd", ZSTD, [&framed[..], &[0; 700]].concat(), mebi(512), "cannot unpack it as zstd, at byte"),
        (
            "garbage behind zstd",
            ZSTD,
            [&framed[..], b"garbage"].concat(),
            mebi(512),
            "cannot unpack it as zstd, at byte",
        ),
        ("gzip that is cut", GZIP, packed[..packed.len() - 3].to_vec(), mebi(512), "cannot unpack it as gzip, at byte"),
        ("a window of 1 GiB", ZSTD, zstd(30, &tar), mebi(512), "cannot unpack it as zstd, at byte"),
        (
            "a window of 128 MiB where 64 are allowed",
            ZSTD,
            zstd(27, &tar),
            mebi(64),
            "cannot unpack it as zstd, at byte",
        ),
    ] {
        let error = converted(media_type, &stored, &tar, window).await.expect_err(what);
        assert!(error.starts_with("layer 1 of 1 (sha256:") && error.contains(expected), "{what}: {error}");
    }
    for (what, log, window) in [("512 MiB", 29, mebi(512)), ("2 GiB", 31, mebi(2048))] {
        converted(ZSTD, &zstd(log, &tar), &tar, window).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}
