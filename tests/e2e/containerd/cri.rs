//! The kubelet's image requests on their way to containerd's CRI plugin, with logins that nobody else knows.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

use super::{CONFIG, sockets::authorities, sockets::channel};
use crate::support::{
    Scratch,
    containerd::{Site, name_of},
    crafted::{Layer, convert, publish},
    grpc::GoClient,
    metrics::until,
    node::Node,
    random::Random,
    registry::{self, Registry},
    skopeo_copy, stdout_of,
};

#[derive(Clone, PartialEq, prost::Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AuthConfig {
    #[prost(string, tag = "1")]
    username: String,
    #[prost(string, tag = "2")]
    password: String,
}

/// `PullImage`, and without a login `RemoveImage`.
#[derive(Clone, PartialEq, prost::Message)]
struct ImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    auth: Option<AuthConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PullImageResponse {
    #[prost(string, tag = "1")]
    image_ref: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

/// `Version`.
#[derive(Clone, PartialEq, prost::Message)]
struct VersionResponse {
    #[prost(string, tag = "2")]
    runtime_name: String,
}

/// `ImageStatus`, as far as it says that there is one.
#[derive(Clone, PartialEq, prost::Message)]
struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

/// A kubelet, as far as images go.
pub(super) struct Kubelet {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
}

impl Kubelet {
    pub(super) fn new(socket: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
        let _entered = runtime.enter();
        let channel = channel(socket);
        Self { runtime, channel }
    }

