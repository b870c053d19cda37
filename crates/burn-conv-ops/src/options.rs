//! What the caller may choose: options of the functional API.

use crate::ops::RopePositions;
use burn::backend::Dispatch;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Int, Tensor};
use conv_kernels::causal_conv1d::Conv1dLayout;
use conv_kernels::conv3d::{Activation, Algorithm, PaddingMode, Window};
use conv_kernels::rope2d::{RopeGrid, RopeLayout};

/// Options of [`conv3d`](crate::conv3d()). `Conv3dOptions::new()` is a plain convolution: stride 1, no
/// padding, dilation 1, one group, no activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv3dOptions {
    /// Distance between windows along D, H, W.
    pub stride: [usize; 3],
    /// Padding before and after D, H, W. The two sides may differ.
    pub padding: [(usize, usize); 3],
    /// Distance between taps along D, H, W.
    pub dilation: [usize; 3],
    /// Groups into which the channels C and O are split; C for a depthwise convolution.
    pub groups: usize,
    /// How taps outside the input read.
    pub padding_mode: PaddingMode,
    /// Applied to the result before it is rounded and stored.
    pub activation: Activation,
    /// The kernel family. A forced algorithm that cannot serve the problem is an error. The CPU backend has
    /// one algorithm of its own; there the choice is checked and has no other effect.
    pub algorithm: Algorithm,
}

impl Default for Conv3dOptions {
    fn default() -> Self {
        Self {
            stride: [1; 3],
            padding: [(0, 0); 3],
            dilation: [1; 3],
            groups: 1,
            padding_mode: PaddingMode::Zeros,
            activation: Activation::None,
            algorithm: Algorithm::Auto,
        }
    }
}

impl Conv3dOptions {
    /// A plain convolution.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the distance between windows along D, H, W.
    #[must_use]
    pub fn with_stride(self, stride: [usize; 3]) -> Self {
        Self { stride, ..self }
    }

    /// Sets equal padding on both sides of D, H, W.
    #[must_use]
    pub fn with_padding(self, padding: [usize; 3]) -> Self {
        self.with_asymmetric_padding(padding.map(|size| (size, size)))
    }

    /// Sets the padding before and after D, H, W.
    #[must_use]
    pub fn with_asymmetric_padding(self, padding: [(usize, usize); 3]) -> Self {
        Self { padding, ..self }
    }

    /// Sets the distance between taps along D, H, W.
    #[must_use]
    pub fn with_dilation(self, dilation: [usize; 3]) -> Self {
        Self { dilation, ..self }
    }

    /// Sets the number of groups.
    #[must_use]
    pub fn with_groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    /// Sets how taps outside the input read.
    #[must_use]
    pub fn with_padding_mode(self, padding_mode: PaddingMode) -> Self {
        Self { padding_mode, ..self }
    }

    /// Sets the activation applied to the result.
    #[must_use]
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// Forces a kernel family.
    #[must_use]
    pub fn with_algorithm(self, algorithm: Algorithm) -> Self {
        Self { algorithm, ..self }
    }

    /// The same options as the kernels name them.
    pub(crate) fn window(&self) -> Window {
        Window {
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
            groups: self.groups,
            padding_mode: self.padding_mode,
            activation: self.activation,
        }
    }
}

/// Burn's own options: zero padding, no activation.
impl From<ConvOptions<3>> for Conv3dOptions {
    fn from(options: ConvOptions<3>) -> Self {
        let ConvOptions { stride, padding, dilation, groups } = options;
        Self { stride, padding, dilation, groups, ..Self::default() }
    }
}

/// Options of [`causal_conv1d`](crate::causal_conv1d()).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CausalConv1dOptions {
    /// Applied to the result before it is rounded and stored; none by default.
    pub activation: Activation,
    /// Order of the axes of x and y; `[B, C, T]` by default.
    pub layout: Conv1dLayout,
}

impl CausalConv1dOptions {
    /// No activation, `[B, C, T]`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the activation applied to the result.
    #[must_use]
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// Sets the order of the axes of x and y.
    #[must_use]
    pub fn with_layout(self, layout: Conv1dLayout) -> Self {
        Self { layout, ..self }
    }
}

