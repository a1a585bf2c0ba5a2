//! The conformance suite of sources, against real servers.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "../../tests/support/faults.rs"]
#[expect(dead_code, reason = "the end-to-end tests use more of it")]
mod faults;
#[path = "sources/http.rs"]
mod http;
#[path = "sources/layout.rs"]
mod layout;
#[path = "sources/servers.rs"]
mod servers;
#[path = "sources/settings.rs"]
mod settings;
#[path = "sources/suite.rs"]
mod suite;

/// A module with the suite for a source that speaks HTTP: how to start its server, and how to reach it.
macro_rules! http_suite {
    ($name:ident, $server:expr, $reach:expr) => {
        mod $name {
            use super::*;

            http_suite!(@good $server, $reach, exact_ranges parallel_ranges other_blobs dropped_streams);
            http_suite!(@bad $server, $reach, refusals other_answers broken_connections hung_server);

            #[tokio::test]
            async fn connections() {
                http::connections($reach).await;
            }
        }
    };
    (@good $server:expr, $reach:expr, $($test:ident)*) => {$(
        #[tokio::test]
        async fn $test() {
            let server = $server.await;
            suite::$test($reach(server.address)).await;
        }
    )*};
    (@bad $server:expr, $reach:expr, $($test:ident)*) => {$(
        #[tokio::test]
        async fn $test() {
            http::$test(http::Fixture::new($server.await, $reach)).await;
        }
    )*};
}

mod reach {
    //! Sources at the address of a server, or of a proxy before it.

    use std::net::SocketAddr;
    use std::sync::Arc;

    use lazo_registry::{ImageRef, Options, Source};
    use lazo_storage::{BlobSource, BucketSource, SourceSpec, of_image};

    use super::servers::{BUCKET, PREFIX, REPOSITORY, s3_settings};

    pub(super) fn registry(address: SocketAddr) -> Arc<dyn BlobSource> {
        let reference: ImageRef = format!("docker://{address}/{REPOSITORY}:latest").parse().unwrap();
        let opened = futures_util::FutureExt::now_or_never(Source::open(&reference, &Options::default()));
        let sources = of_image(&opened.expect("no network").unwrap()).unwrap();
        let [source] = sources.try_into().ok().expect("one source");
        assert_eq!(source.name(), format!("docker://{address}/{REPOSITORY}"));
        source
    }

    pub(super) fn web(address: SocketAddr) -> Arc<dyn BlobSource> {
        let spec: SourceSpec = format!("http://{address}/images").parse().unwrap();
        let source = spec.open(&Options::default()).unwrap();
        assert_eq!(source.name(), format!("http://{address}/images/"));
        source
    }

    pub(super) fn bucket(address: SocketAddr) -> Arc<dyn BlobSource> {
        let source = BucketSource::new(BUCKET, PREFIX, s3_settings(address), &Options::default()).unwrap();
        assert_eq!(source.name(), format!("s3://{BUCKET}/{PREFIX}"));
        Arc::new(source)
    }
}

http_suite!(registry, servers::docker_registry(&[&suite::bytes()]), reach::registry);
http_suite!(web, async { servers::nginx(&[&suite::bytes()]) }, reach::web);
http_suite!(bucket, servers::s3(&[&suite::bytes()]), reach::bucket);
