//! The weight gradient by Winograd: F(3x3, m x m), the taps being the outputs and dy's tiles the filters.
//!
//! ```text
//! dw[o,c,kd] = A^T [ sum over n, frames, tiles of (G dy G^T) . (B^T x B) ] A
//!
//! input.rs           V[point, c, (image, frame, tile)]  = B^T d B      as in the forward pass
//! input.rs           D[point, o, (image, frame, tile)]  = G dy G^T     tiles of m x m, beside each other
//! weight_product.rs  S[part, point, kd, c, o]          += sum over tiles of D * V
//! this file          dw                                 = A^T (sum over parts of S) A
//! ```
//!
//! t*t products per m*m results of dy and 9 taps: 4 times fewer than the direct sum for F(4x4), 2.25 for
//! F(2x2). Sums are grouped by regions and parts: dw's bits depend on the plan's region and on `Limits`, as
//! those of any split sum do. F(6x6) is declined: sums are long enough as they are.
//!
//! Bytes per unit of the last step: t*t fp32 sums read for each part, neighbouring units beside each other; 9
//! taps written.

use super::constants::{Matrix, WinogradTile, whole};
use super::region::VECTOR;
use super::transform::transform_square;
use super::{Call, input, weight_product};
use crate::dtype::FloatType;
use crate::error::ConvError;
use crate::launch::{Span, dispatches};
use crate::operand::{Operand, address_type};
use cubecl::ir::{AddressType, ElemType};
use cubecl::prelude::*;

const UNITS: u32 = 64;

/// Launches the weight gradient: operands x, dy, dw.
pub(crate) fn run(call: &Call, [x, dy, dw]: [&Operand; 3]) -> Result<(), ConvError> {
    let Call { client, correlation, config, limits } = *call;
    let parts = weight_product::parts(correlation, config.tile, limits);
    let [of_part, v, d] = correlation.workspace(config.tile, config.region);
    let [sums, v, d] = [of_part * parts as u64, v, d]
        .map(|elements| Operand::empty(client, &[elements as usize], FloatType::F32));
    let address = address_type("conv3d", &[x, dy, dw, &sums, &v, &d], 0, limits)?;
    for (index, region) in correlation.regions(config.tile, config.region).iter().enumerate() {
        input::launch(call, address, region, input::Tiling::input(correlation), [x, &v]);
        input::launch(call, address, &region.of_outputs(), input::Tiling::gradient(correlation), [dy, &d]);
        weight_product::launch(call, address, (region, parts, index == 0), [&d, &v, &sums]);
    }
    taps(call, address, parts, [&sums, dw]);
    Ok(())
}

fn taps(call: &Call, address: AddressType, parts: usize, [sums, dw]: [&Operand; 2]) {
    let correlation = call.correlation;
    let filters = correlation.kernel_depth * correlation.in_channels * correlation.out_channels;
    let operations = f64::from(UNITS) * (400 + 64 * parts) as f64;
    for dispatch in dispatches(filters.div_ceil(UNITS as usize), operations, call.limits) {
        // SAFETY: the unit's index is checked against the number of filters; sums holds t*t values for each
        // in each part.
        unsafe {
            taps_kernel::launch_unchecked(
                call.client,
                dispatch.count(),
                CubeDim::new_1d(UNITS),
                address,
                sums.buffer_arg(1),
                dw.tensor_arg(),
                dispatch.span(),
                correlation.kernel_depth as u32,
                correlation.in_channels as u32,
                correlation.out_channels as u32,
                parts,
                call.config.tile,
                dw.dtype.elem(),
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn taps_kernel<E: Float>(
    sums: &[f32],
    dw: &mut Tensor<E>,
    span: Span,
    kernel_depth: u32,
    in_channels: u32,
    out_channels: u32,
    parts: usize,
    #[comptime] tile: WinogradTile,
    #[define(E)] _dtype: ElemType,
) {
    let points = comptime!(tile.inputs() * tile.inputs());
    let index = span.cube() * UNITS as usize + UNIT_POS as usize;
    let terms = kernel_depth as usize * in_channels as usize;
    if span.is_idle() || index >= terms * out_channels as usize {
        terminate!();
    }
    let rest = index / out_channels as usize;
    let out_channel = index - rest * out_channels as usize;
    let kd = rest / in_channels as usize;
    let in_channel = rest - kd * in_channels as usize;
    let pitch = (out_channels as usize + comptime!(VECTOR - 1)) / VECTOR * VECTOR;
    let mut at = rest * pitch + out_channel;
    let mut square = Array::<f32>::new(points);
    #[unroll]
    for point in 0..points {
        square[point] = 0.0f32;
    }
    for _ in 0..parts {
        #[unroll]
        for point in 0..points {
            square[point] += sums[at];
            at += terms * pitch;
        }
    }
    let result = transform_square(&square, tile, Matrix::Taps);
    let first = out_channel * dw.stride(0) + in_channel * dw.stride(1) + kd * dw.stride(2);
    #[unroll]
    for i in 0..3usize {
        #[unroll]
        for j in 0..3usize {
            let tap = first + i * dw.stride(3) + j * dw.stride(4);
            dw[tap] = E::cast_from(result[comptime!(i * 3 + j)] * comptime!(whole(tile, Matrix::Taps)));
        }
    }
}
