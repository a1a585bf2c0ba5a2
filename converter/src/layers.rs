//! The passes over an image's layers: one that packs them, and before it one that only looks, where the options need it.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use lazo_base::compression::Compression;
use lazo_format::Digest;
use lazo_registry::Source;
use lazo_registry::oci_spec::image::Descriptor;
use tokio::runtime::Handle;

use crate::blob::Blob;
use crate::compress::Pool;
use crate::error::{Error, LayerError, Problem};
use crate::layer::archive::Data;
use crate::layer::content::Content;
use crate::layer::{Archive, BlockReader, Entry, EntryKind, Inflated, LayerStream};
use crate::merge::{Applied, FileId, Kind, Merge};
use crate::pack::{Contents, LayerPacker};
use crate::prefetch::Unmatched;
use crate::{Options, Progress};

/// A layer of the source image.
pub(crate) struct Layer {
    pub(crate) descriptor: Descriptor,
    pub(crate) digest: Digest,
    /// What its media type says.
    pub(crate) compression: Compression,
    pub(crate) diff_id: Digest,
}

/// What a conversion reads from and works with.
pub(crate) struct Passes {
    pub(crate) source: Arc<Source>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) options: Options,
    pub(crate) progress: Arc<dyn Progress>,
    pub(crate) runtime: Handle,
    /// An empty directory for the spools.
    pub(crate) work_dir: PathBuf,
}

/// What the looking pass found out.
#[derive(Default)]
struct Plan {
    /// Files that the merged tree shows, when hidden ones shall be left out.
    live: Option<HashSet<FileId>>,
    /// Position in the prefetch list.
    ranks: HashMap<FileId, u32>,
}

/// All layers, packed.
pub(crate) struct Packed {
    pub(crate) merge: Merge,
    pub(crate) contents: Contents,
    pub(crate) blobs: Vec<Blob>,
    /// Files of the prefetch list, in its order.
    pub(crate) prefetch: Vec<FileId>,
    /// Lines of the list that name none.
    pub(crate) unmatched: Unmatched,
    /// Uncompressed bytes of all layers.
    pub(crate) uncompressed: u64,
    /// Entries of all layers' archives.
    pub(crate) entries_read: u64,
}

impl Passes {
    /// Runs both passes. Call it on a thread that may block.
    pub(crate) fn run(&self) -> Result<Packed, Error> {
        let plan = self.look()?;
        let pool = Pool::start(self.options.jobs, self.options.compression_level)
            .map_err(|e| Error::Options(format!("compression level {}: {e}", self.options.compression_level)))?;
        let mut merge = Merge::new();
        let mut contents = Contents::default();
        let mut blobs = Vec::new();
        let mut uncompressed = 0;
        let mut entries_read = 0;
        for number in 0..self.layers.len() {
            let layer = self.layer_number(number)?;
            merge.begin_layer(layer);
            let packed = LayerPacker::create(&self.work_dir, layer, self.options.chunk_size, &pool, &mut contents)
                .map_err(LayerError::from)
                .and_then(|mut packer| {
                    let read =
                        self.read(number, |archive| pack(archive, &mut merge, &mut packer, &plan, &mut entries_read));
                    match read {
                        Ok(inflated) => Ok((inflated, packer.finish()?)),
                        Err(error) => Err(packer.into_failure(error)),
                    }
                })
                .and_then(|(inflated, (head, body))| Ok((inflated, Blob::assemble(head, body)?)));
            let (inflated, blob) = packed.map_err(|e| self.layer_error(number, e))?;
            uncompressed += inflated.size;
            if inflated.compression != self.layers[number].compression {
                merge.warnings.mistyped_layers += 1;
            }
            blobs.push(blob);
        }
        merge.hide_whiteout_devices();
        let (prefetch, unmatched) = self.options.prefetch.files(&mut merge);
        Ok(Packed { merge, contents, blobs, prefetch, unmatched, uncompressed, entries_read })
    }

