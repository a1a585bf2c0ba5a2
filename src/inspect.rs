//! `lazo inspect`: what is in an image and where it lies, without downloading its data.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;

use anyhow::Context as _;
use indicatif::{HumanBytes, HumanCount};
use lazo_registry::{ImageRef, Platform, Source, shown_platform};
use lazo_storage::LazoImage;
use lazo_storage::inspect::{Contents, Entry, InspectError, Piece, contents, entry};
use serde::Serialize;

use crate::global::Global;
use crate::interrupt::interrupted;
use crate::output;

/// Show what is in a lazo image, or where one of its files lies; downloads only its metadata
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image: docker://HOST/REPO[:TAG|@DIGEST], HOST/REPO:TAG, oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    image: ImageRef,
    /// A file or directory in the image
    path: Option<OsString>,
    /// Choose this one of a multi-platform image, as OS/ARCH[/VARIANT] or just ARCH [default: this machine's]
    #[arg(long)]
    platform: Option<Platform>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// The summary of an image.
#[derive(Serialize)]
struct Overview {
    image: String,
    manifest: String,
    platform: Option<String>,
    /// Bytes.
    bootstrap_layer: u64,
    bootstrap: u64,
    index: u64,
    #[serde(flatten)]
    contents: Contents,
}

impl Args {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let text = runtime.block_on(async {
            tokio::select! {
                text = self.describe(global) => text,
                signal = interrupted() => Err(anyhow::anyhow!("stopped by {signal}")),
            }
        });
        runtime.shutdown_background();
        output::print(text.with_context(|| format!("cannot inspect {}", self.image))?)
    }

    async fn describe(&self, global: &Global) -> anyhow::Result<String> {
        let source = Source::open(&self.image, &global.registry_options()?).await?;
        let platform = self.platform.clone().unwrap_or_else(Platform::host);
        // Looking at an image leaves nothing in the state directory. The files stay mapped when their names are gone.
        let temporary = tempfile::tempdir().context("cannot make a temporary directory")?;
        let image = LazoImage::open(&source, temporary.path(), &platform).await?;
        if let Some(path) = &self.path {
            let entry = entry(image.bootstrap(), image.index(), path.as_bytes());
            let entry = entry.with_context(|| path.to_string_lossy().into_owned())?;
            return Ok(if self.json { json(&entry)? } else { describe_entry(&entry)? });
        }
        let overview = overview(&source, &image, &platform).await?;
        Ok(if self.json { json(&overview)? } else { describe_image(&overview)? })
    }
}

fn json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

async fn overview(source: &Source, image: &LazoImage, platform: &Platform) -> anyhow::Result<Overview> {
    let manifest = source.resolve(platform).await?;
    let platform = source.config(&manifest).await?.platform().as_ref().map(shown_platform);
    let contents: Result<Contents, InspectError> = contents(image.bootstrap(), image.index());
    Ok(Overview {
        image: image.name().to_owned(),
        manifest: image.manifest_digest().to_string(),
        platform,
        bootstrap_layer: manifest.manifest.layers().last().map_or(0, |layer| layer.size()),
        bootstrap: image.index().header().bootstrap_size,
        index: image.index().size(),
        contents: contents?,
    })
}

