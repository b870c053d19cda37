//! Arguments of the rotation, and what a thread finds in them: its cell and heads, and where a cell's vectors
//! and pairs are in a head.

use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// One tensor of tokens and its positions: extents, and strides in `[B, N, H, D]` order.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct RotationArgs {
    /// Cells of a token: vectors of u, and half of those of the rest.
    pub(super) lanes: FastDivmod<u32>,
    pub(super) tokens: FastDivmod<u32>,
    /// Cells of all tokens.
    pub(super) all_cells: u32,
    /// Cells of a threadgroup, twice.
    pub(super) cells: u32,
    pub(super) by_cells: FastDivmod<u32>,
    /// Threadgroups along the faster of their two indices, cells and heads.
    pub(super) fast: FastDivmod<u32>,
    /// 1 if that index is the one of heads.
    pub(super) heads_first: u32,
    pub(super) heads: u32,
    /// Groups of heads, which are the threads of a cell: all, and those of a threadgroup.
    pub(super) groups: u32,
    pub(super) own_groups: u32,
    /// Times that a thread loads, rotates and stores heads, `groups` apart from each other.
    pub(super) rounds: u32,
    /// Leading tokens that are copied.
    pub(super) prefix: u32,
    /// Strides in elements.
    pub(super) in_b: usize,
    pub(super) in_n: usize,
    pub(super) in_h: usize,
    pub(super) in_d: usize,
    pub(super) out_b: usize,
    pub(super) out_n: usize,
    pub(super) out_h: usize,
    pub(super) out_d: usize,
    /// What positions are: a code of `angle.rs`.
    pub(super) source: u32,
    /// Strides of the positions in words of 32 bits, and the last axis of theirs.
    pub(super) position_b: usize,
    pub(super) position_n: usize,
    pub(super) position_axis: usize,
    pub(super) last_axis: u32,
    /// Positions without a tensor: columns and rows, and where each axis begins.
    pub(super) columns: FastDivmod<u32>,
    pub(super) rows: FastDivmod<u32>,
    pub(super) first_0: i32,
    pub(super) first_1: i32,
    pub(super) first_2: i32,
}

/// The pairs of a head.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct HeadArgs {
    /// Rotated pairs.
    pub(super) pairs: u32,
    /// The first pair of the second and of the third block; `pairs` where there is none.
    pub(super) second: u32,
    pub(super) third: u32,
    pub(super) head_dim: u32,
}

/// What a thread rotates: a cell in a group of heads.
#[derive(CubeType, Clone, Copy)]
pub(super) struct ThreadWork {
    pub(super) lane: u32,
    pub(super) b: u32,
    pub(super) n: u32,
    pub(super) group: u32,
    /// The cell and the group, counted in the threadgroup.
    pub(super) cell: u32,
    pub(super) own_group: u32,
    /// Whether there are such a cell and group. Where not, the indices are those of others, to be read.
    pub(super) exists: bool,
}

#[cube]
impl RotationArgs {
    pub(super) fn work(&self, index: u32) -> ThreadWork {
        let (slow, fast) = self.fast.div_mod(index);
        let swap = self.heads_first != 0u32;
        let first = select(swap, slow, fast) * self.cells;
        let left = self.all_cells - first;
        let (own_group, cell) = self.by_cells.div_mod(UNIT_POS);
        let (token, lane) = self.lanes.div_mod(first + min(cell, left - 1u32));
        let (b, n) = self.tokens.div_mod(token);
        let group = select(swap, fast, slow) * self.own_groups + own_group;
        let exists = cell < left && own_group < self.own_groups;
        ThreadWork { lane, b, n, group, cell, own_group, exists }
    }
}

#[cube]
impl HeadArgs {
    /// Offsets in the head of the two vectors of a lane whose first pair is `along`.
    pub(super) fn offsets(&self, along: u32, #[comptime] pair_by_pair: bool) -> (u32, u32) {
        let rotated = 2u32 * self.pairs;
        let copied = (self.head_dim - rotated) / 2u32;
        let mut u = 2u32 * along;
        let mut step = 1u32.runtime();
        if comptime!(!pair_by_pair) {
            let first =
                select(along >= self.third, self.third, select(along >= self.second, self.second, 0u32));
            let end = select(
                along >= self.third,
                self.pairs,
                select(along >= self.second, self.third, self.second),
            );
            u = first + along;
            step = end - first;
        }
        let rotates = along < self.pairs;
        u = select(rotates, u, self.pairs + along);
        (u, u + select(rotates, step, copied))
    }

    /// The `i`-th pair of a lane. Neighbours are in the lane's first vector, then in its second.
    pub(super) fn pair(
        &self,
        along: u32,
        i: u32,
        #[comptime] width: u32,
        #[comptime] neighbours: bool,
    ) -> u32 {
        if comptime!(neighbours && width > 1) {
            let half = comptime!(width / 2);
            along / 2u32 + i + select(i < half, 0u32, self.pairs / 2u32 - half)
        } else {
            along + i
        }
    }
}
