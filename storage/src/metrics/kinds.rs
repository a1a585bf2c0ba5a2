//! What metrics are made of: labels, families of one metric for each label, registration.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Index;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry, Unit};

/// Upper ends of the buckets of [`Seconds`]: from a registry's usual answer on the same machine to the outage limit.
const BUCKETS: [f64; 16] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0];

/// What is known of a metric without counting anything.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// The part of the documentation that it belongs to.
    pub section: &'static str,
    /// As it is scraped; a histogram's samples have `_bucket`, `_sum` and `_count` behind it.
    pub name: &'static str,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: MetricType,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    help: &'static str,
}

impl Description {
    /// What it means, in whole sentences.
    #[must_use]
    pub fn help(&self) -> &'static str {
        self.help.trim_ascii()
    }

    /// The unit that its name ends with.
    #[must_use]
    pub fn unit(&self) -> Option<Unit> {
        let name = self.family();
        [Unit::Bytes, Unit::Seconds].into_iter().find(|unit| name.ends_with(&format!("_{}", unit.as_str())))
    }

    /// The name without the suffix that the text format adds to samples.
    fn family(&self) -> &'static str {
        let suffix = match self.kind {
            MetricType::Counter => "_total",
            MetricType::Info => "_info",
            _ => "",
        };
        self.name.strip_suffix(suffix).unwrap_or(self.name)
    }
}

/// Something that can be in the table of metrics.
pub(super) trait Described: Metric + TypedMetric + Clone {
    const LABELS: &'static [&'static str] = &[];
}

impl Described for Counter {}
impl Described for Gauge {}

pub(super) const fn describe<M: Described>(
    section: &'static str,
    name: &'static str,
    help: &'static str,
) -> Description {
    Description { section, name, help, kind: M::TYPE, labels: M::LABELS }
}

pub(super) fn register<M: Described>(registry: &mut Registry, description: &Description, metric: &M) {
    // The library ends the text with a full stop.
    let (name, help) = (description.family(), description.help().trim_end_matches('.'));
    match description.unit() {
        Some(unit) => {
            let name = name.trim_end_matches(unit.as_str()).trim_end_matches('_');
            registry.register_with_unit(name, help, unit, metric.clone());
        }
        None => registry.register(name, help, metric.clone()),
    }
}

/// A label whose values are known beforehand.
pub trait Label: Copy + fmt::Debug + Send + Sync + 'static {
    /// Its name.
    const NAME: &'static str;
    /// All values, in the order of their numbers.
    const ALL: &'static [Self];
    /// The value's number.
    fn number(self) -> usize;
    /// The value as it is scraped.
    fn value(self) -> &'static str;
}

/// Defines a label and its values.
macro_rules! labels {
    ($(#[$doc:meta])+ $type:ident $name:literal { $($(#[$variant_doc:meta])+ $variant:ident $value:literal,)+ }) => {
        $(#[$doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type { $($(#[$variant_doc])+ $variant,)+ }

        impl Label for $type {
            const NAME: &'static str = $name;
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn number(self) -> usize {
                self as usize
            }

            fn value(self) -> &'static str {
                match self { $(Self::$variant => $value,)+ }
            }
        }
    };
}
pub(super) use labels;

/// A metric for each value of a label, all there from the start. `metric[value]` is free.
#[derive(Debug)]
pub struct Each<L, M> {
    metrics: Arc<[M]>,
    label: PhantomData<L>,
}

impl<L, M> Clone for Each<L, M> {
    fn clone(&self) -> Self {
        Self { metrics: Arc::clone(&self.metrics), label: PhantomData }
    }
}

impl<L: Label, M: Default> Default for Each<L, M> {
    fn default() -> Self {
        Self { metrics: L::ALL.iter().map(|_| M::default()).collect(), label: PhantomData }
    }
}

impl<L: Label, M> Index<L> for Each<L, M> {
    type Output = M;

    fn index(&self, label: L) -> &M {
        &self.metrics[label.number()]
    }
}

impl<L> Each<L, Counter> {
    pub(super) fn sum(&self) -> u64 {
        self.metrics.iter().map(Counter::get).sum()
    }
}

impl<L: Label, M: TypedMetric> TypedMetric for Each<L, M> {
    const TYPE: MetricType = M::TYPE;
}

impl<L: Label, M: EncodeMetric + TypedMetric> EncodeMetric for Each<L, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (label, metric) in L::ALL.iter().zip(&*self.metrics) {
            metric.encode(encoder.encode_family(&[(L::NAME, label.value())])?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}

impl<L: Label, M: Metric + TypedMetric> Described for Each<L, M> {
    const LABELS: &'static [&'static str] = &[L::NAME];
}

/// Values of labels that become known as the process runs.
pub trait Key: Ord + fmt::Debug + Send + Sync + EncodeLabelSet + 'static {
    /// Names of the labels.
    const NAMES: &'static [&'static str];
}

