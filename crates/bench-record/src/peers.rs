//! Our rows next to those of other implementations.

use crate::Record;
use crate::record::OURS;
use crate::statistics::geometric_mean;

/// Each of a peer's rows with ours: the same case, dtype and pass by the same clock. A peer may run
/// on another device of the machine, or call the same one by another name.
#[must_use]
pub fn pairs<'a>(records: &'a [Record], peer: &str) -> Vec<(&'a Record, &'a Record)> {
    let mut pairs: Vec<(&Record, &Record)> = Vec::new();
    for theirs in records.iter().filter(|record| record.implementation == peer && peer != OURS) {
        let same = |record: &&Record| {
            let (a, b) = (record.key(), theirs.key());
            record.implementation == OURS
                && a[..4] == b[..4]
                && a[5] == b[5]
                && record.median_ms.is_some()
                && theirs.median_ms.is_some()
        };
        let repeated = pairs.iter().any(|(_, other)| other.key()[..4] == theirs.key()[..4]);
        if let (Some(ours), false) = (records.iter().find(same), repeated) {
            pairs.push((ours, theirs));
        }
    }
    pairs
}

/// How many times as fast ours is as the peer.
#[must_use]
pub fn speed_up((ours, theirs): &(&Record, &Record)) -> Option<f64> {
    Some(theirs.median_ms? / ours.median_ms?)
}

/// How many times as fast ours is as a peer, for one op, dtype and pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Group<'a> {
    /// The peer's name.
    pub peer: &'a str,
    /// Op, dtype and pass.
    pub of: [&'a str; 3],
    /// Number of cases.
    pub cases: usize,
    /// Geometric mean over the cases.
    pub mean: f64,
    /// The least and the largest ratio.
    pub range: (f64, f64),
}

/// Every peer, op, dtype and pass that can be compared.
#[must_use]
pub fn groups(records: &[Record]) -> Vec<Group<'_>> {
    let mut peers: Vec<&str> = Vec::new();
    for record in records {
        if !peers.contains(&record.implementation.as_str()) {
            peers.push(&record.implementation);
        }
    }
    let mut groups: Vec<(&str, [&str; 3], Vec<f64>)> = Vec::new();
    for peer in peers {
        for pair in pairs(records, peer) {
            let Some(ratio) = speed_up(&pair) else { continue };
            let of = [pair.0.op.as_str(), pair.0.dtype.as_str(), pair.0.pass.as_str()];
            match groups.iter_mut().find(|(other, group, _)| *other == peer && *group == of) {
                Some((_, _, ratios)) => ratios.push(ratio),
                None => groups.push((peer, of, vec![ratio])),
            }
        }
    }
    let group = |(peer, of, ratios): (_, _, Vec<f64>)| {
        let range = (
            ratios.iter().copied().fold(f64::INFINITY, f64::min),
            ratios.iter().copied().fold(0.0, f64::max),
        );
        Some(Group { peer, of, cases: ratios.len(), mean: geometric_mean(&ratios)?, range })
    };
    groups.into_iter().filter_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::WALL_CLOCK;

    fn row(case: &str, implementation: &str, plan: &str, backend: &str, median: f64) -> Record {
        Record {
            op: "conv3d".into(),
            case: case.into(),
            dtype: "f32".into(),
            pass: "fwd".into(),
            implementation: implementation.into(),
            plan: plan.into(),
            backend: backend.into(),
            median_ms: Some(median),
            ..Record::default()
        }
    }

    #[test]
    fn the_first_plan_is_compared_by_the_same_clock() {
        let records = [
            row("a", OURS, "winograd_2x2", "", 1.0),
            row("a", OURS, "winograd_2x2", WALL_CLOCK, 1.5),
            row("a", OURS, "direct", "", 100.0),
            row("a", "burn", "conv3d", "", 2.0),
            row("a", "mlx", "conv3d", WALL_CLOCK, 3.0),
            row("b", OURS, "direct", "", 1.0),
            row("b", "burn", "conv3d", "", 8.0),
            row("c", OURS, "direct", "", 1.0),
        ];
        let groups = groups(&records);
        let of = ["conv3d", "f32", "fwd"];
        let burn = Group { peer: "burn", of, cases: 2, mean: 4.0, range: (2.0, 8.0) };
        let mlx = Group { peer: "mlx", of, cases: 1, mean: 2.0, range: (2.0, 2.0) };
        assert_eq!(groups.len(), 2);
        assert!((groups[0].mean - 4.0).abs() < 1e-12);
        assert_eq!(Group { mean: 4.0, ..groups[0].clone() }, burn);
        assert_eq!(groups[1], mlx);
        assert!(pairs(&records, OURS).is_empty());
    }
}
