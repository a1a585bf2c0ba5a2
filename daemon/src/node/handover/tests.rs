use super::*;
use std::io::{Read as _, Seek as _, Write as _};

/// What is handed over: a file with a content that tells it.
fn kept() -> Files {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"kept").unwrap();
    file.rewind().unwrap();
    Files::from([("a".to_owned(), file.into())])
}

fn copies(files: &Files) -> io::Result<Files> {
    files.iter().map(|(name, file)| Ok((name.clone(), file.try_clone()?))).collect()
}

fn assert_kept(given: &Given) {
    let mut content = String::new();
    let mut file = File::from(given.files["a"].try_clone().unwrap());
    file.rewind().unwrap();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "kept");
}

/// A holder that is a thread of the test.
fn thread_holds(run_dir: &Path, stream: &UnixStream, files: &Files) -> io::Result<Holder> {
    let (ours, theirs) = link::pair()?;
    thread::spawn(move || holder::hold(&theirs));
    Holder::equip(ours, None, run_dir, stream, files)
}

fn nobody_holds(_: &Path, _: &UnixStream, _: &Files) -> io::Result<Holder> {
    Err(io::Error::other("there is no process for it"))
}

fn until_no_holder(run_dir: &Path) {
    drop(wait_for_lock(run_dir, holder::LOCK, "the holder").unwrap());
}

#[test]
fn files_go_from_one_to_the_other() {
    for hold in [thread_holds, nobody_holds] as [fn(&Path, &UnixStream, &Files) -> io::Result<Holder>; 2] {
        let dir = tempfile::tempdir().unwrap();
        let (files, path) = (kept(), dir.path());
        let worker = lock_worker(path).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| give(path, || copies(&files), |stream, files| hold(path, stream, files)));
            let given = take(path).unwrap();
            assert_kept(&given);
            say_served(&given.from.unwrap());
        });
        drop(worker);
        until_no_holder(path);
        assert!(take(path).unwrap().files.is_empty(), "nobody is left");
    }
}

#[test]
fn what_a_killed_daemon_was_given_goes_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (files, path) = (kept(), dir.path());
    let worker = lock_worker(path).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            give(path, || copies(&files), |stream, files| thread_holds(path, stream, files));
        });
        // Killed when it has all: all of its files are closed.
        drop(take(path).unwrap());
    });
    drop(worker);
    for _ in 0..2 {
        let given = take(path).unwrap();
        assert_kept(&given);
        // As its own worker does, which has a copy.
        let copy = given.from.as_ref().unwrap().try_clone().unwrap();
        drop(given);
        assert!(UnixStream::connect(socket(path)).is_err(), "its worker may still come to serve");
        drop(copy);
    }
    let given = take(path).unwrap();
    assert_kept(&given);
    say_served(&given.from.unwrap());
    until_no_holder(path);
    assert!(take(path).unwrap().files.is_empty());
}

#[test]
fn a_worker_that_is_killed_while_it_hands_over_leaves_all_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let holder = thread_holds(dir.path(), &ours, &kept()).unwrap();
    drop(ours);
    // As when its process is killed: it says nothing more.
    rustix::net::shutdown(&holder.link, rustix::net::Shutdown::Both).unwrap();
    receive(theirs).unwrap_err();
    let given = take(dir.path()).unwrap();
    assert_kept(&given);
    say_served(&given.from.unwrap());
}

#[test]
fn a_worker_that_serves_on_needs_no_holder() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    say(&theirs, GREETS).unwrap();
    drop(theirs);
    let holds = |stream: &UnixStream, files: &Files| thread_holds(dir.path(), stream, files);
    hand_over(&ours, &kept(), holds).unwrap_err();
    until_no_holder(dir.path());
}

#[test]
fn an_older_supervisor_takes_all_and_says_nothing() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let files = scope.spawn(move || {
            let mut names = Vec::new();
            while let Some((Kept { name, .. }, _)) = link::receive(&theirs).unwrap() {
                names.push(name);
            }
            names
        });
        hand_over(&ours, &kept(), |_, _| panic!("nobody would end it")).unwrap();
        drop(ours);
        assert_eq!(files.join().unwrap(), ["a"]);
    });
}

#[test]
fn a_broken_handover_is_no_handover() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let files = kept();
    link::send(&ours, &Kept { name: "a".to_owned(), left: Some(1) }, &[files["a"].as_fd()]).unwrap();
    drop(ours);
    receive(theirs).unwrap_err();
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    send_all(&ours, &files).unwrap_err();
}

#[test]
fn there_is_one_supervisor() {
    let dir = tempfile::tempdir().unwrap();
    let first = begin(dir.path()).unwrap();
    assert!(begin(dir.path()).is_err());
    drop(first);
    begin(dir.path()).unwrap();
}

#[test]
fn a_daemon_that_is_to_end_hands_over_to_the_next_and_the_one_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let ending = std::sync::Mutex::new(Some(begin(dir.path()).unwrap()));
    let worker = lock_worker(dir.path()).unwrap();
    let (files, path) = (kept(), dir.path());
    let next = || loop {
        match begin(path) {
            Ok(next) => break next,
            Err(_) => thread::sleep(LOOK),
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            give(path, || copies(&files), |stream, files| thread_holds(path, stream, files));
            drop(worker);
            ending.lock().unwrap().take();
        });
        let (alone, given) = next();
        assert_kept(&given);
        // It is killed before it serves.
        drop((alone, given));
        let (_alone, given) = next();
        assert_kept(&given);
        say_served(&given.from.unwrap());
    });
    until_no_holder(path);
}
