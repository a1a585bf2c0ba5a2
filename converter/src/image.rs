//! The whole conversion: what to read, the passes, and the destination written last.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use futures_util::{StreamExt, TryStreamExt};
use lazo_format::{Digest, MAX_CHUNK_SIZE};
use lazo_registry::media::layer_kind;
use lazo_registry::oci_spec::image::{Descriptor, MediaType};
use lazo_registry::{
    Destination, Document, ImageRef, Images, LazoLayers, LeftOut, Manifest, Outcome, Selected, Source, shown_platform,
};
use serde::Serialize;
use tokio::runtime::Handle;

use crate::assemble::{Assembled, assemble};
use crate::error::Error;
use crate::layers::{Layer, Packed, Passes};
use crate::manifest::{self, Config};
use crate::overwrite::check_overwrite;
use crate::prefetch::Unmatched;
use crate::{Options, Platforms, Progress, Warnings};

/// Blobs uploaded at the same time.
const UPLOADS: usize = 4;

/// What a conversion did.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Digest of the manifest, or of the index with all platforms.
    pub digest: Digest,
    /// One a platform.
    pub images: Vec<ImageSummary>,
    /// What else the source holds: other platforms, attestations, artifacts.
    pub left_out: Vec<LeftOut>,
    /// From first to last.
    pub seconds: f64,
}

/// What became of one platform's image. Sizes in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct ImageSummary {
    /// OS/architecture, when the image says.
    pub platform: Option<String>,
    /// Digest of the converted manifest.
    pub digest: Digest,
    /// Layers read.
    pub layers: usize,
    /// Compressed bytes of them.
    pub compressed: u64,
    /// Uncompressed bytes of them: archives with headers.
    pub uncompressed: u64,
    /// Entries in their archives.
    pub entries_read: u64,
    /// Objects that the merged tree shows, hard links counted once.
    pub entries: u64,
    /// Content of its regular files.
    pub file_bytes: u64,
    /// Content that was packed, of whatever layer.
    pub packed_bytes: u64,
    /// Content found a second time and stored once.
    pub duplicate_bytes: u64,
    /// Content that is all zeros and not stored.
    pub hole_bytes: u64,
    /// Content in the layers that an upper one hides.
    pub hidden_bytes: u64,
    /// The blobs of the converted image.
    pub blobs: Vec<BlobSummary>,
    /// The bootstrap.
    pub bootstrap: u64,
    /// The chunk index.
    pub index: u64,
    /// Both as stored, compressed.
    pub bootstrap_layer: u64,
    /// Chunks in the prefetch list.
    pub prefetch_chunks: u64,
    /// Lines of the prefetch list that name no file of this image.
    pub prefetch_unmatched: Unmatched,
    /// What was dropped.
    pub warnings: Warnings,
}

/// One blob of a converted image. Sizes in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct BlobSummary {
    /// Its digest.
    pub digest: Digest,
    /// As stored.
    pub size: u64,
    /// Its uncompressed address space.
    pub device_size: u64,
    /// Chunks in it.
    pub chunks: usize,
    /// "uploaded", "existed" or "mounted".
    pub outcome: &'static str,
}

/// A converted image that has not been written anywhere.
struct Converted {
    manifest: Document,
    blobs: Vec<(PathBuf, Descriptor)>,
    documents: Vec<(Vec<u8>, Descriptor)>,
    summary: ImageSummary,
}

/// Converts `source` and writes the result to `destination`, which stays as it was if anything fails before that.
///
/// # Errors
/// What failed and on what: see [`Error`].
pub async fn convert(
    source: &ImageRef,
    destination: &ImageRef,
    options: &Options,
    registry: &lazo_registry::Options,
    progress: Arc<dyn Progress>,
) -> Result<Summary, Error> {
    let started = Instant::now();
    check_options(options)?;
    let source = Arc::new(Source::open(source, registry).await?);
    let registry = options.destination.as_ref().unwrap_or(registry);
    let chosen = choose(&source, &options.platforms).await?;
    if !options.force {
        check_overwrite(destination, registry).await?;
    }
    let destination = Destination::open(destination, registry).await?;
    let is_one_of_several = chosen.manifests.len() > 1;
    let mut converted = Vec::new();
    for (number, manifest) in chosen.manifests.into_iter().enumerate() {
        let work_dir = destination.staging_dir().join(format!("convert-{number}"));
        let name = named(&manifest);
        let image = convert_image(&source, manifest, options, &progress, work_dir).await;
        converted.push(image.map_err(|error| match error {
            Error::Interrupted => Error::Interrupted,
            error if is_one_of_several => Error::Of { image: name, source: Box::new(error) },
            error => error,
        })?);
    }
    let mut images = Vec::new();
    for image in &mut converted {
        write_blobs(&destination, image, options, &*progress).await?;
        images.push(image.summary.clone());
    }
    let root = match &options.platforms {
        Platforms::One(_) => converted.swap_remove(0).manifest,
        Platforms::Some(_) | Platforms::All => {
            for image in &converted {
                destination.put_manifest(&image.manifest).await?;
            }
            let manifests: Vec<Descriptor> = converted.iter().map(|image| image.manifest.descriptor.clone()).collect();
            manifest::index(&manifests, chosen.annotations.as_ref())?
        }
    };
    let digest = root.digest()?;
    destination.commit(&root).await?;
    Ok(Summary { digest, images, left_out: chosen.left_out, seconds: started.elapsed().as_secs_f64() })
}

