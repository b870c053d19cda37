//! Winograd in the plane with the depth taps summed in the transform domain.
//!
//! ```text
//! Y[n,o,od] = A^T [ sum over kd, c of (G g[o,c,kd] G^T) . (B^T d[n,c,f] B) ] A
//! f         = od*stride + kd*dilation - begin
//! ```
//!
//! Each input frame is transformed once, whatever KD; the sum over (kd, c) is one matrix product per point of
//! the transform domain with K = KD * C; each output frame is transformed back once. Frames are addressed by
//! index, so any batch, depth padding, stride and dilation is served: a frame outside the input is skipped,
//! clamped under replicate padding.
//!
//! ```text
//! filter.rs    U[point, kd, c, o]                = G g G^T
//! input.rs     V[point, c, (image, frame, tile)] = B^T d B
//! product.rs   M[point, o, (image, frame, tile)] = sum over (kd, c) of V * U
//! output.rs    y                                 = activation(A^T M A + bias), edges masked
//! ```
//!
//! The input gradient is the same correlation with the filter mirrored on all three axes and its channels
//! swapped; the weight gradient is in `weight_gradient.rs`. Everything between load and store is fp32. Planes
//! and frames are worked off in regions whose V and M fit the workspace; the regions of y and dx do not
//! change any sum, so they do not change any bit.
//!
//! Nothing of a transform is fused with the product: for 256 channels the product does 5.5 of 6.2 ms, and a
//! cube that did more than one step would have to hold all 36 points of a tile. V and M travel through memory
//! once each way.
//!
//! Depth is summed, not transformed: F(2,3) along depth around F(4x4) (144 points, 1.5 times fewer products,
//! V and M twice the size) took 2.20 ms instead of 2.77 for 384 channels and 2 frames, but 6.29 instead of
//! 6.12 for 256 channels and 41, 7.53 instead of 7.13 for 128 channels and 17, 4.07 instead of 2.87 for the
//! first one's input gradient.
//!
//! A non-finite input reaches every output of its tiles (up to t x t inputs make m x m outputs non-finite),
//! unlike in the direct sum: [`Algorithm::NoWinograd`](super::Algorithm::NoWinograd) keeps it in its receptive field.
//!
//! Range: a tile's input transform gives numbers up to 49 times its inputs (F(4x4); 225 times for F(6x6)),
//! and outputs are small differences of sums up to 876 times the direct ones (4579). U and V are therefore
//! 2^-7, 2^-10, 2^-13 times what is written above, y is multiplied back in its last addition
//! (`constants::exponent`): exact, and as many operations. Every number is finite where, with the largest |d|
//! of a tile and the largest |g| of a filter,
//!
//! ```text
//! sum over c, kd            of max|d| * max|g|  < 2^128
//! sum over n, frames, tiles of max|d| * max|dy| < 2^128      (the weight gradient)
//! ```
//!
//! whatever x and w are by themselves. What is below 2^-126 on the way is lost: products |d * g| below
//! 2^-113, about 1e-34.

mod choice;
mod constants;
mod filter;
mod input;
mod needs;
mod output;
mod product;
mod product_mma;
pub mod reference;
mod region;
mod transform;
mod weight_gradient;
mod weight_product;

pub use choice::Cost;
pub(crate) use choice::winner;
pub use constants::WinogradTile;
pub(crate) use needs::needs;
pub use region::RegionExtent;

use super::gemm::{MatrixTile, RegisterTile};
use super::pass::Pass;
use super::problem::Conv3dProblem;
use crate::activation::Activation;
use crate::dtype::FloatType;
use crate::error::{ConvError, invalid, unsupported};
use crate::limits::Limits;
use crate::operand::{Operand, address_type, row_major};
use cubecl::prelude::*;
use region::Correlation;

