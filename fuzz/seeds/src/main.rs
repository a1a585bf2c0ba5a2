//! Writes the seeds of every fuzz target to `corpus/TARGET/`: small, valid, and with every feature once.
//!
//! `cargo run --manifest-path fuzz/Cargo.toml --package lazo-fuzz-seeds`

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lazo_format::{
    BlobIndex, BlobRecord, ChunkDigest, ChunkIndex, ChunkRecord, Device, DeviceAddr, Digest, Encoding, Extent,
    IndexContents, Meta, Node, NodeId, NodeKind, PrefetchRange, Timestamp, Tree, Xattr, encode_index, write_bootstrap,
};
use serde_json::{Value, json};

fn main() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let directory: PathBuf = corpus.join(target);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(format!("seed-{name}")), bytes).unwrap();
    };
    let (small, all) = (bootstrap(2), bootstrap(100));
    for target in ["bootstrap", "cost-bootstrap"] {
        put(target, "small", &small);
        put(target, "all", &all);
    }
    for (name, blobs, chunks) in [("empty", 0, 0), ("one", 1, 1), ("many", 3, 5)] {
        put("index", name, &index(blobs, chunks, &small));
        put("cost-index", name, &index(blobs, chunks, &small));
    }
    put("cost-reader", "many", &[255, 255, 128, 64, 0]);
    put("layer", "plain", &plain_layer());
    put("layer", "long", &long_layer());
    put("layer", "sparse", &sparse_layer());
    for (name, choice, document) in documents() {
        put("manifest", name, &[&[choice], document.to_string().as_bytes()].concat());
    }
    for (name, reference) in
        [("docker", "docker://[::1]:5000/a/b:c"), ("bare", "host.example/r@sha256:00"), ("oci", "oci:d:t")]
    {
        put("manifest", name, format!("\x05{reference}").as_bytes());
    }
    for (name, layer) in [("plain", plain_layer()), ("long", long_layer()), ("sparse", sparse_layer())] {
        // An even first byte: an archive as it stands.
        put("tar_judges", name, &[&[0][..], &layer].concat());
    }
    // An odd one: instructions.
    put("tar_judges", "instructions", &[1; 64]);
    put("archive", "oci", &oci_archive());
    put("archive", "docker", &docker_archive());
}

fn extent(length: u64, block: Option<u64>) -> Extent {
    Extent { length, location: block.map(|block| (BlobIndex((block % 2) as u16), DeviceAddr(block * 4096))) }
}

/// A root with `files` files, and one node of every other kind.
fn bootstrap(files: u32) -> Vec<u8> {
    let xattr = |name: &[u8], value: &[u8]| Xattr { name: name.into(), value: value.into() };
    let meta = Meta {
        permissions: 0o755,
        uid: 4_000_000_000,
        gid: 7,
        mtime: Timestamp { seconds: 1_700_000_000, nanoseconds: 5 },
        xattrs: vec![xattr(b"user.one", b"1"), xattr(b"security.capability", &[2; 20])],
    };
    let node = |kind| Node { meta: meta.clone(), kind };
    let mut nodes = vec![];
    let mut names: BTreeMap<Box<[u8]>, NodeId> = BTreeMap::new();
    let mut add = |name: String, node: Node| {
        nodes.push(node);
        names.insert(name.into_bytes().into(), NodeId(nodes.len() as u32 - 1));
    };
    for number in 0..files {
        let kind = NodeKind::Regular { size: 5000, extents: vec![extent(5000, Some(u64::from(number)))] };
        add(format!("file-with-a-rather-long-name-{number}"), node(kind));
    }
    let pieces = vec![extent(4096, Some(9)), extent(8192, None), extent(4096, Some(2)), extent(100, Some(40))];
    add("pieces".into(), node(NodeKind::Regular { size: 16484, extents: pieces }));
    add("empty".into(), node(NodeKind::Regular { size: 0, extents: vec![] }));
    add("link".into(), node(NodeKind::Symlink(b"empty".as_slice().into())));
    add("long-link".into(), node(NodeKind::Symlink(vec![b'x'; 4000].into())));
    add("char".into(), node(NodeKind::CharDevice { major: 5, minor: 300 }));
    add("block".into(), node(NodeKind::BlockDevice { major: 300, minor: 5 }));
    add("fifo".into(), node(NodeKind::Fifo));
    add("socket".into(), node(NodeKind::Socket));
    add("directory".into(), node(NodeKind::Directory(BTreeMap::new())));
    names.insert(b"hard-link".as_slice().into(), NodeId(0));
    let root = NodeId(nodes.len() as u32);
    nodes.push(node(NodeKind::Directory(names)));
    let device = |byte| Device { digest: Digest::sha256([byte; 32]), size: 1 << 20 };
    write_bootstrap(&Tree { nodes, root, devices: vec![device(1), device(2)] }.validate().unwrap())
}