    /// Reads all layers for their metadata alone, if the options ask for what only the merged tree can tell.
    fn look(&self) -> Result<Plan, Error> {
        let mut plan = Plan::default();
        if !self.options.compact && self.options.prefetch.is_empty() {
            return Ok(plan);
        }
        let mut merge = Merge::new();
        for number in 0..self.layers.len() {
            merge.begin_layer(self.layer_number(number)?);
            let first = merge.files_seen();
            self.read(number, |archive| {
                for_each_entry(archive, |_, entry| {
                    self.check_interrupted()?;
                    merge.apply(entry).map(drop)
                })
            })
            .map_err(|e| self.layer_error(number, e))?;
            // A blob depends on the layers up to its own and on nothing above, so ranks are given layer by layer.
            let (files, _) = self.options.prefetch.files(&mut merge);
            plan.ranks.extend((0u32..).zip(files).filter(|(_, f)| f.0 >= first).map(|(rank, file)| (file, rank)));
        }
        if self.options.compact {
            let mut live = HashSet::new();
            for node in merge.reachable(merge.root()) {
                if let Kind::File { id, .. } = merge.node(node).kind {
                    live.insert(id);
                }
            }
            plan.live = Some(live);
        }
        Ok(plan)
    }

    fn read(
        &self,
        number: usize,
        parse: impl FnOnce(&mut Archive<BlockReader>) -> Result<(), LayerError>,
    ) -> Result<Inflated, LayerError> {
        let layer = &self.layers[number];
        self.progress.layer(number + 1, self.layers.len(), &layer.digest, layer.descriptor.size());
        let stream =
            self.runtime.block_on(self.source.blob(&layer.descriptor)).map_err(|e| Problem::Fetch(Box::new(e)))?;
        let stream = LayerStream {
            stream,
            window: self.options.zstd_window,
            diff_id: &layer.diff_id,
            advance: &|bytes| self.progress.advance(bytes),
            cancel: &self.options.cancel,
        };
        stream.read(&self.runtime, parse)
    }

    fn check_interrupted(&self) -> Result<(), Problem> {
        match self.options.cancel.load(std::sync::atomic::Ordering::Relaxed) {
            true => Err(Problem::Interrupted),
            false => Ok(()),
        }
    }

    fn layer_number(&self, number: usize) -> Result<u16, Error> {
        u16::try_from(number).map_err(|_| Error::Image("it has more than 65,536 layers".into()))
    }

    fn layer_error(&self, number: usize, source: LayerError) -> Error {
        match source.problem() {
            Problem::Interrupted => Error::Interrupted,
            _ => Error::Layer {
                number: number + 1,
                count: self.layers.len(),
                digest: Box::new(self.layers[number].digest),
                source: Box::new(source),
            },
        }
    }
}

/// Calls `handle` for each entry of a layer; its error gets the entry's name and position.
fn for_each_entry<R: std::io::Read>(
    archive: &mut Archive<R>,
    mut handle: impl FnMut(&mut Archive<R>, Entry) -> Result<(), Problem>,
) -> Result<(), LayerError> {
    while let Some(entry) = archive.next_entry()? {
        if let Err(problem) = handle(archive, entry) {
            return Err(archive.in_current(problem));
        }
    }
    Ok(())
}

/// Applies an entry to the tree; if it is a regular file, `read` gets its content.
fn apply<R: std::io::Read>(
    archive: &mut Archive<R>,
    merge: &mut Merge,
    mut entry: Entry,
    read: impl FnOnce(FileId, &mut Content<'_, Data<R>>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let file = match &mut entry.kind {
        EntryKind::File { size, pieces } => Some((*size, pieces.take())),
        _ => None,
    };
    match (merge.apply(entry)?, file) {
        (Applied::File(id), Some((size, pieces))) => read(id, &mut Content::new(archive.data(), size, pieces)),
        _ => Ok(()),
    }
}

fn pack<R: std::io::Read>(
    archive: &mut Archive<R>,
    merge: &mut Merge,
    packer: &mut LayerPacker<'_>,
    plan: &Plan,
    entries_read: &mut u64,
) -> Result<(), LayerError> {
    for_each_entry(archive, |archive, entry| {
        *entries_read += 1;
        apply(archive, merge, entry, |id, content| match plan.live.as_ref().is_none_or(|live| live.contains(&id)) {
            true => packer.add(id, plan.ranks.get(&id).copied(), content),
            false => Ok(()),
        })
    })
}

/// Reads one uncompressed layer as a conversion would, without keeping its data, and counts its entries. For tests and
/// fuzzing of hostile archives.
///
/// # Errors
/// The first fault in the archive.
pub fn check_layer(archive: impl std::io::Read) -> Result<u64, LayerError> {
    let mut merge = Merge::new();
    let mut entries = 0;
    let mut buffer = Vec::new();
    for_each_entry(&mut Archive::new(archive), |archive, entry| {
        entries += 1;
        apply(archive, &mut merge, entry, |_, content| {
            while content.next(u64::from(lazo_format::DEFAULT_CHUNK_SIZE), &mut buffer)?.is_some() {}
            Ok(())
        })
    })?;
    Ok(entries)
}
