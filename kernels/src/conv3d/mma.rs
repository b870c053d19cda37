//! Matrix units (`cmma`), as all kernels use them: fragments of the factors are loaded from memory,
//! multiplied and added to accumulators in fp32, and stored through a patch of shared memory.
//!
//! ```text
//! D[i][j] += A[i] * B[j]      i: fragments along the rows of a subgroup's tile, j: along its columns
//!
//! for each K fragment:  load all A[i];  for each j: load B[j], multiply it with every A[i]
//!
//! accumulator -> patch of the subgroup's own, `4 * size^2` bytes, row-major -> any lane reads any element
//! ```
//!
//! Where text is to be short a loop over the fragments at run time takes the accumulator by a tree of uniform
//! branches ([`store_chosen`]): registers need constant indices.
//!
//! A subgroup holds every A and one B at a time: `rows + 1` loads of `size^2` elements from shared memory per
//! `2 * rows * size^3` FLOP. `size` is 8 on Apple's simdgroups and 16 elsewhere.

use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::prelude::*;

/// Zeroed accumulators for `count` sums of a subgroup, in fragments of `size` x `size`.
#[cube]
pub(crate) fn accumulators(#[comptime] count: usize, #[comptime] size: usize) -> Sequence<cmma::Matrix<f32>> {
    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(count / size / size) {
        sums.push(cmma::Matrix::<f32>::from_value(
            MatrixIdent::Accumulator,
            size,
            size,
            size,
            MatrixLayout::Undefined,
            0.0,
        ));
    }
    sums
}

/// The fragment at the start of `from`, whose rows (columns, by `layout`) are `pitch` elements apart.
#[cube]
pub(crate) fn load_fragment<S: Float, V: Size>(
    from: &[Vector<S, V>],
    #[comptime] ident: MatrixIdent,
    #[comptime] layout: MatrixLayout,
    #[comptime] pitch: usize,
    #[comptime] size: usize,
) -> cmma::Matrix<Vector<S, V>> {
    cmma::Matrix::<Vector<S, V>>::from_slice(ident, size, size, size, layout, from, comptime!(pitch as u32))
}

/// Multiplies one fragment of B with `rows` of A: adds to the accumulators `first`, `first + step`, ..
#[cube]
pub(crate) fn multiply_fragments<S: Float, V: Size>(
    a: &Sequence<cmma::Matrix<Vector<S, V>>>,
    b: &cmma::Matrix<Vector<S, V>>,
    sums: &Sequence<cmma::Matrix<f32>>,
    #[comptime] rows: usize,
    #[comptime] first: usize,
    #[comptime] step: usize,
) {
    #[unroll]
    for i in 0..rows {
        let sum = sums.index(comptime!(first + i * step));
        cmma::execute(a.index(i), b, sum, sum);
    }
}

/// The `index`-th vector of values that were loaded one by one. Built at the store, not at the load: the
/// first use of a value waits for its load.
#[cube]
pub(crate) fn pack_vector<E: Float, S: Float, V: Size>(
    values: &Sequence<E>,
    #[comptime] index: usize,
) -> Vector<S, V> {
    let width = V::value();
    let mut vector = Vector::<S, V>::empty();
    #[unroll]
    for i in 0..width {
        vector.insert(i, S::cast_from(*values.index(comptime!(index * width + i))));
    }
    vector
}

/// Stores `loads` vectors that a thread has loaded one by one to a window of shared memory: channels of one
/// of its `elements`, which are `pitch` vectors apart; lanes along elements.
#[cube]
pub(crate) fn store_window<E: Float, S: Float, V: Size>(
    values: &Sequence<E>,
    window: &mut Shared<[Vector<S, V>]>,
    #[comptime] elements: usize,
    #[comptime] pitch: usize,
    #[comptime] loads: usize,
    #[comptime] threads: usize,
) {
    #[unroll]
    for load in 0..loads {
        let vector = UNIT_POS as usize + comptime!(load * threads);
        window[vector % elements * pitch + vector / elements] = pack_vector(values, load);
    }
}

/// Stores a fragment row-major to its subgroup's patch of `patches`, which starts at `start`. Has barriers:
/// all subgroups of the threadgroup must call it.
#[cube]
pub(crate) fn store_to_patch(
    sum: &cmma::Matrix<f32>,
    patches: &mut Shared<[f32]>,
    start: usize,
    #[comptime] size: usize,
) {
    let end = patches.len();
    sync_cube();
    cmma::store(&mut patches[start..end], sum, size as u32, MatrixLayout::RowMajor);
    sync_cube();
}

/// [`store_to_patch`] of the accumulator at a run-time `index`.
#[cube]
pub(crate) fn store_chosen_to_patch(
    sums: &Sequence<cmma::Matrix<f32>>,
    index: u32,
    patches: &mut Shared<[f32]>,
    start: usize,
    #[comptime] size: usize,
) {
    sync_cube();
    store_chosen(sums, index, patches, start, 0usize, sums.len(), (1usize, 0usize), size as u32);
    sync_cube();
}

/// Stores the accumulators of group `index` (uniform in the threadgroup), one of the `groups` from `first`
/// on, row-major with rows `stride` elements apart. A group has `members.0` adjacent accumulators, in the
/// patch `members.1` elements of it apart.
#[cube]
pub(crate) fn store_chosen<T: CubePrimitive>(
    sums: &Sequence<cmma::Matrix<f32>>,
    index: u32,
    patches: &mut Shared<[T]>,
    start: usize,
    #[comptime] first: usize,
    #[comptime] groups: usize,
    #[comptime] members: (usize, usize),
    #[comptime] stride: u32,
) {
    if comptime!(groups == 1) {
        let end = patches.len();
        #[unroll]
        for member in 0..comptime!(members.0) {
            let sum = sums.index(comptime!(first * members.0 + member));
            let at = start + comptime!(member * members.1);
            cmma::store(&mut patches[at..end], sum, stride, MatrixLayout::RowMajor);
        }
    } else {
        let half = comptime!(groups / 2);
        let second = comptime!(first + half);
        if index < comptime!(second as u32) {
            store_chosen(sums, index, patches, start, first, half, members, stride);
        } else {
            store_chosen(sums, index, patches, start, second, comptime!(groups - half), members, stride);
        }
    }
}