/// What [`causal_conv1d_with_state`](crate::causal_conv1d_with_state) knows beside x.
#[derive(Clone, Debug, Default)]
pub struct CausalConv1dState {
    /// The W-1 steps before the first, `[B, C, W-1]`, oldest first, of x's dtype or fp32; zeros where there
    /// are none.
    pub initial: Option<Tensor<3>>,
    /// The sequence that each row's initial state belongs to, `[B]`, of the dtype of `seq_idx`; by default
    /// that of the row's first step. A row that begins with a step of another sequence begins without a
    /// state. For pieces of rows with ids, see
    /// [`causal_conv1d_last_seq_idx`](crate::causal_conv1d_last_seq_idx).
    pub initial_seq_idx: Option<Tensor<1, Int>>,
    /// The sequence that each step belongs to, `[B, T]`: a step reads only steps of its own id, a negative id
    /// is padding (output 0, no gradient, in no state; not even a NaN at it is seen). An id must not come
    /// back after its run has ended: within W-1 steps it would be read across what is between, later it is
    /// another sequence. The initial state belongs to the sequence of the row's first step; for one of each
    /// see [`causal_conv1d_packed`](crate::causal_conv1d_packed).
    pub seq_idx: Option<Tensor<2, Int>>,
    /// Added to the result after the activation, but not to padding: of x's shape and dtype.
    pub residual: Option<Tensor<3>>,
}

impl CausalConv1dState {
    /// No initial state, one sequence per row, no residual.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the W-1 steps before the first.
    #[must_use]
    pub fn with_initial(self, initial: Tensor<3>) -> Self {
        Self { initial: Some(initial), ..self }
    }

    /// Sets the sequence that the initial state of each row belongs to.
    #[must_use]
    pub fn with_initial_seq_idx(self, initial_seq_idx: Tensor<1, Int>) -> Self {
        Self { initial_seq_idx: Some(initial_seq_idx), ..self }
    }

    /// Sets the sequence that each step belongs to.
    #[must_use]
    pub fn with_seq_idx(self, seq_idx: Tensor<2, Int>) -> Self {
        Self { seq_idx: Some(seq_idx), ..self }
    }

    /// Sets what is added to the result after the activation.
    #[must_use]
    pub fn with_residual(self, residual: Tensor<3>) -> Self {
        Self { residual: Some(residual), ..self }
    }

    /// Sequences that are packed into one row of `steps` steps: sequence i has the steps from `cu_seqlens[i]`
    /// to `cu_seqlens[i + 1]` (`[N + 1]`, ascending), the others are padding.
    ///
    /// # Panics
    /// Where [`try_causal_conv1d_seq_idx`](crate::try_causal_conv1d_seq_idx) returns an error.
    #[must_use]
    pub fn with_cu_seqlens(self, cu_seqlens: Tensor<1, Int>, steps: usize) -> Self {
        self.with_seq_idx(crate::causal_conv1d_seq_idx(cu_seqlens, steps))
    }
}

/// Where the states of [`causal_conv1d_update_steps`](crate::causal_conv1d_update_steps) are.
#[derive(Clone, Debug, Default)]
pub struct CausalConv1dPlaces {
    /// The steps that each row has seen, `[B]`, none negative. The state is then a ring: step t stands in
    /// column t mod S, and only the columns of the new steps are written.
    pub cache_seqlens: Option<Tensor<1, Int>>,
    /// The row of the state, `[slots, C, S]`, that belongs to each row of x, `[B]`. A negative one, or one
    /// that the state does not have, is padding: y is 0 there and no state is read or written. Of rows with
    /// one slot the last has it, the others are padding. Of the same dtype as `cache_seqlens`.
    pub state_indices: Option<Tensor<1, Int>>,
}

impl CausalConv1dPlaces {
    /// Row b of the state belongs to row b of x, oldest step first.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the state a ring, of which each row has seen so many steps.
    #[must_use]
    pub fn with_cache_seqlens(self, cache_seqlens: Tensor<1, Int>) -> Self {
        Self { cache_seqlens: Some(cache_seqlens), ..self }
    }