fn describe_image(overview: &Overview) -> Result<String, std::fmt::Error> {
    let Overview { contents, .. } = overview;
    let mut text = String::new();
    writeln!(text, "{} {}", overview.platform.as_deref().unwrap_or("unknown platform"), overview.manifest)?;
    let types = contents.types.iter().map(|(name, count)| format!("{} {name}", HumanCount(*count)));
    writeln!(text, "entries    {}: {}", HumanCount(contents.entries), types.collect::<Vec<_>>().join(", "))?;
    writeln!(
        text,
        "files      {} of content, {} of it holes; {} further hard links",
        HumanBytes(contents.file_bytes),
        HumanBytes(contents.hole_bytes),
        HumanCount(contents.hard_links)
    )?;
    writeln!(
        text,
        "dedup      {} in whole blocks point to {} of blob space: {} shared",
        HumanBytes(contents.block_bytes),
        HumanBytes(contents.referenced_bytes),
        HumanBytes(contents.shared_bytes)
    )?;
    writeln!(
        text,
        "hidden     {} of blob space that no file points to; {} stored are never fetched",
        HumanBytes(contents.hidden_bytes),
        HumanBytes(contents.hidden_compressed)
    )?;
    writeln!(
        text,
        "bootstrap  {}: {} tree + {} chunk index, uncompressed",
        HumanBytes(overview.bootstrap_layer),
        HumanBytes(overview.bootstrap),
        HumanBytes(overview.index)
    )?;
    writeln!(
        text,
        "prefetch   {} chunks, {} stored",
        HumanCount(contents.prefetch_chunks),
        HumanBytes(contents.prefetch_compressed)
    )?;
    writeln!(
        text,
        "blobs      {}: {} stored, {} uncompressed, ratio {:.2}; {} chunks, {} of them raw",
        contents.blobs.len(),
        HumanBytes(contents.compressed_bytes),
        HumanBytes(contents.device_bytes),
        ratio(contents.device_bytes, contents.compressed_bytes),
        HumanCount(contents.chunks),
        HumanCount(contents.raw_chunks)
    )?;
    for blob in &contents.blobs {
        writeln!(
            text,
            "  {}  {} stored, {} uncompressed, {} chunks, {} hidden",
            blob.digest,
            HumanBytes(blob.compressed_size),
            HumanBytes(blob.device_size),
            blob.chunks,
            HumanBytes(blob.hidden_bytes)
        )?;
    }
    Ok(text)
}

#[expect(clippy::cast_precision_loss, reason = "shown rounded")]
fn ratio(whole: u64, part: u64) -> f64 {
    if part == 0 { 1.0 } else { whole as f64 / part as f64 }
}

fn describe_entry(entry: &Entry) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(text, "{}: {}, {} bytes", entry.path, entry.file_type, entry.size)?;
    if let Some(target) = &entry.target {
        writeln!(text, "target  {target}")?;
    }
    if let Some((major, minor)) = entry.device {
        writeln!(text, "device  {major}:{minor}")?;
    }
    writeln!(text, "mode    {}, owner {}:{}, {} links", entry.mode, entry.uid, entry.gid, entry.links)?;
    writeln!(text, "mtime   {}.{:09} s since 1970, inode {}", entry.mtime, entry.mtime_nanoseconds, entry.inode)?;
    for (name, size) in &entry.xattrs {
        writeln!(text, "xattr   {name}, {size} bytes")?;
    }
    for piece in &entry.pieces {
        describe_piece(&mut text, piece)?;
    }
    for child in entry.children.iter().flatten() {
        let (mode, owner) = (&child.mode, format!("{}:{}", child.uid, child.gid));
        writeln!(text, "  {mode} {owner:<11} {:>12} {:<16} {}", child.size, child.file_type, child.name)?;
    }
    Ok(text)
}

fn describe_piece(text: &mut String, piece: &Piece) -> std::fmt::Result {
    let end = piece.offset + piece.length;
    let Some(place) = &piece.place else {
        return writeln!(text, "  {}..{end}: a hole", piece.offset);
    };
    writeln!(
        text,
        "  {}..{end}: chunk {} of blob {}, at device address {:#x}",
        piece.offset, place.chunk, place.blob, place.address
    )?;
    writeln!(
        text,
        "    chunk: {} bytes from {:#x}, {} at {}..{} of the blob, {}",
        place.chunk_size,
        place.chunk_address,
        place.encoding,
        place.compressed_offset,
        place.compressed_offset + u64::from(place.compressed_size),
        place.digest
    )
}
