//! lazo images: blobs that are never fetched, bootstraps that stand for images, containers over their mounts.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::sync::Arc;

use lazo_format::{BlobRecord, ChunkIndex, Digest, IndexContents, encode_index};
use serde_json::json;
use tonic::{Code, Status};

use crate::support::{Calls, Daemon, Labels, Mounted, Scratch, Served, read, refused, write};

mod seen;

const REF: &str = "containerd.io/snapshot.ref";
const BLOB: &str = "containerd.io/snapshot/lazo.blob";
const BOOTSTRAP: &str = "containerd.io/snapshot/lazo.bootstrap";
const IMAGE: (&str, &str) = ("containerd.io/snapshot/cri.image-ref", "registry.example/app:1");
const MANIFEST: (&str, &str) = ("containerd.io/snapshot/cri.manifest-digest", "sha256:beef");
const LAYER: &str = "containerd.io/snapshot/cri.layer-digest";

/// Digest of a test's blob, which is its diffID.
fn digest(number: usize) -> String {
    Digest::sha256_of(format!("blob {number}").as_bytes()).to_string()
}

/// ChainID of a layer above a snapshot.
fn chain_above(parent: &str, diff_id: &str) -> String {
    match parent.rsplit('/').next().unwrap_or_default() {
        "" => diff_id.to_owned(),
        below => Digest::sha256_of(format!("{below} {diff_id}").as_bytes()).to_string(),
    }
}

/// ChainID of the blob with this number, above all lower ones.
fn chain(number: usize) -> String {
    (1..=number).fold(String::new(), |below, number| chain_above(&below, &digest(number)))
}

fn sorted<const N: usize>(mut names: [String; N]) -> [String; N] {
    names.sort();
    names
}

/// The chunk index of an image of these blobs, which have no data.
fn index(blobs: &[String]) -> Vec<u8> {
    let blobs = blobs.iter().map(|digest| BlobRecord {
        digest: digest.parse().unwrap(),
        compressed_size: 0,
        device_size: 0,
        first_chunk: ChunkIndex(0),
        chunk_count: 0,
    });
    encode_index(&IndexContents { blobs: blobs.collect(), ..IndexContents::default() }, b"b").unwrap()
}

/// A service whose daemon has an image with one file.
pub(crate) async fn start() -> (Served, Daemon) {
    start_in(Scratch::new()).await
}

async fn start_in(scratch: Scratch) -> (Served, Daemon) {
    let scratch = Arc::new(scratch);
    let image = scratch.work("image");
    write(&image, "file", "from the image");
    chown(&image, Some(11), Some(12)).unwrap();
    let daemon = Daemon::start(&scratch.run(), &image);
    (Served::on(scratch).await, daemon)
}

async fn blob(calls: &Calls, namespace: &str, number: usize, parent: &str) -> Result<String, Status> {
    let digest = digest(number);
    let target = chain_above(parent, &digest);
    let labels: Labels<'_> = &[(REF, &target), (BLOB, &digest), (LAYER, &digest), IMAGE, MANIFEST];
    calls.prepare(&format!("{namespace}/{number}/extract-1 {target}"), parent, labels).await.map(|_| target)
}

/// As containerd does it: two blobs, then the bootstrap. Gives the bootstrap's name.
pub(crate) async fn pull(calls: &Calls, scratch: &Scratch, namespace: &str) -> String {
    refused(blob(calls, namespace, 1, "").await, Code::AlreadyExists);
    refused(blob(calls, namespace, 2, &chain(1)).await, Code::AlreadyExists);
    let name = format!("{namespace}/4/sha256:top");
    bootstrap(calls, scratch, &name, &chain(2), &[digest(1), digest(2)], &[]).await.unwrap();
    name
}

/// A bootstrap of an image of these blobs.
async fn bootstrap(
    calls: &Calls,
    scratch: &Scratch,
    name: &str,
    parent: &str,
    blobs: &[String],
    more: Labels<'_>,
) -> Result<(), Status> {
    unpack(calls, scratch, name, parent, more, |root| {
        fs::create_dir(root.join("image")).unwrap();
        write(root, "image/bootstrap", "b");
        fs::write(root.join("image/index"), index(blobs)).unwrap();
    })
    .await
}

