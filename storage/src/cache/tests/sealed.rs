//! Everything that could change a file which the kernel reads by itself, or vouch for one that it should not read.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::sync::atomic::AtomicU32;

use super::*;
use crate::cache::{PlainBlob, Sealed};

/// Chunks of the blobs here.
const ALL: u32 = 20;

/// Every bit of a boot's name is another one.
const ANOTHER_BOOT: &str = "00000000-0000-0000-0000-000000000000";

/// What happens to a file, and how.
type Change = (&'static str, fn(&Place));

fn seal(blob: &BlobCache) -> Sealed {
    blob.seal(|chunk, bytes| bytes == content(chunk), || true)
}

fn plain(blob: &BlobCache) -> Option<PlainBlob> {
    blob.plain().unwrap()
}

/// A blob that is sealed, and the process that did it.
fn sealed(place: &Place) -> (Arc<Cache>, Arc<BlobCache>) {
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", ALL);
    fill(&b, 0..ALL);
    assert_eq!(seal(&b), Sealed::Yes);
    (cache, b)
}

/// The file as the kernel has it: without a lock.
fn kernel(plain: &PlainBlob) -> File {
    File::open(format!("/proc/self/fd/{}", plain.file().as_raw_fd())).unwrap()
}

/// Every byte of it is there and right.
fn is_right(file: &File) -> bool {
    let mut bytes = vec![0; CHUNK];
    (0..ALL).all(|chunk| file.read_exact_at(&mut bytes, at(chunk)).is_ok() && bytes == content(chunk))
        && file.metadata().unwrap().len() == at(ALL)
}

/// What a file is changed by: nothing but reading may be done to it.
fn state(file: &File) -> (u64, i64, i64, i64, i64, u64) {
    let m = file.metadata().unwrap();
    (m.ino(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec(), m.blocks())
}

/// As hard as one can: cold chunks, warm ones, all of the blob, and what nobody covers.
fn evict(blob: &BlobCache) -> u64 {
    (0..3).map(|_| blob.evict(0..u32::MAX, u64::MAX).freed).sum()
}

/// Has the note say what it would if something were different.
fn edit_note(place: &Place, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = place.file("b", "sealed");
    let mut note = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut note);
    fs::write(&path, serde_json::to_vec(&note).unwrap()).unwrap();
}

fn reboot(place: &Place) {
    edit_note(place, |note| note["data"]["boot"] = ANOTHER_BOOT.into());
}

fn note(place: &Place) -> bool {
    place.file("b", "sealed").exists()
}

#[test]
fn only_what_is_there_as_a_whole_is_sealed_and_every_process_sees_it() {
    let place = Place::new();
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", ALL);
    assert_eq!(seal(&b), Sealed::NotYet);
    fill(&b, 0..ALL - 1);
    assert_eq!(seal(&b), Sealed::NotYet);
    assert!(!note(&place) && !b.is_sealed() && plain(&b).is_none());
    fill(&b, ALL - 1..ALL);
    assert!(plain(&b).is_none(), "not before it is verified");
    assert_eq!(seal(&b), Sealed::Yes);
    assert_eq!((seal(&b), cache.metrics.cache_sealed.get()), (Sealed::Yes, 1), "once");
    let given = plain(&b).unwrap();
    assert!(is_right(given.file()) && given.path() == place.file("b", "data"));
    let other = place.process(Limit::None);
    let second = blob(&other, "b", ALL);
    assert!(second.is_sealed() && !second.is_verified(3), "for the kernel; this process hashes what it reads itself");
    let again = plain(&second).unwrap();
    assert_eq!(state(again.file()), state(given.file()));
    assert!(again.file().write_at(b"x", 0).is_err(), "open for reading alone");
    assert!(verify(&second, 3) && read(&second, 3..4));
}

#[test]
fn what_another_process_has_stored_is_sealed_when_all_is_there() {
    let place = Place::new();
    let (one, two) = (place.process(Limit::None), place.process(Limit::None));
    let (first, second) = (blob(&one, "b", ALL), blob(&two, "b", ALL));
    fill(&first, 0..11);
    fill(&second, 11..ALL);
    assert_eq!(seal(&first), Sealed::Yes);
    assert!(read(&first, 0..ALL), "it was verified by that");
    assert!(is_right(plain(&second).unwrap().file()));
}

#[test]
fn what_was_not_given_can_be_evicted_and_then_nothing_vouches_for_it() {
    let place = Place::new();
    let (_cache, b) = sealed(&place);
    let freed = evict(&b);
    assert!(freed >= at(ALL), "{freed}");
    assert!(!note(&place) && !b.is_sealed() && plain(&b).is_none());
    fill(&b, 0..ALL);
    assert_eq!(seal(&b), Sealed::NotYet, "not in turns with the eviction");
    assert!(plain(&b).is_none());
    let other = place.process(Limit::None);
    let b = blob(&other, "b", ALL);
    assert_eq!(seal(&b), Sealed::Yes);
    assert!(is_right(plain(&b).unwrap().file()));
}

#[test]
fn what_was_given_is_punched_by_nobody_even_when_all_processes_are_gone() {
    let place = Place::new();
    let (cache, b) = sealed(&place);
    let given = plain(&b).unwrap();
    let before = state(given.file());
    assert_eq!(evict(&b), 0);
    drop((cache, b));
    // What a killed daemon leaves: the kernel has the file, and nobody has a lock.
    let kernel = File::open(place.file("b", "data")).unwrap();
    drop(given);
    assert!(!dirs::is_used(&place.blobs().join("b")));
    for _ in 0..2 {
        let cache = place.process(Limit::Bytes(super::super::MIN_LIMIT));
        let b = blob(&cache, "b", ALL);
        assert_eq!(evict(&b), 0);
        cache.desk.ask_and_wait(Need { below_limit: u64::MAX, on_disk: u64::MAX });
        // Nor is anything written to it, whatever a process thinks is there.
        b.forget(7);
        fill(&b, 0..ALL);
        assert!(read(&b, 0..ALL), "as it has the same bytes");
        assert_eq!(state(&kernel), before);
    }
    // It may be removed as a whole: who has it keeps it.
    assert!(dirs::remove(&place.blobs().join("b")).unwrap());
    assert!(is_right(&kernel));
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", ALL);
    assert!(!b.is_ready(0) && plain(&b).is_none());
    fill(&b, 0..ALL);
    assert_eq!(seal(&b), Sealed::Yes);
    assert!(is_right(&kernel) && is_right(plain(&b).unwrap().file()));
}

#[test]
fn what_is_given_keeps_its_directory_without_the_process_that_gave_it() {
    let place = Place::new();
    let (cache, b) = sealed(&place);
    let given = plain(&b).unwrap();
    let file = kernel(&given);
    drop((cache, b));
    let dir = place.blobs().join("b");
    assert!(dirs::is_used(&dir) && !dirs::remove(&dir).unwrap());
    let other = place.process(Limit::None);
    other.desk.ask_and_wait(Need { below_limit: u64::MAX, on_disk: u64::MAX });
    assert_eq!(place.names(), ["b"], "nor is it evicted whole");
    drop(given);
    assert!(dirs::remove(&dir).unwrap());
    assert!(is_right(&file));
}

#[test]
fn without_its_note_what_was_given_stays_as_it_is() {
    let place = Place::new();
    let (_cache, b) = sealed(&place);
    let given = plain(&b).unwrap();
    let before = state(given.file());
    for spoil in [
        (|path: &Path| fs::remove_file(path).unwrap()) as fn(&Path),
        |path| fs::write(path, "").unwrap(),
        |path| fs::write(path, "{\"version\":1}").unwrap(),
    ] {
        assert_eq!(seal(&b), Sealed::Yes);
        spoil(&place.file("b", "sealed"));
        assert!(plain(&b).is_none(), "nothing vouches for it");
        assert_eq!(evict(&b), 0);
        b.forget(3);
        fill(&b, 0..ALL);
        let other = place.process(Limit::None);
        let second = blob(&other, "b", ALL);
        assert_eq!(evict(&second), 0);
        drop((second, other));
        assert!(is_right(given.file()));
        let now = state(given.file());
        // Sealing it anew sets the mode that it has: a change of nothing.
        assert_eq!((now.0, now.1, now.2, now.5), (before.0, before.1, before.2, before.5));
    }
    assert_eq!(seal(&b), Sealed::Yes);
    assert_eq!(state(plain(&b).unwrap().file()).0, before.0);
}

#[test]
fn a_note_of_another_boot_vouches_for_nothing_and_forbids_nothing() {
    let place = Place::new();
    let (cache, b) = sealed(&place);
    let before = state(plain(&b).unwrap().file()).0;
    drop((cache, b));
    reboot(&place);
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", ALL);
    assert!(!b.is_sealed() && plain(&b).is_none());
    assert_eq!(seal(&b), Sealed::Yes);
    assert_eq!(state(plain(&b).unwrap().file()).0, before, "the same file, verified again");
    assert_eq!(evict(&b), 0, "and given in this boot");
    drop((cache, b));
    reboot(&place);
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", ALL);
    assert!(evict(&b) >= at(ALL), "no kernel has it any more");
    assert!(!note(&place));
}

#[test]
fn a_bitmap_that_was_lost_costs_no_fetch_of_what_is_sealed() {
    let place = Place::new();
    drop(sealed(&place));
    reboot(&place);
    fs::write(place.file("b", "ready"), "").unwrap();
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", ALL);
    assert!((0..ALL).all(|chunk| b.is_ready(chunk) && verify(&b, chunk)));
    assert_eq!(seal(&b), Sealed::Yes);
}

/// Things that happen to a sealed file, or around it, which nobody may take for the file that was verified.
#[test]
fn a_note_vouches_for_no_other_file() {
    let changes: [Change; 9] = [
        ("a byte was written", |place| write(place, b"x", 5)),
        ("the same bytes were written", |place| write(place, &content(0), 0)),
        ("it was cut", |place| open(place).set_len(at(5)).unwrap()),
        ("it was cut and grew", |place| {
            open(place).set_len(at(5)).unwrap();
            open(place).set_len(at(ALL)).unwrap();
        }),
        ("it was made longer", |place| open(place).set_len(at(ALL + 1)).unwrap()),
        ("a copy has its name", |place| {
            let (data, copy) = (place.file("b", "data"), place.file("b", "copy"));
            fs::copy(&data, &copy).unwrap();
            File::options().write(true).open(&copy).unwrap().set_modified(modified(&data)).unwrap();
            fs::rename(copy, data).unwrap();
        }),
        ("its mode was changed", |place| {
            fs::set_permissions(place.file("b", "data"), Permissions::from_mode(0o600)).unwrap();
        }),
        ("its mode was changed and set again", |place| {
            fs::set_permissions(place.file("b", "data"), Permissions::from_mode(0o600)).unwrap();
            fs::set_permissions(place.file("b", "data"), Permissions::from_mode(0o1700)).unwrap();
        }),
        ("its times were set back", |place| {
            let data = place.file("b", "data");
            let before = modified(&data);
            write(place, b"x", 5);
            open(place).set_modified(before).unwrap();
        }),
    ];
    for (what, change) in changes {
        for given in [false, true] {
            let place = Place::new();
            let (cache, b) = sealed(&place);
            if given {
                plain(&b).unwrap();
            }
            change(&place);
            assert!(plain(&b).is_none() && !b.is_sealed(), "{what}");
            let other = place.process(Limit::None);
            assert!(plain(&blob(&other, "b", ALL)).is_none(), "{what}");
            drop((cache, b));
            assert!(plain(&blob(&other, "b", ALL)).is_none(), "{what}");
        }
    }
}

fn open(place: &Place) -> File {
    File::options().write(true).open(place.file("b", "data")).unwrap()
}

fn write(place: &Place, bytes: &[u8], at: u64) {
    open(place).write_all_at(bytes, at).unwrap();
}

fn modified(path: &Path) -> std::time::SystemTime {
    path.metadata().unwrap().modified().unwrap()
}

#[test]
fn a_note_vouches_for_no_other_blob() {
    let place = Place::new();
    let (cache, b) = sealed(&place);
    plain(&b).unwrap();
    drop((cache, b));
    // The very file, under the name of another blob.
    fs::rename(place.blobs().join("b"), place.blobs().join("c")).unwrap();
    let cache = place.process(Limit::None);
    let c = blob(&cache, "c", ALL);
    assert!(!c.is_sealed() && plain(&c).is_none());
    // Another blob's chunks, by which it is found damaged.
    assert_eq!(c.seal(|chunk, bytes| bytes == content(chunk + 1), || true), Sealed::Damaged);
    assert!(plain(&c).is_none());
}

#[test]
fn a_file_that_is_gone_is_not_given_and_its_note_goes_when_it_is_made_again() {
    let place = Place::new();
    let (_cache, b) = sealed(&place);
    let given = plain(&b).unwrap();
    fs::remove_file(place.file("b", "data")).unwrap();
    assert!(plain(&b).is_none());
    b.forget(4);
    fs::write(place.file("b", "sealed"), "left behind").unwrap();
    fill(&b, 4..5);
    assert!(!note(&place) && !b.is_ready(5) && plain(&b).is_none());
    fill(&b, 0..ALL);
    assert!(plain(&b).is_none());
    assert_eq!(seal(&b), Sealed::Yes);
    assert!(is_right(given.file()) && is_right(plain(&b).unwrap().file()));
}

#[test]
fn a_damaged_file_is_not_sealed_and_is_repaired() {
    let place = Place::new();
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", ALL);
    fill(&b, 0..ALL);
    write(&place, b"wrong", at(3) + 7);
    assert_eq!(seal(&b), Sealed::Damaged);
    assert!(!note(&place) && plain(&b).is_none() && !b.is_ready(3) && !b.is_verified(3));
    assert_eq!(seal(&b), Sealed::NotYet);
    fill(&b, 3..4);
    assert_eq!(seal(&b), Sealed::Yes);
    assert!(is_right(plain(&b).unwrap().file()));
}

#[test]
fn damage_in_what_was_given_ends_the_note_and_the_next_gets_a_new_file() {
    let place = Place::new();
    let (cache, b) = sealed(&place);
    let given = plain(&b).unwrap();
    drop((cache, b));
    // Its times say nothing of that: the disk did it.
    let (path, before) = (place.file("b", "data"), state(given.file()));
    write(&place, b"wrong", at(3) + 7);
    fs::set_permissions(&path, Permissions::from_mode(0o1700)).unwrap();
    let now = state(given.file());
    edit_note(&place, |note| {
        note["data"]["modified"] = serde_json::json!([now.1, now.2]);
        note["data"]["changed"] = serde_json::json!([now.3, now.4]);
    });
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", ALL);
    assert!(b.is_sealed(), "as far as is known");
    assert!(verify(&b, 2) && !verify(&b, 3));
    assert!(!note(&place) && plain(&b).is_none(), "now it is known");
    assert_eq!(seal(&b), Sealed::NotYet);
    fill(&b, 3..4);
    assert!(read(&b, 3..4));
    fill(&b, 0..ALL);
    assert_eq!(seal(&b), Sealed::Yes);
    let again = plain(&b).unwrap();
    assert!(is_right(again.file()) && state(again.file()).0 != before.0);
    let after = state(given.file());
    assert_eq!((after.0, after.1, after.2, after.5), (now.0, now.1, now.2, now.5), "who has the damaged one keeps it");
}

#[test]
fn nobody_writes_while_a_blob_is_sealed_and_nobody_seals_while_it_is_written() {
    let place = Place::new();
    let (one, two) = (place.process(Limit::None), place.process(Limit::None));
    let (first, second) = (blob(&one, "b", ALL), blob(&two, "b", ALL));
    fill(&first, 0..ALL);
    let shape = Shape { device_size: at(ALL), chunks: ALL };
    let (writer, _) = Files::make(&place.blobs().join("b"), &shape).unwrap();
    {
        let _two = (writer.begin_write().unwrap().unwrap(), writer.begin_write().unwrap().unwrap());
        assert_eq!(seal(&first), Sealed::Busy);
        assert!(!note(&place));
    }
    let data = File::open(place.file("b", "data")).unwrap();
    let tried = AtomicU32::new(0);
    let sealed = first.seal(
        |chunk, bytes| {
            let before = state(&data);
            assert!(writer.begin_write().unwrap().is_none(), "not even before it is sealed");
            // Another process that has fetched a chunk once more.
            fill(&second, chunk..chunk + 1);
            assert!(read(&second, chunk..chunk + 1));
            assert_eq!(seal(&second), Sealed::Busy, "one at a time");
            assert_eq!(evict(&first) + evict(&second), 0, "nor is it punched");
            assert!(plain(&first).is_none() && plain(&second).is_none(), "it is not vouched for yet");
            assert_eq!(state(&data), before);
            tried.fetch_add(1, Ordering::Relaxed);
            bytes == content(chunk)
        },
        || true,
    );
    assert_eq!((sealed, tried.into_inner()), (Sealed::Yes, ALL));
}

#[test]
fn what_happens_to_a_file_while_it_is_verified_is_noticed() {
    let changes: [Change; 4] = [
        ("written behind", |place| write(place, &content(0), 0)),
        ("removed", |place| fs::remove_file(place.file("b", "data")).unwrap()),
        ("cut", |place| open(place).set_len(at(ALL - 1)).unwrap()),
        ("replaced", |place| {
            fs::copy(place.file("b", "data"), place.file("b", "copy")).unwrap();
            fs::rename(place.file("b", "copy"), place.file("b", "data")).unwrap();
        }),
    ];
    for (what, change) in changes {
        let place = Place::new();
        let cache = place.process(Limit::None);
        let b = blob(&cache, "b", ALL);
        fill(&b, 0..ALL);
        let check = |chunk, bytes: &[u8]| {
            if chunk == 10 {
                change(&place);
            }
            bytes == content(chunk)
        };
        assert_eq!(b.seal(check, || true), Sealed::Busy, "{what}");
        assert!(!note(&place) && plain(&b).is_none(), "{what}");
    }
}

#[test]
fn who_stops_half_way_leaves_nothing_that_vouches() {
    let place = Place::new();
    let (one, two) = (place.process(Limit::None), place.process(Limit::None));
    let b = blob(&one, "b", ALL);
    fill(&b, 0..ALL);
    let left = AtomicU32::new(10);
    let go_on = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
    assert_eq!(b.seal(|_, _| true, go_on), Sealed::Busy);
    assert!(!note(&place) && plain(&b).is_none());
    drop((b, one));
    let b = blob(&two, "b", ALL);
    assert!(evict(&b) >= at(ALL), "nor anything that holds others up");
    fill(&b, 0..ALL);
}

#[test]
fn a_disk_that_cannot_be_written_is_noticed_before_the_kernel_reads_zeros() {
    // What is in the page cache is not what counts: the file as the disk has it does.
    let place = Place::new();
    let cache = place.process(Limit::None);
    let b = blob(&cache, "b", ALL);
    fill(&b, 0..ALL);
    let path = place.file("b", "data");
    let direct = OpenOptions::new().read(true).open(&path).unwrap();
    let check = |chunk, bytes: &[u8]| {
        let out = std::process::Command::new("fincore").args(["-bno", "RES"]).arg(&path).output().unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap().trim(), "0", "it is read past the page cache");
        bytes == content(chunk)
    };
    assert_eq!(b.seal(check, || true), Sealed::Yes);
    assert!(is_right(&direct));
}

