//! Which files have content in a bad chunk.

use std::collections::BTreeMap;

use lazo_format::{BlobIndex, Bootstrap, FileType};

use super::blobs::Bad;
use super::report::{Fault, ImageReport, Part};
use crate::inspect::shown;
use crate::mapped::Mapped;
use crate::walk::{runs, walk};

/// Notes everything bad as faults, each with the files that it concerns: one walk of the tree for all of them.
pub(super) fn add_faults(bad: Vec<Bad>, bootstrap: Option<&Bootstrap<Mapped>>, report: &mut ImageReport) {
    let fault = |bad: &Bad| Fault {
        blob: Some(bad.digest),
        chunk: bad.chunk.as_ref().map(|(number, _)| *number),
        ..Fault::new(Part::Blob, &bad.message)
    };
    let mut faults: Vec<Fault> = bad.iter().map(fault).collect();
    if let Some(bootstrap) = bootstrap.filter(|_| !bad.is_empty()) {
        let found = add_paths(&bad, bootstrap, &mut faults);
        // The tree has been validated, so that walking it cannot fail.
        let _ = found.map_err(|error| report.add(Part::Bootstrap, error));
    }
    faults.into_iter().for_each(|fault| report.add_fault(fault));
}

/// Device addresses of the bad chunks of one blob, by where they begin, and the fault that each belongs to.
#[derive(Default)]
struct BadSpace {
    whole: Option<usize>,
    chunks: BTreeMap<u64, (u64, usize)>,
}

fn add_paths(
    bad: &[Bad],
    bootstrap: &Bootstrap<Mapped>,
    faults: &mut [Fault],
) -> Result<(), lazo_format::BootstrapError> {
    let mut spaces: BTreeMap<BlobIndex, BadSpace> = BTreeMap::new();
    for (number, bad) in bad.iter().enumerate() {
        let Some(blob) = bad.blob else { continue };
        let space = spaces.entry(blob).or_default();
        match &bad.chunk {
            None => space.whole = Some(number),
            Some((_, range)) => _ = space.chunks.insert(range.start, (range.end, number)),
        }
    }
    walk(bootstrap, |visited| {
        if visited.inode.file_type != FileType::Regular {
            return Ok(());
        }
        let mut hit = Vec::new();
        runs(bootstrap, visited.inode, |run| {
            let Some((blob, address)) = run.location else { return };
            let Some(space) = spaces.get(&blob) else { return };
            let end = address.0.saturating_add(run.length);
            hit.extend(space.whole);
            // Chunks do not overlap: going back from the last one that begins before the end finds them all.
            let candidates = space.chunks.range(..end).rev();
            hit.extend(
                candidates.take_while(|(_, (chunk_end, _))| *chunk_end > address.0).map(|(_, (_, number))| *number),
            );
        })?;
        hit.sort_unstable();
        hit.dedup();
        for number in hit {
            faults[number].add_path(shown(visited.path));
        }
        Ok(())
    })
}
