//! Logins that are checked with a registry and kept, as other programs find them.

use std::fs;

use lazo_registry::{Error, Login, Options, Place, Source, check_login, forget_login, keep_login};

use crate::{
    common::{Image, PASSWORD, Registry, Setup, USER, run},
    tls::self_signed,
};

#[tokio::test]
async fn a_login_is_checked_and_kept_where_skopeo_finds_it() {
    let directory = tempfile::tempdir().unwrap();
    let pair = self_signed(directory.path(), "own", &["subjectAltName=IP:127.0.0.1"]);
    let tls = Some((pair.certificate.clone(), pair.key.clone()));
    let registry = Registry::with(&Setup { basic_auth: true, tls, ..Setup::default() });
    let file = directory.path().join("auth.json");
    let options =
        Options { auth_file: Some(file.clone()), extra_ca: vec![pair.certificate.clone()], ..Options::default() };
    let place: Place = registry.address.parse().unwrap();
    let login = Login::new(USER, PASSWORD);
    let wrong = check_login(&place, &Login::new(USER, "secret-wrong"), &options).await.unwrap_err();
    assert!(matches!(wrong, Error::Denied { .. }) && !format!("{wrong} {wrong:?}").contains("secret"), "{wrong:?}");
    assert!(check_login(&place, &login, &options).await.unwrap());
    assert!(!file.exists(), "it is only checked");
    assert_eq!(keep_login(&place, &login, &options).await.unwrap(), file.display().to_string());

    let image = Image::sample();
    let reference = registry.reference("team/app:1");
    image.write(&reference, &options).await;
    let inspect = |file: &str| {
        let all = ["inspect", "--raw", "--tls-verify=false", "--authfile", file, &reference.to_string()];
        std::process::Command::new("skopeo").args(all).output().unwrap()
    };
    let found = inspect(file.to_str().unwrap());
    assert_eq!(found.stdout, image.manifest.bytes, "{}", String::from_utf8_lossy(&found.stderr));
    // And what skopeo keeps is found here, and goes when it is to.
    fs::remove_file(&file).unwrap();
    let keep = ["login", "--tls-verify=false", "--authfile", file.to_str().unwrap(), "-u", USER, "-p", PASSWORD];
    run("skopeo", &[&keep[..], &[&registry.address]].concat());
    image.check(&Source::open(&reference, &options).await.unwrap()).await;
    assert!(forget_login(&place, &options).await.unwrap().is_some());
    // Connections and logins are shared by options; those that are made anew know no login any more.
    let fresh = Options { shared: lazo_registry::Shared::default(), ..options.clone() };
    assert!(Source::open(&reference, &fresh).await.unwrap().root().await.is_err());
    // For one repository alone.
    let part: Place = format!("{}/team", registry.address).parse().unwrap();
    keep_login(&part, &login, &fresh).await.unwrap();
    image.check(&Source::open(&reference, &fresh).await.unwrap()).await;
    assert!(Source::open(&registry.reference("other/app:1"), &fresh).await.unwrap().root().await.is_err());
}

#[tokio::test]
async fn a_registry_that_lets_everyone_in_checks_no_login() {
    let registry = Registry::start();
    let place = registry.address.parse().unwrap();
    assert!(!check_login(&place, &Login::new("me", "pw"), &Options::default()).await.unwrap());
    let nowhere = "127.0.0.1:1".parse().unwrap();
    let hasty = Options { attempts: 1, ..Options::default() };
    assert!(check_login(&nowhere, &Login::new("me", "pw"), &hasty).await.is_err());
}

#[tokio::test]
async fn a_login_that_another_host_would_not_be_sent_is_not_called_checked() {
    let (registry, open) = (Registry::with(&Setup { basic_auth: true, ..Setup::default() }), Registry::start());
    let hosts = tempfile::tempdir().unwrap();
    let own = hosts.path().join(&registry.address);
    fs::create_dir(&own).unwrap();
    let options = Options { hosts_dir: Some(hosts.path().to_owned()), ..Options::default() };
    let place: Place = registry.address.parse().unwrap();
    let check = async |server: &str, password: &str| {
        fs::write(own.join("hosts.toml"), server).unwrap();
        check_login(&place, &Login::new(USER, password), &options).await
    };
    let elsewhere = format!("server = 'http://{}'", open.address);
    let error = check(&elsewhere, "secret-wrong").await.unwrap_err();
    let told = error.to_string();
    assert!(matches!(error, Error::Credentials { .. }) && told.contains(&open.address), "{error:?}");
    // A mirror before it is not asked.
    let mirror = format!("[host.'http://{}']", open.address);
    for file in [mirror, format!("server = 'http://{}'", registry.address)] {
        check(&file, "secret-wrong").await.unwrap_err();
        assert!(check(&file, PASSWORD).await.unwrap(), "{file}");
    }
}

/// In a process of its own, for PATH is everyone's: see [`crate::environment`].
#[tokio::test]
async fn a_helper_keeps_logins_where_the_file_says_so() {
    const SUBJECT: &str = "LAZO_TEST_KEEPING";
    let Ok(directory) = std::env::var(SUBJECT) else {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("docker-credential-kept");
        let text = "#!/bin/sh\ncase $1 in\nstore) cat > $DIR/kept; mv $DIR/meanwhile $DIR/config.json || :;;\nerase) cat > $DIR/erased; rm -f $DIR/kept;;\n\
                    get) cat $DIR/kept || { echo credentials not found in native keychain; exit 1; };;\nesac\n";
        crate::common::write_program(&script, text);
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "keeping::a_helper_keeps_logins_where_the_file_says_so"]);
        let search = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
        command.env("PATH", search).env("DIR", directory.path()).env(SUBJECT, directory.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
        return;
    };
    let directory = std::path::Path::new(&directory);
    let registry = Registry::with(&Setup { basic_auth: true, ..Setup::default() });
    let file = directory.join("config.json");
    fs::write(&file, r#"{"credsStore":"kept","detachKeys":"ctrl-x"}"#).unwrap();
    let options = Options { auth_file: Some(file.clone()), ..Options::default() };
    let place: Place = registry.address.parse().unwrap();
    let login = Login::new(USER, PASSWORD);
    assert_eq!(keep_login(&place, &login, &options).await.unwrap(), "docker-credential-kept");
    let text = fs::read_to_string(&file).unwrap();
    assert!(!text.contains("\"auth\"") && text.contains("detachKeys") && text.contains(&registry.address), "{text}");
    let kept: serde_json::Value = serde_json::from_slice(&fs::read(directory.join("kept")).unwrap()).unwrap();
    let expected = serde_json::json!({"ServerURL": registry.address, "Username": USER, "Secret": PASSWORD});
    assert_eq!(kept, expected);
    Image::sample().write(&registry.reference("app:1"), &options).await;

    let part: Place = format!("{}/team", registry.address).parse().unwrap();
    let error = keep_login(&part, &login, &options).await.unwrap_err().to_string();
    assert!(error.contains("whole registries only") && error.contains("--authfile"), "{error}");
    // What others write while the helper runs is kept.
    fs::write(directory.join("meanwhile"), r#"{"credsStore":"kept","auths":{"other.example":{}}}"#).unwrap();
    keep_login(&place, &login, &options).await.unwrap();
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("other.example") && text.contains(&registry.address), "{text}");
    assert_eq!(forget_login(&place, &options).await.unwrap().as_deref(), Some("docker-credential-kept"));
    assert_eq!(fs::read_to_string(directory.join("erased")).unwrap(), registry.address);
    assert!(!fs::read_to_string(&file).unwrap().contains(&registry.address));
}
