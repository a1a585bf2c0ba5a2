//! Sources that send a byte now and then.

use super::*;

/// So slow that no stall is noticed.
const EVERY: Duration = Duration::from_millis(400);

fn slow(upstream: &Upstream) -> u64 {
    upstream.0.listed().iter().map(|(_, named)| named.metrics.slow.get()).sum()
}

#[tokio::test(start_paused = true)]
async fn another_source_takes_over_from_one_that_drips() {
    for urgency in [Urgency::Waiting, Urgency::Ahead] {
        let (drips, good) = (Scripted::new("drips", flow(Flow::Drip(EVERY))), Scripted::new("good", serve()));
        let upstream = upstream([&drips, &good]);
        let mut body = upstream.open(&blob(1), 0..LENGTH, urgency, &[]).await.unwrap();
        assert_eq!(body.source().0, 0);
        let start = Instant::now();
        let error = drain(&mut body).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout);
        assert!(error.to_string().contains("16 KiB a second"), "{error}");
        assert!(start.elapsed() < 4 * SECOND, "{:?}", start.elapsed());
        assert_eq!(drips.running(), 0);
        let took = persist(&upstream, &blob(1)).await.unwrap();
        assert!(took < SECOND && good.calls() == 1, "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_is_left_for_later_and_readers_are_served_on() {
    Log::begin();
    let before = Log::lines();
    let drips = Scripted::new("drips", flow(Flow::Drip(EVERY)));
    let upstream = upstream([&drips]);
    for number in 1..=3 {
        let start = Instant::now();
        let mut body = upstream.open(&blob(1), 0..LENGTH, Urgency::Ahead, &[]).await.unwrap();
        let error = drain(&mut body).await.unwrap_err();
        assert!(body.was_too_slow() && error.to_string().contains("8 KiB a second"), "{error}");
        assert!(start.elapsed() < 11 * SECOND, "{:?}", start.elapsed());
        assert_eq!((slow(&upstream), drips.running()), (number, 0));
    }
    assert_eq!(Log::lines()[0], before[0] + 1, "it is said once");
    // The source is not left alone for that.
    drips.set(serve());
    let took = persist(&upstream, &blob(1)).await.unwrap();
    assert!(took < SECOND, "{took:?}");
    assert_eq!(upstream.0.board().busy(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_line_is_no_fault() {
    // Less than readers should get, and enough for what nobody waits for.
    let line = Line::new(12 << 10);
    let slow_line = Scripted::new("slow", flow(Flow::Line(line)));
    let upstream = upstream([&slow_line]);
    for urgency in [Urgency::Waiting, Urgency::Ahead] {
        let mut body = upstream.open(&blob(1), 0..10 * LENGTH, urgency, &[]).await.unwrap();
        assert_eq!(drain(&mut body).await.unwrap().len() as u64, 10 * LENGTH);
    }
    assert_eq!(slow_line.calls(), 2);
}