/// A Winograd plan: the tile and the extent of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WinogradConfig {
    /// Outputs per tile.
    pub tile: WinogradTile,
    /// Extent of a region.
    pub region: RegionExtent,
    /// The product's tile on matrix units, where the device has them for fp32; not in the weight gradient.
    pub matrices: Option<MatrixTile>,
    /// Bytes of U, V and M together (the weight gradient: of its sums and both operands).
    pub workspace_bytes: u64,
}

/// Tile of the transform-domain product. 128x64 was as fast on an H200 to 1 % (41 frames of 390 tiles, 256
/// channels: 6.15 and 6.21 ms; 2 frames of 1560, 384 channels: 2.97 and 2.84), 128x128 slower in four of five
/// layers (7.06; 3.59).
pub(crate) const PRODUCT: RegisterTile = RegisterTile::M64N64;

/// The configuration for one pass of a launched problem, or why there is none.
pub(crate) fn config(
    problem: &Conv3dProblem,
    pass: Pass,
    tile: WinogradTile,
    limits: &Limits,
) -> Result<WinogradConfig, ConvError> {
    let window = &problem.window;
    let name = tile.name();
    if pass == Pass::WeightGradient && tile == WinogradTile::F6x6 {
        unsupported!("conv3d: {name} has no weight gradient, its error would be too large");
    }
    if problem.kernel[1..] != [3, 3] {
        unsupported!(
            "conv3d: {name} needs a 3x3 kernel in the plane, got {}x{}",
            problem.kernel[1],
            problem.kernel[2]
        );
    }
    if window.stride[1..] != [1, 1] || window.dilation[1..] != [1, 1] {
        unsupported!(
            "conv3d: {name} needs stride 1 and dilation 1 in the plane, got stride {}x{}, dilation {}x{}",
            window.stride[1],
            window.stride[2],
            window.dilation[1],
            window.dilation[2]
        );
    }
    if window.groups != 1 {
        unsupported!("conv3d: {name} needs one group, got {}", window.groups);
    }
    if pass == Pass::InputGradient && window.stride[0] != 1 {
        unsupported!("conv3d: the input gradient by {name} needs depth stride 1, got {}", window.stride[0]);
    }
    if pass == Pass::WeightGradient && problem.positions() == 0 {
        unsupported!("conv3d: the weight gradient by {name} needs at least one window");
    }
    if problem.channels == 0 {
        unsupported!("conv3d: {name} needs at least one channel");
    }
    let correlation = Correlation::of(problem, pass);
    let copies = match pass {
        Pass::WeightGradient => weight_product::parts(&correlation, tile, limits) as u64,
        _ => 1,
    };
    let buffers = |region: RegionExtent| {
        let [filters, v, m] = correlation.workspace(tile, region);
        [4 * copies * filters, 4 * v, 4 * m]
    };
    let bytes = |region: RegionExtent| buffers(region).iter().sum::<u64>();
    let fits = |region: RegionExtent| {
        let largest = buffers(region).into_iter().max().unwrap_or(0);
        bytes(region) <= limits.workspace_bytes && largest <= limits.buffer_bytes
    };
    let Some(region) = correlation.largest_region(tile, &fits) else {
        let least = bytes(RegionExtent { images: 1, frames: 1, rows: 1 });
        unsupported!(
            "conv3d: {name} needs at least {least} bytes of workspace here, the limit is {}",
            limits.workspace_bytes
        );
    };
    let matrices = product_mma::tile(limits).filter(|_| pass != Pass::WeightGradient);
    Ok(WinogradConfig { tile, region, matrices, workspace_bytes: bytes(region) })
}

