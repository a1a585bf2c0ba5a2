//! What the mounter reads: messages on its link, and maps of ids.

use std::os::unix::net::UnixStream;

use rustix::net::{Shutdown, shutdown};

use super::idmap::IdMap;
use super::{Reply, Request};
use crate::node::link;

/// Bytes that the link is given, in the hope that the kernel takes them at once.
const MAX_SENT: usize = 64 << 10;

/// All that comes on a link, first as orders and then as replies.
pub(in crate::node) fn messages(data: &[u8]) {
    let data = &data[..data.len().min(MAX_SENT)];
    let send = || -> std::io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        std::io::Write::write_all(&mut &ours, data)?;
        shutdown(&ours, Shutdown::Write)?;
        Ok(theirs)
    };
    let orders = send().expect("a socket");
    while let Ok(Some((request, files))) = link::receive::<Request>(&orders) {
        assert!(files.is_empty());
        let written = serde_json::to_value(&request).expect("paths from JSON are UTF-8");
        let again = serde_json::from_value::<Request>(written.clone()).expect("what was written here");
        assert_eq!(serde_json::to_value(&again).expect("the same"), written);
    }
    let replies = send().expect("a socket");
    while let Ok(Some((reply, _))) = link::receive::<Reply>(&replies) {
        let again = serde_json::to_vec(&reply).expect("paths from JSON are UTF-8");
        assert!(serde_json::from_slice::<Reply>(&again).is_ok_and(|again| again.result == reply.result));
    }
}

/// A map of ids.
pub(in crate::node) fn id_map(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Ok(map) = text.parse::<IdMap>() else { return };
    assert_eq!(map.to_string().parse().as_ref(), Ok(&map), "{text:?}");
    for lines in [map.uids(), map.gids()] {
        // What the kernel takes.
        assert!(lines.len() < 4096 && (1..=340).contains(&lines.lines().count()), "{text:?}");
    }
}
