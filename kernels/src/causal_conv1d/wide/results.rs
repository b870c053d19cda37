//! How sums leave a cube, through activation, residual or the gradients that join them: by way of shared
//! memory, so that neighbours write neighbours, vectors of four where rows are such.

use super::forward::TiledShare;
use super::products::{OUTPUTS, Quad, lane_of, place_of};
use super::stage::Line;
use crate::activation::{activate_all, activate_gradient_all};
use crate::causal_conv1d::args::{Present, Rows, Strides, at3};
use crate::registers::Registers;
use cubecl::prelude::*;

/// The results that a unit writes.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Results {
    pub(super) b: usize,
    /// Channel, counted from the first of the launch.
    pub(super) c: usize,
    /// The first result of the row in this cube, and how many the whole row has.
    pub(super) first: usize,
    pub(super) count: usize,
    /// The unit's place among the `lanes` of its row.
    pub(super) lane: u32,
    pub(super) lanes: u32,
}

#[cube]
impl Results {
    /// The `n`-th of a unit's results, which are every `lanes`-th vector (or element) of the row.
    fn at(&self, #[comptime] n: usize, #[comptime] together: usize) -> usize {
        let vector = comptime!((n / together) as u32) * self.lanes + self.lane;
        self.first + (vector * comptime!(together as u32) + comptime!((n % together) as u32)) as usize
    }
}

/// Every `lanes`-th vector (or element) of a row of sums that [`put_sums`](super::products::put_sums) has put
/// into shared memory.
#[cube]
pub(super) fn take_results<N: Size>(columns: &Shared<[Quad]>, line: &Line, own: &Results) -> Registers<f32> {
    let together = N::value();
    let values = Registers::<f32>::new(OUTPUTS, 0.0f32);
    #[unroll]
    for n in 0..comptime!(OUTPUTS / together) {
        let index = n as u32 * own.lanes + own.lane;
        if comptime!(together == 4) {
            let quad = columns[(line.place + place_of(index, line.part)) as usize];
            #[unroll]
            for i in 0..4usize {
                values.set(comptime!(4 * n + i), quad.extract(i));
            }
        } else {
            let quad = columns[(line.place + place_of(index / 4u32, line.part)) as usize];
            values.set(n, lane_of(quad, index % 4u32));
        }
    }
    values
}

/// Writes the results whose sums are `values`, which change.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn write_results<X: Float, H: Float, Y: Float, N: Size>(
    values: &Registers<f32>,
    other: &[Vector<X, N>],
    other_strides: &Strides,
    dfinal: &Tensor<H>,
    target: &mut [Vector<Y, N>],
    target_strides: &Strides,
    extents: &Rows,
    share: &TiledShare,
    own: &Results,
) {
    let together = N::value();
    let others = Registers::<f32>::new(OUTPUTS, 0.0f32);
    let channel = extents.first + own.c;
    if extents.present & comptime!(Present::DY + Present::RESIDUAL) != 0u32 {
        let row = own.b * other_strides.b + channel * other_strides.c;
        let mut raw = Sequence::<Vector<X, N>>::new();
        #[unroll]
        for n in 0..comptime!(OUTPUTS / together) {
            let o = own.at(comptime!(n * together), together);
            raw.push(other[select(o < own.count, row + o * other_strides.t, 0usize) / together]);
        }
        #[unroll]
        for n in 0..OUTPUTS {
            let value = raw.index(comptime!(n / together)).extract(comptime!(n % together));
            others.set(n, f32::cast_from(value));
        }
    }
    if extents.has(Present::DY) {
        activate_gradient_all(values, &others, OUTPUTS, extents.activation, false);
        #[unroll]
        for n in 0..OUTPUTS {
            values.set(n, others.get(n));
        }
    } else {
        activate_all(values, OUTPUTS, extents.activation, false);
    }
    if extents.has(Present::RESIDUAL) {
        #[unroll]
        for n in 0..OUTPUTS {
            values.set(n, values.get(n) + others.get(n));
        }
    }
    if extents.has(Present::DFINAL) {
        #[unroll]
        for n in 0..OUTPUTS {
            // The column that the result is the gradient of, where the final state has it too.
            let o = own.at(n, together);
            let e = share.start + o;
            if e >= extents.length && o < own.count {
                let held = f32::cast_from(dfinal[at3(dfinal, own.b, channel, e - extents.length)]);
                values.set(n, values.get(n) + held);
            }
        }
    }
    let row = own.b * target_strides.b + (share.target_first + own.c) * target_strides.c;
    #[unroll]
    for n in 0..comptime!(OUTPUTS / together) {
        let o = own.at(comptime!(n * together), together);
        if o < own.count {
            let at = (row + o * target_strides.t) / together;
            if comptime!(together == 4) {
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
