//! What a conversion must not replace unasked: an ordinary image, of which the converted one may be the only copy's heir.

use lazo_registry::{Content, Document, ImageRef, LazoLayers, Options, Source, is_attestation};

use crate::error::Error;

/// Most manifests of an index looked at; one that has more counts as ordinary. The largest official images have about 20.
const MAX_LOOKED_AT: usize = 64;

/// Refuses a destination that holds an ordinary image, or that may hold one. One that may not be read is let pass: an account may push
/// and not pull.
pub(crate) async fn check_overwrite(destination: &ImageRef, options: &Options) -> Result<(), Error> {
    let path = match destination {
        ImageRef::OciArchive { path, .. } => path.as_path(),
        ImageRef::OciLayout { path, .. } => path.as_path(),
        ImageRef::Docker(_) | ImageRef::DockerArchive { .. } => std::path::Path::new("/"),
    };
    // What is not there, or an empty file that somebody made for the purpose, is nobody's image.
    if std::fs::metadata(path).map_or(true, |found| found.is_file() && found.len() == 0) {
        return Ok(());
    }
    match holds_ordinary(destination, options).await {
        Ok(false) => Ok(()),
        Ok(true) => Err(Error::Overwrites { destination: destination.to_string() }),
        Err(error @ lazo_registry::Error::Denied { .. }) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "cannot see whether {destination} holds an ordinary image");
            Ok(())
        }
        Err(source) => Err(Error::MayOverwrite { destination: destination.to_string(), source: Box::new(source) }),
    }
}

async fn holds_ordinary(destination: &ImageRef, options: &Options) -> Result<bool, lazo_registry::Error> {
    let source = Source::open(destination, options).await?;
    let mut pending: Vec<Document> = source.replaced().await?;
    let mut looked_at = 0;
    while let Some(document) = pending.pop() {
        looked_at += 1;
        match document.content()? {
            // With other layers above the bootstrap, it is somebody's own image.
            Content::Manifest(manifest) if LazoLayers::read(&manifest).is_ok() => {}
            Content::Manifest(_) => return Ok(true),
            Content::Index(index) => {
                for entry in index.manifests().iter().filter(|entry| !is_attestation(entry)) {
                    if looked_at + pending.len() >= MAX_LOOKED_AT {
                        return Ok(true);
                    }
                    pending.push(source.document(entry).await?);
                }
            }
        }
    }
    Ok(false)
}
