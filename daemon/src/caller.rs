//! What a process that makes a request may see.
//!
//! The kernel checks who may read a file, but leaves it to each filesystem to leave names out of a list of attributes. The request names no
//! user from Linux 6.12 on where owners can be shifted (`FUSE_ALLOW_IDMAP`), so that the process is looked at. What it may is read
//! after it has asked, and might be another's by then: good enough for names, whose values the kernel guards.

use std::fs;

/// CAP_SYS_ADMIN.
const ADMINISTRATOR: u32 = 21;

/// The users of the namespace that a machine begins with: all, as themselves.
const ALL_USERS: [&str; 3] = ["0", "0", "4294967295"];

/// Whether a process may see attributes in `trusted.`, as other filesystems decide it: with CAP_SYS_ADMIN outside of any user namespace.
/// One that cannot be looked at may not.
pub(crate) fn is_administrator(pid: u32) -> bool {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
    let (Ok(status), Ok(users)) = (read("status"), read("uid_map")) else { return false };
    has_capability(&status) && users.split_whitespace().eq(ALL_USERS)
}

fn has_capability(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    effective.is_some_and(|set| set >> ADMINISTRATOR & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_counts() {
        for (status, expected) in [
            ("Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t000001ffffffffff\n", true),
            ("CapEff:\t0000000000200000\n", true),
            ("CapPrm:\t000001ffffffffff\nCapEff:\t00000000a80425fb\n", false),
            ("CapEff:\tx\n", false),
            ("Name:\tx\n", false),
        ] {
            assert_eq!(has_capability(status), expected, "{status}");
        }
        assert!(!is_administrator(0), "a process of another namespace is not to be seen");
    }
}