fn check_options(options: &Options) -> Result<(), Error> {
    let size = options.chunk_size;
    if !size.is_power_of_two() || u64::from(size) < lazo_format::BLOCK_SIZE || size > MAX_CHUNK_SIZE {
        let range = format!("a power of two from {} to {MAX_CHUNK_SIZE}", lazo_format::BLOCK_SIZE);
        return Err(Error::Options(format!("chunk size {size} is not {range}")));
    }
    match options.jobs {
        1..=1024 => Ok(()),
        jobs => Err(Error::Options(format!("{jobs} jobs: choose 1 to 1024"))),
    }
}

/// The manifests to convert, with the annotations of the index that they are in.
async fn choose(source: &Source, platforms: &Platforms) -> Result<Selected, Error> {
    match platforms {
        Platforms::One(platform) => Ok(source.select(std::slice::from_ref(platform)).await?),
        Platforms::Some(platforms) => Ok(source.select(platforms).await?),
        Platforms::All => {
            let Images { images, annotations, left_out } = source.images().await?;
            let manifests = images.into_iter().map(|(_, manifest)| manifest).collect::<Result<Vec<_>, _>>()?;
            match manifests.is_empty() {
                true => Err(Error::Image("the index names no image of any platform".into())),
                false => Ok(Selected { manifests, annotations, left_out }),
            }
        }
    }
}

/// Platform and digest, for messages.
fn named(manifest: &Manifest) -> String {
    let digest = manifest.descriptor.digest();
    match manifest.descriptor.platform() {
        Some(platform) => format!("for {} ({digest})", shown_platform(platform)),
        None => digest.to_string(),
    }
}

async fn convert_image(
    source: &Arc<Source>,
    manifest: Manifest,
    options: &Options,
    progress: &Arc<dyn Progress>,
    work_dir: PathBuf,
) -> Result<Converted, Error> {
    let config = Config::parse(&source.document(manifest.manifest.config()).await?)?;
    let layers = layers(&manifest, &config)?;
    let direct_io = options.direct_io || config.wants_direct_io();
    std::fs::create_dir_all(&work_dir).map_err(|e| io_error("create", &work_dir, e))?;
    let passes = Passes {
        source: source.clone(),
        layers,
        options: options.clone(),
        progress: progress.clone(),
        runtime: Handle::current(),
        work_dir,
    };
    let work = tokio::task::spawn_blocking(move || {
        let Packed { merge, contents, blobs, prefetch, unmatched, uncompressed, entries_read } = passes.run()?;
        let warnings = merge.warnings.clone();
        let assembled = assemble(merge, &contents, &blobs, &prefetch, direct_io)?;
        let stats = contents.stats;
        let compressed = passes.layers.iter().map(|layer| layer.descriptor.size()).sum();
        let summary = ImageSummary {
            platform: None,
            digest: assembled.diff_id,
            layers: passes.layers.len(),
            compressed,
            uncompressed,
            entries_read,
            entries: assembled.entries,
            file_bytes: assembled.file_bytes,
            packed_bytes: stats.content,
            duplicate_bytes: stats.duplicate,
            hole_bytes: stats.holes,
            hidden_bytes: stats.content.saturating_sub(assembled.file_bytes),
            blobs: Vec::new(),
            bootstrap: assembled.bootstrap_size,
            index: assembled.index_size,
            bootstrap_layer: assembled.layer.len() as u64,
            prefetch_chunks: assembled.prefetch_chunks,
            prefetch_unmatched: unmatched,
            warnings,
        };
        Ok::<_, Error>((assembled, blobs, summary))
    });
    let (assembled, blobs, summary) = work.await.map_err(|_| Error::Panicked)??;
    describe(&manifest, config, assembled, &blobs, summary)
}

