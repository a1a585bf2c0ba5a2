//! Which source is asked.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_first_source_serves_as_long_as_it_is_well() {
    let (a, b) = (Scripted::new("a", serve()), Scripted::new("b", serve()));
    let upstream = upstream([&a, &b]);
    for number in 0..10 {
        assert_eq!(read(&upstream, &blob(number)).await.unwrap().0, 0);
    }
    assert_eq!((a.calls(), b.calls()), (10, 0));
    assert_eq!((&*upstream.name(SourceId(0)), &*upstream.name(SourceId(1))), ("a", "b"));
    assert_eq!(a.running(), 0);
    let empty = upstream.open(&blob(0), 7..7, Urgency::Waiting, &[]).await.unwrap().next().await;
    assert_eq!(empty.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_is_left_alone_and_comes_back_into_its_place() {
    use ErrorKind::{Busy, Server, Timeout, Unreachable};
    for kind in [Unreachable, Timeout, Server, Busy] {
        let (a, b) = (Scripted::new("a", fail(kind)), Scripted::new("b", serve()));
        let upstream = upstream([&a, &b]);
        for number in 0..8 {
            assert_eq!(read(&upstream, &blob(number)).await.unwrap().0, 1, "{kind}");
        }
        assert_eq!(a.calls(), 1, "{kind}: one failure is enough");
        a.set(serve());
        time::sleep(310 * MS).await;
        assert_eq!(read(&upstream, &blob(1)).await.unwrap().0, 0, "{kind}: the probe");
        assert_eq!(read(&upstream, &blob(2)).await.unwrap().0, 0, "{kind}: back in its place");
    }
}

#[tokio::test(start_paused = true)]
async fn while_a_probe_runs_others_go_elsewhere_until_it_ended_well() {
    let (a, b) = (Scripted::new("a", fail(ErrorKind::Server)), Scripted::new("b", serve()));
    let upstream = upstream([&a, &b]);
    read(&upstream, &blob(0)).await.unwrap();
    time::sleep(310 * MS).await;
    a.set(flow(Flow::Stall(PIECE, Some(Instant::now() + 500 * MS))));
    let mut probe = upstream.open(&blob(0), 0..LENGTH, Urgency::Waiting, &[]).await.unwrap();
    assert_eq!(probe.source(), SourceId(0));
    for number in 0..5 {
        assert_eq!(read(&upstream, &blob(number)).await.unwrap().0, 1, "a head alone does not put it back");
    }
    drain(&mut probe).await.unwrap();
    a.set(serve());
    assert_eq!(read(&upstream, &blob(1)).await.unwrap().0, 0);
}

#[tokio::test(start_paused = true)]
async fn a_dead_mirror_costs_one_timeout_and_not_one_a_read() {
    for hedge in [false, true] {
        let (a, b) = (Scripted::new("a", hang()), Scripted::new("b", serve()));
        let upstream = with_policy([&a, &b], Policy { hedge, ..Policy::default() });
        let (start, mut slow, mut worst) = (Instant::now(), 0, Duration::ZERO);
        while start.elapsed() < 600 * SECOND {
            let (source, took) = read(&upstream, &blob(0)).await.unwrap();
            assert_eq!(source, 1);
            slow += usize::from(took > SECOND + 100 * MS);
            if start.elapsed() > 30 * SECOND {
                worst = worst.max(took);
            }
            time::sleep(250 * MS).await;
        }
        assert_eq!(slow, usize::from(!hedge), "the first timeout, if no other source may be asked meanwhile");
        assert!(a.calls() <= 35, "{} requests in ten minutes", a.calls());
        assert!(a.calls() >= 20, "it is still looked at: {}", a.calls());
        assert!(worst < 2 * SECOND, "a probe costs its reader {worst:?}");
        assert_eq!((a.running(), b.running()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_definite_answer_concerns_one_blob_for_a_minute() {
    use ErrorKind::{BadAnswer, Denied, Local, NotFound, Untrusted};
    for kind in [NotFound, Denied, BadAnswer, Untrusted, Local] {
        let (a, b) = (Scripted::new("a", serve()), Scripted::new("b", serve()));
        let upstream = upstream([&a, &b]);
        a.set_for(&blob(1), fail(kind));
        for _ in 0..5 {
            assert_eq!(read(&upstream, &blob(1)).await.unwrap().0, 1, "{kind}");
        }
        assert_eq!(a.calls(), 1, "{kind}: asked once");
        assert_eq!(read(&upstream, &blob(2)).await.unwrap().0, 0, "{kind}: other blobs are not concerned");
        a.set_for(&blob(1), serve());
        time::sleep(61 * SECOND).await;
        assert_eq!(read(&upstream, &blob(1)).await.unwrap().0, 0, "{kind}: tried again");
    }
}

#[tokio::test(start_paused = true)]
async fn definite_answers_everywhere_are_no_outage() {
    use ErrorKind::{BadAnswer, Denied, Local, NotFound, Untrusted};
    for (kind, requests) in [(NotFound, 1), (Denied, 1), (Untrusted, 1), (Local, 1), (BadAnswer, 64)] {
        let (a, b) = (Scripted::new("a", fail(kind)), Scripted::new("b", fail(kind)));
        let upstream = upstream([&a, &b]);
        let start = Instant::now();
        for _ in 0..64 {
            let error = refused(read(&upstream, &blob(1)).await);
            assert_eq!((error.reason, error.kind()), (Reason::Refused, kind));
        }
        assert!(start.elapsed() < SECOND, "{kind}: {:?}", start.elapsed());
        assert_eq!((a.calls(), b.calls()), (requests, requests), "{kind}");
        b.set(serve());
        time::sleep(5 * SECOND).await;
        assert_eq!(read(&upstream, &blob(1)).await.unwrap().0, 1, "{kind}: repaired, and found out soon");
    }
}

#[tokio::test(start_paused = true)]
async fn one_definite_answer_does_not_end_the_wait_for_the_others() {
    let (a, b) = (Scripted::new("a", fail(ErrorKind::NotFound)), Scripted::new("b", fail(ErrorKind::Unreachable)));
    let upstream = upstream([&a, &b]);
    let reader = tokio::spawn({
        let upstream = upstream.clone();
        async move { read(&upstream, &blob(1)).await }
    });
    time::sleep(20 * SECOND).await;
    b.set(serve());
    let (source, took) = reader.await.unwrap().unwrap();
    assert_eq!(source, 1);
    assert!(took < 21 * SECOND, "{took:?}");
    assert_eq!(a.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn wrong_bytes_skip_a_source_for_the_blob_unless_it_is_the_only_one() {
    let (a, b) = (Scripted::new("a", serve()), Scripted::new("b", serve()));
    let two = upstream([&a, &b]);
    assert_eq!(read(&two, &blob(1)).await.unwrap().0, 0);
    two.wrong_bytes(SourceId(0), &blob(1));
    assert_eq!(read(&two, &blob(1)).await.unwrap().0, 1);
    assert_eq!(read(&two, &blob(2)).await.unwrap().0, 0);
    b.set(fail(ErrorKind::Unreachable));
    for _ in 0..3 {
        assert_eq!(read(&two, &blob(1)).await.unwrap().0, 0, "better than to wait: what it sends is verified");
    }
    b.set(serve());
    time::sleep(SECOND).await;
    assert_eq!(read(&two, &blob(1)).await.unwrap().0, 1, "a success there does not make it trusted");
    time::sleep(61 * SECOND).await;
    assert_eq!(read(&two, &blob(1)).await.unwrap().0, 0);
    assert_eq!(two.0.metrics.stats().wrong_chunks, 1);

    let one = upstream([&a]);
    one.wrong_bytes(SourceId(0), &blob(1));
    assert_eq!(read(&one, &blob(1)).await.unwrap().0, 0, "other chunks of it may be right");
    let error = one.open(&blob(1), 0..1, Urgency::Waiting, &[SourceId(0)]).await.unwrap_err();
    assert_eq!((error.reason, error.kind()), (Reason::Refused, ErrorKind::BadAnswer));
    assert!(error.to_string().contains("a: its bytes did not match the chunk index"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn answers_of_the_wrong_length_are_errors() {
    for (plan, kind) in [(Flow::Long, ErrorKind::BadAnswer), (Flow::End(PIECE), ErrorKind::Unreachable)] {
        let a = Scripted::new("a", flow(plan));
        let upstream = upstream([&a]);
        let mut body = upstream.open(&blob(1), 0..LENGTH, Urgency::Waiting, &[]).await.unwrap();
        let error = drain(&mut body).await.unwrap_err();
        assert_eq!(error.kind, kind);
        body.next().await.unwrap_err();
        assert_eq!(a.running(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_names_blob_sources_causes_time_and_remedy() {
    let (a, b) =
        (Scripted::new("docker://r/a", fail(ErrorKind::Denied)), Scripted::new("https://m", fail(ErrorKind::Server)));
    let upstream = with_policy([&a, &b], Policy { outage_limit: 2 * SECOND, ..Policy::default() });
    let error = refused(read(&upstream, &blob(7)).await);
    assert_eq!((error.reason, error.kind()), (Reason::Outage, ErrorKind::Server));
    assert!(error.waited >= 2 * SECOND && error.waited < 3 * SECOND, "{error:?}");
    let digest = blob(7).digest.to_string();
    for part in
        [digest.as_str(), "docker://r/a: scripted denied", "https://m: scripted server", "(waited 2.", "add a mirror"]
    {
        assert!(error.to_string().contains(part), "{part:?} in {error}");
    }
    let c = Scripted::new("c", fail(ErrorKind::Denied));
    let error = refused(read(&super::upstream([&c]), &blob(7)).await);
    assert!(error.to_string().contains("docker login"), "{error}");
}
