//! Every accessor of the bootstrap reader, on every inode that the tree or the fuzzer leads to.
#![no_main]

mod mend_bootstrap;

use lazo_format::{BlobIndex, Bootstrap, BootstrapError, FileType, Nid};
use libfuzzer_sys::fuzz_target;

/// Inodes looked at: enough for every seed, and a bound where directories form a loop.
const MAX_INODES: usize = 160;
/// Names and runs looked at in one inode.
const MAX_ITEMS: usize = 160;

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    mend_bootstrap::mend(&mut bytes);
    let Ok(bootstrap) = Bootstrap::parse(bytes.as_slice()) else { return };
    for blob in 0..=bootstrap.device_count() {
        let _ = bootstrap.slot(BlobIndex(blob as u16));
    }
    let valid = bootstrap.validate();
    let mut pending = vec![bootstrap.root()];
    // Numbers that no directory gives away.
    pending.extend(data.chunks_exact(8).take(16).map(|bytes| Nid(u64::from_le_bytes(bytes.try_into().unwrap()))));
    pending.extend((0..data.len() as u64 / 32).take(MAX_INODES / 2).map(Nid));
    for _ in 0..MAX_INODES {
        let Some(nid) = pending.pop() else { break };
        let looked = look(&bootstrap, nid, &mut pending);
        // What the validator accepts must be readable from the root down; other numbers need not be inodes.
        if nid == bootstrap.root() && valid.is_ok() {
            looked.expect("validate accepts a root that cannot be read");
        }
    }
});

fn look(bootstrap: &Bootstrap<&[u8]>, nid: Nid, pending: &mut Vec<Nid>) -> Result<(), BootstrapError> {
    let inode = bootstrap.inode(nid)?;
    let _ = bootstrap.read_link(&inode);
    let _ = bootstrap.xattr(&inode, b"user.one");
    let _ = bootstrap.xattr(&inode, b"security.capability");
    for xattr in bootstrap.xattrs(&inode).into_iter().flatten().take(MAX_ITEMS).flatten() {
        let _ = bootstrap.xattr(&inode, &xattr.0);
    }
    let mut offset = 0;
    for _ in 0..MAX_ITEMS {
        match bootstrap.extent(&inode, offset) {
            Ok(run) if run.length > 0 => offset = offset.saturating_add(run.length),
            _ => break,
        }
    }
    for offset in [1, 4095, inode.size / 2, inode.size.saturating_sub(1), inode.size, u64::MAX] {
        let _ = bootstrap.extent(&inode, offset);
    }
    let _ = bootstrap.lookup(&inode, b"..");
    let _ = bootstrap.lookup(&inode, &[0xff; 255]);
    if inode.file_type != FileType::Directory {
        return Ok(());
    }
    for entry in bootstrap.read_dir(&inode, 0)?.take(MAX_ITEMS) {
        let entry = entry?;
        let _ = bootstrap.lookup(&inode, entry.name);
        let _ = bootstrap.read_dir(&inode, entry.next_cookie).map(|mut rest| rest.next().is_some());
        if pending.len() < MAX_INODES {
            pending.push(entry.nid);
        }
    }
    let _ = bootstrap.read_dir(&inode, nid.0);
    Ok(())
}
