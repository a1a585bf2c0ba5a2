//! Outages: who waits, how long, and what wakes him.

use futures_util::future::join_all;

use super::*;

const READERS: usize = 64;

/// Readers that go on until they have all or an open fails, each of a blob of his own or all of one.
fn readers(upstream: &Upstream, blobs: u8) -> Vec<tokio::task::JoinHandle<Result<Duration, UpstreamError>>> {
    (0..READERS)
        .map(|reader| {
            let (upstream, blob) = (upstream.clone(), blob(u8::try_from(reader).unwrap() % blobs));
            tokio::spawn(async move { persist(&upstream, &blob).await })
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_hung_source_that_goes_on_loses_nobody() {
    for (body, blobs) in [(false, 1), (false, 64), (true, 1), (true, 64)] {
        let start = Instant::now();
        let until = start + 20 * SECOND;
        let hung =
            if body { flow(Flow::Stall(PIECE, Some(until))) } else { Plan { head: Head::At(until), body: Flow::All } };
        let a = Scripted::new("a", hung.clone());
        let upstream = upstream([&a]);
        let readers = readers(&upstream, blobs);
        time::sleep_until(until).await;
        a.set(serve());
        for reader in readers {
            reader.await.unwrap().unwrap();
        }
        assert!(start.elapsed() < 21 * SECOND, "{:?}", start.elapsed());
        assert!(a.calls() <= 2 * READERS + 5, "{}", a.calls());
        assert_eq!(a.running(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn readers_wait_through_an_outage_without_a_herd() {
    for blobs in [1, 8, 64] {
        let a = Scripted::new("a", fail(ErrorKind::Unreachable));
        let upstream = upstream([&a]);
        let start = Instant::now();
        let readers = readers(&upstream, blobs);
        time::sleep(50 * SECOND).await;
        let asked = a.calls();
        assert!(asked <= READERS + 130, "{asked} requests in 50 s");
        assert!(asked >= READERS + 80, "{asked}: at least one each half a second");
        a.set(serve());
        for reader in readers {
            reader.await.unwrap().unwrap();
        }
        assert!(start.elapsed() < 50 * SECOND + 600 * MS, "{:?}", start.elapsed());
        assert!(a.calls() <= asked + READERS + 1, "{}", a.calls());
    }
}

#[tokio::test(start_paused = true)]
async fn the_outage_limit_ends_the_wait_of_all_and_is_told_once() {
    Log::begin();
    let a = Scripted::new("a", fail(ErrorKind::Server));
    let upstream = upstream([&a]);
    let start = Instant::now();
    for reader in readers(&upstream, 1) {
        let error = reader.await.unwrap().unwrap_err();
        assert_eq!((error.reason, error.kind()), (Reason::Outage, ErrorKind::Server));
        assert!(start.elapsed() >= 60 * SECOND && start.elapsed() < 61 * SECOND, "{:?}", start.elapsed());
    }
    assert_eq!(upstream.0.metrics.outages.get(), 1);
    assert_eq!(Log::lines(), [1, 1, 0]);
    a.set(serve());
    time::sleep(SECOND).await;
    read(&upstream, &blob(0)).await.unwrap();
    assert_eq!(Log::lines(), [1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn whoever_looks_is_told_who_waits_since_when_and_why() {
    let a = Scripted::new("a", fail(ErrorKind::Unreachable));
    let upstream = upstream([&a]);
    assert_eq!(upstream.trouble(), None);
    let readers = readers(&upstream, 2);
    time::sleep(20 * SECOND).await;
    let trouble = upstream.trouble().unwrap();
    assert_eq!((trouble.blobs, trouble.waiting, trouble.failing), (2, READERS as u64, false));
    assert_eq!(trouble.since, 20 * SECOND);
    let [Tried { source, cause: Some(cause) }] = &*trouble.tried else { panic!("{trouble:?}") };
    assert_eq!((&**source, cause.kind), ("a", ErrorKind::Unreachable));
    assert_eq!(upstream.0.metrics.outage_requests.get(), 64);
    time::sleep(41 * SECOND).await;
    let trouble = upstream.trouble().unwrap();
    assert_eq!((trouble.waiting, trouble.failing), (0, true), "the limit has run out");
    assert_eq!(upstream.0.metrics.outage_requests.get(), 0);
    time::sleep(20 * SECOND).await;
    assert_eq!(upstream.trouble(), None, "nobody wants it any more");
    drop(readers);
    let reader = tokio::spawn({
        let upstream = upstream.clone();
        async move { persist(&upstream, &blob(0)).await }
    });
    time::sleep(SECOND).await;
    assert!(upstream.trouble().is_some());
    a.set(serve());
    reader.await.unwrap().unwrap();
    assert_eq!((upstream.trouble(), upstream.0.metrics.outage_requests.get()), (None, 0), "it is served again");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_comes_and_goes_does_not_fill_the_log() {
    Log::begin();
    let a = Scripted::new("a", serve());
    let upstream = upstream([&a]);
    let start = Instant::now();
    while start.elapsed() < 100 * SECOND {
        a.set(flow(Flow::Cut(PIECE)));
        read(&upstream, &blob(1)).await.unwrap_err();
        a.set(serve());
        read(&upstream, &blob(1)).await.unwrap();
    }
    let [down, error, back] = Log::lines();
    assert!((9..=10).contains(&down) && back == down && error == 0, "{:?}", Log::lines());
    a.set(fail(ErrorKind::Server));
    refused(read(&upstream, &blob(1)).await);
    assert_eq!(Log::lines(), [down + 1, 1, back], "what lasts is told");
}

#[tokio::test(start_paused = true)]
async fn after_the_limit_reads_fail_at_once_and_a_probe_finds_the_way_back() {
    let a = Scripted::new("a", fail(ErrorKind::Unreachable));
    let upstream = upstream([&a]);
    refused(read(&upstream, &blob(1)).await);
    let (start, asked) = (Instant::now(), a.calls());
    for _ in 0..50 {
        refused(read(&upstream, &blob(1)).await);
        time::sleep(50 * MS).await;
    }
    assert!(start.elapsed() < 2600 * MS, "each at once: {:?}", start.elapsed());
    let probes = a.calls() - asked;
    assert!((4..=8).contains(&probes), "{probes} in 2.5 s");
    a.set(serve());
    time::sleep(500 * MS).await;
    let (_, took) = read(&upstream, &blob(1)).await.unwrap();
    assert!(took < 100 * MS, "{took:?}");
    assert!(upstream.0.board().is_forgotten(blob(1).digest), "the outage is over");
}

#[tokio::test(start_paused = true)]
async fn one_prober_may_hang_after_the_limit_while_others_fail_at_once() {
    let a = Scripted::new("a", hang());
    let upstream = upstream([&a]);
    let start = Instant::now();
    refused(read(&upstream, &blob(1)).await);
    assert!(start.elapsed() <= 70 * SECOND, "{:?}", start.elapsed());
    time::sleep(500 * MS).await;
    let prober = tokio::spawn({
        let upstream = upstream.clone();
        async move { read(&upstream, &blob(1)).await }
    });
    tokio::task::yield_now().await;
    let start = Instant::now();
    let blob = blob(1);
    for result in join_all((0..20).map(|_| read(&upstream, &blob))).await {
        refused(result);
    }
    assert!(start.elapsed() < SECOND, "{:?}", start.elapsed());
    assert_eq!(a.running(), 1);
    prober.abort();
    prober.await.unwrap_err();
    assert_eq!(a.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_repeats_a_read_waits_once_and_a_later_read_waits_anew() {
    let a = Scripted::new("a", fail(ErrorKind::Unreachable));
    let upstream = upstream([&a]);
    let start = Instant::now();
    for _ in 0..4 {
        refused(read(&upstream, &blob(1)).await);
    }
    assert!(start.elapsed() < 61 * SECOND, "{:?}", start.elapsed());
    time::sleep(6 * SECOND).await;
    let start = Instant::now();
    refused(read(&upstream, &blob(1)).await);
    assert!(start.elapsed() >= 60 * SECOND, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_limit_is_counted_for_each_blob() {
    let a = Scripted::new("a", fail(ErrorKind::Unreachable));
    let upstream = upstream([&a]);
    let read_after = |delay: Duration, number| {
        let upstream = upstream.clone();
        async move {
            time::sleep(delay).await;
            refused(read(&upstream, &blob(number)).await).waited
        }
    };
    let waits =
        [(Duration::ZERO, 1), (40 * SECOND, 1), (40 * SECOND, 2)].map(|(delay, number)| read_after(delay, number));
    let waited = join_all(waits).await;
    for (waited, seconds) in waited.into_iter().zip([60, 20, 60]) {
        assert!(waited >= SECOND * seconds && waited < SECOND * (seconds + 1), "{waited:?}, not {seconds} s");
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_wait_fails_at_once_and_begins_no_outage() {
    let (a, b) = (Scripted::new("a", fail(ErrorKind::Unreachable)), Scripted::new("b", fail(ErrorKind::Server)));
    let upstream = upstream([&a, &b]);
    let start = Instant::now();
    let error = refused(read_as(&upstream, &blob(1), Urgency::Ahead).await);
    assert_eq!((error.reason, error.kind()), (Reason::Unhealthy, ErrorKind::Unreachable));
    assert_eq!((a.calls(), b.calls()), (1, 1), "one round");
    refused(read_as(&upstream, &blob(1), Urgency::Ahead).await);
    assert_eq!((a.calls(), b.calls()), (1, 1), "none healthy");
    assert!(start.elapsed() < 100 * MS);
    for _ in 0..300 {
        refused(read_as(&upstream, &blob(1), Urgency::Ahead).await);
        time::sleep(SECOND).await;
    }
    assert!(a.calls() < 25, "{}", a.calls());
    let waited = refused(read(&upstream, &blob(1)).await).waited;
    assert!(waited >= 60 * SECOND, "{waited:?}");
    a.set(serve());
    time::sleep(31 * SECOND).await;
    read_as(&upstream, &blob(1), Urgency::Ahead).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_probe_given_up_leaves_its_turn_to_another() {
    let a = Scripted::new("a", fail(ErrorKind::Unreachable));
    let upstream = upstream([&a]);
    refused(read_as(&upstream, &blob(1), Urgency::Ahead).await);
    a.set(hang());
    time::sleep(400 * MS).await;
    let prober = tokio::spawn({
        let upstream = upstream.clone();
        async move { read(&upstream, &blob(1)).await }
    });
    time::sleep(100 * MS).await;
    assert_eq!((a.calls(), a.running()), (2, 1));
    let waiting = tokio::spawn({
        let upstream = upstream.clone();
        async move { read(&upstream, &blob(2)).await }
    });
    time::sleep(SECOND).await;
    assert_eq!(a.calls(), 2, "one probe at a time");
    a.set(serve());
    let given_up = Instant::now();
    prober.abort();
    waiting.await.unwrap().unwrap();
    assert!(given_up.elapsed() < 100 * MS, "{:?}", given_up.elapsed());
    assert_eq!(a.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_body_given_up_leaves_nothing_behind() {
    let a = Scripted::new("a", serve());
    let upstream = upstream([&a]);
    let mut body = upstream.open(&blob(1), 0..LENGTH, Urgency::Waiting, &[]).await.unwrap();
    body.next().await.unwrap().unwrap();
    drop(body);
    assert_eq!(a.running(), 0);
    let mut body = upstream.open(&blob(1), 0..LENGTH, Urgency::Waiting, &[]).await.unwrap();
    let mut got = 0;
    // A wait for a piece that is given up loses none.
    while got < LENGTH {
        if let Ok(Some(piece)) = time::timeout(Duration::ZERO, body.next()).await.unwrap_or(Ok(None)) {
            got += piece.len() as u64;
        }
    }
    assert_eq!(body.next().await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_wants_a_pause_gets_it() {
    for (asked, pause) in [(7, 7), (600, 30)] {
        let a = Scripted::new("a", serve());
        a.set(Plan { head: Head::Fail(ErrorKind::Busy, Some(SECOND * asked)), body: Flow::All });
        let upstream = upstream([&a]);
        let readers = readers(&upstream, 64);
        time::sleep(SECOND).await;
        assert_eq!(a.calls(), READERS);
        a.set(serve());
        for reader in readers {
            let took = reader.await.unwrap().unwrap();
            assert!(took >= SECOND * pause && took < SECOND * pause + 100 * MS, "{took:?}");
        }
        assert_eq!(a.calls(), 2 * READERS);
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_always_cuts_is_an_outage_in_the_end() {
    for plan in [flow(Flow::Cut(0)), flow(Flow::End(0)), flow(Flow::Stall(0, None))] {
        let a = Scripted::new("a", plan);
        let upstream = upstream([&a]);
        let start = Instant::now();
        let error = persist(&upstream, &blob(1)).await.unwrap_err();
        assert_eq!(error.reason, Reason::Outage);
        assert!(start.elapsed() >= 60 * SECOND && start.elapsed() <= 81 * SECOND, "{:?}", start.elapsed());
        assert!(a.calls() < 200, "{}", a.calls());
    }
}

#[tokio::test(start_paused = true)]
async fn what_gets_on_piece_by_piece_is_no_outage() {
    let a = Scripted::new("a", flow(Flow::Cut(PIECE)));
    let upstream = upstream([&a]);
    let took = persist(&upstream, &blob(1)).await.unwrap();
    assert!(took < 16 * 600 * MS, "{took:?}");
    assert_eq!(u64::try_from(a.calls()).unwrap(), LENGTH / PIECE);
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_fails_at_a_source_that_works_does_not_hold_up_others() {
    let a = Scripted::new("a", serve());
    let upstream = upstream([&a]);
    a.set_for(&blob(1), fail(ErrorKind::Server));
    let bad = tokio::spawn({
        let upstream = upstream.clone();
        async move { read(&upstream, &blob(1)).await }
    });
    let mut waits = 0;
    for _ in 0..1000 {
        let (_, took) = read(&upstream, &blob(2)).await.unwrap();
        waits += usize::from(took > 10 * MS);
        time::sleep(5 * MS).await;
    }
    assert!(waits <= 2, "{waits} reads were held up");
    let bad_calls = a.calls() - 1000;
    assert!(bad_calls < 30, "{bad_calls}");
    a.set_for(&blob(1), serve());
    bad.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_an_outage_limit_each_source_is_asked_once() {
    let (a, b) = (Scripted::new("a", fail(ErrorKind::Unreachable)), Scripted::new("b", fail(ErrorKind::Server)));
    let upstream = with_policy([&a, &b], Policy { outage_limit: Duration::ZERO, ..Policy::default() });
    assert_eq!(refused(read(&upstream, &blob(1)).await).reason, Reason::Outage);
    assert_eq!((a.calls(), b.calls()), (1, 1));
}
