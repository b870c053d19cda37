//! Causal depthwise conv1d: the conformance table, one-step updates, regressions, and sequence ids.
//!
//! [`conformance`] contains every length at a tile boundary x every width 1 to 8 x both layouts, with the
//! other options spread over those rows so that all pairs meet, followed by wide kernels.

mod update;

use crate::{fill, pairwise};
pub use update::{UpdateCase, update_cases};

/// The largest `b * c * t * w` of a case in [`conformance`].
pub const MAX_CONFORMANCE_WORK: usize = 140_000;

/// Which sequence ids a case has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SeqIdx {
    /// No ids: each row of the batch is one sequence.
    None,
    /// Several sequences in each row, every id at least 0.
    Sequences,
    /// Several sequences with padding (negative ids) before, between and after them.
    WithPadding,
}

/// One problem: `x [B, C, T]` (or `[B, T, C]`), `weight [C, W]`, `bias [C]`, initial state `[B, C, W-1]`, ids
/// `[B, T]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Unique within its table: lower case words joined by `_`.
    pub name: String,
    /// Batch.
    pub b: usize,
    /// Channels.
    pub c: usize,
    /// Time steps.
    pub t: usize,
    /// Kernel width, at least 1.
    pub w: usize,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether SiLU is applied.
    pub silu: bool,
    /// Layout `[B, T, C]` instead of `[B, C, T]`.
    pub btc: bool,
    /// Whether there is an initial state. With ids it belongs to the sequence of the first step of the row.
    pub initial: bool,
    /// Sequence ids, see [`seq_idx`].
    pub seq_idx: SeqIdx,
    /// Whether a tensor is added after the activation.
    pub residual: bool,
}

impl Case {
    /// A case `[B, C, T]` with a bias and nothing else.
    #[must_use]
    pub fn new(name: &str, [b, c, t]: [usize; 3], w: usize) -> Self {
        let name = name.to_string();
        let [silu, btc, initial, residual] = [false; 4];
        Self { name, b, c, t, w, bias: true, silu, btc, initial, seq_idx: SeqIdx::None, residual }
    }

    /// Multiply-accumulates of one forward pass.
    #[must_use]
    pub fn macs(&self) -> u64 {
        [self.b, self.c, self.t, self.w].iter().map(|&e| e as u64).product()
    }
}

/// The name and every option of the case, on one line.
impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, b, c, t, w, bias, silu, btc, initial, seq_idx, residual } = self;
        let layout = if *btc { "[B,T,C]" } else { "[B,C,T]" };
        write!(
            f,
            "{name}: {layout} b {b} c {c} t {t} w {w} bias {bias} silu {silu} initial {initial} ids {seq_idx:?} residual \
             {residual}"
        )
    }
}

/// Lengths at, below and above the boundaries of vectors and tiles.
const LENGTHS: [usize; 20] =
    [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257];
const CHANNELS: [usize; 5] = [1, 3, 5, 64, 65];
const IDS: [SeqIdx; 3] = [SeqIdx::None, SeqIdx::Sequences, SeqIdx::WithPadding];
/// Levels of (T, W, layout, C, B, bias, SiLU, initial state, ids).
const LEVELS: [usize; 9] = [LENGTHS.len(), 8, 2, CHANNELS.len(), 3, 2, 2, 2, IDS.len()];

