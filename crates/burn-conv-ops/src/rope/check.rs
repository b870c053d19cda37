//! What RoPE checks before anything is launched.

use super::{RopeOptions, RopePositions};
use crate::check::{fits, float_type, index, limits, same_device};
use burn::tensor::{DType, Device, Tensor};
use conv_kernels::ConvError;
use conv_kernels::rope::RopeProblem;

pub(super) fn check(
    tokens: &Tensor<4>,
    positions: &RopePositions,
    options: &RopeOptions,
) -> Result<RopeProblem, ConvError> {
    const OP: &str = "rope";
    const POSITIONS: &str = "the position tensor";
    let mut devices = vec![("the token tensor", tokens.device())];
    devices.extend(device(positions).map(|device| (POSITIONS, device)));
    same_device(OP, &devices)?;
    let dtype = float_type(OP, "the token tensor", tokens.dtype())?;
    let shape = match positions {
        RopePositions::Index(positions) => {
            index(OP, POSITIONS, positions.dtype(), &positions.device())?;
            Some(positions.dims())
        }
        RopePositions::Float(positions) => {
            if positions.dtype() != DType::F32 {
                return Err(ConvError::Unsupported(format!(
                    "{OP}: {POSITIONS} is {}, the op reads numbers in f32",
                    positions.dtype().name()
                )));
            }
            Some(positions.dims())
        }
        _ => None,
    };
    let problem = RopeProblem::new(tokens.dims(), options.layout, options.angles(), dtype)?;
    let mut problem = problem.with_prefix(options.prefix)?;
    if let Some(rotated) = options.rotated {
        problem = problem.with_rotated(rotated)?;
    }
    match *positions {
        RopePositions::Grid(grid) => problem.check_grid(grid)?,
        RopePositions::Volume(volume) => problem.check_volume(volume)?,
        RopePositions::Offset(offset) => problem.check_offset(offset)?,
        _ => {}
    }
    if let Some(shape) = shape {
        problem.check_positions(&shape)?;
    }
    let limits = limits(&tokens.device());
    limits.check_dtype(OP, dtype)?;
    conv_kernels::rope::check_device(&limits)?;
    fits(OP, &problem.tokens_shape(), dtype, &limits)?;
    Ok(problem)
}

/// The device of positions in a tensor.
fn device(positions: &RopePositions) -> Option<Device> {
    match positions {
        RopePositions::Index(positions) => Some(positions.device()),
        RopePositions::Float(positions) => Some(positions.device()),
        _ => None,
    }
}

/// Whether one call serves queries and keys: of one dtype, on one device, with one checkpointing strategy.
pub(super) fn one_launch(tensors: [&Tensor<4>; 2], positions: [&RopePositions; 2]) -> bool {
    let positions = positions.into_iter().filter_map(device);
    let devices = tensors.iter().map(|tensor| tensor.device()).chain(positions);
    let devices: Vec<_> = devices.map(|device| ("a tensor", device)).collect();
    let [q, k] = tensors;
    q.dtype() == k.dtype() && same_device("rope", &devices).is_ok()
}
