//! The readers of this crate's foreign bytes, with what must hold of whatever they accept: for the fuzz targets in `fuzz/`, and
//! for the test that keeps these and their seeds working.
//!
//! The first byte of an input picks the reader, in the order of the tables here, `a` being the first. The rest is for the reader.

use std::collections::BTreeMap;

use lazo_registry::oci_spec::image::MediaType;
use lazo_registry::{Content, Document, Manifest};
use prost::Message as _;
use tonic::Code;

use crate::authority;
use crate::credentials::{File, Login, is_for, repository};
use crate::cri;
use crate::filter::{Fields, Filter};
use crate::labels;
use crate::pull::image::layers;
use crate::snapshots::owners;
use crate::store::Record;

/// The kubelet's requests, the file of the logins that came with them, and what it is told.
pub fn kubelet(data: &[u8]) {
    const READERS: [fn(&[u8]); 3] = [pull, kept_logins, failure];
    if let Some((choice, rest)) = data.split_first() {
        READERS[usize::from(choice.wrapping_sub(b'a')) % READERS.len()](rest);
    }
}

/// The bytes of a gRPC client's connection.
pub fn http2(data: &[u8]) {
    authority::stays(data);
}

/// What containerd asks of snapshots, what is kept of them, and what a registry says of their layers.
pub fn snapshot(data: &[u8]) {
    const READERS: [fn(&[u8]); 4] = [filter, record, owner_labels, manifest];
    if let Some((choice, rest)) = data.split_first() {
        READERS[usize::from(choice.wrapping_sub(b'a')) % READERS.len()](rest);
    }
}

fn pull(bytes: &[u8]) {
    let Some(request) = cri::parse(bytes) else { return };
    assert!(request.encoded_len() <= bytes.len(), "a request grows");
    let mut again = vec![0];
    again.extend(u32::try_from(request.encoded_len()).expect("bounded by the input").to_be_bytes());
    request.encode(&mut again).expect("room in a vector");
    assert!(cri::parse(&again).is_some_and(|again| again == request));
    let Some(image) = &request.image else { return };
    let Some((host, name)) = repository(&image.image) else { return };
    // It becomes a key of the file that the daemon looks into.
    assert!(name.strip_prefix(&host).is_some_and(|rest| rest.starts_with('/') && rest.len() > 1), "{host} of {name}");
    assert!(!name.chars().any(|c| c.is_control() || c.is_whitespace() || c == '@'), "{name:?}");
    let Some(auth) = request.auth else { return };
    let server = auth.server_address.clone();
    assert!(is_for("", &host) && is_for(&host, &host) && is_for(&format!("https://{host}/v2/"), &host));
    let login = Login::from(auth);
    let length = login.username.len() + login.password.len() + login.auth.len() + login.identitytoken.len();
    assert!(length + login.registrytoken.len() + server.len() + image.image.len() <= bytes.len(), "a login grows");
    let _ = is_for(&server, &host);
}

fn kept_logins(bytes: &[u8]) {
    let Ok(file) = serde_json::from_slice::<File>(bytes) else { return };
    let again = serde_json::to_vec(&file).expect("strings");
    assert!(serde_json::from_slice::<File>(&again).is_ok_and(|again| again.auths == file.auths));
}

fn failure(text: &[u8]) {
    let answer = cri::failure(Code::Unavailable, &String::from_utf8_lossy(text));
    let message = answer.headers().get("grpc-message").expect("set for every failure");
    assert!(message.to_str().is_ok() && message.len() <= text.len(), "{message:?}");
}

fn filter(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let expressions: Vec<&str> = text.split('\n').collect();
    let labels = BTreeMap::from([("containerd.io/x.y".to_owned(), "b/c".to_owned())]);
    let fields = Fields { name: "a", parent: "b", kind: "active", labels: &labels };
    match Filter::parse(&expressions) {
        Ok(filter) => drop(filter.matches(&fields)),
        Err(error) => assert!(error.position <= error.expression.len() && text.contains(&error.expression)),
    }
}

fn record(bytes: &[u8]) {
    let Ok(record) = Record::decode(bytes) else { return };
    let again = Record::decode(&*record.encode_to_vec()).expect("what was encoded here");
    assert_eq!(again, record);
    let _ = (record.kind(), record.role(), record.blob());
}

fn owner_labels(text: &[u8]) {
    let Some((users, groups)) = std::str::from_utf8(text).ok().and_then(|text| text.split_once('\n')) else { return };
    let labels = [(labels::UID_MAPPING, users), (labels::GID_MAPPING, groups)];
    let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned()));
    let Ok(Some(found)) = owners::from_labels(&labels.into()) else { return };
    assert!(owners::for_daemon(&found).len() == text.len());
}

fn manifest(bytes: &[u8]) {
    let document = Document::new(MediaType::ImageManifest, bytes.to_vec());
    let Ok(Content::Manifest(manifest)) = document.content() else { return };
    let count = manifest.layers().len();
    let Document { descriptor, bytes } = document;
    let Ok(layers) = layers("h.example/app:1", &Manifest { descriptor, bytes, manifest: *manifest }) else { return };
    assert_eq!(layers.len(), count);
    for layer in layers {
        let all = layer.labels.get(labels::IMAGE_LAYERS).expect("every layer has it");
        // What containerd takes.
        assert!(labels::IMAGE_LAYERS.len() + all.len() <= 4096, "{} bytes", all.len());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    /// Every seed, and every beginning of one.
    #[test]
    fn readers_hold_on_their_seeds() {
        let targets =
            [("kubelet", super::kubelet as fn(&[u8])), ("http2", super::http2), ("snapshots", super::snapshot)];
        for (target, read) in targets {
            let seeds = fs::read_dir(format!("{}/../fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"))).unwrap();
            let seeds: Vec<Vec<u8>> = seeds.map(|seed| fs::read(seed.unwrap().path()).unwrap()).collect();
            assert!(!seeds.is_empty());
            for seed in seeds {
                (0..=seed.len()).for_each(|length| read(&seed[..length]));
            }
        }
    }
}
