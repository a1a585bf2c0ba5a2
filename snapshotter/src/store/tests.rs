use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;

/// A small file system of its own, gone on drop.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=16m")).unwrap();
        Self(dir)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Takes all that is free.
    fn fill(&self) -> File {
        let file = File::create(self.join("rest")).unwrap();
        let mut size = 16 << 20;
        let mut at = 0;
        while size >= 4096 {
            match fallocate(&file, FallocateFlags::empty(), at, size) {
                Ok(()) => at += size,
                Err(_) => size /= 2,
            }
        }
        file
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).unwrap();
    }
}

fn record(id: u64) -> Record {
    Record { id, labels: [("big".to_owned(), "x".repeat(100_000))].into(), ..Record::default() }
}

fn add(store: &Store, id: u64) -> Result<(), StoreError> {
    store.change(|change| change.insert(&format!("snapshot {id}"), &record(id)))
}

#[test]
fn a_full_disk_costs_no_more_than_what_cannot_be_written() {
    let disk = Disk::new();
    let store = Store::open(&disk.join("metadata.redb")).unwrap();
    for id in 1..=3 {
        add(&store, id).unwrap();
    }
    let rest = disk.fill();
    let failed = (4..1000).find(|id| add(&store, *id).is_err()).expect("the disk is full");
    // Nothing is refused for having failed before.
    assert_eq!(store.get("snapshot 2").unwrap(), Some(record(2)));
    assert!(store.get(&format!("snapshot {failed}")).unwrap().is_none());
    for _ in 0..3 {
        assert!(!add(&store, failed).unwrap_err().is_latched(), "it is tried again");
    }
    assert_eq!(store.ids().unwrap().len() as u64, failed - 1);
    store.change_at_last(|change| change.remove("snapshot 2", &record(2))).unwrap();
    assert!(store.get("snapshot 2").unwrap().is_none());
    // With room again, all is as before, and so is the reserve.
    rest.set_len(0).unwrap();
    add(&store, failed).unwrap();
    store.keep_reserve();
    assert_eq!(fs::metadata(disk.join("metadata.reserve")).unwrap().len(), RESERVE);
    drop(store);
    assert_eq!(Store::open(&disk.join("metadata.redb")).unwrap().ids().unwrap().len() as u64, failed - 1);
}
