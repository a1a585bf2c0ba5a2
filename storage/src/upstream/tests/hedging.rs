//! The second request, and bodies that stall.

use futures_util::future::join_all;

use super::*;

/// Lets a source show what is usual for it.
async fn train(upstream: &Upstream, reads: u8) {
    for number in 0..reads {
        read(upstream, &blob(100 + number)).await.unwrap();
    }
}

fn hedged(upstream: &Upstream) -> u64 {
    upstream.0.listed().iter().map(|(_, named)| named.metrics.hedged.get()).sum()
}

#[tokio::test(start_paused = true)]
async fn another_source_is_asked_when_one_is_slower_than_usual_and_may_win() {
    for usual in [5, 40, 200] {
        let (a, b) = (Scripted::new("a", after(MS * usual)), Scripted::new("b", serve()));
        let upstream = upstream([&a, &b]);
        train(&upstream, 20).await;
        assert_eq!(b.calls(), 0, "not while it is as fast as usual");
        a.set(after(5 * SECOND));
        let (source, took) = read(&upstream, &blob(1)).await.unwrap();
        assert_eq!(source, 1);
        let patience = (MS * usual * 3).max(50 * MS);
        assert!(took >= patience && took < patience + MS * usual / 2 + 20 * MS, "{usual}: {took:?}");
        assert_eq!((a.running(), b.running()), (0, 0), "the other is dropped");
        assert_eq!(hedged(&upstream), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_may_still_win() {
    let (a, b) = (Scripted::new("a", after(20 * MS)), Scripted::new("b", after(SECOND)));
    let upstream = upstream([&a, &b]);
    train(&upstream, 20).await;
    a.set(after(200 * MS));
    let (source, took) = read(&upstream, &blob(1)).await.unwrap();
    assert_eq!((source, b.calls(), b.running()), (0, 1, 0));
    assert!(took >= 200 * MS && took < 210 * MS, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn either_may_fail_without_harm_to_the_other() {
    let (a, b) = (Scripted::new("a", serve()), Scripted::new("b", fail(ErrorKind::Server)));
    let two = upstream([&a, &b]);
    train(&two, 20).await;
    a.set(after(500 * MS));
    let (source, took) = read(&two, &blob(1)).await.unwrap();
    assert_eq!((source, b.calls()), (0, 1));
    assert!(took < 510 * MS, "{took:?}");

    let late = |_| Plan { head: Head::Never, body: Flow::All };
    let (a, b) = (Scripted::new("a", serve()), Scripted::new("b", after(15 * SECOND)));
    let two = with_policy([&a, &b], Policy { outage_limit: SECOND, ..Policy::default() });
    train(&two, 20).await;
    a.set(late(()));
    let start = Instant::now();
    let error = refused(read(&two, &blob(1)).await);
    assert!(error.tried.iter().all(|tried| tried.cause.as_ref().unwrap().kind == ErrorKind::Timeout), "{error}");
    assert!(start.elapsed() <= 11 * SECOND, "{:?}", start.elapsed());
    assert_eq!((a.running(), b.running()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn hedging_adds_a_small_share_of_requests() {
    let (a, b) = (Scripted::new("a", after(20 * MS)), Scripted::new("b", after(2 * SECOND)));
    let upstream = upstream([&a, &b]);
    train(&upstream, 20).await;
    for round in 1..=10 {
        a.set(after(20 * MS));
        train(&upstream, 30).await;
        a.set(after(300 * MS));
        let blob = blob(1);
        for result in join_all((0..20).map(|_| read(&upstream, &blob))).await {
            assert_eq!(result.unwrap().0, 0);
        }
        assert!((4..=4 + 5 * round).contains(&b.calls()), "{} more requests for {}", b.calls(), a.calls());
    }
    assert!(b.calls() > 30, "what was saved up is used: {}", b.calls());
    assert_eq!(b.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn hedging_can_be_switched_off() {
    let (a, b) = (Scripted::new("a", serve()), Scripted::new("b", serve()));
    let upstream = with_policy([&a, &b], Policy { hedge: false, ..Policy::default() });
    train(&upstream, 20).await;
    a.set(after(5 * SECOND));
    assert_eq!(read(&upstream, &blob(1)).await.unwrap().0, 0);
    assert_eq!(b.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_is_given_up_after_a_few_lost_hedges() {
    let (a, b) = (Scripted::new("a", serve()), Scripted::new("b", serve()));
    let upstream = upstream([&a, &b]);
    train(&upstream, 40).await;
    a.set(hang());
    let start = Instant::now();
    for _ in 0..100 {
        assert_eq!(read(&upstream, &blob(1)).await.unwrap().0, 1);
    }
    assert!(start.elapsed() < 5 * SECOND, "{:?}", start.elapsed());
    assert!(a.calls() - 40 < 10, "{}", a.calls() - 40);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_at_a_source_that_goes_down_move_on() {
    let (a, b) = (Scripted::new("a", serve()), Scripted::new("b", serve()));
    let upstream = upstream([&a, &b]);
    train(&upstream, 40).await;
    a.set(hang());
    let start = Instant::now();
    let blobs: Vec<_> = (0..64).map(blob).collect();
    for result in join_all(blobs.iter().map(|blob| read(&upstream, blob))).await {
        assert_eq!(result.unwrap().0, 1);
    }
    assert!(start.elapsed() < 500 * MS, "{:?}", start.elapsed());
    assert_eq!((a.calls() - 40, b.calls()), (64, 64));
    assert!(hedged(&upstream) >= 64);
    assert_eq!((a.running(), b.running()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_ends_at_once_where_another_source_is_healthy() {
    let (a, b) = (Scripted::new("a", flow(Flow::Stall(3 * PIECE, None))), Scripted::new("b", serve()));
    let upstream = upstream([&a, &b]);
    let mut body = upstream.open(&blob(1), 0..LENGTH, Urgency::Waiting, &[]).await.unwrap();
    for _ in 0..3 {
        body.next().await.unwrap().unwrap();
    }
    let start = Instant::now();
    assert_eq!(body.next().await.unwrap_err().kind, ErrorKind::Timeout);
    assert!(start.elapsed() >= SECOND && start.elapsed() < SECOND + 50 * MS, "{:?}", start.elapsed());
    assert_eq!(a.running(), 0);
    let body = upstream.open(&blob(1), 3 * PIECE..LENGTH, Urgency::Waiting, &[]).await.unwrap();
    assert_eq!(body.source(), SourceId(1));
    let took = persist(&upstream, &blob(2)).await.unwrap();
    assert!(took < SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_body_waits_for_its_source_where_no_other_will_do() {
    for (case, end) in
        [("alone", 10), ("other has it not", 10), ("other is to be avoided", 10), ("other comes back", 4)]
    {
        let (a, b) = (Scripted::new("a", flow(Flow::Stall(PIECE, None))), Scripted::new("b", fail(ErrorKind::Server)));
        let upstream = if case == "alone" { upstream([&a]) } else { super::upstream([&a, &b]) };
        let avoid: &[_] = if case == "other is to be avoided" { &[SourceId(1)] } else { &[] };
        if case == "other has it not" {
            upstream.wrong_bytes(SourceId(1), &blob(1));
        }
        if case == "other comes back" {
            upstream.open(&blob(2), 0..1, Urgency::Ahead, &[SourceId(0)]).await.unwrap_err();
        }
        let mut body = upstream.open(&blob(1), 0..LENGTH, Urgency::Waiting, avoid).await.unwrap();
        body.next().await.unwrap().unwrap();
        let start = Instant::now();
        let repair = async {
            time::sleep(3500 * MS).await;
            b.set(serve());
            if case == "other comes back" {
                let mut probe = upstream.open(&blob(2), 0..LENGTH, Urgency::Ahead, &[SourceId(0)]).await.unwrap();
                drain(&mut probe).await.unwrap();
            }
        };
        let (piece, ()) = tokio::join!(body.next(), repair);
        assert_eq!(piece.unwrap_err().kind, ErrorKind::Timeout, "{case}");
        let took = start.elapsed();
        assert!(took >= SECOND * end - 10 * MS && took < SECOND * end + 50 * MS, "{case}: {took:?}");
    }
    let start = Instant::now();
    let a = Scripted::new("a", flow(Flow::Stall(PIECE, Some(start + 9 * SECOND))));
    read(&upstream([&a]), &blob(1)).await.unwrap();
    assert!(start.elapsed() < 10 * SECOND);
}