/// A metric for each of the values that there have been. There is no bound here: those who use it name few.
#[derive(Debug)]
pub struct Family<K, M>(Arc<RwLock<BTreeMap<K, M>>>);

/// A metric for each source.
pub type BySource<M> = Family<SourceKey, M>;

/// A metric for each source and [`crate::ErrorKind`].
pub type BySourceAndKind<M> = Family<ErrorKey, M>;

/// A source's name.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceKey(Box<str>);

/// A source's name, and the kind of an error.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ErrorKey(Box<str>, &'static str);

impl Key for SourceKey {
    const NAMES: &'static [&'static str] = &["source"];
}

impl Key for ErrorKey {
    const NAMES: &'static [&'static str] = &["source", "kind"];
}

impl EncodeLabelSet for SourceKey {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        [("source", &*self.0)].encode(encoder)
    }
}

impl EncodeLabelSet for ErrorKey {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        [("source", &*self.0), ("kind", self.1)].encode(encoder)
    }
}

impl<K, M> Clone for Family<K, M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, M> Default for Family<K, M> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

#[cfg(test)]
impl<K, M> Family<K, M> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.read().unwrap().is_empty()
    }
}

impl<K: Ord, M: Clone + Default> Family<K, M> {
    fn child(&self, key: K) -> M {
        self.0.write().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone()
    }
}

impl<M: Clone + Default> BySource<M> {
    /// The one of a source.
    #[must_use]
    pub fn get(&self, source: &str) -> M {
        self.child(SourceKey(source.into()))
    }
}

impl<M: Clone + Default> BySourceAndKind<M> {
    /// The one of a source and a kind.
    #[must_use]
    pub fn get(&self, source: &str, kind: &'static str) -> M {
        self.child(ErrorKey(source.into(), kind))
    }
}

/// Whether all who use a source find that it works. The last of them takes the metric with him.
#[derive(Debug, Clone, Default)]
pub struct Up(Arc<Standings>);

#[derive(Debug, Default)]
struct Standings {
    users: AtomicI64,
    down: AtomicI64,
}

impl TypedMetric for Up {
    const TYPE: MetricType = MetricType::Gauge;
}

impl EncodeMetric for Up {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&i64::from(self.0.down.load(Ordering::Acquire) == 0))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// How a source stands with one of those who use it.
#[derive(Debug)]
pub struct Standing {
    family: BySource<Up>,
    source: Box<str>,
    up: Up,
    is_down: AtomicBool,
}

impl Standing {
    pub(super) fn new(family: &BySource<Up>, source: &str) -> Self {
        let mut sources = family.0.write().unwrap_or_else(PoisonError::into_inner);
        let up = sources.entry(SourceKey(source.into())).or_default().clone();
        // Under the lock, so that the last user does not take it away just now.
        up.0.users.fetch_add(1, Ordering::AcqRel);
        Self { family: family.clone(), source: source.into(), up, is_down: AtomicBool::new(false) }
    }

    /// It works, or is left alone.
    pub fn set(&self, up: bool) {
        if self.is_down.swap(!up, Ordering::AcqRel) == up {
            self.up.0.down.fetch_add(if up { -1 } else { 1 }, Ordering::AcqRel);
        }
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.set(true);
        let mut sources = self.family.0.write().unwrap_or_else(PoisonError::into_inner);
        if self.up.0.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            sources.remove(&SourceKey(std::mem::take(&mut self.source)));
        }
    }
}

/// One in a gauge, for as long as it is held.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl<K> Family<K, Counter> {
    /// Over all label values.
    pub(super) fn sum(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().map(Counter::get).sum()
    }
}

impl<K: Key, M: TypedMetric> TypedMetric for Family<K, M> {
    const TYPE: MetricType = M::TYPE;
}

impl<K: Key, M: EncodeMetric + TypedMetric> EncodeMetric for Family<K, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (key, metric) in &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            metric.encode(encoder.encode_family(key)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}

impl<K: Key, M: Metric + TypedMetric> Described for Family<K, M> {
    const LABELS: &'static [&'static str] = K::NAMES;
}

/// A histogram of durations.
#[derive(Debug, Clone)]
pub struct Seconds(Histogram);

impl Default for Seconds {
    fn default() -> Self {
        Self(Histogram::new(BUCKETS))
    }
}

impl Seconds {
    /// Counts a duration.
    pub fn observe(&self, duration: Duration) {
        self.0.observe(duration.as_secs_f64());
    }
}

impl TypedMetric for Seconds {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Seconds {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl Described for Seconds {}

/// The version of this build.
#[derive(Debug, Clone, Default)]
pub struct Build;

impl TypedMetric for Build {
    const TYPE: MetricType = MetricType::Info;
}

impl EncodeMetric for Build {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Info
    }
}

impl Described for Build {
    const LABELS: &'static [&'static str] = &["version"];
}

/// Bytes of this process in RAM.
pub(super) fn resident_memory() -> Option<i64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split(' ').nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size().try_into().ok()?)
}
