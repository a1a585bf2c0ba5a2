//! What one kind of source has and others have not: logins, certificates, settings, and what users write.

use std::sync::Arc;
use std::time::Duration;

use lazo_registry::Options;
use lazo_storage::{BlobSource, BucketSource, ErrorKind, SourceSpec};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::faults::Proxy;
use crate::servers::{
    BUCKET, KEY_ID, LOGIN, PREFIX, SECRET_KEY, certificate, nginx, nginx_with_login, nginx_with_tls, s3, s3_settings,
};
use crate::suite::{bytes, exact_ranges, failure, read, record, told};

fn open(spec: &str, options: &Options) -> Arc<dyn BlobSource> {
    spec.parse::<SourceSpec>().unwrap().open(options).unwrap()
}

#[tokio::test]
async fn a_web_server_gets_the_login_of_its_url() {
    let server = nginx_with_login(&[&bytes()]);
    let source = open(&format!("http://{LOGIN}@{}/images/", server.address), &Options::default());
    assert_eq!(source.name(), format!("http://{}/images/", server.address));
    exact_ranges(source).await;
    for login in ["", "user:wrong@"] {
        let source = open(&format!("http://{login}{}/images/", server.address), &Options::default());
        assert_eq!(failure(&*source, &record(&bytes()), 0..1).await.kind, ErrorKind::Denied);
    }
}

/// Where a redirect leads to another host name, the login stays behind.
#[tokio::test]
async fn a_redirect_is_followed_without_the_login() {
    let server = nginx(&[&bytes()]);
    let proxy = Proxy::start(&server.address.to_string());
    proxy.sign_for(Some(Duration::from_secs(3600)));
    let source = open(&format!("http://{LOGIN}@{}/images/", proxy.host()), &Options::default());
    assert_eq!(read(&*source, &record(&bytes()), 10..20).await, bytes()[10..20]);
    let seen: Vec<_> = proxy.log().iter().map(|request| (request.status, request.authorized)).collect();
    assert_eq!(seen, [(307, true), (206, false)]);
}

#[tokio::test]
async fn a_certificate_is_trusted_by_its_authority_alone() {
    let server = nginx_with_tls(&[&bytes()]);
    let spec = format!("https://{}/images/", server.address);
    let untrusted = failure(&*open(&spec, &Options::default()), &record(&bytes()), 0..1).await;
    assert_eq!(untrusted.kind, ErrorKind::Untrusted);
    let options = Options { extra_ca: vec![certificate(&server)], ..Options::default() };
    exact_ranges(open(&spec, &options)).await;
}

#[tokio::test]
async fn a_bucket_wants_the_right_key() {
    let server = s3(&[&bytes()]).await;
    let with = |changed: &[(&str, Option<&str>)]| {
        let mut settings = s3_settings(server.address);
        for (key, value) in changed {
            settings.retain(|(other, _)| other != key);
            settings.extend(value.map(|value| ((*key).to_owned(), value.to_owned())));
        }
        BucketSource::new(BUCKET, PREFIX, settings, &Options::default())
    };
    let blob = record(&bytes());
    let kind = async |changed: &[(&str, Option<&str>)]| failure(&with(changed).unwrap(), &blob, 0..1).await.kind;
    assert_eq!(kind(&[("AWS_SECRET_ACCESS_KEY", Some("wrong"))]).await, ErrorKind::Denied);
    assert_eq!(kind(&[("AWS_ACCESS_KEY_ID", Some("nobody"))]).await, ErrorKind::Denied);
    // The bucket is not for everyone; and there is nobody to ask for credentials.
    assert_eq!(kind(&[("AWS_SKIP_SIGNATURE", Some("1"))]).await, ErrorKind::Denied);
    let nowhere = ("AWS_METADATA_ENDPOINT", Some("http://127.0.0.1:1"));
    let keyless = [("AWS_ACCESS_KEY_ID", None), ("AWS_SECRET_ACCESS_KEY", None), nowhere];
    assert_eq!(kind(&keyless).await, ErrorKind::Denied);

    let refused = |changed: &[(&str, Option<&str>)]| {
        let error = with(changed).err().expect("refused");
        told(error).to_string()
    };
    assert!(refused(&[("AWS_ALLOW_HTTP", None)]).contains("AWS_ALLOW_HTTP=true"));
    refused(&[("AWS_SECRET_ACCESS_KEY", None)]);
    refused(&[("AWS_SKIP_SIGNATURE", Some("perhaps"))]);
    assert_eq!(read(&with(&[("AWS_REGION", None)]).unwrap(), &blob, 0..3).await, bytes()[..3]);
}

