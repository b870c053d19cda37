//! A pairwise (all-pairs) test generator: rows over several axes such that any two levels of any two axes
//! occur together in some row.
//!
//! Most bugs of a kernel need two options (stride with dilation, groups with padding), few need three, so a
//! pairwise covering finds most for its length. The generator is greedy and deterministic: each row starts
//! from a seed or from the first uncovered pair, and every other axis takes the level that covers most, with
//! backtracking where the constraint forbids it.

use crate::fill;

/// A row with undecided axes.
pub(crate) type Partial = Vec<Option<usize>>;

/// How many orders of the axes are tried for a row; the fullest row is kept.
const CANDIDATES: usize = 12;

/// Rows of level indices (`row[axis] < levels[axis]`) that contain every seed and every pair of levels that
/// some allowed row can contain.
///
/// `allowed` is asked about partial rows too and must answer yes when some completion may be allowed.
pub(crate) fn cover(
    levels: &[usize],
    seeds: &[Partial],
    allowed: impl Fn(&[Option<usize>]) -> bool,
) -> Vec<Vec<usize>> {
    let mut open = Pairs::new(levels);
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let push = |seed: &Partial, open: &mut Pairs, rows: &mut Vec<Vec<usize>>| {
        let row_index = rows.len();
        let candidates =
            (0..CANDIDATES).filter_map(|k| complete(seed, levels, row_index + k, open, &allowed));
        // `max_by_key` keeps the last of equals; reversed, the first one wins.
        let best = candidates.collect::<Vec<_>>().into_iter().rev().max_by_key(|row| open.gain_of_row(row));
        if let Some(row) = best {
            open.close_row(&row);
            rows.push(row);
        }
    };
    for seed in seeds {
        push(seed, &mut open, &mut rows);
    }
    for (i, a, j, b) in pairs(levels) {
        if open.is_open(i, a, j, b) {
            let mut seed = vec![None; levels.len()];
            (seed[i], seed[j]) = (Some(a), Some(b));
            push(&seed, &mut open, &mut rows);
        }
    }
    rows
}

/// Every `(axis i, level a, axis j, level b)` with `i < j`.
pub(crate) fn pairs(levels: &[usize]) -> Vec<(usize, usize, usize, usize)> {
    let mut all = Vec::new();
    for j in 1..levels.len() {
        for i in 0..j {
            all.extend((0..levels[i]).flat_map(|a| (0..levels[j]).map(move |b| (i, a, j, b))));
        }
    }
    all
}

/// Depth-first completion of `seed`; the first axis to decide rotates with `row_index`.
fn complete(
    seed: &Partial,
    levels: &[usize],
    row_index: usize,
    open: &Pairs,
    allowed: &impl Fn(&[Option<usize>]) -> bool,
) -> Option<Vec<usize>> {
    if !allowed(seed) {
        return None;
    }
    let mut order = (0..levels.len()).map(|k| (k + row_index) % levels.len());
    let Some(axis) = order.find(|&axis| seed[axis].is_none()) else {
        return seed.iter().copied().collect();
    };
    // Ties are broken by a hash, so that frequent combinations vary.
    let tie = |level: usize| fill::hash(row_index as u64, (axis << 16 | level) as u64);
    let mut choices: Vec<_> =
        (0..levels[axis]).map(|level| (open.gain(seed, axis, level), tie(level), level)).collect();
    choices.sort_by_key(|&(gain, tie, _)| (std::cmp::Reverse(gain), tie));
    choices.into_iter().find_map(|(_, _, level)| {
        let mut next = seed.clone();
        next[axis] = Some(level);
        complete(&next, levels, row_index, open, allowed)
    })
}

/// The pairs not yet covered.
struct Pairs {
    /// First flat index of each axis; a pair is a cell of the square table over all levels.
    start: Vec<usize>,
    total: usize,
    open: Vec<bool>,
}

impl Pairs {
    fn new(levels: &[usize]) -> Self {
        let start = levels.iter().scan(0, |sum, &n| Some(std::mem::replace(sum, *sum + n))).collect();
        let total: usize = levels.iter().sum();
        Self { start, total, open: vec![true; total * total] }
    }

    fn cell(&self, i: usize, a: usize, j: usize, b: usize) -> usize {
        let (x, y) = (self.start[i] + a, self.start[j] + b);
        x.min(y) * self.total + x.max(y)
    }

    fn is_open(&self, i: usize, a: usize, j: usize, b: usize) -> bool {
        self.open[self.cell(i, a, j, b)]
    }

    /// How many open pairs `level` of `axis` would close with the decided axes of `row`.
    fn gain(&self, row: &[Option<usize>], axis: usize, level: usize) -> usize {
        let decided = row.iter().enumerate().filter_map(|(i, a)| a.map(|a| (i, a)));
        decided.filter(|&(i, a)| i != axis && self.is_open(i, a, axis, level)).count()
    }

    fn gain_of_row(&self, row: &[usize]) -> usize {
        let pairs = (1..row.len()).flat_map(|j| (0..j).map(move |i| (i, j)));
        pairs.filter(|&(i, j)| self.is_open(i, row[i], j, row[j])).count()
    }

    fn close_row(&mut self, row: &[usize]) {
        for j in 1..row.len() {
            for i in 0..j {
                let cell = self.cell(i, row[i], j, row[j]);
                self.open[cell] = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covered(rows: &[Vec<usize>], (i, a, j, b): (usize, usize, usize, usize)) -> bool {
        rows.iter().any(|row| row[i] == a && row[j] == b)
    }

    #[test]
    fn covers_all_pairs_in_few_rows() {
        let levels = [7, 5, 4, 3, 3, 2, 2];
        let rows = cover(&levels, &[], |_| true);
        assert!(pairs(&levels).into_iter().all(|pair| covered(&rows, pair)));
        assert!((35..50).contains(&rows.len()), "{} rows where 35 is the least possible", rows.len());
    }

    #[test]
    fn keeps_seeds_and_respects_the_constraint() {
        let levels = [3, 3, 3, 3, 3];
        // Axis 0 and axis 1 never share a level.
        let allowed = |row: &[Option<usize>]| row[0].is_none() || row[0] != row[1];
        let seed = vec![Some(2), None, Some(2), Some(2), None];
        let rows = cover(&levels, &[seed], allowed);
        assert_eq!((rows[0][0], rows[0][2], rows[0][3]), (2, 2, 2));
        for pair in pairs(&levels) {
            let forbidden = pair.0 == 0 && pair.2 == 1 && pair.1 == pair.3;
            assert_eq!(covered(&rows, pair), !forbidden, "{pair:?}");
        }
    }
}