fn index(blobs: u8, chunks: u32, bootstrap: &[u8]) -> Vec<u8> {
    let chunk = |number: u32| ChunkRecord {
        compressed_offset: u64::from(number) * 1000,
        compressed_size: 1000,
        device_offset: DeviceAddr(u64::from(number) * 8192),
        device_size: 8192,
        encoding: Encoding::Zstd,
        digest: ChunkDigest([7; 32]),
    };
    let blob = |number: u8| BlobRecord {
        digest: Digest::sha256([number; 32]),
        compressed_size: u64::from(chunks) * 1000,
        device_size: u64::from(chunks) * 8192,
        first_chunk: ChunkIndex(u32::from(number) * chunks),
        chunk_count: chunks,
    };
    let contents = IndexContents {
        blobs: (0..blobs).map(blob).collect(),
        chunks: (0..blobs).flat_map(|_| (0..chunks).map(chunk)).collect(),
        prefetch: if chunks > 1 { vec![PrefetchRange { first: ChunkIndex(1), count: 2 }] } else { vec![] },
        entries: 3,
        file_bytes: 99,
        has_xattrs: true,
        has_acls: false,
    };
    encode_index(&contents, bootstrap).unwrap()
}

fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(size);
    header
}

fn append(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, data: &[u8]) {
    tar.append_data(&mut header(kind, data.len() as u64), path, data).unwrap();
}

fn link(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, target: &str) {
    tar.append_link(&mut header(kind, 0), path, target).unwrap();
}

fn plain_layer() -> Vec<u8> {
    use tar::EntryType::{Block, Directory, Fifo, Link, Regular, Symlink};
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, Directory, "d/", b"");
    append(&mut tar, Regular, "d/file", &[b'x'; 700]);
    link(&mut tar, Symlink, "d/link", "../d/file");
    link(&mut tar, Link, "d/hard", "d/file");
    append(&mut tar, Regular, "implied/parents/file", b"1");
    append(&mut tar, Regular, "d/.wh.gone", b"");
    append(&mut tar, Regular, "implied/.wh..wh..opq", b"");
    append(&mut tar, Fifo, "fifo", b"");
    let mut device = header(Block, 0);
    device.set_device_major(8).unwrap();
    device.set_device_minor(1).unwrap();
    tar.append_data(&mut device, "device", std::io::empty()).unwrap();
    tar.into_inner().unwrap()
}

fn long_layer() -> Vec<u8> {
    use tar::EntryType::{Regular, Symlink};
    let mut tar = tar::Builder::new(Vec::new());
    let long = "directory-with-a-long-name/".repeat(6) + "file";
    append(&mut tar, Regular, &long, b"gnu long name");
    link(&mut tar, Symlink, "link", &long);
    let records: [(&str, &[u8]); 8] = [
        ("path", b"renamed/\xff"),
        ("mtime", b"1700000000.123456789"),
        ("uid", b"4000000000"),
        ("gid", b"5"),
        ("SCHILY.xattr.user.one", b"value"),
        ("SCHILY.xattr.security.capability", &[1; 20]),
        ("LIBARCHIVE.xattr.user.two", b"dmFsdWU"),
        ("comment", b"nothing"),
    ];
    tar.append_pax_extensions(records).unwrap();
    append(&mut tar, Regular, "pax", b"pax");
    tar.into_inner().unwrap()
}

/// A sparse file in PAX format 1.0: its map stands before the data.
fn sparse_layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"100000"),
    ];
    tar.append_pax_extensions(records).unwrap();
    let mut data = b"2\n0\n10\n50000\n20\n".to_vec();
    data.resize(512, 0);
    data.extend([b's'; 30]);
    append(&mut tar, tar::EntryType::Regular, "GNUSparseFile.0/sparse", &data);
    tar.into_inner().unwrap()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::sha256_of(bytes).to_string(), "size": bytes.len() })
}

fn config() -> Value {
    json!({ "os": "linux", "architecture": "amd64", "config": { "Env": ["A=b"] },
        "rootfs": { "type": "layers", "diff_ids": [Digest::sha256_of(b"layer").to_string()] } })
}

fn manifest() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", config().to_string().as_bytes()),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", b"layer")],
        "annotations": { "a": "b" },
    })
}

fn documents() -> Vec<(&'static str, u8, Value)> {
    let oci = manifest();
    let entry = |os: &str, architecture: &str| {
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", oci.to_string().as_bytes());
        entry["platform"] = json!({ "os": os, "architecture": architecture, "variant": "v8" });
        entry
    };
    let list = [entry("linux", "arm64"), entry("linux", "amd64"), entry("unknown", "unknown")];
    let index = json!({ "schemaVersion": 2, "manifests": list });
    let mut docker = oci.clone();
    docker["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
    docker["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
    docker["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
    docker["layers"][0]["urls"] = json!(["https://example.org/layer"]);
    vec![("oci", 0, oci.clone()), ("index", 1, index.clone()), ("docker-manifest", 2, docker), ("list", 3, index)]
}

fn oci_archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let manifest = manifest().to_string();
    let entry = descriptor("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
    let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    append(&mut tar, tar::EntryType::Regular, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    append(&mut tar, tar::EntryType::Regular, "index.json", index.as_bytes());
    for bytes in [manifest.as_bytes(), config().to_string().as_bytes(), b"layer"] {
        let path = format!("blobs/sha256/{}", Digest::sha256_of(bytes).hex());
        append(&mut tar, tar::EntryType::Regular, &path, bytes);
    }
    tar.into_inner().unwrap()
}

fn docker_archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["a/b:c"], "Layers": ["1/layer.tar"] }]).to_string();
    append(&mut tar, tar::EntryType::Regular, "1/layer.tar", b"layer");
    append(&mut tar, tar::EntryType::Regular, "config.json", config().to_string().as_bytes());
    append(&mut tar, tar::EntryType::Regular, "manifest.json", manifest.as_bytes());
    tar.into_inner().unwrap()
}