/// Gives credentials as a container's service does: old ones once, then good ones which have to be asked for each time.
async fn credential_service(listener: TcpListener) {
    for number in 0.. {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(String::from_utf8_lossy(&head).contains("authorization: the token"));
        let (key, expiry) = if number == 0 { ("old", 2100) } else { (SECRET_KEY, 2000) };
        let body = format!(
            r#"{{"AccessKeyId": "{KEY_ID}", "SecretAccessKey": "{key}", "Token": "", "Expiration": "{expiry}-01-01T00:00:00Z"}}"#
        );
        let length = body.len();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn a_bucket_renews_credentials_that_are_refused() {
    let server = s3(&[&bytes()]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "the token").unwrap();
    let mut settings = s3_settings(server.address);
    settings.retain(|(key, _)| !key.contains("KEY"));
    let address = format!("http://{}/credentials", listener.local_addr().unwrap());
    settings.push(("AWS_CONTAINER_CREDENTIALS_FULL_URI".to_owned(), address));
    let file = token.path().to_str().unwrap().to_owned();
    settings.push(("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE".to_owned(), file));
    let source = BucketSource::new(BUCKET, PREFIX, settings, &Options::default()).unwrap();
    let service = tokio::spawn(credential_service(listener));
    let blob = record(&bytes());
    for _ in 0..2 {
        assert_eq!(read(&source, &blob, 10..20).await, bytes()[10..20]);
    }
    // Its end, after there were credentials, is an outage and no refusal.
    service.abort();
    assert!(service.await.unwrap_err().is_cancelled());
    assert_eq!(failure(&source, &blob, 10..20).await.kind, ErrorKind::Unreachable);
}

#[test]
fn what_users_write() {
    let here = std::env::current_dir().unwrap();
    let relative = format!("oci:{}/images", here.display());
    let good = [
        ("oci:/mnt/nas/images", "oci:/mnt/nas/images"),
        ("oci:images", relative.as_str()),
        ("oci:/a:b/", "oci:/a:b/"),
        ("http://host", "http://host/"),
        ("https://host:5000/a/b", "https://host:5000/a/b/"),
        ("https://user:secret@host/a/", "https://host/a/"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://my-bucket.x/a/b/", "s3://my-bucket.x/a/b"),
    ];
    for (text, shown) in good {
        let spec: SourceSpec = text.parse().unwrap();
        assert_eq!(spec.to_string(), shown);
        assert_eq!(format!("{spec:?}"), format!("SourceSpec({shown})"));
        assert_eq!(shown.parse::<SourceSpec>().unwrap().to_string(), shown);
    }
    let bad = [
        ("", "give oci:DIR"),
        ("/mnt/nas", "give oci:DIR"),
        ("oci:", "give oci:DIR"),
        ("ftp://host/", "give oci:DIR"),
        ("oci:/mnt/nas:latest", "leave out :latest"),
        ("docker://host/repository", "hosts.toml"),
        ("http://", "empty host"),
        ("https://user:secret@host/?X-Amz-Signature=secret", "neither query nor fragment"),
        ("https://host/#a", "neither query nor fragment"),
        ("s3://", "bucket's name"),
        ("s3:///a", "bucket's name"),
        ("s3://key:secret@bucket", "come from the environment"),
        ("s3://bucket/a//b", "empty"),
        ("s3://bucket/../b", ".."),
    ];
    for (text, reason) in bad {
        let error = text.parse::<SourceSpec>().unwrap_err().to_string();
        assert!(error.contains(reason), "{text}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
}
