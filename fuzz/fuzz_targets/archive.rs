//! Archives as sources: `oci-archive:` and `docker-archive:`, read to the last layer.
#![no_main]

mod mend;

use std::cell::LazyCell;
use std::fs;
use std::path::Path;

use futures_util::StreamExt;
use lazo_registry::{ImageRef, Options, Source};
use libfuzzer_sys::fuzz_target;

struct Scene {
    directory: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

thread_local! {
    static SCENE: LazyCell<Scene> = LazyCell::new(|| Scene {
        directory: tempfile::tempdir_in("/dev/shm").unwrap(),
        runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
    });
}

fuzz_target!(|data: &[u8]| {
    SCENE.with(|scene| {
        let path = scene.directory.path().join("archive.tar");
        let mut bytes = data.to_vec();
        mend::tar(&mut bytes);
        fs::write(&path, bytes).unwrap();
        for reference in [
            ImageRef::OciArchive { path: path.clone(), tag: None },
            ImageRef::DockerArchive { path: path.clone(), reference: None },
        ] {
            scene.runtime.block_on(read(&reference));
        }
        assert_eq!(entries(scene.directory.path()), 1, "a source leaves files behind");
    });
});

fn entries(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

async fn read(reference: &ImageRef) {
    let Ok(source) = Source::open(reference, &Options::default()).await else { return };
    for (_, manifest) in source.images().await.into_iter().flat_map(|images| images.images) {
        let Ok(manifest) = manifest else { continue };
        let _ = source.document(manifest.manifest.config()).await;
        for layer in manifest.manifest.layers() {
            let Ok(mut stream) = source.blob(layer).await else { continue };
            while let Some(Ok(_)) = stream.next().await {}
        }
    }
}
