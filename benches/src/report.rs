//! What a run comes to: one line of JSON for programs, a table for people.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Median and 99th percentile, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    /// Half are faster.
    pub p50: f64,
    /// One in a hundred is slower.
    pub p99: f64,
}

impl Quantiles {
    /// The quantiles of durations in nanoseconds.
    ///
    /// Panics when there are none.
    pub fn of_nanos(mut nanos: Vec<u64>) -> Self {
        assert!(!nanos.is_empty(), "quantiles of nothing");
        nanos.sort_unstable();
        let at = |p: f64| nanos[((nanos.len() - 1) as f64 * p) as usize] as f64 / 1e3;
        Self { p50: at(0.5), p99: at(0.99) }
    }
}

/// Latencies from call to completion.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        // From 100 ns to 100 s with three digits. What lies outside is counted at the border.
        Self(Histogram::new_with_bounds(100, 100_000_000_000, 3).expect("valid bounds"))
    }
}

impl Latencies {
    /// Counts `operations` that took `nanos` each.
    pub fn record(&mut self, nanos: u64, operations: u64) {
        self.0.saturating_record_n(nanos, operations);
    }

    /// Adds the latencies of another.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("the same bounds");
    }

    /// The quantile, in microseconds.
    pub fn micros(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// One run of load.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Always `longboat`.
    pub system: &'static str,
    /// The subcommand.
    pub scenario: &'static str,
    /// Groups, each with three replicas.
    pub groups: usize,
    /// Bytes of a command.
    pub payload: usize,
    /// Operations under way per group.
    pub inflight: usize,
    /// Completed proposals per second.
    pub proposals_per_s: f64,
    /// Completed linearizable reads per second.
    pub reads_per_s: f64,
    /// User and system time of the whole process, clients included, per completed operation, in microseconds.
    pub cpu_us_per_op: f64,
    /// Processor time over elapsed time.
    pub cores: f64,
    /// Median latency from call to completion, in microseconds.
    pub p50_us: f64,
    /// 99th percentile, in microseconds.
    pub p99_us: f64,
    /// 99.9th percentile, in microseconds.
    pub p999_us: f64,
    /// Syncs of the three hosts' journals in the measured time.
    pub fdatasyncs: u64,
    /// Log entries per sync, over all three hosts.
    pub entries_per_fdatasync: f64,
    /// The most memory that the process held.
    pub peak_rss_mb: f64,
    /// Memory per replica once all groups have a leader, before load.
    pub rss_per_replica_kb: f64,
    /// From the first host's opening until all replicas were started.
    pub start_s: f64,
    /// From the first host's opening until every group had a leader.
    pub elected_s: f64,
    /// Operations in the measured time that ended in an error and were made again. Not counted as completed.
    pub errors: u64,
}

impl Report {
    /// The report as one line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names only")
    }

    /// The report as a table.
    pub fn table(&self) -> String {
        let mut out = format!(
            "{}: {} groups x {} in flight, {} B, three hosts in this process, fsync on\n",
            self.scenario, self.groups, self.inflight, self.payload
        );
        let rows = [
            ("proposals", format!("{:.0}/s", self.proposals_per_s)),
            ("linearizable reads", format!("{:.0}/s", self.reads_per_s)),
            ("latency p50", format!("{:.0} us", self.p50_us)),
            ("latency p99", format!("{:.0} us", self.p99_us)),
            ("latency p99.9", format!("{:.0} us", self.p999_us)),
            ("processor time per operation", format!("{:.3} us", self.cpu_us_per_op)),
            ("cores in use", format!("{:.2}", self.cores)),
            ("fdatasyncs", format!("{}", self.fdatasyncs)),
            ("entries per fdatasync", format!("{:.1}", self.entries_per_fdatasync)),
            ("memory, peak", format!("{:.0} MB", self.peak_rss_mb)),
            ("memory per replica before load", format!("{:.1} KB", self.rss_per_replica_kb)),
            ("started after", format!("{:.2} s", self.start_s)),
            ("all leaders elected after", format!("{:.2} s", self.elected_s)),
            ("errors", format!("{}", self.errors)),
        ];
        out.push_str(&self::rows(&rows));
        out
    }
}

/// Names and values as the lines of a table.
pub fn rows(rows: &[(&str, String)]) -> String {
    rows.iter().map(|(name, value)| format!("  {name:<32} {value:>16}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_taken_from_the_sorted_durations() {
        let q = Quantiles::of_nanos((1..=1000).rev().map(|us| us * 1000).collect());
        assert_eq!((q.p50, q.p99), (500.0, 990.0));
    }

    #[test]
    fn merged_latencies_count_every_operation() {
        let (mut a, mut b) = (Latencies::default(), Latencies::default());
        a.record(1_000_000, 99);
        b.record(50_000_000, 1);
        a.merge(&b);
        assert!((a.micros(0.5) - 1000.0).abs() < 2.0, "{}", a.micros(0.5));
        assert!((a.micros(1.0) - 50_000.0).abs() < 100.0, "{}", a.micros(1.0));
    }

    #[test]
    fn a_latency_above_the_bound_is_counted_at_the_border() {
        let mut a = Latencies::default();
        a.record(u64::MAX, 3);
        assert!(a.micros(0.5) >= 99_000_000.0);
    }
}