/// Problems that every plan must get right.
#[must_use]
pub fn conformance() -> Vec<Case> {
    let mut seeds = Vec::new();
    for t in 0..LENGTHS.len() {
        for w in 0..8 {
            for layout in 0..2 {
                let mut seed = vec![None; LEVELS.len()];
                (seed[0], seed[1], seed[2]) = (Some(t), Some(w), Some(layout));
                seeds.push(seed);
            }
        }
    }
    // The smallest level of an undecided axis stands for it.
    let small = |row: &[Option<usize>]| {
        let at = |axis: usize| row[axis].unwrap_or(0);
        LENGTHS[at(0)] * (at(1) + 1) * CHANNELS[at(3)] * (at(4) + 1) <= MAX_CONFORMANCE_WORK
    };
    let rows = pairwise::cover(&LEVELS, &seeds, small);
    let mut cases: Vec<Case> = rows
        .iter()
        .enumerate()
        .map(|(index, row)| {
            // Few enough that kernels without a residual are covered as well.
            let residual = index % 5 == 3;
            let (t, w, btc) = (LENGTHS[row[0]], row[1] + 1, row[2] == 1);
            let (c, b, ids) = (CHANNELS[row[3]], row[4] + 1, IDS[row[8]]);
            let [bias, silu, initial] = [row[5], row[6], row[7]].map(|level| level == 1);
            let layout = if btc { "btc" } else { "bct" };
            let mut name = format!("t{t}_w{w}_{layout}_b{b}_c{c}");
            for (word, on) in [("bias", bias), ("silu", silu), ("initial", initial)] {
                if on {
                    name = format!("{name}_{word}");
                }
            }
            name += match ids {
                SeqIdx::None => "",
                SeqIdx::Sequences => "_ids",
                SeqIdx::WithPadding => "_padded_ids",
            };
            if residual {
                name += "_residual";
            }
            Case { name, b, c, t, w, bias, silu, btc, initial, seq_idx: ids, residual }
        })
        .collect();
    cases.extend(wide());
    cases
}

/// Kernels wider than a tile of time steps, and shorter sequences than the kernel.
fn wide() -> Vec<Case> {
    let mut cases = Vec::new();
    for (w, lengths) in [(16, [1, 14, 15, 16, 17, 64, 130]), (128, [1, 126, 127, 128, 129, 200, 257])] {
        for (index, t) in lengths.into_iter().enumerate() {
            let case = Case::new(&format!("wide_w{w}_t{t}"), [1 + index % 2, 3 - index % 2, t], w);
            cases.push(Case {
                silu: index % 3 == 0,
                bias: index % 4 != 1,
                btc: index % 2 == 1,
                initial: index != 2,
                seq_idx: IDS[index % 3],
                residual: index % 2 == 1,
                ..case
            });
        }
    }
    // Around the 16 sums of a thread, the 128 taps and 256 to 2048 steps of a tile, and its rows of channels.
    let extents = [
        ([2, 3, 33], 9),
        ([1, 17, 20], 15),
        ([1, 9, 255], 17),
        ([2, 2, 256], 31),
        ([1, 8, 257], 33),
        ([1, 1, 511], 127),
        ([1, 2, 300], 129),
        ([1, 1, 600], 160),
        ([1, 1, 40], 260),
        ([1, 1, 2047], 12),
        ([1, 1, 2049], 25),
    ];
    for (index, (extents, w)) in extents.into_iter().enumerate() {
        for btc in [false, true] {
            let layout = if btc { "btc" } else { "bct" };
            let case = Case::new(&format!("tiled_w{w}_t{}_{layout}", extents[2]), extents, w);
            cases.push(Case {
                silu: (index + usize::from(btc)) % 2 == 0,
                bias: index % 3 != 1,
                btc,
                initial: index % 4 != 2,
                residual: index % 3 == 0,
                ..case
            });
        }
    }
    // Every number of taps around the blocks of 16, 32 and 128; rows with vector and scalar access, each with
    // the first tap at every position in a vector; lengths around one, two and four tiles of 2048 steps.
    let widths = (9..=33).chain([100, 127, 128, 129, 130, 131, 200, 255, 256, 257]);
    let long = [
        (130, 256),
        (131, 512),
        (12, 8196),
        (16, 4096),
        (17, 6148),
        (20, 4100),
        (31, 4095),
        (32, 4097),
        (33, 2052),
        (66, 2048),
    ];
    let short = [64, 256, 260, 130, 516, 31];
    let shorts = widths.enumerate().map(|(index, w)| (w, short[index % short.len()]));
    for (index, (w, t)) in shorts.chain(long).enumerate() {
        let b = if 2 * w * t <= MAX_CONFORMANCE_WORK { 1 + index % 2 } else { 1 };
        let c = (MAX_CONFORMANCE_WORK / (b * w * t)).clamp(1, 2 + index % 3);
        cases.push(Case {
            silu: index % 2 == 0,
            bias: index % 3 != 1,
            btc: index % 7 == 6,
            initial: index % 4 != 2,
            residual: index % 5 == 0,
            ..Case::new(&format!("blocks_w{w}_t{t}"), [b, c, t], w)
        });
    }
    // More channels than a threadgroup has threads, and not a power of two.
    for btc in [false, true] {
        let layout = if btc { "btc" } else { "bct" };
        cases.push(Case {
            btc,
            silu: true,
            ..Case::new(&format!("channels_4128_{layout}"), [1, 4128, 8], 4)
        });
    }
    cases
}

