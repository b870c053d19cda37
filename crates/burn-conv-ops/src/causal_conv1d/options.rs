//! What the caller of causal conv1d may choose.

use crate::nn::setters;
use burn::tensor::{Int, Tensor};
use conv_kernels::causal_conv1d::Conv1dLayout;
use conv_kernels::conv3d::Activation;

/// Options of [`causal_conv1d`](crate::causal_conv1d()) and its variants: what is computed, and the tensors
/// it may read next to x. By default there is no activation, the layout is `[B, C, T]`, each row is one
/// sequence that begins without a state, and nothing is added to y.
///
/// A tensor stands for options with that initial state, so that a stream reads
/// `causal_conv1d_with_state(x, weight, bias, state)`.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CausalConv1dOptions {
    /// Applied to the result before it is rounded and stored; none by default.
    pub activation: Activation,
    /// Order of the axes of x and y; `[B, C, T]` by default.
    pub layout: Conv1dLayout,
    /// The W-1 steps before the first, `[B, C, W-1]`, oldest first, of x's dtype or fp32; zeros where there
    /// are none.
    pub initial_state: Option<Tensor<3>>,
    /// The sequence that each row's initial state belongs to, `[B]`, of the dtype of `seq_idx`; by default
    /// that of the row's first step. A row that begins with a step of another sequence begins without a
    /// state. For pieces of rows with ids, see
    /// [`causal_conv1d_last_seq_idx`](crate::causal_conv1d_last_seq_idx).
    pub initial_seq_idx: Option<Tensor<1, Int>>,
    /// The sequence that each step belongs to, `[B, T]`: a step reads only steps of its own id, a negative id
    /// is padding (output 0, no gradient, in no state; not even a NaN at it is seen). The steps of an id must
    /// be consecutive: an id that returns within W-1 steps would be read across what is between, later it is
    /// another sequence. The initial state belongs to the sequence of the row's first step; for one of each
    /// see [`causal_conv1d_packed`](crate::causal_conv1d_packed).
    pub seq_idx: Option<Tensor<2, Int>>,
    /// Added to the result after the activation, but not to padding: of x's shape and dtype.
    pub residual: Option<Tensor<3>>,
}

impl CausalConv1dOptions {
    /// No activation, `[B, C, T]`, no initial state, one sequence per row, no residual.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
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

setters!(CausalConv1dOptions {
    /// Sets the activation applied to the result.
    with_activation(activation: Activation);
    /// Sets the order of the axes of x and y.
    with_layout(layout: Conv1dLayout);
    /// Sets the W-1 steps before the first.
    with_initial_state(initial_state: Tensor<3>);
    /// Sets the sequence that the initial state of each row belongs to.
    with_initial_seq_idx(initial_seq_idx: Tensor<1, Int>);
    /// Sets the sequence that each step belongs to.
    with_seq_idx(seq_idx: Tensor<2, Int>);
    /// Sets what is added to the result after the activation.
    with_residual(residual: Tensor<3>);
});

/// This activation, and the defaults.
impl From<Activation> for CausalConv1dOptions {
    fn from(activation: Activation) -> Self {
        Self::new().with_activation(activation)
    }
}

/// This initial state, and the defaults.
impl From<Tensor<3>> for CausalConv1dOptions {
    fn from(initial_state: Tensor<3>) -> Self {
        Self::new().with_initial_state(initial_state)
    }
}

/// Options of [`causal_conv1d_update`](crate::causal_conv1d_update) and
/// [`causal_conv1d_update_steps`](crate::causal_conv1d_update_steps). By default there is no activation, and
/// row b of the state belongs to row b of x, oldest step first.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CausalConv1dUpdateOptions {
    /// Applied to the result before it is rounded and stored; none by default.
    pub activation: Activation,
    /// The steps that each row has seen, `[B]`, none negative. The state is then a ring: step t is in column
    /// t mod S, and only the columns of the new steps are written.
    pub cache_seqlens: Option<Tensor<1, Int>>,
    /// The row of the state, `[slots, C, S]`, that belongs to each row of x, `[B]`. A negative one, or one
    /// that the state does not have, is padding: y is 0 there and no state is read or written. Of rows with
    /// one slot the last has it, the others are padding. Of the same dtype as `cache_seqlens`.
    pub state_indices: Option<Tensor<1, Int>>,
}

impl CausalConv1dUpdateOptions {
    /// No activation; row b of the state belongs to row b of x.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

setters!(CausalConv1dUpdateOptions {
    /// Sets the activation applied to the result.
    with_activation(activation: Activation);
    /// Makes the state a ring, of which each row has seen so many steps.
    with_cache_seqlens(cache_seqlens: Tensor<1, Int>);
    /// Sets the row of the state that belongs to each row of x.
    with_state_indices(state_indices: Tensor<1, Int>);
});

/// This activation, and the defaults.
impl From<Activation> for CausalConv1dUpdateOptions {
    fn from(activation: Activation) -> Self {
        Self::new().with_activation(activation)
    }
}
