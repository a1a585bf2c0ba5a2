//! Sources that come and go while blobs are read.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_refused_source_is_passed_over_as_long_as_another_serves_and_is_asked_again_later() {
    let (a, b) = (Scripted::new("a", fail(ErrorKind::Denied)), Scripted::new("b", serve()));
    let upstream = upstream([&a, &b]);
    for _ in 0..10 {
        assert_eq!(read(&upstream, &blob(1)).await.unwrap().0, 1);
    }
    assert_eq!(a.calls(), 1);
    a.set(serve());
    time::sleep(61 * SECOND).await;
    assert_eq!(read(&upstream, &blob(1)).await.unwrap().0, 0, "with the credentials that there are by then");
    // A new login is a reason not to wait.
    a.set(fail(ErrorKind::Denied));
    assert_eq!(read(&upstream, &blob(1)).await.unwrap().0, 1);
    a.set(serve());
    upstream.hurry(&[SourceId(0)]);
    assert_eq!(read(&upstream, &blob(1)).await.unwrap().0, 0);
    for source in [&a, &b] {
        source.set(fail(ErrorKind::Denied));
    }
    let error = refused(read(&upstream, &blob(1)).await);
    assert_eq!((error.reason, error.kind()), (Reason::Refused, ErrorKind::Denied), "only as all refuse");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_added_is_asked_by_who_waits_already() {
    let (a, b, c) = (Scripted::new("a", fail(ErrorKind::Unreachable)), Scripted::new("b", serve()), hang());
    let c = Scripted::new("c", c);
    let upstream = upstream([&a]);
    let waiting = tokio::spawn({
        let upstream = upstream.clone();
        async move { read(&upstream, &blob(1)).await.map(|(source, _)| source).map_err(|error| error.to_string()) }
    });
    time::sleep(10 * SECOND).await;
    assert!(!waiting.is_finished());
    let ids = upstream.add(vec![b.clone() as Arc<dyn BlobSource>, c as Arc<dyn BlobSource>]);
    assert_eq!(ids, [SourceId(1), SourceId(2)]);
    assert_eq!(waiting.await.unwrap().unwrap(), 1);
    assert_eq!(upstream.sources(), 3);
    // Also when the outage has lasted too long.
    upstream.remove(&ids);
    let error = refused(read(&upstream, &blob(2)).await);
    assert_eq!(error.reason, Reason::Outage);
    assert_eq!(upstream.add(vec![b as Arc<dyn BlobSource>]), [SourceId(3)], "a number is given once");
    assert_eq!(read(&upstream, &blob(2)).await.unwrap().0, 3);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_removed_ends_what_it_has_begun_and_is_asked_no_more() {
    let (a, b) = (Scripted::new("a", serve()), Scripted::new("b", serve()));
    let upstream = upstream([&a, &b]);
    let mut body = upstream.open(&blob(1), 0..LENGTH, Urgency::Waiting, &[]).await.unwrap();
    body.next().await.unwrap();
    upstream.remove(&[SourceId(0)]);
    assert_eq!(drain(&mut body).await.unwrap().len() as u64, LENGTH - PIECE);
    drop(body);
    let calls = a.calls();
    assert_eq!(read(&upstream, &blob(1)).await.unwrap().0, 1);
    assert_eq!((a.calls(), a.running(), upstream.sources()), (calls, 0, 1));
    upstream.wrong_bytes(SourceId(0), &blob(1));
    upstream.hurry(&[SourceId(0)]);
    assert!(upstream.0.board().is_forgotten(blob(1).digest), "nothing is remembered of it");
    // Those whose last source goes are told at once.
    b.set(hang());
    let waiting = tokio::spawn({
        let upstream = upstream.clone();
        async move { read(&upstream, &blob(1)).await.map_err(|error| error.to_string()) }
    });
    time::sleep(SECOND).await;
    upstream.remove(&[SourceId(1)]);
    waiting.await.unwrap().unwrap_err();
    assert_eq!(&*upstream.serving(), "no source");
    assert_eq!(upstream.0.board().busy(), 0);
}