/// Refuses a configuration that was made for another problem.
pub(crate) fn check(
    config: &WinogradConfig,
    problem: &Conv3dProblem,
    pass: Pass,
    limits: &Limits,
) -> Result<(), ConvError> {
    let planned = self::config(problem, pass, config.tile, limits)?;
    if config.matrices.is_some() && config.matrices != planned.matrices {
        unsupported!("conv3d: the device has no matrix units for the product of {}", config.tile.name());
    }
    let (most, region) = (planned.region, config.region);
    let within = |size: usize, most: usize| (1..=most).contains(&size);
    let fits = within(region.images, most.images)
        && within(region.frames, most.frames)
        && within(region.rows, most.rows);
    if !fits {
        unsupported!(
            "conv3d: a region of {} images, {} frames and {} rows of tiles was planned for another problem, this one has \
             regions of up to {} images, {} frames and {} rows",
            region.images,
            region.frames,
            region.rows,
            most.images,
            most.frames,
            most.rows
        );
    }
    Ok(())
}

/// Launches the forward pass: operands x, w, y.
pub(crate) fn forward(
    client: &Client,
    problem: &Conv3dProblem,
    config: WinogradConfig,
    limits: &Limits,
    [x, w, y]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    let correlation = Correlation::of(problem, Pass::Forward);
    let call = Call { client, correlation: &correlation, config, limits };
    run(&call, (x, Filters::Weight(w), y), bias, problem.window.activation, &Step::ALL)
}

/// Shape of a weight that [`prepare`] has transformed: `U[point, kd, c, o]`, `o` filled up to a multiple of
/// four.
pub fn prepared_shape(problem: &Conv3dProblem, tile: WinogradTile) -> [usize; 4] {
    Correlation::of(problem, Pass::Forward).filter_shape(tile)
}

/// Transforms a weight once, for many forward passes with it ([`forward_prepared`]): operands w and U,
/// contiguous fp32 of [`prepared_shape`]. U serves every problem with this weight, whatever its extents and
/// window.
///
/// # Errors
/// When `w` is not the problem's weight or U not of its shape, or the problem is none for Winograd.
pub fn prepare(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    tile: WinogradTile,
    [w, u]: [&Operand; 2],
) -> Result<(), ConvError> {
    super::check_operands(problem, &[("w", w, problem.weight_shape())])?;
    let config = config(problem, Pass::Forward, tile, limits)?;
    check_prepared(problem, tile, u)?;
    let correlation = Correlation::of(problem, Pass::Forward);
    let call = Call { client, correlation: &correlation, config, limits };
    filter::launch(&call, address_type("conv3d", &[w, u], 0, limits)?, &w.bindable(client), u);
    Ok(())
}

/// Refuses what is no transformed weight of the problem.
fn check_prepared(problem: &Conv3dProblem, tile: WinogradTile, u: &Operand) -> Result<(), ConvError> {
    let shape = prepared_shape(problem, tile);
    if u.shape != shape || u.strides != row_major(&shape) || u.dtype != FloatType::F32 {
        invalid!("conv3d: the prepared weight has shape {:?}, {} needs {shape:?} here", u.shape, tile.name());
    }
    Ok(())
}

/// [`super::forward`] with a weight that [`prepare`] has transformed in the configuration's tile: operands x,
/// U, y; the same bits.
///
/// # Errors
/// As [`super::forward`]; when U is not the shape of the problem's weight in that tile.
pub fn forward_prepared(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    config: WinogradConfig,
    [x, u, y]: [&Operand; 3],
    bias: Option<&Operand>,
) -> Result<(), ConvError> {
    super::check_operands(problem, &[("x", x, problem.x_shape()), ("y", y, problem.y_shape())])?;
    super::check_bias(problem, bias)?;
    check(&config, problem, Pass::Forward, limits)?;
    check_prepared(problem, config.tile, u)?;
    let correlation = Correlation::of(problem, Pass::Forward);
    let call = Call { client, correlation: &correlation, config, limits };
    let x = &x.bindable(client);
    run(&call, (x, Filters::Prepared(u), y), bias, problem.window.activation, &Step::ALL)
}