/// Processes that store, evict, seal, remove and give at random: what was given once stays right.
#[test]
fn what_was_given_is_right_whatever_all_others_do() {
    const ROUNDS: u32 = 150;
    let place = Place::new();
    let given = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (place, given) = (&place, &given);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..ROUNDS {
                    let cache = place.process(Limit::None);
                    let b = blob(&cache, "b", ALL);
                    for _ in 0..random.u32(1..12) {
                        match random.u32(0..8) {
                            0 | 1 => fill(&b, 0..ALL),
                            2 => drop(b.evict(0..random.u32(1..=ALL), u64::MAX)),
                            3 => b.forget(random.u32(0..ALL)),
                            4 | 5 => drop(seal(&b)),
                            6 => drop(dirs::remove(&place.blobs().join("b"))),
                            _ => given.lock().unwrap().extend(plain(&b).map(|plain| (kernel(&plain), random.bool()))),
                        }
                        for chunk in 0..ALL {
                            let _ = verify(&b, chunk) && read(&b, chunk..chunk + 1);
                        }
                    }
                    let mut given = given.lock().unwrap();
                    assert!(given.iter().all(|(file, _)| is_right(file)));
                    given.retain(|(_, stays)| *stays);
                    given.truncate(8);
                }
            });
        }
    });
    let given = given.into_inner().unwrap();
    assert!(given.iter().all(|(file, _)| is_right(file)));
}
