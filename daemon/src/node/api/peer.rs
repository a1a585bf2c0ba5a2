//! Who may use the control socket: the mode of its file keeps most away, and the kernel says who the others are.

use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::Mode;
use tokio::net::UnixStream;

use super::super::config::Config;
use super::super::protocol::{ApiError, ErrorKind};
use crate::endpoint;
use crate::peer;

/// Root's only.
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// A group's, too.
const GROUP: Mode = PRIVATE.union(Mode::RGRP).union(Mode::WGRP);

/// For all to connect to. Who they are is looked at then.
const ALL: Mode = GROUP.union(Mode::ROTH).union(Mode::WOTH);

/// A user's number.
pub(super) type User = u32;

/// Who may use the control socket, besides root and the user that the daemon runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct Access {
    group: Option<u32>,
    users: Vec<u32>,
}

impl Access {
    /// As configured.
    ///
    /// # Errors
    /// When there is no such group.
    pub(in super::super) fn new(config: &Config) -> io::Result<Self> {
        let group = config.control_group.as_deref().map(group_number).transpose()?;
        Ok(Self { group, users: config.control_uids.clone() })
    }

    /// Who has connected, if he may.
    pub(super) fn check(&self, stream: &UnixStream) -> Result<User, ApiError> {
        let peer = peer::of(stream);
        let peer =
            peer.map_err(|error| ApiError::new(ErrorKind::Denied, format!("cannot see who you are: {error}")))?;
        let own = rustix::process::geteuid().as_raw();
        let in_group = self.group.is_some_and(|group| peer.gid == group || peer.groups.contains(&group));
        if peer.uid == 0 || peer.uid == own || in_group || self.users.contains(&peer.uid) {
            return Ok(peer.uid);
        }
        let error = format!(
            "user {} may not use the node daemon; its configuration can say so with control_group or control_uids",
            peer.uid
        );
        Err(ApiError::new(ErrorKind::Denied, error))
    }

    fn mode(&self) -> Mode {
        match (self.group, &*self.users) {
            (None, []) => PRIVATE,
            (Some(_), []) => GROUP,
            _ => ALL,
        }
    }
}

/// Makes the control socket. One at which nobody listens any more is replaced.
///
/// # Errors
/// When another process listens there, or the file cannot be made.
pub(in super::super) fn listen(path: &Path, access: &Access) -> io::Result<UnixListener> {
    let listener = endpoint::bind_unix(path, access.mode())?;
    // Until now it was the daemon's own group's.
    if let Some(group) = access.group {
        std::os::unix::fs::chown(path, None, Some(group))?;
    }
    Ok(listener)
}

/// From a name or a number.
fn group_number(group: &str) -> io::Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let groups = fs::read_to_string("/etc/group")?;
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("control_group: there is no group {group}"));
    number_in(&groups, group).ok_or_else(missing)
}

/// The number of a group in the text of `/etc/group`.
pub(super) fn number_in(groups: &str, group: &str) -> Option<u32> {
    let found = groups.lines().find_map(|line| line.strip_prefix(group)?.strip_prefix(':')?.split(':').nth(1));
    found?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    #[test]
    fn groups_are_found_by_name_and_number() {
        assert_eq!(group_number("root").unwrap(), 0);
        assert_eq!(group_number("4711").unwrap(), 4711);
        assert!(group_number("no-such-group").unwrap_err().to_string().contains("no-such-group"));
        assert!(group_number("roo").is_err());
    }

    #[test]
    fn the_sockets_mode_is_as_narrow_as_can_be() {
        let dir = tempfile::tempdir().unwrap();
        for (config, mode) in [
            ("", 0o600),
            ("control_group = '4711'", 0o660),
            ("control_uids = [4711]", 0o666),
            ("control_group = '4711'\ncontrol_uids = [4711]", 0o666),
        ] {
            let access = Access::new(&Config::parse(config).unwrap()).unwrap();
            let path = dir.path().join("lazo.sock");
            let _listener = listen(&path, &access).unwrap();
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o777, mode, "{config}");
            assert_eq!(metadata.gid() == 4711, config.contains("group"), "{config}");
            assert_eq!(listen(&path, &access).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
    }
}
