//! What holds whatever the sources do.

use futures_util::future::join_all;
use proptest::prelude::*;

use super::*;

const LIMIT: Duration = Duration::from_secs(5);
const FIRST_BYTE: Duration = Duration::from_secs(2);
const STALL: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
struct Phase {
    lasts: Duration,
    plans: Vec<Plan>,
}

fn plan() -> impl Strategy<Value = Plan> {
    use ErrorKind::{BadAnswer, Busy, Denied, Local, NotFound, Server, Timeout, Unreachable, Untrusted};
    let kinds =
        vec![Unreachable, Timeout, Busy, Server, Unreachable, Server, Denied, NotFound, BadAnswer, Untrusted, Local];
    let retry = prop::option::weighted(0.2, (0_u64..100).prop_map(Duration::from_secs));
    let head = prop_oneof![
        4 => (0_u64..300).prop_map(|ms| Head::After(MS * u32::try_from(ms).unwrap())),
        1 => (0_u64..5000).prop_map(|ms| Head::After(MS * u32::try_from(ms).unwrap())),
        2 => Just(Head::Never),
        4 => (prop::sample::select(kinds), retry).prop_map(|(kind, retry)| Head::Fail(kind, retry)),
    ];
    let bytes = || 0..LENGTH + 1;
    let body = prop_oneof![
        6 => Just(Flow::All),
        1 => Just(Flow::Whole),
        2 => bytes().prop_map(Flow::Cut),
        2 => bytes().prop_map(|bytes| Flow::Stall(bytes, None)),
        1 => bytes().prop_map(Flow::End),
        1 => Just(Flow::Long),
    ];
    (head, body).prop_map(|(head, body)| Plan { head, body })
}

/// One to three sources over some phases, and readers: when they begin, which blob, whether they wait, when they are killed.
fn scenario() -> impl Strategy<Value = (Vec<Phase>, Vec<Reader>, bool)> {
    let phases = (1_usize..4).prop_flat_map(|sources| {
        let phase = (0_u32..8000, prop::collection::vec(plan(), sources));
        prop::collection::vec(phase.prop_map(|(ms, plans)| Phase { lasts: MS * ms, plans }), 1..5)
    });
    let reader = (0_u32..15_000, 0_u8..3, any::<bool>(), prop::option::weighted(0.3, 0_u32..8000));
    let reader = reader.prop_map(|(begins, blob, waits, killed)| Reader {
        begins: MS * begins,
        blob,
        urgency: if waits { Urgency::Waiting } else { Urgency::Ahead },
        killed: killed.map(|ms| MS * ms),
    });
    (phases, prop::collection::vec(reader, 1..24), any::<bool>())
}

#[derive(Debug, Clone)]
struct Reader {
    begins: Duration,
    blob: u8,
    urgency: Urgency,
    killed: Option<Duration>,
}

/// Opens, reads, and opens the rest for some rounds. Each open must keep its promise.
async fn run(upstream: Upstream, reader: Reader) {
    time::sleep(reader.begins).await;
    let record = blob(reader.blob);
    let reading = async {
        let mut at = 0;
        for _ in 0..10 {
            let start = Instant::now();
            let opened = upstream.open(&record, at..LENGTH, reader.urgency, &[]).await;
            let took = start.elapsed();
            assert!(took <= LIMIT + FIRST_BYTE + 5 * MS, "{took:?} {opened:?}");
            let Ok(mut body) = opened else { break };
            let start = Instant::now();
            while let Ok(Some(piece)) = body.next().await {
                let end = at + piece.len() as u64;
                assert_eq!(piece, content(at..end));
                at = end;
            }
            let took = start.elapsed();
            assert!(took <= STALL + 5 * MS, "the body stalled for {took:?}");
            if at == LENGTH {
                break;
            }
        }
    };
    match reader.killed {
        Some(after) => drop(time::timeout(after, reading).await),
        None => reading.await,
    }
}

async fn play(phases: Vec<Phase>, readers: Vec<Reader>, hedge: bool) {
    let count = phases[0].plans.len();
    let sources: Vec<_> = (0..count).map(|id| Scripted::new(&id.to_string(), phases[0].plans[id].clone())).collect();
    let policy = Policy { first_byte_timeout: FIRST_BYTE, stall_timeout: STALL, outage_limit: LIMIT, hedge };
    let dynamic = sources.iter().map(|source| Arc::clone(source) as Arc<dyn BlobSource>).collect();
    let upstream = Upstream::new(dynamic, policy, Arc::new(Metrics::new()));
    let readers: Vec<_> = readers.into_iter().map(|reader| tokio::spawn(run(upstream.clone(), reader))).collect();
    for phase in &phases {
        for (source, plan) in sources.iter().zip(&phase.plans) {
            source.set(plan.clone());
        }
        time::sleep(phase.lasts).await;
    }
    for result in join_all(readers).await {
        result.unwrap();
    }
    assert!(sources.iter().all(|source| source.running() == 0), "requests are left behind");
    assert_eq!(upstream.0.board().busy(), 0, "probes or waiting readers are left behind");
    // Whatever was, all is well again once the sources are.
    sources.iter().for_each(|source| source.set(serve()));
    time::sleep(61 * SECOND).await;
    for number in 0..3 {
        let (source, took) = read(&upstream, &blob(number)).await.unwrap();
        assert_eq!(source, 0);
        assert!(took < 100 * MS, "{took:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn opens_keep_their_time_bodies_are_right_and_all_recovers((phases, readers, hedge) in scenario()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(phases, readers, hedge));
    }
}