    /// Sets the row of the state that belongs to each row of x.
    #[must_use]
    pub fn with_state_indices(self, state_indices: Tensor<1, Int>) -> Self {
        Self { state_indices: Some(state_indices), ..self }
    }
}

/// Options of [`causal_conv1d_update`](crate::causal_conv1d_update).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CausalConv1dUpdateOptions {
    /// Applied to the result before it is rounded and stored; none by default.
    pub activation: Activation,
}

impl CausalConv1dUpdateOptions {
    /// No activation.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the activation applied to the result.
    #[must_use]
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation }
    }
}

/// Options of [`rope2d`](crate::rope2d()).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope2dOptions {
    /// Ratio of the highest to the lowest frequency; 100, as in published checkpoints ("RoPE100").
    pub base: f32,
    /// Factor of every angle; 1. Coordinates in -1..1 want a large one. `|f0|`, and for a base below 1 `|f0|
    /// / base`, may be up to 2^20; the angles of all positions are right to 1e-6 radians then, as long as f64
    /// resolves them so (to `theta * 2^-52`).
    pub f0: f32,
    /// Order of the axes of the tokens; `[B, H, N, D]`.
    pub layout: RopeLayout,
    /// Tokens at the beginning that stay as they are, such as VGGT's special tokens; none. Their positions do
    /// not matter.
    pub prefix: usize,
    /// Elements of a head that are rotated, from the first, a multiple of 4; all of them.
    pub rotated: Option<usize>,
}

impl Default for Rope2dOptions {
    fn default() -> Self {
        Self { base: 100.0, f0: 1.0, layout: RopeLayout::Bhnd, prefix: 0, rotated: None }
    }
}

impl Rope2dOptions {
    /// Base 100, factor 1, `[B, H, N, D]`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the ratio of the highest to the lowest frequency.
    #[must_use]
    pub fn with_base(self, base: f32) -> Self {
        Self { base, ..self }
    }

    /// Sets the factor of every angle.
    #[must_use]
    pub fn with_f0(self, f0: f32) -> Self {
        Self { f0, ..self }
    }

    /// Sets the order of the axes of the tokens.
    #[must_use]
    pub fn with_layout(self, layout: RopeLayout) -> Self {
        Self { layout, ..self }
    }

    /// Sets how many tokens at the beginning stay as they are.
    #[must_use]
    pub fn with_prefix(self, prefix: usize) -> Self {
        Self { prefix, ..self }
    }

    /// Sets how many elements of a head are rotated.
    #[must_use]
    pub fn with_rotated(self, rotated: usize) -> Self {
        Self { rotated: Some(rotated), ..self }
    }
}

/// Where the tokens of [`rope2d`](crate::rope2d()) stand: (row, column) of each. A position outside the range
/// of i32, an infinite one and NaN make the elements that it turns NaN.
#[derive(Clone, Debug)]
pub enum Rope2dPositions {
    /// Integers `[B, N, 2]`, negative ones too.
    Index(Tensor<3, Int>),
    /// fp32 numbers `[B, N, 2]`, such as those between the patches of a grid of another size. No gradient
    /// reaches them.
    Float(Tensor<3>),
    /// The patches of a grid in row-major order, after the tokens of the prefix: no tensor is needed.
    Grid(RopeGrid),
}

impl From<Tensor<3, Int>> for Rope2dPositions {
    fn from(positions: Tensor<3, Int>) -> Self {
        Self::Index(positions)
    }
}

impl From<Tensor<3>> for Rope2dPositions {
    fn from(positions: Tensor<3>) -> Self {
        Self::Float(positions)
    }
}

impl From<RopeGrid> for Rope2dPositions {
    fn from(grid: RopeGrid) -> Self {
        Self::Grid(grid)
    }
}

impl Rope2dPositions {
    /// The positions as backends get them.
    pub(crate) fn into_dispatch(self) -> RopePositions<Dispatch> {
        match self {
            Self::Index(positions) => RopePositions::Index(positions.into_dispatch()),
            Self::Float(positions) => RopePositions::Float(positions.into_dispatch()),
            Self::Grid(grid) => RopePositions::Grid(grid),
        }
    }
}
