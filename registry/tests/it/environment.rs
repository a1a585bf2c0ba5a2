//! What comes from the environment. Each test runs itself again in a process of its own, for variables are everyone's.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use lazo_registry::{ImageRef, Options, Source};

use crate::{
    common::{
        Image, PASSWORD, Registry, Setup, USER, open,
        server::{Reply, Server},
    },
    docker_registry::certificates,
};

/// Holds the reference to look at, in the child.
const SUBJECT: &str = "LAZO_TEST_SUBJECT";

/// The reference, when this is the child.
fn subject() -> Option<ImageRef> {
    std::env::var(SUBJECT).ok().map(|s| s.parse().unwrap())
}

/// Runs the test `name` again with `variables` set; it must succeed.
fn again(name: &str, subject: &ImageRef, variables: &[(&str, &str)]) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("environment::{name}")]).env(SUBJECT, subject.to_string());
    for (variable, value) in variables {
        command.env(variable, value);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn trusts_the_authorities_of_ssl_cert_file() {
    if let Some(reference) = subject() {
        let options = Options { loopback_tls: true, ..Options::default() };
        Source::open(&reference, &options).await.unwrap().root().await.unwrap();
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let file = |name: &str| directory.path().join(name);
    let registry = Registry::with(&Setup { tls: Some((file("cert.pem"), file("key.pem"))), ..Setup::default() });
    let trusting = Options { loopback_tls: true, extra_ca: vec![file("ca.pem")], ..Options::default() };
    let reference = registry.reference("app:1");
    Image::sample().write(&reference, &trusting).await;
    let ca = file("ca.pem");
    again("trusts_the_authorities_of_ssl_cert_file", &reference, &[("SSL_CERT_FILE", ca.to_str().unwrap())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn goes_through_the_proxy_but_never_to_loopback() {
    if let Some(loopback) = subject() {
        let remote: ImageRef = "docker://registry.invalid/app:1".parse().unwrap();
        for reference in [remote, loopback] {
            let options = Options { plain_http: true, ..Options::default() };
            Source::open(&reference, &options).await.unwrap().root().await.unwrap();
        }
        return;
    }
    let manifest = Image::new("amd64", &[], lazo_format::Algorithm::Sha256).manifest;
    let serve = move || {
        let manifest = manifest.clone();
        move |_: &_| Reply::ok(manifest.bytes.clone()).with("content-type", manifest.descriptor.media_type())
    };
    let (proxy, registry) = (Server::start(serve()).await, Server::start(serve()).await);
    let url = format!("http://{}", proxy.address);
    let name = "goes_through_the_proxy_but_never_to_loopback";
    again(name, &registry.reference("app:1"), &[("http_proxy", &url), ("HTTP_PROXY", &url), ("no_proxy", "")]);
    let hosts: Vec<String> = proxy.seen().iter().map(|s| s.header("host").to_owned()).collect();
    assert_eq!(hosts, ["registry.invalid"]);
    assert_eq!(registry.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn finds_logins_where_docker_keeps_them() {
    if let Some(reference) = subject() {
        Image::sample().check(&open(&reference).await).await;
        return;
    }
    let registry = Registry::with(&Setup { basic_auth: true, ..Setup::default() });
    let reference = registry.reference("private:1");
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, content: String| {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    };
    let login = format!(r#"{{"auths":{{"{}":{{"username":"{USER}","password":"{PASSWORD}"}}}}}}"#, registry.address);
    let file = write("auth.json", login.clone());
    let options = Options { auth_file: Some(file.clone()), ..Options::default() };
    Image::sample().write(&reference, &options).await;

    write("home/.docker/config.json", login.clone());
    write("docker/config.json", login.clone());
    write("runtime/containers/auth.json", login);
    let helper = format!(
        "#!/bin/sh\nread server\n[ \"$1 $server\" = 'get {}' ] && echo '{{\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n",
        registry.address
    );
    let helper = write("bin/docker-credential-test", helper);
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    write("helped/config.json", format!(r#"{{"credHelpers":{{"{}":"test"}}}}"#, registry.address));
    write("stored/config.json", r#"{"auths":{},"credsStore":"test"}"#.to_owned());

    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let search = format!("{}:{}", path("bin"), std::env::var("PATH").unwrap());
    let empty = path("empty");
    for (variable, value) in [
        ("REGISTRY_AUTH_FILE", file.to_str().unwrap().to_owned()),
        ("HOME", path("home")),
        ("DOCKER_CONFIG", path("docker")),
        ("DOCKER_CONFIG", path("helped")),
        ("DOCKER_CONFIG", path("stored")),
        ("XDG_RUNTIME_DIR", path("runtime")),
    ] {
        assert!(Path::new(&value).exists());
        let nowhere = [("REGISTRY_AUTH_FILE", ""), ("HOME", &empty), ("DOCKER_CONFIG", ""), ("XDG_RUNTIME_DIR", "")];
        let variables = [&nowhere[..], &[("PATH", &search), (variable, &value)]].concat();
        again("finds_logins_where_docker_keeps_them", &reference, &variables);
    }
}
