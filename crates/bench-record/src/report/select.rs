//! Which rows of a record a plot shows.

use crate::Record;
use crate::record::OURS;

/// The values of a column in the order of their first row.
pub(super) fn distinct<'a>(records: &'a [Record], column: impl Fn(&'a Record) -> &'a String) -> Vec<&'a str> {
    let mut values: Vec<&str> = Vec::new();
    for record in records {
        let value = column(record).as_str();
        if !values.contains(&value) {
            values.push(value);
        }
    }
    values
}

/// Our first row of each key: of several plans the one that a user gets, which is written first. Rows of the
/// host's clock are left out where the device has timed as well.
pub(super) fn ours(records: &[Record]) -> Vec<&Record> {
    let mut rows: Vec<&Record> = Vec::new();
    for record in records.iter().filter(|record| record.implementation == OURS) {
        let timed_by_device =
            |other: &Record| !other.is_wall() && other.key()[..5] == record.key()[..5] && record.is_wall();
        let known = rows.iter().any(|other| other.key() == record.key());
        if !known && !records.iter().any(timed_by_device) {
            rows.push(record);
        }
    }
    rows
}

/// The rates that the rows of one dtype were measured against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limits {
    /// Bytes per ns of a copy.
    pub(super) gbps: f64,
    /// Operations per ns; none where no row was bound by them.
    pub(super) gflops: Option<f64>,
}

/// A row whose bytes take this share of the limit's time is bound by bytes. Rates of several runs differ by a
/// few percent.
const BYTES_BIND: f64 = 0.9;

impl Limits {
    /// From the shares of the limit: a row bound by bytes has the copy's rate as `gbps / share`, and no other
    /// has more.
    pub(super) fn of(records: &[Record], dtype: &str) -> Option<Self> {
        let rates = |record: &Record| {
            let share = record.share_of_limit?;
            Some((record.gflops.map(|gflops| gflops / share), record.gbps? / share))
        };
        let timed = |record: &&Record| record.implementation == OURS && !record.is_wall();
        let mut rows: Vec<_> = records.iter().filter(timed).filter(|row| row.dtype == dtype).collect();
        if rows.is_empty() {
            rows = records.iter().filter(|row| row.implementation == OURS && row.dtype == dtype).collect();
        }
        let rates: Vec<_> = rows.into_iter().filter_map(rates).collect();
        let gbps = rates.iter().map(|rate| rate.1).reduce(f64::max)?;
        let mut peaks: Vec<f64> =
            rates.iter().filter(|rate| rate.1 < BYTES_BIND * gbps).filter_map(|rate| rate.0).collect();
        peaks.sort_by(f64::total_cmp);
        Some(Self { gbps, gflops: peaks.get(peaks.len() / 2).copied() })
    }

    /// Whether bytes bind the row.
    pub(super) fn bytes_bind(&self, record: &Record) -> bool {
        let rate = || Some(record.gbps? / record.share_of_limit?);
        rate().is_some_and(|rate| rate >= BYTES_BIND * self.gbps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::WALL_CLOCK;

    #[test]
    fn limits_follow_from_shares() {
        let mut rows = crate::report::tests::rows();
        rows.extend([rows[2].clone(), rows[2].clone()]);
        let limits = Limits::of(&rows, "f32").unwrap();
        assert_eq!(limits, Limits { gbps: 4000.0, gflops: Some(60_000.0) });
        assert!(limits.bytes_bind(&rows[2]) && !limits.bytes_bind(&rows[0]));
        assert_eq!(Limits::of(&rows, "f16"), None);
    }

    #[test]
    fn the_hosts_clock_is_second_to_the_devices() {
        let rows = crate::report::tests::rows();
        assert_eq!(ours(&rows).len(), 2);
        let wall = Record { backend: WALL_CLOCK.into(), ..rows[0].clone() };
        let both = [wall.clone(), rows[0].clone()];
        assert!(ours(&both).iter().all(|row| !row.is_wall()) && ours(&both).len() == 1);
        assert_eq!(ours(&[wall]).len(), 1);
    }
}