/// Long and wide shapes of public bugs; the name begins with the library and bug number.
#[must_use]
pub fn regressions() -> Vec<Case> {
    let mut cases = Vec::new();
    // mlx-swift #424: conv1d was wrong beyond 32,768 steps.
    for t in [32_767, 32_768, 32_769, 65_535, 65_536, 65_537] {
        let case = Case::new(&format!("mlx_swift_424_t{t}"), [1, 1, t], 4);
        cases.push(Case { btc: t % 2 == 0, silu: t % 3 == 0, ..case });
    }
    // causal-conv1d #117, #101: the tail of a chunk was read out of bounds. mamba #643, fla #519: odd channel
    // counts in the channels-last layout were refused.
    for t in [63, 64, 65, 127, 128, 129, 256, 257] {
        let case = Case::new(&format!("causal_conv1d_117_t{t}"), [2, 7, t], 4);
        cases.push(Case { btc: t % 2 == 1, initial: t % 3 == 0, silu: true, ..case });
    }
    // Boundaries of a threadgroup's tiles and of a row's segments, with every option that crosses them.
    for (index, t) in [1023, 1024, 1025, 2049, 4096, 5120, 8193].into_iter().enumerate() {
        let case =
            Case::new(&format!("mlx_swift_424_turns_t{t}"), [1, 2, t], if index % 2 == 0 { 8 } else { 3 });
        let seq_idx = IDS[index % 3];
        cases.push(Case { silu: true, initial: true, seq_idx, ..case.clone() });
        let name = format!("{}_plain", case.name);
        cases.push(Case { name, w: 4, btc: index % 2 == 1, ..case });
    }
    // A whole tile of a wide filter's steps and taps whose rows are not aligned to vectors.
    let whole = Case::new("mlx_swift_424_tile_of_w131", [1, 1, 2048], 131);
    cases.push(Case { initial: true, ..whole });
    // The grid has one row per (batch, channel).
    cases.push(Case::new("grid_channels_65537", [1, 65_537, 2], 2));
    cases.push(Case { btc: true, ..Case::new("grid_batch_65537", [65_537, 1, 2], 2) });
    cases
}

