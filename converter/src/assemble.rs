//! From the merged tree and the packed blobs to bootstrap, chunk index and bootstrap layer.

use std::collections::HashMap;

use flate2::{Compression, GzBuilder};
use lazo_format::media::{BOOTSTRAP_PATH, DIRECT_IO_PATH, INDEX_PATH};
use lazo_format::{
    BlobIndex, ChunkIndex, Device, Digest, Extent, IndexContents, Node, NodeId, NodeKind, PrefetchRange, Tree,
    encode_index, write_bootstrap,
};

use crate::blob::Blob;
use crate::error::Error;
use crate::merge::{FileId, Kind, Merge, NodeRef};
use crate::pack::{Contents, FileExtent};

/// Blobs that the image needs, and its bootstrap layer.
pub(crate) struct Assembled {
    /// Positions in the list of all blobs, ascending: those that the tree points into.
    pub(crate) blobs: Vec<usize>,
    /// `image/bootstrap` and `image/index` as a gzipped tar.
    pub(crate) layer: Vec<u8>,
    /// Digest of the tar.
    pub(crate) diff_id: Digest,
    pub(crate) bootstrap_size: u64,
    pub(crate) index_size: u64,
    pub(crate) entries: u64,
    /// Content of the regular files that the tree shows, hard links counted once, in bytes.
    pub(crate) file_bytes: u64,
    pub(crate) prefetch_chunks: u64,
    /// Whether the image is to be served so that its files can be opened with `O_DIRECT`.
    pub(crate) direct_io: bool,
}

/// Builds everything. `blobs` holds the blob of each layer; `prefetch` the files of the list, in order.
pub(crate) fn assemble(
    merge: Merge,
    contents: &Contents,
    blobs: &[Blob],
    prefetch: &[FileId],
    direct_io: bool,
) -> Result<Assembled, Error> {
    let root = merge.root();
    let mut builder = Builder { contents, blobs, devices: used_blobs(&merge, contents, blobs.len()) };
    let (tree, entries, file_bytes, has_xattrs, has_acls) = builder.tree(merge, root);
    let used: Vec<usize> = (0..blobs.len()).filter(|b| builder.devices.contains_key(b)).collect();
    let bootstrap = write_bootstrap(&tree.validate()?);
    let mut index = IndexContents {
        blobs: Vec::new(),
        chunks: Vec::new(),
        prefetch: Vec::new(),
        entries,
        file_bytes,
        has_xattrs,
        has_acls,
    };
    let mut first_chunks = HashMap::new();
    for blob in &used {
        let first = u32::try_from(index.chunks.len()).map_err(|_| Error::Image("it has too many chunks".into()))?;
        first_chunks.insert(*blob, first);
        let (record, chunks) = blobs[*blob].records(first);
        index.blobs.push(record);
        index.chunks.extend(chunks);
    }
    index.prefetch = builder.prefetch(prefetch, &first_chunks);
    let prefetch_chunks = index.prefetch.iter().map(|range| u64::from(range.count)).sum();
    let index = encode_index(&index, &bootstrap)?;
    let (layer, diff_id) = bootstrap_layer(&bootstrap, &index, direct_io);
    let (bootstrap_size, index_size) = (bootstrap.len() as u64, index.len() as u64);
    Ok(Assembled {
        blobs: used,
        layer,
        diff_id,
        bootstrap_size,
        index_size,
        entries,
        file_bytes,
        prefetch_chunks,
        direct_io,
    })
}

/// The layers whose blobs the visible files point into, with their device numbers.
fn used_blobs(merge: &Merge, contents: &Contents, layers: usize) -> HashMap<usize, BlobIndex> {
    let mut used = vec![false; layers];
    merge.visit(merge.root(), &mut Vec::new(), &mut |_, node| {
        if let Kind::File { id, .. } = node.kind {
            for place in contents.extents(id).iter().filter_map(|extent| extent.place) {
                used[usize::from(place.layer)] = true;
            }
        }
    });
    let layers = used.iter().enumerate().filter(|(_, used)| **used).map(|(layer, _)| layer);
    (0u16..).zip(layers).map(|(device, layer)| (layer, BlobIndex(device))).collect()
}

struct Builder<'a> {
    contents: &'a Contents,
    blobs: &'a [Blob],
    devices: HashMap<usize, BlobIndex>,
}

