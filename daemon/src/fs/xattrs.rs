//! Extended attributes.

use std::cell::LazyCell;

use rustix::io::Errno;

use super::{FileSystem, FsError, Ino};

impl FileSystem {
    /// An extended attribute's value, by full name.
    ///
    /// # Errors
    /// `ENODATA`; `EOPNOTSUPP` or `EINVAL` for a name that no file can have; a damaged bootstrap.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<&[u8], FsError> {
        check_xattr_name(name)?;
        let inode = self.inode(ino)?;
        self.image.bootstrap().xattr(&inode, name)?.ok_or(FsError::Caller(Errno::NODATA))
    }

    /// Full names of extended attributes, each followed by a NUL. Those in `trusted.` are for administrators: `is_administrator` says
    /// whether the caller is one, and is asked only if there are any.
    ///
    /// # Errors
    /// `E2BIG` over the kernel's limit; a damaged bootstrap.
    pub fn xattr_names(&self, ino: Ino, is_administrator: impl FnOnce() -> bool) -> Result<Vec<u8>, FsError> {
        /// `XATTR_LIST_MAX` of the kernel.
        const MOST: usize = 65536;
        let inode = self.inode(ino)?;
        let is_administrator = LazyCell::new(is_administrator);
        let mut names = Vec::new();
        for xattr in self.image.bootstrap().xattrs(&inode)? {
            let (name, _) = xattr?;
            if name.starts_with(b"trusted.") && !*is_administrator {
                continue;
            }
            names.extend_from_slice(&name);
            names.push(0);
            if names.len() > MOST {
                return Err(FsError::Caller(Errno::TOOBIG));
            }
        }
        Ok(names)
    }
}

/// Refuses names outside of the namespaces that EROFS has, and namespaces without a name, as the kernel does for its own filesystems.
fn check_xattr_name(name: &[u8]) -> Result<(), FsError> {
    const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
    match NAMESPACES.iter().find_map(|namespace| name.strip_prefix(*namespace)) {
        Some(b"") => Err(FsError::Caller(Errno::INVAL)),
        None if !ACLS.contains(&name) => Err(FsError::Caller(Errno::OPNOTSUPP)),
        _ => Ok(()),
    }
}