    fn call<A, B>(&self, method: &'static str, message: A) -> Result<B, Status>
    where
        A: prost::Message + 'static,
        B: prost::Message + Default + 'static,
    {
        self.runtime.block_on(async {
            let mut client = Grpc::new(self.channel.clone());
            client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
            let answer = client.unary(Request::new(message), PathAndQuery::from_static(method), ProstCodec::default());
            answer.await.map(tonic::Response::into_inner)
        })
    }

    pub(super) fn pull(&self, image: &str, login: Option<&str>) -> Result<PullImageResponse, Status> {
        let auth = login
            .and_then(|login| login.split_once(':'))
            .map(|(username, password)| AuthConfig { username: username.to_owned(), password: password.to_owned() });
        let image = Some(ImageSpec { image: name_of(image).to_owned() });
        self.call("/runtime.v1.ImageService/PullImage", ImageRequest { image, auth })
    }

    pub(super) fn remove(&self, image: &str) {
        let image = Some(ImageSpec { image: name_of(image).to_owned() });
        let removed = self.call::<_, Empty>("/runtime.v1.ImageService/RemoveImage", ImageRequest { image, auth: None });
        removed.expect("the image is removed");
    }
}

/// The part of the configuration that has the kubelet's requests pass.
fn sockets(scratch: &Scratch) -> String {
    format!(
        "cri_socket = \"{}\"\ncontainerd_socket = \"{}\"\n",
        scratch.join("run/cri.sock").display(),
        scratch.join("containerd.sock").display()
    )
}

/// Kubelets before 1.26 say the socket's path where a host should be.
#[test]
fn a_kubelet_may_take_the_sockets_path_for_a_host() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let image = publish(&scratch, &registry, "app", vec![Layer::new().busybox()]).1;
    let _node = Node::with(&scratch, &format!("{CONFIG}{}", sockets(&scratch)));
    let _site = Site::with(&scratch, true);
    let socket = scratch.join("run/cri.sock");
    for authority in authorities(&socket) {
        let mut kubelet = GoClient::new(&socket, authority.as_deref());
        let version: VersionResponse = kubelet
            .call("/runtime.v1.RuntimeService/Version", &Empty {})
            .unwrap_or_else(|error| panic!("{authority:?}: {error}"));
        assert_eq!(version.runtime_name, "containerd", "{authority:?}");
        let request = |image: &str| ImageRequest { image: Some(ImageSpec { image: image.to_owned() }), auth: None };
        let image = request(name_of(&image));
        let pulled: PullImageResponse = kubelet.call("/runtime.v1.ImageService/PullImage", &image).expect("a pull");
        assert!(pulled.image_ref.starts_with("sha256:"), "{pulled:?}");
        for _ in 0..200 {
            let status: ImageStatusResponse =
                kubelet.call("/runtime.v1.ImageService/ImageStatus", &image).expect("a status");
            assert_eq!(status.image.expect("the image").image, pulled.image_ref);
        }
        // Some hundred frames.
        let long = request(&"x".repeat(6 << 20));
        let refused = kubelet.call::<_, ImageStatusResponse>("/runtime.v1.ImageService/ImageStatus", &long);
        assert!(refused.is_err() || refused == Ok(ImageStatusResponse::default()), "{authority:?}");
        let removed: Empty = kubelet.call("/runtime.v1.ImageService/RemoveImage", &image).expect("it is removed");
        assert_eq!(removed, Empty {});
    }
}

#[test]
fn a_pods_login_is_kept_as_long_as_its_image() {
    let scratch = Scratch::new();
    let registry = Registry::with_basic_auth(&scratch, "registry");
    let mut random = Random::new(7);
    let noise: Vec<u8> = (0..3 << 17).flat_map(|_| random.next().to_le_bytes()).collect();
    let layer = Layer::new().busybox().file("data/first", 0o644, b"first\n");
    let layout = convert(&scratch, "app", vec![layer, Layer::new().file("data/second", 0o644, &noise)]);
    let image = registry.image("app:lazo");
    skopeo_copy(&layout, &image, &["--dest-creds", registry::USER]);
    let sockets = sockets(&scratch);
    let node = Node::with(&scratch, &format!("{CONFIG}{sockets}"));
    let mut site = Site::with(&scratch, true);
    let kubelet = Kubelet::new(&scratch.join("run/cri.sock"));
    let kept = scratch.join("state/credentials.json");

    let refused = kubelet.pull(&image, None).expect_err("a login is needed");
    assert!(refused.message().contains("401"), "{refused}");
    let refused = kubelet.pull(&image, Some("user:wrong")).expect_err("the right one");
    assert_ne!(refused.code(), Code::Unavailable, "{refused}");
    assert!(!kept.exists(), "no login is kept for a pull that failed before a layer was seen");

    let pulled = kubelet.pull(&image, Some(registry::USER)).expect("a pull");
    assert!(pulled.image_ref.starts_with("sha256:"), "{pulled:?}");
    assert_eq!(site.content("k8s.io").len(), 3, "manifest, config and bootstrap");
    assert_eq!(fs::metadata(&kept).expect("the kept login").permissions().mode() & 0o777, 0o600);

    let read = |file: &str| {
        let (_, mut command) = site.container("k8s.io", "lazo", &image, &["--rm"]);
        stdout_of(command.args(["/bin/sh", "-c", &format!("sha256sum /data/{file}")]))
    };
    read("first");
    // What was in memory is gone; the data of the second file is fetched with the login that was kept.
    node.kill();
    let _node = Node::with(&scratch, &format!("{CONFIG}{sockets}"));
    let digest = lazo_format::Digest::sha256_of(&noise);
    assert!(read("second").starts_with(&digest.hex()), "the second file");

    // A kubelet's connection outlives neither, but its next call comes through.
    site.kill_snapshotter();
    site.start_snapshotter();
    until("the kubelet is answered again", || kubelet.pull(&image, Some(registry::USER)).ok());
    site.kill_containerd();
    let refused = kubelet.pull(&image, Some(registry::USER)).expect_err("containerd is not there");
    assert!(refused.code() == Code::Unavailable && refused.message().contains("containerd.sock"), "{refused}");
    site.start_containerd();
    until("containerd is called again", || kubelet.pull(&image, Some(registry::USER)).ok());

    kubelet.remove(&image);
    until("the login is forgotten", || {
        let text = fs::read_to_string(&kept).expect("the file");
        (!text.contains("app")).then_some(())
    });
}