impl Builder<'_> {
    /// The writer's tree of what is reachable, the count of its names and bytes, and whether it has xattrs and ACLs.
    fn tree(&mut self, merge: Merge, root: NodeRef) -> (Tree, u64, u64, bool, bool) {
        let order = merge.reachable(root);
        let numbers: HashMap<NodeRef, NodeId> = order.iter().copied().zip((0u32..).map(NodeId)).collect();
        let mut source: Vec<Option<crate::merge::Node>> = merge.into_nodes().into_iter().map(Some).collect();
        let mut nodes = Vec::with_capacity(order.len());
        let (mut file_bytes, mut has_xattrs, mut has_acls) = (0, false, false);
        for node in order {
            let Some(node) = source[node.index()].take() else { continue };
            has_xattrs |= !node.meta.xattrs.is_empty();
            has_acls |= node.meta.xattrs.iter().any(|x| x.name.starts_with(b"system.posix_acl_"));
            if let Kind::File { size, .. } = node.kind {
                file_bytes += size;
            }
            nodes.push(Node { meta: node.meta, kind: self.kind(node.kind, &numbers) });
        }
        // Names rather than nodes: a hard link is an entry of its own. The root has no name.
        let names = nodes.iter().map(|node| match &node.kind {
            NodeKind::Directory(children) => children.len() as u64,
            _ => 0,
        });
        let entries = 1 + names.sum::<u64>();
        let mut devices: Vec<_> = self.devices.iter().map(|(layer, device)| (device, &self.blobs[*layer])).collect();
        devices.sort_by_key(|(device, _)| **device);
        let devices =
            devices.into_iter().map(|(_, blob)| Device { digest: blob.digest, size: blob.device_size() }).collect();
        (Tree { nodes, root: NodeId(0), devices }, entries, file_bytes, has_xattrs, has_acls)
    }

    fn kind(&self, kind: Kind, numbers: &HashMap<NodeRef, NodeId>) -> NodeKind {
        match kind {
            Kind::Directory(children) => {
                NodeKind::Directory(children.into_iter().map(|(name, child)| (name, numbers[&child.node])).collect())
            }
            Kind::File { id, size } => {
                NodeKind::Regular { size, extents: self.contents.extents(id).iter().map(|e| self.extent(e)).collect() }
            }
            Kind::Symlink(target) => NodeKind::Symlink(target),
            Kind::CharDevice(major, minor) => NodeKind::CharDevice { major, minor },
            Kind::BlockDevice(major, minor) => NodeKind::BlockDevice { major, minor },
            Kind::Fifo => NodeKind::Fifo,
        }
    }

    fn extent(&self, extent: &FileExtent) -> Extent {
        let location = extent.place.map(|place| {
            let layer = usize::from(place.layer);
            (self.devices[&layer], self.blobs[layer].address_of(place))
        });
        Extent { length: extent.length, location }
    }

    /// The chunks that hold the files of the list: each once, in order, neighbours joined.
    fn prefetch(&self, files: &[FileId], first_chunks: &HashMap<usize, u32>) -> Vec<PrefetchRange> {
        let mut seen = std::collections::HashSet::new();
        let mut ranges: Vec<PrefetchRange> = Vec::new();
        let extents = files.iter().flat_map(|file| self.contents.extents(*file));
        for (place, length) in extents.filter_map(|extent| Some((extent.place?, extent.length))) {
            let layer = usize::from(place.layer);
            let blob = &self.blobs[layer];
            for chunk in blob.chunks_of(place, length) {
                let first = first_chunks[&layer];
                let Ok(number) = u32::try_from(chunk).map(|chunk| first + chunk) else { continue };
                if !seen.insert(number) {
                    continue;
                }
                match ranges.last_mut() {
                    Some(last) if last.first.0 + last.count == number && last.first.0 >= first => last.count += 1,
                    _ => ranges.push(PrefetchRange { first: ChunkIndex(number), count: 1 }),
                }
            }
        }
        ranges
    }
}

/// Packs bootstrap and index as a layer that every runtime can unpack; the same bytes each time.
fn bootstrap_layer(bootstrap: &[u8], index: &[u8], direct_io: bool) -> (Vec<u8>, Digest) {
    let mut tar = tar::Builder::new(Vec::with_capacity(bootstrap.len() + index.len() + 4096));
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, path, data).expect("a short path and a Vec take everything");
    };
    add("image/", tar::EntryType::Directory, 0o755, &[]);
    add(INDEX_PATH, tar::EntryType::Regular, 0o644, index);
    add(BOOTSTRAP_PATH, tar::EntryType::Regular, 0o644, bootstrap);
    if direct_io {
        add(DIRECT_IO_PATH, tar::EntryType::Regular, 0o644, &[]);
    }
    let tar = tar.into_inner().expect("a Vec takes everything");
    let diff_id = Digest::sha256_of(&tar);
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    std::io::Write::write_all(&mut gzip, &tar).expect("a Vec takes everything");
    (gzip.finish().expect("a Vec takes everything"), diff_id)
}