/// A bootstrap layer, whose files `files` makes.
async fn unpack(
    calls: &Calls,
    scratch: &Scratch,
    name: &str,
    parent: &str,
    more: Labels<'_>,
    files: impl FnOnce(&Path),
) -> Result<(), Status> {
    let labels = [&[(REF, "sha256:top"), (BOOTSTRAP, "v1"), IMAGE, MANIFEST], more].concat();
    let key = format!("{name}-extract");
    let mounts = calls.prepare(&key, parent, &labels).await?;
    assert_eq!((mounts.len(), mounts[0].r#type.as_str()), (1, "bind"), "unpacked by itself");
    let mounted = Mounted::new(&mounts, &scratch.work("extract"));
    files(mounted.path());
    drop(mounted);
    calls.commit(name, &key, &labels).await
}

#[tokio::test]
async fn blobs_are_there_at_once() {
    let (served, daemon) = start().await;
    let calls = served.calls();
    let message = refused(blob(&calls, "default", 1, "").await, Code::AlreadyExists);
    let (first, second) = (chain(1), chain(2));
    assert!(message.contains(&first), "{message}");
    // The look that containerd takes then.
    let found = calls.list(&[&format!(r#"labels."containerd.io/snapshot.ref"=={first},parent=="""#)]).await.unwrap();
    let info = &found[&first];
    assert_eq!((info.kind, &info.labels[BLOB], info.labels[IMAGE.0].as_str()), (3, &digest(1), IMAGE.1));
    assert_eq!(daemon.wait("POST /v1/warm", 1).await[0], json!({"image": IMAGE.1}));
    assert_eq!(calls.usage(&first).await.unwrap(), (0, 0));
    assert_eq!(served.scratch.directories(), Vec::<u64>::new());
    // The same in another namespace, and above it.
    refused(blob(&calls, "k8s.io", 1, "").await, Code::AlreadyExists);
    refused(blob(&calls, "k8s.io", 2, &first).await, Code::AlreadyExists);
    assert_eq!(calls.names(&[]).await, sorted([first.clone(), second.clone()]));
    let parent = format!(r#"labels."containerd.io/snapshot.ref"=={second},parent=="{first}""#);
    assert_eq!(calls.names(&[&parent]).await, [second.as_str()]);
    // Whoever takes the label away cannot keep others from pulling.
    calls.update(&second, &[], &["labels"]).await.unwrap();
    refused(blob(&calls, "k8s.io", 2, &first).await, Code::AlreadyExists);
    assert_eq!(calls.names(&[&parent]).await, [second.as_str()]);
}

#[tokio::test]
async fn pulls_at_the_same_time() {
    let (served, _daemon) = start().await;
    let calls = served.calls();
    let pulls = (0..8).map(|pull| {
        let calls = calls.clone();
        tokio::spawn(async move {
            let namespace = format!("ns{pull}");
            for number in 1..=10 {
                refused(blob(&calls, &namespace, number, &chain(number - 1)).await, Code::AlreadyExists);
            }
        })
    });
    for pull in pulls.collect::<Vec<_>>() {
        pull.await.unwrap();
    }
    assert_eq!(calls.names(&[]).await.len(), 10);
}

#[tokio::test]
async fn containers_share_the_image() {
    let (served, daemon) = start().await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    let top = pull(&calls, scratch, "default").await;
    let asked = daemon.wait("POST /v1/mounts", 1).await;
    let point = scratch.run().join("containerd/3");
    let files = fs::canonicalize(scratch.state()).unwrap().join("3/fs/image");
    assert_eq!(asked[0]["image"], json!(IMAGE.1), "mounted before there is a container");
    assert_eq!((&asked[0]["mount_point"], &asked[0]["files"]), (&json!(point), &json!(files)));

    let first = calls.prepare("default/5/one", &top, &[]).await.unwrap();
    let second = calls.prepare("default/6/two", &top, &[]).await.unwrap();
    assert_eq!(first[0].r#type, "overlay");
    let first = Mounted::new(&first, &scratch.work("first"));
    let second = Mounted::new(&second, &scratch.work("second"));
    assert_eq!(read(first.path(), "file"), "from the image");
    assert!(!first.path().join("image").exists(), "the bootstrap's own files are not to be seen");
    write(first.path(), "file", "changed");
    fs::remove_file(second.path().join("file")).unwrap();
    assert_eq!(read(first.path(), "file"), "changed");
    use std::os::unix::fs::MetadataExt as _;
    let root = fs::metadata(first.path()).unwrap();
    assert_eq!((root.uid(), root.gid()), (11, 12), "the image's owner");
    assert_eq!(daemon.mounts(), [point]);

    let view = calls.view("default/7/view", &top, &[]).await.unwrap();
    assert_eq!(view[0].r#type, "bind");
    let view = Mounted::new(&view, &scratch.work("view"));
    assert_eq!(read(view.path(), "file"), "from the image");
    assert!(fs::write(view.path().join("new"), "").is_err());
    assert_eq!(calls.mounts("default/5/one").await.unwrap(), calls.mounts("default/5/one").await.unwrap());
}

#[tokio::test]
async fn layers_above_an_image() {
    let (served, _daemon) = start().await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    let mut top = pull(&calls, scratch, "default").await;
    for number in 0..120 {
        let name = format!("layer-{number}");
        calls
            .layer(scratch, &name, &top, |path| {
                write(path, &format!("file-{number}"), "");
                write(path, "number", &number.to_string());
            })
            .await;
        top = name;
    }
    let mounted = Mounted::new(&calls.prepare("container", &top, &[]).await.unwrap(), &scratch.work("container"));
    assert_eq!(read(mounted.path(), "file"), "from the image");
    assert_eq!(read(mounted.path(), "number"), "119");
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 122);
}

#[tokio::test]
async fn removal_gives_up_mounts_and_blobs() {
    let (served, daemon) = start().await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    let (first, second) = (pull(&calls, scratch, "a").await, pull(&calls, scratch, "b").await);
    calls.prepare("a/9/c", &first, &[]).await.unwrap();
    calls.prepare("b/9/c", &second, &[]).await.unwrap();
    assert_eq!(daemon.mounts().len(), 2);
    for key in ["a/9/c", first.as_str()] {
        calls.remove(key).await.unwrap();
    }
    calls.cleanup().await.unwrap();
    assert_eq!(daemon.mounts().len(), 1);
    refused(calls.remove(&chain(2)).await, Code::FailedPrecondition);
    assert!(daemon.asked("POST /v1/cache/release").is_empty());
    for key in ["b/9/c", &second, &chain(2), &chain(1)] {
        calls.remove(key).await.unwrap();
    }
    calls.cleanup().await.unwrap();
    assert_eq!(daemon.mounts(), Vec::<std::path::PathBuf>::new());
    let released: Vec<_> = daemon
        .asked("POST /v1/cache/release")
        .iter()
        .flat_map(|ask| ask["blobs"].as_array().unwrap().clone())
        .collect();
    assert_eq!(released.len(), 2);
    assert!([1, 2].iter().all(|number| released.contains(&json!(digest(*number)))), "{released:?}");
    assert_eq!(fs::read_dir(scratch.run().join("containerd")).unwrap().count(), 0);
    assert_eq!(scratch.directories(), Vec::<u64>::new());
}

#[tokio::test]
async fn what_cannot_be_mounted_leaves_nothing() {
    let (served, daemon) = start().await;
    let calls = served.calls();
    let top = pull(&calls, &served.scratch, "default").await;
    calls.prepare("before", &top, &[]).await.unwrap();
    // What the daemon said of that is forgotten.
    let served = Served::on(served.stop().await).await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    let there = (calls.names(&[]).await, scratch.directories());
    for (status, kind, code) in [(502, "image", Code::FailedPrecondition), (500, "internal", Code::Internal)] {
        daemon.refuse(Some((status, kind, "the index: wrong digest")));
        for result in
            [calls.prepare("new", &top, &[]).await, calls.view("new", &top, &[]).await, calls.mounts("before").await]
        {
            let message = refused(result, code);
            assert!(
                message.contains("registry.example/app:1") && message.contains("the index: wrong digest"),
                "{message}"
            );
        }
        assert_eq!((calls.names(&[]).await, scratch.directories()), there);
    }
    daemon.refuse(None);
    calls.prepare("new", &top, &[]).await.unwrap();
}

#[tokio::test]
async fn without_a_daemon() {
    let (served, daemon) = start().await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    let top = pull(&calls, scratch, "default").await;
    daemon.wait("POST /v1/mounts", 1).await;
    drop(daemon);
    fs::remove_file(scratch.run().join("lazo.sock")).unwrap();
    let message = refused(calls.prepare("container", &top, &[]).await, Code::Unavailable);
    assert!(message.contains("lazo daemon"), "{message}");
    refused(calls.stat("container").await, Code::NotFound);
    // All else goes on.
    calls.prepare("ordinary", "", &[]).await.unwrap();
    calls.remove(&top).await.unwrap();
    calls.cleanup().await.unwrap();
}

#[tokio::test]
async fn a_bootstrap_that_goes_while_it_is_mounted() {
    let (served, daemon) = start().await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    daemon.hold(true);
    let top = pull(&calls, scratch, "default").await;
    daemon.wait("POST /v1/mounts", 1).await;
    let container = tokio::spawn({
        let (calls, top) = (calls.clone(), top.clone());
        async move { calls.prepare("container", &top, &[]).await }
    });
    daemon.wait("POST /v1/mounts", 2).await;
    // A slow mount holds up nobody else.
    calls.prepare("ordinary", "", &[]).await.unwrap();
    calls.remove(&top).await.unwrap();
    calls.cleanup().await.unwrap();
    daemon.hold(false);
    refused(container.await.unwrap(), Code::NotFound);
    // By the removal, the preparation, and the mount that was made ahead of it.
    daemon.wait_for_none(3).await;
    assert_eq!(calls.names(&[]).await, sorted(["ordinary".to_owned(), chain(1), chain(2)]));
}

#[tokio::test]
async fn what_is_no_image_of_ours() {
    let (served, daemon) = start().await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    let first = chain(1);
    // Nobody says which image.
    let labels: Labels<'_> = &[(REF, &first), (BLOB, &first)];
    let message = refused(calls.prepare("key", "", labels).await, Code::FailedPrecondition);
    assert!(message.contains("lazo pull") && message.contains("disable_snapshot_annotations"), "{message}");
    let labels: Labels<'_> = &[(REF, "sha256:x"), (BOOTSTRAP, "v1")];
    refused(calls.prepare("key", "", labels).await, Code::FailedPrecondition);
    // A blob that is not being unpacked.
    refused(calls.prepare("key", "", &[(BLOB, &first), IMAGE]).await, Code::InvalidArgument);
    // Blobs and bootstraps over something else.
    calls.layer(scratch, "plain", "", |_| {}).await;
    let message = refused(blob(&calls, "default", 1, "plain").await, Code::InvalidArgument);
    assert!(message.contains("above other blobs"), "{message}");
    refused(bootstrap(&calls, scratch, "top", "plain", &[digest(1)], &[]).await, Code::InvalidArgument);
    refused(blob(&calls, "default", 1, "").await, Code::AlreadyExists);
    // Containers and layers over bare blobs, whatever else their labels say.
    for labels in [&[] as Labels<'_>, &[(BOOTSTRAP, "v1"), IMAGE], &[(REF, "sha256:z")]] {
        let message = refused(calls.prepare("key", &first, labels).await, Code::FailedPrecondition);
        assert!(message.contains("bootstrap is missing"), "{message}");
        refused(calls.view("key", &first, labels).await, Code::FailedPrecondition);
    }
    assert_eq!(calls.names(&[]).await, sorted(["plain".to_owned(), first]));
    assert!(daemon.asked("POST /v1/mounts").is_empty());
}

/// Each of these images would break every image above the layer whose chainID it takes, if it were believed.
#[tokio::test]
async fn a_layer_that_only_says_it_is_a_blob_is_an_ordinary_one() {
    let (served, daemon) = start().await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    let (base, first, other) = (Digest::sha256_of(b"an ordinary base layer").to_string(), digest(1), digest(3));
    refused(blob(&calls, "default", 1, "").await, Code::AlreadyExists);
    let cases = [
        ("the chainID of a base layer", "", base.clone(), first.clone(), first.clone()),
        ("the annotation of another layer", "", base.clone(), base.clone(), first.clone()),
        ("another namespace's chainID", "", chain(2), digest(2), digest(2)),
        ("above a blob, by the diffID alone", &*first, other.clone(), other.clone(), other.clone()),
        ("above a blob, of another chain", &*first, chain_above(&base, &other), other.clone(), other.clone()),
        ("no digest", "", "sha256:x".to_owned(), "sha256:x".to_owned(), "sha256:x".to_owned()),
        ("an empty target's digest in capitals", "", base.to_uppercase(), base.to_uppercase(), base.to_uppercase()),
    ];
    for (number, (case, parent, target, annotation, layer)) in cases.iter().enumerate() {
        let labels: Labels<'_> = &[(REF, target), (BLOB, annotation), (LAYER, layer), IMAGE, MANIFEST];
        let key = format!("default/{number}/extract {target}");
        let prepared = calls.prepare(&key, parent, labels).await;
        if parent.is_empty() {
            // containerd downloads it, compares its diffID, and then commits it under a name of its own.
            let mounts = prepared.unwrap_or_else(|status| panic!("{case}: {status}"));
            assert_eq!(mounts[0].r#type, "bind", "{case}");
            calls.commit(&format!("default/{number}/{target}"), &key, labels).await.unwrap();
        } else {
            let message = refused(prepared, Code::FailedPrecondition);
            assert!(message.contains("bootstrap is missing"), "{case}: {message}");
        }
    }
    let blobs = calls.list(&[]).await.unwrap();
    assert_eq!(blobs.keys().filter(|name| name.starts_with("sha256:")).collect::<Vec<_>>(), [&first]);
    assert!(daemon.asked("POST /v1/mounts").is_empty());
    // An image above what was claimed runs.
    let (top, work) = (format!("default/0/{base}"), scratch.work("container"));
    drop(Mounted::new(&calls.prepare("container", &top, &[]).await.unwrap(), &work));
}

#[tokio::test]
async fn a_bootstrap_is_that_of_the_blobs_below_it() {
    let (served, daemon) = start().await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    refused(blob(&calls, "default", 1, "").await, Code::AlreadyExists);
    refused(blob(&calls, "default", 2, &chain(1)).await, Code::AlreadyExists);
    let (one, two, three) = (digest(1), digest(2), digest(3));
    let lists: [&[&String]; 6] = [&[], &[&one], &[&two, &one], &[&one, &three], &[&one, &two, &three], &[&one, &one]];
    for (number, blobs) in lists.into_iter().enumerate() {
        let name = format!("other-{number}");
        let blobs: Vec<String> = blobs.iter().map(|blob| (*blob).clone()).collect();
        let message =
            refused(bootstrap(&calls, scratch, &name, &chain(2), &blobs, &[]).await, Code::FailedPrecondition);
        assert!(message.contains("other blobs"), "{message}");
    }
    refused(bootstrap(&calls, scratch, "alone", "", std::slice::from_ref(&one), &[]).await, Code::FailedPrecondition);
    // Files that are missing, or are somebody else's: what the layer's author has put there is not followed.
    let elsewhere = scratch.work("elsewhere");
    write(&elsewhere, "bootstrap", "b");
    fs::write(elsewhere.join("index"), index(&[one.clone(), two.clone()])).unwrap();
    type Make<'a> = &'a dyn Fn(&Path);
    let layers: [(&str, Make<'_>); 4] = [
        ("image/index", &|root| {
            fs::create_dir(root.join("image")).unwrap();
            write(root, "image/bootstrap", "b");
        }),
        ("image/bootstrap", &|root| std::os::unix::fs::symlink(&elsewhere, root.join("image")).unwrap()),
        ("image/index", &|root| {
            fs::create_dir(root.join("image")).unwrap();
            write(root, "image/bootstrap", "b");
            std::os::unix::fs::symlink(elsewhere.join("index"), root.join("image/index")).unwrap();
        }),
        ("damaged", &|root| {
            fs::create_dir(root.join("image")).unwrap();
            write(root, "image/bootstrap", "b");
            write(root, "image/index", "lazo-idx");
        }),
    ];
    for (number, (words, make)) in layers.into_iter().enumerate() {
        let made = unpack(&calls, scratch, &format!("files-{number}"), &chain(2), &[], make).await;
        let message = refused(made, Code::FailedPrecondition);
        assert!(message.contains(words), "{message}");
    }
    assert!(daemon.asked("POST /v1/mounts").is_empty());
    bootstrap(&calls, scratch, "right", &chain(2), &[one, two], &[]).await.unwrap();
    daemon.wait("POST /v1/mounts", 1).await;
}

#[tokio::test]
async fn labels_do_not_change_what_a_snapshot_is() {
    let (served, _daemon) = start().await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    let top = pull(&calls, scratch, "default").await;
    calls.layer(scratch, "plain", "", |path| write(path, "file", "plain")).await;
    calls.update(&top, &[], &["labels"]).await.unwrap();
    calls.update("plain", &[(REF, "r"), (BLOB, "b"), (BOOTSTRAP, "v1"), IMAGE], &["labels"]).await.unwrap();
    let see = async |key: &str, parent: &str| {
        let mounts = calls.prepare(key, parent, &[]).await.unwrap();
        read(Mounted::new(&mounts, &scratch.work("see")).path(), "file")
    };
    assert_eq!(see("one", &top).await, "from the image");
    assert_eq!(see("two", "plain").await, "plain");
}

#[tokio::test]
async fn another_run_directory() {
    let (served, daemon) = start().await;
    let top = pull(&served.calls(), &served.scratch, "default").await;
    daemon.wait("POST /v1/mounts", 1).await;
    served.calls().prepare("one", &top, &[]).await.unwrap();
    let link = served.scratch.state().join("3/image");
    assert_eq!(fs::read_link(&link).unwrap(), served.scratch.run().join("containerd/3"));
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(Path::new("/run/elsewhere/3"), &link).unwrap();
    let mounts = served.calls().mounts("one").await.unwrap();
    assert_eq!(read(Mounted::new(&mounts, &served.scratch.work("one")).path(), "file"), "from the image");
}

#[tokio::test]
async fn an_image_for_direct_io_is_a_fuse_tree() {
    let (served, daemon) = start().await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    refused(blob(&calls, "default", 1, "").await, Code::AlreadyExists);
    let says = |value| [("containerd.io/snapshot/lazo.direct-io", value)];
    for (number, (more, mode)) in
        [(&[] as Labels<'_>, "auto"), (&says("true"), "fuse"), (&says("false"), "auto")].into_iter().enumerate()
    {
        let name = format!("default/{}/sha256:top{number}", number + 2);
        bootstrap(&calls, scratch, &name, &chain(1), &[digest(1)], more).await.unwrap();
        let asked = daemon.wait("POST /v1/mounts", number + 1).await;
        assert_eq!(asked[number]["mode"], json!(mode), "{more:?}");
        assert_eq!((&asked[number]["nosuid"], &asked[number]["nodev"]), (&json!(false), &json!(false)));
    }
}
