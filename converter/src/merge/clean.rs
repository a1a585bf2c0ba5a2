//! What of an entry's metadata a container may see, and which devices.

use lazo_format::{Meta, Xattr};

use super::{Kind, Merge, XATTR_BYTES};
use crate::error::Problem;

/// An owner of -1: the system call that sets owners leaves the one that is there.
const KEEP_OWNER: u32 = u32::MAX;

impl Merge {
    /// Drops the xattrs that must not or cannot be passed on, counting them. `before` has the owners for where the entry names
    /// none; `may_have_user` says whether it is a file or directory.
    pub(super) fn clean_meta(
        &mut self,
        mut meta: Meta,
        before: (u32, u32),
        may_have_user: bool,
    ) -> Result<Meta, Problem> {
        if meta.uid == KEEP_OWNER {
            meta.uid = before.0;
        }
        if meta.gid == KEEP_OWNER {
            meta.gid = before.1;
        }
        meta.xattrs.retain(|xattr| {
            let dropped = match xattr_fate(xattr) {
                XattrFate::User if !may_have_user => &mut self.warnings.user_xattrs,
                XattrFate::User | XattrFate::Keep => return true,
                XattrFate::Overlay => &mut self.warnings.overlay_xattrs,
                XattrFate::Unsupported => &mut self.warnings.unsupported_xattrs,
            };
            *dropped += 1;
            false
        });
        self.count_text(meta.xattrs.iter().map(|x| x.name.len() + x.value.len() + XATTR_BYTES).sum())?;
        Ok(meta)
    }

    /// Takes character devices 0:0 out of the tree, once all layers are in it: an overlay takes them for whiteouts, whatever layer
    /// they are in, so no container sees them.
    pub(crate) fn hide_whiteout_devices(&mut self) {
        let hidden: Vec<bool> = self.nodes.iter().map(|node| matches!(node.kind, Kind::CharDevice(0, 0))).collect();
        for node in &mut self.nodes {
            if let Kind::Directory(children) = &mut node.kind {
                let before = children.len();
                children.retain(|_, child| !hidden[child.node.index()]);
                self.warnings.whiteout_devices += (before - children.len()) as u64;
            }
        }
    }
}

enum XattrFate {
    Keep,
    User,
    Overlay,
    Unsupported,
}

fn xattr_fate(xattr: &Xattr) -> XattrFate {
    const KNOWN: [&[u8]; 2] = [b"trusted.", b"security."];
    const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
    let name = &*xattr.name;
    let of = |namespace: &[u8]| name.starts_with(namespace) && name.len() > namespace.len();
    if name.starts_with(b"trusted.overlay.") {
        XattrFate::Overlay
    } else if of(b"user.") {
        XattrFate::User
    } else if KNOWN.iter().any(|namespace| of(namespace)) || ACLS.contains(&name) {
        XattrFate::Keep
    } else {
        XattrFate::Unsupported
    }
}