/// Pairs the manifest's layers with the config's diffIDs.
fn layers(manifest: &Manifest, config: &Config) -> Result<Vec<Layer>, Error> {
    let layers = manifest.manifest.layers();
    if layers.iter().any(|layer| layer.media_type().as_ref() == lazo_format::media::LAZO_BLOB)
        || LazoLayers::are_in(&manifest.manifest)
    {
        return Err(Error::Image("it is a lazo image already; convert the image that it was made from".into()));
    }
    let diff_ids = config.parsed.diff_ids_for(&manifest.manifest)?;
    let count = layers.len();
    let layer = |(number, (descriptor, diff_id)): (usize, (&Descriptor, &Digest))| {
        let (media_type, digest) = (descriptor.media_type(), descriptor.digest());
        let kind = layer_kind(media_type).ok_or_else(|| {
            let what = format!("layer {number} of {count} ({digest})");
            Error::Image(format!("{what} has the media type {:?}, which is no layer", media_type.as_ref()))
        })?;
        let digest = lazo_registry::digest_of(descriptor)?;
        Ok(Layer { descriptor: descriptor.clone(), digest, compression: kind.compression, diff_id: *diff_id })
    };
    (1..).zip(layers.iter().zip(diff_ids)).map(layer).collect()
}

/// Writes the documents of a converted image.
fn describe(
    source: &Manifest,
    config: Config,
    assembled: Assembled,
    blobs: &[crate::blob::Blob],
    mut summary: ImageSummary,
) -> Result<Converted, Error> {
    let platform = source.descriptor.platform().clone().or_else(|| config.parsed.platform());
    let kept: Vec<bool> = (0..blobs.len()).map(|blob| assembled.blobs.contains(&blob)).collect();
    let used = || assembled.blobs.iter().map(|blob| &blobs[*blob]);
    let diff_ids: Vec<Digest> = used().map(|blob| blob.digest).chain([assembled.diff_id]).collect();
    summary.platform = platform.as_ref().map(shown_platform);
    summary.blobs = used()
        .map(|blob| BlobSummary {
            digest: blob.digest,
            size: blob.size,
            device_size: blob.device_size(),
            chunks: blob.chunk_count(),
            outcome: "",
        })
        .collect();
    let config = config.converted(&kept, &diff_ids)?;
    let config_descriptor =
        lazo_registry::descriptor(MediaType::ImageConfig, &Digest::sha256_of(&config), config.len() as u64);
    let (digest, size) = (Digest::sha256_of(&assembled.layer), assembled.layer.len() as u64);
    let bootstrap = manifest::bootstrap_layer(&digest, size, assembled.direct_io);
    let files: Vec<_> = used().map(|blob| (blob.path.clone(), manifest::blob_layer(&blob.digest, blob.size))).collect();
    let layers: Vec<Descriptor> = files.iter().map(|(_, layer)| layer.clone()).chain([bootstrap.clone()]).collect();
    let mut manifest = manifest::manifest(&source.manifest, &config_descriptor, &layers)?;
    manifest.descriptor.set_platform(platform);
    summary.digest = manifest.digest()?;
    let documents = vec![(assembled.layer, bootstrap), (config, config_descriptor)];
    Ok(Converted { manifest, blobs: files, documents, summary })
}

/// Writes blobs and documents, several at a time, and notes what became of each blob.
async fn write_blobs(
    destination: &Destination,
    image: &mut Converted,
    options: &Options,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let outcomes: Vec<Outcome> = futures_util::stream::iter(&image.blobs)
        .map(|(path, descriptor)| async move {
            if options.cancel.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            progress.upload(&lazo_registry::digest_of(descriptor)?, descriptor.size());
            Ok(destination.put_blob_file(path, descriptor, options.mount_from.as_ref()).await?)
        })
        .buffered(UPLOADS)
        .try_collect()
        .await?;
    for (blob, outcome) in image.summary.blobs.iter_mut().zip(outcomes) {
        blob.outcome = match outcome {
            Outcome::Uploaded => "uploaded",
            Outcome::Existed => "existed",
            Outcome::Mounted => "mounted",
        };
    }
    for (bytes, descriptor) in image.documents.drain(..) {
        destination.put_blob_bytes(bytes, &descriptor).await?;
    }
    Ok(())
}

fn io_error(what: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io { what, path: path.to_owned(), source }
}
