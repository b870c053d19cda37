//! What RoPE2D checks before anything is launched.

use super::{Rope2dOptions, Rope2dPositions};
use crate::check::{fits, float_type, index, limits, same_device, served};
use burn::tensor::{DType, Device, Tensor};
use conv_kernels::ConvError;
use conv_kernels::rope2d::{Rope2dProblem, RopeLayout};

pub(super) fn check(
    tokens: &Tensor<4>,
    positions: &Rope2dPositions,
    options: &Rope2dOptions,
) -> Result<Rope2dProblem, ConvError> {
    const OP: &str = "rope2d";
    const POSITIONS: &str = "the position tensor";
    let [b, first, second, _] = tokens.dims();
    let device = match positions {
        Rope2dPositions::Index(positions) => Some(positions.device()),
        Rope2dPositions::Float(positions) => Some(positions.device()),
        Rope2dPositions::Grid(_) => None,
    };
    let mut devices = vec![("the token tensor", tokens.device())];
    devices.extend(device.map(|device| (POSITIONS, device)));
    same_device(OP, devices.iter().map(|(name, device)| (*name, device)))?;
    let dtype = float_type(OP, "the token tensor", tokens.dtype())?;
    let shape = match positions {
        Rope2dPositions::Index(positions) => {
            index(OP, POSITIONS, positions.dtype(), &positions.device())?;
            positions.dims()
        }
        Rope2dPositions::Float(positions) => {
            if positions.dtype() != DType::F32 {
                return Err(ConvError::Unsupported(format!(
                    "{OP}: {POSITIONS} is {}, the op reads numbers in f32",
                    positions.dtype().name()
                )));
            }
            positions.dims()
        }
        Rope2dPositions::Grid(_) => [b, if options.layout == RopeLayout::Bhnd { second } else { first }, 2],
    };
    let (base, f0) = (options.base, options.f0);
    let mut problem = Rope2dProblem::new(tokens.dims(), shape, options.layout, base, f0, dtype)?
        .with_prefix(options.prefix)?;
    if let Some(rotated) = options.rotated {
        problem = problem.with_rotated(rotated)?;
    }
    if let Rope2dPositions::Grid(grid) = positions {
        problem.check_grid(*grid)?;
    }
    let limits = limits(&tokens.device());
    served(OP, dtype, &limits)?;
    fits(OP, &problem.tokens_shape(), dtype, &limits)?;
    problem.check_table(matches!(positions, Rope2dPositions::Float(_)), &limits)?;
    Ok(problem)
}

/// Whether one call serves queries and keys: of one dtype, on one device, with one checkpointing strategy.
pub(super) fn one_launch(tensors: [&Tensor<4>; 2], positions: [&Rope2dPositions; 2]) -> bool {
    let mut devices: Vec<Device> = tensors.iter().map(|tensor| tensor.device()).collect();
    for positions in positions {
        match positions {
            Rope2dPositions::Index(positions) => devices.push(positions.device()),
            Rope2dPositions::Float(positions) => devices.push(positions.device()),
            Rope2dPositions::Grid(_) => {}
        }
    }
    let [q, k] = tensors;
    q.dtype() == k.dtype() && same_device("rope2d", devices.iter().map(|device| ("a tensor", device))).is_ok()
}