/// Sequence ids `[B, T]` of a case, row by row; empty for [`SeqIdx::None`].
///
/// Sequences have deterministic random lengths. An id is used by one sequence only, over all rows, and ids
/// are not sorted. With padding, every third sequence is padding (negative), counted from another one in each
/// row.
#[must_use]
pub fn seq_idx(case: &Case) -> Vec<i32> {
    if case.seq_idx == SeqIdx::None {
        return Vec::new();
    }
    let seed = fill::hash(case.t as u64, case.w as u64);
    let mut ids = Vec::with_capacity(case.b * case.t);
    let mut sequence = 0;
    for row in 0..case.b {
        let mut left = case.t;
        let mut index_in_row = row;
        while left > 0 {
            // Sequences shorter and longer than the kernel.
            let longest = (case.t / 3).clamp(1, 2 * case.w + 3) as i64;
            let length = (fill::integer(seed, sequence, 1, longest) as usize).min(left);
            let padding = case.seq_idx == SeqIdx::WithPadding && index_in_row.is_multiple_of(3);
            // Distinct for every sequence; flipping the lowest bit unsorts neighbours.
            let id = if padding { -1 - (sequence % 2) as i32 } else { (sequence ^ 1) as i32 };
            ids.extend(std::iter::repeat_n(id, length));
            left -= length;
            index_in_row += 1;
            sequence += 1;
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn conformance_covers_lengths_widths_and_pairs() {
        let cases = conformance();
        // Each in three dtypes: a thousand.
        assert!(cases.len() >= 334 + 24, "{} cases", cases.len());
        let names: HashSet<_> = cases.iter().map(|case| &case.name).collect();
        assert_eq!(names.len(), cases.len());
        let work = |case: &Case| case.b * case.c * case.t * case.w;
        for case in &cases {
            assert!(
                (1..=MAX_CONFORMANCE_WORK).contains(&work(case)),
                "{} multiply-accumulates in {case}",
                work(case)
            );
        }
        let total: usize = cases.iter().map(work).sum();
        assert!(total <= 15_000_000, "{total} multiply-accumulates in all");
        for t in LENGTHS {
            for w in 1..=8 {
                for btc in [false, true] {
                    assert!(
                        cases.iter().any(|case| (case.t, case.w, case.btc) == (t, w, btc)),
                        "{t} {w} {btc}"
                    );
                }
            }
        }
        assert!(cases.iter().filter(|case| case.t + 1 < case.w).count() >= 20);
        for btc in [false, true] {
            let added = cases.iter().filter(|case| case.residual && case.btc == btc);
            assert!(
                (1..=8).all(|w| added.clone().any(|case| case.w == w)),
                "a residual in each width, {btc}"
            );
            assert!(
                IDS.iter().all(|ids| added.clone().any(|case| case.seq_idx == *ids)),
                "a residual with all ids, {btc}"
            );
        }
        assert!(cases.iter().any(|case| case.w == 128) && cases.iter().any(|case| case.w == 16));
        let shows = |case: &Case, axis: usize, level: usize| match axis {
            0 => case.t == LENGTHS[level],
            1 => case.w == level + 1,
            2 => usize::from(case.btc) == level,
            3 => case.c == CHANNELS[level],
            4 => case.b == level + 1,
            5 => usize::from(case.bias) == level,
            6 => usize::from(case.silu) == level,
            7 => usize::from(case.initial) == level,
            _ => case.seq_idx == IDS[level],
        };
        for (i, a, j, b) in pairwise::pairs(&LEVELS) {
            assert!(
                cases.iter().any(|case| shows(case, i, a) && shows(case, j, b)),
                "axes {i} {j}, levels {a} {b}"
            );
        }
    }

    #[test]
    fn ids_never_return_and_padding_is_where_it_should_be() {
        let mut padded_ends = 0;
        let mut changes = 0;
        for case in conformance().into_iter().filter(|case| case.seq_idx != SeqIdx::None) {
            let ids = seq_idx(&case);
            assert_eq!(ids.len(), case.b * case.t, "{case}");
            let mut seen = HashSet::new();
            for row in ids.chunks(case.t) {
                for (t, &id) in row.iter().enumerate() {
                    let starts = t == 0 || row[t - 1] != id;
                    assert!(id < 0 || !starts || seen.insert(id), "id {id} returns in {case}");
                    changes += usize::from(t > 0 && starts);
                }
                padded_ends += usize::from(row[case.t - 1] < 0);
            }
            let padded = ids.iter().any(|&id| id < 0);
            assert_eq!(padded, case.seq_idx == SeqIdx::WithPadding, "{case}");
        }
        assert!(padded_ends > 20 && changes > 1000, "{padded_ends} padded ends, {changes} changes");
        assert!(seq_idx(&Case::new("none", [2, 3, 4], 4)).is_empty());
    }

    #[test]
    fn regressions_reach_their_lengths() {
        let cases = regressions();
        let names: HashSet<_> = cases.iter().map(|case| &case.name).collect();
        assert_eq!(names.len(), cases.len());
        for t in [32_769, 65_537, 129, 257] {
            assert!(cases.iter().any(|case| case.t == t));
        }
        assert!(cases.iter().all(|case| case.macs() <= 600_000));
    }
}
