//! What is measured.

use futures_util::future::join_all;

use super::*;

const MB: usize = 1_000_000;

/// Reads some ranges, so many at a time.
async fn load(upstream: &Upstream, ranges: usize, length: usize, parallel: usize) {
    let queue = Mutex::new(ranges);
    let next = || {
        let mut left = queue.lock().unwrap();
        *left = left.checked_sub(1)?;
        Some(())
    };
    let (next, blob) = (&next, &blob(1));
    join_all((0..parallel).map(|_| async move {
        while next().is_some() {
            let mut body = upstream.open(blob, 0..length as u64, Urgency::Waiting, &[]).await.unwrap();
            while body.next().await.unwrap().is_some() {}
        }
    }))
    .await;
}

fn assert_near(upstream: &Upstream, rate: usize, what: &str) {
    let measured = usize::try_from(upstream.speed().bytes_per_second).unwrap();
    assert!(measured > rate * 85 / 100 && measured < rate * 110 / 100, "{what}: {measured} where it is {rate}");
}

#[tokio::test(start_paused = true)]
async fn bandwidth_is_that_of_all_transfers_together() {
    for parallel in [1, 2, 8] {
        for rate in [MB / 2, 25 * MB, 200 * MB] {
            let line = Line::new(rate);
            let a = Scripted::new("a", flow(Flow::Line(Arc::clone(&line))));
            let upstream = upstream([&a]);
            // Of a quarter of a second each, if alone.
            load(&upstream, 16, rate / 4, parallel).await;
            assert_near(&upstream, rate, &format!("{parallel} in parallel"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bandwidth_follows_the_line_and_ignores_idle_and_stalled_times() {
    let line = Line::new(20 * MB);
    let a = Scripted::new("a", flow(Flow::Line(Arc::clone(&line))));
    let upstream = upstream([&a]);
    load(&upstream, 20, 5 * MB, 4).await;
    time::sleep(3600 * SECOND).await;
    assert_near(&upstream, 20 * MB, "after an idle hour");
    a.set(after(300 * MS));
    load(&upstream, 5, MB / 10, 1).await;
    a.set(flow(Flow::Stall(4 * PIECE, None)));
    let mut body = upstream.open(&blob(1), 0..LENGTH, Urgency::Ahead, &[]).await.unwrap();
    drain(&mut body).await.unwrap_err();
    let stalled = upstream.speed().bytes_per_second;
    assert!(stalled > 10 * MB as u64, "a stall of ten seconds is no slow line: {stalled}");
    a.set(flow(Flow::Line(Arc::clone(&line))));
    line.rate.store(2 * MB, Ordering::Relaxed);
    time::sleep(SECOND).await;
    load(&upstream, 32, MB / 2, 4).await;
    assert_near(&upstream, 2 * MB, "eight seconds after it became slow");
}

#[tokio::test(start_paused = true)]
async fn answers_of_one_piece_say_nothing_about_bandwidth() {
    let a = Scripted::new("a", flow(Flow::Whole));
    let upstream = upstream([&a]);
    let before = upstream.speed();
    assert!(before.bytes_per_second >= MB as u64 && before.first_byte >= MS, "{before:?} before any measurement");
    for _ in 0..100 {
        read(&upstream, &blob(1)).await.unwrap();
    }
    assert_eq!(upstream.speed().bytes_per_second, before.bytes_per_second);
}

#[tokio::test(start_paused = true)]
async fn first_byte_time_is_smoothed_and_recent_ones_weigh_more() {
    let a = Scripted::new("a", after(4 * MS));
    let upstream = upstream([&a]);
    let near = |expected: Duration, upstream: &Upstream| {
        let measured = upstream.speed().first_byte;
        assert!(measured >= expected && measured < expected + expected / 5 + 2 * MS, "{measured:?}, not {expected:?}");
    };
    let load = async |reads| {
        for _ in 0..reads {
            read(&upstream, &blob(1)).await.unwrap();
        }
    };
    load(1).await;
    near(4 * MS, &upstream);
    a.set(after(40 * MS));
    load(1).await;
    assert!(upstream.speed().first_byte < 20 * MS, "one slow answer");
    load(19).await;
    assert!(upstream.speed().first_byte > 38 * MS, "{:?}", upstream.speed());
    a.set(after(4 * MS));
    load(20).await;
    near(4 * MS, &upstream);
}

#[tokio::test(start_paused = true)]
async fn the_speed_is_that_of_the_source_that_serves() {
    let (a, b) = (Scripted::new("a", after(10 * MS)), Scripted::new("b", after(80 * MS)));
    let upstream = upstream([&a, &b]);
    read(&upstream, &blob(1)).await.unwrap();
    assert!(upstream.speed().first_byte < 15 * MS);
    a.set(fail(ErrorKind::Unreachable));
    read(&upstream, &blob(1)).await.unwrap();
    assert!(upstream.speed().first_byte >= 80 * MS);
}

#[tokio::test(start_paused = true)]
async fn every_request_byte_and_error_is_counted() {
    let (a, b) = (Scripted::new("a", flow(Flow::Cut(PIECE))), Scripted::new("b", serve()));
    let upstream = upstream([&a, &b]);
    persist(&upstream, &blob(1)).await.unwrap();
    let text = upstream.0.metrics.encode();
    for line in [
        "lazo_source_requests_total{source=\"a\"} 1",
        "lazo_source_requests_total{source=\"b\"} 1",
        "lazo_source_bytes_total{source=\"a\"} 4096",
        "lazo_source_bytes_total{source=\"b\"} 61440",
        "lazo_source_errors_total{source=\"a\",kind=\"unreachable\"} 1",
        "lazo_source_up{source=\"a\"} 0",
        "lazo_source_up{source=\"b\"} 1",
        "lazo_source_first_byte_seconds_count{source=\"b\"} 1",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}