/// Launches some steps of the forward pass, to find what each costs: without all of them y is undefined.
///
/// # Errors
/// As [`super::forward`].
pub fn forward_steps(
    client: &Client,
    limits: &Limits,
    problem: &Conv3dProblem,
    config: WinogradConfig,
    [x, w, y]: [&Operand; 3],
    steps: &[Step],
) -> Result<(), ConvError> {
    let operands =
        [("x", x, problem.x_shape()), ("w", w, problem.weight_shape()), ("y", y, problem.y_shape())];
    super::check_operands(problem, &operands)?;
    check(&config, problem, Pass::Forward, limits)?;
    let correlation = Correlation::of(problem, Pass::Forward);
    let call = Call { client, correlation: &correlation, config, limits };
    run(&call, (x, Filters::Weight(w), y), None, problem.window.activation, steps)
}

/// Launches the input gradient under zero padding: operands dy, w, dx. dx may be fp32 whatever the problem's
/// dtype.
pub(crate) fn input_gradient(
    client: &Client,
    problem: &Conv3dProblem,
    config: WinogradConfig,
    limits: &Limits,
    [dy, w, dx]: [&Operand; 3],
) -> Result<(), ConvError> {
    let correlation = Correlation::of(problem, Pass::InputGradient);
    let call = Call { client, correlation: &correlation, config, limits };
    run(&call, (dy, Filters::Weight(w), dx), None, Activation::None, &Step::ALL)
}

/// Launches the weight gradient: operands x, dy, dw.
pub(crate) fn weight_gradient(
    client: &Client,
    problem: &Conv3dProblem,
    config: WinogradConfig,
    limits: &Limits,
    operands: [&Operand; 3],
) -> Result<(), ConvError> {
    let correlation = Correlation::of(problem, Pass::WeightGradient);
    weight_gradient::run(&Call { client, correlation: &correlation, config, limits }, operands)
}

/// What a pass consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The filters' transform.
    Filter,
    /// The inputs' transforms.
    Input,
    /// The products of the transform domain.
    Product,
    /// The transforms back.
    Output,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 4] = [Self::Filter, Self::Input, Self::Product, Self::Output];
}

/// The filters of a call: to be transformed, or transformed already.
#[derive(Clone, Copy)]
enum Filters<'a> {
    Weight(&'a Operand),
    Prepared(&'a Operand),
}

/// What every step of one call shares.
pub(crate) struct Call<'a> {
    pub(crate) client: &'a Client,
    pub(crate) correlation: &'a Correlation,
    pub(crate) config: WinogradConfig,
    pub(crate) limits: &'a Limits,
}

fn run(
    call: &Call,
    (source, filters, target): (&Operand, Filters, &Operand),
    bias: Option<&Operand>,
    activation: Activation,
    steps: &[Step],
) -> Result<(), ConvError> {
    let Call { client, correlation, config, limits } = *call;
    let [_, v, m] = correlation.workspace(config.tile, config.region);
    let [v, m] = [v, m].map(|elements| Operand::empty(client, &[elements as usize], FloatType::F32));
    let (w, u) = match filters {
        Filters::Weight(w) => {
            let shape = correlation.filter_shape(config.tile);
            (Some(w), Operand::empty(client, &shape, FloatType::F32))
        }
        Filters::Prepared(u) => (None, u.clone()),
    };
    let address = address_type("conv3d", &[source, w.unwrap_or(&u), target, &u, &v, &m], 0, limits)?;
    if let (Some(w), true) = (w, steps.contains(&Step::Filter)) {
        filter::launch(call, address, w, &u);
    }
    for region in correlation.regions(config.tile, config.region) {
        if steps.contains(&Step::Input) {
            input::launch(call, address, &region, input::Tiling::input(correlation), [source, &v]);
        }
        if steps.contains(&Step::Product) {
            product::launch(call, address, &region, [&u, &v, &m]);
        }
        if steps.contains(&Step::Output) {
            output::launch(call, address, &region, (&m, bias, target), activation);
        }
    }
    Ok(())
}
