//! Epilogue: sums in shared memory -> activation (or its derivative times dy), residual or dfinal -> rounding
//! -> coalesced store, as vectors of four where aligned.

use super::forward::WideWork;
use super::products::{OUTPUTS, Quad, element_of, section_index};
use super::stage::StagedRow;
use crate::activation::{activate_all, activate_gradient_all};
use crate::causal_conv1d::args::{ConvParams, Present, Strides, offset3};
use crate::registers::Registers;
use cubecl::prelude::*;

/// The results that a thread writes: every `lanes`-th vector (or element) of a row.
#[derive(CubeType, Clone, Copy)]
pub(super) struct OutputRow {
    pub(super) b: usize,
    /// Channel, relative to the first of the launch.
    pub(super) c: usize,
    /// The first result of the tile, and the number of results of the whole row.
    pub(super) first: usize,
    pub(super) count: usize,
    /// The thread's index among the `lanes` of its row.
    pub(super) lane: u32,
    pub(super) lanes: u32,
    /// Vectors (or elements) of the thread that are already written.
    pub(super) written: u32,
}

#[cube]
impl OutputRow {
    /// Index in the row of the thread's `n`-th result.
    fn at(&self, #[comptime] n: usize, #[comptime] vector_size: usize) -> usize {
        let vector = (self.written + comptime!((n / vector_size) as u32)) * self.lanes + self.lane;
        self.first + (vector * comptime!(vector_size as u32) + comptime!((n % vector_size) as u32)) as usize
    }
}

/// Loads every `lanes`-th vector (or element) of a row of sums that
/// [`store_sums`](super::products::store_sums) stored in shared memory: `count` results.
#[cube]
fn load_results<N: Size>(
    columns: &Shared<[Quad]>,
    line: &StagedRow,
    output: &OutputRow,
    #[comptime] count: usize,
) -> Registers<f32> {
    let vector_size = N::value();
    let values = Registers::<f32>::new(count, 0.0f32);
    #[unroll]
    for n in 0..comptime!(count / vector_size) {
        let index = (output.written + n as u32) * output.lanes + output.lane;
        if comptime!(vector_size == 4) {
            let quad = columns[(line.base + section_index(index, line.pitch)) as usize];
            #[unroll]
            for i in 0..4usize {
                values.set(comptime!(4 * n + i), quad.extract(i));
            }
        } else {
            let quad = columns[(line.base + section_index(index / 4u32, line.pitch)) as usize];
            values.set(n, element_of(quad, index % 4u32));
        }
    }
    values
}

/// The epilogue of a thread's results: all at once with `unroll`, else four at a time, for fewer registers.
#[cube]
pub(super) fn write_sums<X: Float, H: Float, Y: Float, N: Size>(
    columns: &Shared<[Quad]>,
    line: &StagedRow,
    other: &[Vector<X, N>],
    other_strides: &Strides,
    dfinal: &Tensor<H>,
    target: &mut [Vector<Y, N>],
    target_strides: &Strides,
    params: &ConvParams,
    work: &WideWork,
    output: &OutputRow,
    #[comptime] unroll: bool,
) {
    let count = comptime!(if unroll { OUTPUTS } else { 4 });
    let width = N::value();
    let vectors = comptime!(count / width);
    #[unroll(unroll)]
    for part in 0..comptime!((OUTPUTS / count) as u32) {
        let written = part * vectors as u32;
        let output = OutputRow {
            b: output.b,
            c: output.c,
            first: output.first,
            count: output.count,
            lane: output.lane,
            lanes: output.lanes,
            written,
        };
        let values = load_results::<N>(columns, line, &output, count);
        write_results(
            &values,
            other,
            other_strides,
            dfinal,
            target,
            target_strides,
            params,
            work,
            &output,
            count,
        );
    }
}

/// Applies the epilogue to `count` values in place and stores them.
#[cube]
fn write_results<X: Float, H: Float, Y: Float, N: Size>(
    values: &Registers<f32>,
    other: &[Vector<X, N>],
    other_strides: &Strides,
    dfinal: &Tensor<H>,
    target: &mut [Vector<Y, N>],
    target_strides: &Strides,
    params: &ConvParams,
    work: &WideWork,
    output: &OutputRow,
    #[comptime] count: usize,
) {
    let vector_size = N::value();
    let others = Registers::<f32>::new(count, 0.0f32);
    let channel = params.first + output.c;
    if params.present & comptime!(Present::DY + Present::RESIDUAL) != 0u32 {
        let row = output.b * other_strides.b + channel * other_strides.c;
        let mut raw = Sequence::<Vector<X, N>>::new();
        #[unroll]
        for n in 0..comptime!(count / vector_size) {
            let o = output.at(comptime!(n * vector_size), vector_size);
            raw.push(other[select(o < output.count, row + o * other_strides.t, 0usize) / vector_size]);
        }
        #[unroll]
        for n in 0..count {
            let value = raw.index(comptime!(n / vector_size)).extract(comptime!(n % vector_size));
            others.set(n, f32::cast_from(value));
        }
    }
    if params.has(Present::DY) {
        activate_gradient_all(values, &others, count, params.activation, false);
        #[unroll]
        for n in 0..count {
            values.set(n, others.get(n));
        }
    } else {
        activate_all(values, count, params.activation, false);
    }
    if params.has(Present::RESIDUAL) {
        #[unroll]
        for n in 0..count {
            values.set(n, values.get(n) + others.get(n));
        }
    }
    if params.has(Present::DFINAL) {
        #[unroll]
        for n in 0..count {
            // Column e, of which this is the gradient, is in the final state if e >= T.
            let o = output.at(n, vector_size);
            let e = work.start + o;
            if e >= params.length && o < output.count {
                let held = f32::cast_from(dfinal[offset3(dfinal, output.b, channel, e - params.length)]);
                values.set(n, values.get(n) + held);
            }
        }
    }
    let row = output.b * target_strides.b + (work.target_first + output.c) * target_strides.c;
    #[unroll]
    for n in 0..comptime!(count / vector_size) {
        let o = output.at(comptime!(n * vector_size), vector_size);
        if o < output.count {
            let at = (row + o * target_strides.t) / vector_size;
            if comptime!(vector_size == 4) {
                let mut quad = Quad::new(0.0f32);
                #[unroll]
                for i in 0..4usize {
                    quad.insert(i, values.get(comptime!(4 * n + i)));
                }
                target[at] = Vector::cast_from(quad);
            } else {
                target[at] = Vector::<Y, N>::new(Y::cast_from(values.get(n)));
            }
        }
    }
}
