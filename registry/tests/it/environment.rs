//! What comes from the environment. Each test runs itself again in a process of its own, for variables are everyone's.

use std::{
    collections::HashSet,
    fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};

use lazo_registry::{ImageRef, Options, Source};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::{
    common::{
        Image, PASSWORD, Registry, Setup, USER, open,
        server::{Reply, Server},
        write_program,
    },
    docker_registry::{certificates, certificates_for},
    tls::self_signed,
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
async fn the_systems_authorities_vouch_for_others_only() {
    if let Some(reference) = subject() {
        let options = Options { loopback_tls: true, ..Options::default() };
        let error = Source::open(&reference, &options).await.unwrap().root().await.unwrap_err();
        assert_eq!(error.kind(), lazo_registry::ErrorKind::Untrusted, "{error}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let pair = self_signed(directory.path(), "own", &["subjectAltName=IP:127.0.0.1"]);
    let certificate = pair.certificate.to_str().unwrap().to_owned();
    let registry = Registry::with(&Setup { tls: Some((pair.certificate, pair.key)), ..Setup::default() });
    let name = "the_systems_authorities_vouch_for_others_only";
    again(name, &registry.reference("app:1"), &[("SSL_CERT_FILE", certificate.as_str())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insecure_registry_may_speak_plain_http() {
    let options = Options { attempts: 1, ..Options::default() };
    if let Some(reference) = subject() {
        let error = Source::open(&reference, &options).await.unwrap().root().await.unwrap_err().to_string();
        assert!(error.contains("does not speak TLS") && error.contains("--plain-http"), "{error}");
        let insecure = Options { insecure: true, ..options };
        let source = Source::open(&reference, &insecure).await.unwrap();
        source.root().await.unwrap();
        source.root().await.unwrap();
        return;
    }
    let manifest = Image::new("amd64", &[], lazo_format::Algorithm::Sha256).manifest;
    let registry = Server::start(move |_| {
        Reply::ok(manifest.bytes.clone()).with("content-type", manifest.descriptor.media_type())
    })
    .await;
    // Whoever asks the proxy for TLS comes to a server that has none.
    let (tunnel, asked) = connect_proxy(registry.address.to_string(), 0).await;
    let (tunnel, plain) = (format!("http://{tunnel}"), format!("http://{}", registry.address));
    let reference: ImageRef = "docker://registry.invalid:5000/app:1".parse().unwrap();
    let mut variables = vec![("HTTPS_PROXY", tunnel.as_str()), ("HTTP_PROXY", &plain), ("http_proxy", &plain)];
    variables.extend([("NO_PROXY", ""), ("no_proxy", "")]);
    again("an_insecure_registry_may_speak_plain_http", &reference, &variables);
    // Once without leave to, once to find it out, and never again.
    assert_eq!(asked.lock().unwrap().len(), 2);
    let hosts: Vec<String> = registry.seen().iter().map(|seen| seen.header("host").to_owned()).collect();
    assert_eq!(hosts, ["registry.invalid:5000"; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insecure_registry_whose_tls_breaks_is_not_asked_in_the_clear() {
    if let Some(reference) = subject() {
        let login = Some(lazo_registry::Login::new(USER, PASSWORD));
        let options = Options { insecure: true, attempts: 1, login, ..Options::default() };
        let source = Source::open(&reference, &options).await.unwrap();
        let error = source.root().await.unwrap_err();
        assert_eq!(error.kind(), lazo_registry::ErrorKind::Unreachable, "{error}");
        source.root().await.unwrap();
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let pair = self_signed(directory.path(), "own", &["subjectAltName=IP:127.0.0.1"]);
    let tls = Some((pair.certificate.clone(), pair.key.clone()));
    let registry = Registry::with(&Setup { basic_auth: true, tls, ..Setup::default() });
    let login = Some(lazo_registry::Login::new(USER, PASSWORD));
    let options = Options { extra_ca: vec![pair.certificate], login, ..Options::default() };
    Image::sample().write(&registry.reference("app:1"), &options).await;
    // As most hosts have it.
    let plain = Server::start(|seen| {
        Reply::status(301).with("location", format!("https://{}{}", seen.header("host"), seen.path))
    })
    .await;
    let (tunnel, _) = connect_proxy(registry.address.clone(), 1).await;
    let (tunnel, clear) = (format!("http://{tunnel}"), format!("http://{}", plain.address));
    let reference: ImageRef = "docker://registry.invalid/app:1".parse().unwrap();
    let mut variables = vec![("HTTPS_PROXY", tunnel.as_str()), ("HTTP_PROXY", &clear), ("http_proxy", &clear)];
    variables.extend([("NO_PROXY", ""), ("no_proxy", "")]);
    again("an_insecure_registry_whose_tls_breaks_is_not_asked_in_the_clear", &reference, &variables);
    assert!(plain.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_answers_in_the_clear_at_another_port_must_be_a_registry() {
    const OTHERS: usize = 4;
    if let Some(reference) = subject() {
        let options = Options { insecure: true, attempts: 1, ..Options::default() };
        let source = Source::open(&reference, &options).await.unwrap();
        for _ in 0..OTHERS {
            let error = source.root().await.unwrap_err();
            assert_eq!(error.kind(), lazo_registry::ErrorKind::Unreachable, "{error}");
        }
        source.root().await.unwrap();
        source.root().await.unwrap();
        return;
    }
    let manifest = Image::new("amd64", &[], lazo_format::Algorithm::Sha256).manifest;
    let plain = Server::start(move |seen| match seen.number {
        0 => Reply::status(301).with("location", format!("https://{}{}", seen.header("host"), seen.path)),
        1 => Reply::status(503),
        2 => Reply::status(401),
        3 => Reply::status(404).with("content-type", "text/html"),
        _ => Reply::ok(manifest.bytes.clone()).with("content-type", manifest.descriptor.media_type()),
    })
    .await;
    let clear = format!("http://{}", plain.address);
    let reference: ImageRef = "docker://registry.invalid/app:1".parse().unwrap();
    // Where nobody listens.
    let mut variables = vec![("HTTPS_PROXY", "http://127.0.0.1:1"), ("HTTP_PROXY", &clear), ("http_proxy", &clear)];
    variables.extend([("NO_PROXY", ""), ("no_proxy", "")]);
    again("what_answers_in_the_clear_at_another_port_must_be_a_registry", &reference, &variables);
    assert_eq!(plain.seen().len(), OTHERS + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn finds_the_home_directory_without_an_environment() {
    if let Some(reference) = subject() {
        Image::sample().check(&open(&reference).await).await;
        return;
    }
    let registry = Registry::with(&Setup { basic_auth: true, ..Setup::default() });
    let reference = registry.reference("private:1");
    let login = Options { login: Some(lazo_registry::Login::new(USER, PASSWORD)), ..Options::default() };
    Image::sample().write(&reference, &login).await;
    let home = tempfile::tempdir().unwrap();
    let passwd = home.path().join("passwd");
    fs::write(&passwd, format!("root:x:0:0:root:{}:/bin/sh\n", home.path().display())).unwrap();
    let entry = format!(r#"{{"auths":{{"{}":{{"username":"{USER}","password":"{PASSWORD}"}}}}}}"#, registry.address);
    let helper = "#!/bin/sh\ncat \"$HOME/kept\"\n";
    let kept = format!(r#"{{"Username":"{USER}","Secret":"{PASSWORD}"}}"#);
    let program = home.path().join("docker-credential-home");
    fs::write(home.path().join("kept"), kept).unwrap();
    write_program(&program, helper);
    for (file, content) in [
        (".docker/config.json", entry.as_str()),
        (".config/containers/auth.json", &entry),
        (".docker/config.json", r#"{"credsStore":"home"}"#),
    ] {
        let file = home.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, content).unwrap();
        // With another password database, which only this process sees.
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/passwd && exec \"$@\""]);
        command.arg(&passwd).arg(std::env::current_exe().unwrap());
        command.args(["--exact", "environment::finds_the_home_directory_without_an_environment"]);
        command.env_clear().env("PATH", format!("{}:{}", home.path().display(), std::env::var("PATH").unwrap()));
        let output = command.env(SUBJECT, reference.to_string()).output().unwrap();
        assert!(output.status.success(), "{content}: {}", String::from_utf8_lossy(&output.stdout));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
        fs::remove_file(&file).unwrap();
    }
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
    let program = write("bin/docker-credential-test", String::new());
    fs::remove_file(&program).unwrap();
    write_program(&program, &helper);
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

#[tokio::test(flavor = "multi_thread")]
async fn asks_a_helper_again_when_its_login_has_expired() {
    if let Some(reference) = subject() {
        let source = open(&reference).await;
        source.root().await.unwrap_err();
        // From the second answer on the helper has another password, and the registry wants it.
        source.root().await.unwrap_err();
        assert_eq!(source.root().await.unwrap_err().kind(), lazo_registry::ErrorKind::NotFound);
        return;
    }
    // As some registries do: 403 for a login that has expired.
    let server = Server::start(|seen| match (seen.header("authorization"), seen.number) {
        ("", _) => Reply::status(401).with("www-authenticate", "Basic realm=\"r\""),
        // "me:1", then "me:2", "me:3", ... as the helper counts.
        ("Basic bWU6MQ==", 0..2) => Reply::status(404),
        ("Basic bWU6MQ==", _) => Reply::status(403),
        ("Basic bWU6Mg==", _) => Reply::status(404),
        other => panic!("{other:?}"),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let script = format!(
        "#!/bin/sh\nn=$(($(cat {0} 2>/dev/null) + 1)); echo $n > {0}; echo \"{{\\\"Username\\\":\\\"me\\\",\\\"Secret\\\":\\\"$n\\\"}}\"\n",
        path("count")
    );
    write_program(path("docker-credential-counting").as_ref(), &script);
    fs::write(path("config.json"), r#"{"credsStore":"counting"}"#).unwrap();
    let search = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    let variables = [("PATH", search.as_str()), ("REGISTRY_AUTH_FILE", ""), ("DOCKER_CONFIG", &path(""))];
    again("asks_a_helper_again_when_its_login_has_expired", &server.reference("app:1"), &variables);
    assert_eq!(fs::read_to_string(path("count")).unwrap().trim(), "2");
}

/// A proxy that knows CONNECT only, and leads everyone to `to`, but for the first `broken`, whose connections it breaks; what it was
/// asked for.
async fn connect_proxy(to: String, broken: usize) -> (std::net::SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let log = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (to, log) = (to.clone(), log.clone());
            tokio::spawn(async move {
                let mut client = BufReader::new(stream);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    assert!(client.read_line(&mut head).await.unwrap() > 0);
                }
                let asked = {
                    let mut log = log.lock().unwrap();
                    log.push(head.lines().next().unwrap().to_owned());
                    log.len()
                };
                client.write_all(b"HTTP/1.1 200 go on\r\n\r\n").await.unwrap();
                if asked <= broken {
                    return;
                }
                let mut server = TcpStream::connect(to).await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
            });
        }
    });
    (address, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_tls_through_the_proxies_of_environment_and_hosts_toml() {
    let ca = std::env::var_os("LAZO_TEST_CA").map(Into::into).into_iter().collect();
    let options = Options { extra_ca: ca, attempts: 1, ..Options::default() };
    if let Some(reference) = subject() {
        let remote = Source::open(&reference, &options).await.unwrap();
        Image::sample().check(&remote).await;
        let direct: ImageRef = "docker://direct.invalid/app:1".parse().unwrap();
        let error = Source::open(&direct, &options).await.unwrap().root().await.unwrap_err();
        assert_eq!(error.kind(), lazo_registry::ErrorKind::Unreachable, "{error}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    certificates_for(directory.path(), "DNS:registry.invalid,IP:127.0.0.1");
    let file = |name: &str| directory.path().join(name);
    let registry = Registry::with(&Setup { tls: Some((file("cert.pem"), file("key.pem"))), ..Setup::default() });
    let image = Image::sample();
    let trusting = Options { loopback_tls: true, extra_ca: vec![file("ca.pem")], ..Options::default() };
    image.write(&registry.reference("app:1"), &trusting).await;
    let (proxy, asked) = connect_proxy(registry.address.clone(), 0).await;
    let reference: ImageRef = "docker://registry.invalid/app:1".parse().unwrap();
    let (url, ca) = (format!("http://{proxy}"), file("ca.pem"));
    let variables =
        [("HTTPS_PROXY", url.as_str()), ("NO_PROXY", "direct.invalid"), ("LAZO_TEST_CA", ca.to_str().unwrap())];
    again("tunnels_tls_through_the_proxies_of_environment_and_hosts_toml", &reference, &variables);
    let lines: HashSet<String> = asked.lock().unwrap().drain(..).collect();
    assert_eq!(lines, HashSet::from(["CONNECT registry.invalid:443 HTTP/1.1".to_owned()]));

    // The file's proxy is for its host, a local one included.
    let hosts = tempfile::tempdir().unwrap();
    fs::create_dir(hosts.path().join("other.invalid")).unwrap();
    let text = format!("server = 'https://127.0.0.1:9'\nca = '{}'\nproxy = '{url}'\n", ca.display());
    fs::write(hosts.path().join("other.invalid/hosts.toml"), text).unwrap();
    let options = Options { hosts_dir: Some(hosts.path().to_owned()), ..Options::default() };
    let other: ImageRef = "docker://other.invalid/app:1".parse().unwrap();
    image.check(&Source::open(&other, &options).await.unwrap()).await;
    assert!(asked.lock().unwrap().iter().all(|line| line == "CONNECT 127.0.0.1:9 HTTP/1.1"));
}
