//! The backend trait: what a Burn backend has to offer for this crate's functions and modules to run on it.
//!
//! Users call the functions at the crate's root. A call carries its validated problem, so that every backend,
//! Fusion's metadata and the kernels agree on every shape: they ask the same problem.

#[cfg(feature = "autodiff")]
mod autodiff;
mod calls;
#[cfg(feature = "cubecl")]
pub(crate) mod cube;
pub(crate) mod portable;

pub use calls::{Conv3dCall, OptionalIntTensor, OptionalTensor, RopePositions};
pub use conv_kernels::causal_conv1d::{CausalConv1dProblem, UpdateProblem};
pub use conv_kernels::conv3d::Conv3dProblem;
pub use conv_kernels::rope::RopeProblem;

#[cfg(feature = "fusion")]
use crate::causal_conv1d::packed::last_states_shape;
use crate::causal_conv1d::{self, decoding};
use crate::{conv3d, rope};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, ExtensionType, backend_extension};
#[cfg(feature = "fusion")]
use burn::{backend::fusion::custom::TensorSpec, tensor::Shape};
use conv_kernels::causal_conv1d::Conv1dLayout;
#[cfg(feature = "fusion")]
use conv_kernels::conv3d::winograd;
use conv_kernels::conv3d::{Activation, WinogradTile};

/// What a causal conv1d reads.
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct CausalConv1dInputs<B: Backend> {
    /// `[B, C, T]` or `[B, T, C]`.
    pub x: FloatTensor<B>,
    /// `[C, W]`.
    pub weight: FloatTensor<B>,
    /// `[C]`, in the weight's dtype.
    #[extension_type]
    pub bias: OptionalTensor<B>,
    /// `[B, C, W-1]`, oldest step first, of x's dtype or fp32.
    #[extension_type]
    pub initial_state: OptionalTensor<B>,
    /// `[B, T]`.
    #[extension_type]
    pub seq_idx: OptionalIntTensor<B>,
    /// Of x's shape and dtype, added after the activation.
    #[extension_type]
    pub residual: OptionalTensor<B>,
}

/// Gradients of [`CausalConv1dInputs`], each where there is such an input. That of the residual is dy, 0 at
/// padding.
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct CausalConv1dGradients<B: Backend> {
    /// dx.
    pub x: FloatTensor<B>,
    /// dw.
    pub weight: FloatTensor<B>,
    /// db.
    #[extension_type]
    pub bias: OptionalTensor<B>,
    /// Gradient of the initial state.
    #[extension_type]
    pub initial_state: OptionalTensor<B>,
}

/// What several decoding steps read.
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct CausalConv1dSteps<B: Backend> {
    /// `[B, C, L]`.
    pub x: FloatTensor<B>,
    /// `[B, C, S]`, of x's dtype or fp32; with slots any number of rows.
    pub state: FloatTensor<B>,
    /// `[C, W]`.
    pub weight: FloatTensor<B>,
    /// `[C]`, in the weight's dtype.
    #[extension_type]
    pub bias: OptionalTensor<B>,
    /// `[B]`: the steps that each row has seen; the state is then a ring.
    #[extension_type]
    pub lengths: OptionalIntTensor<B>,
    /// `[B]`: the row of the state that belongs to each row of x, negative for padding.
    #[extension_type]
    pub slots: OptionalIntTensor<B>,
}

/// The ops of this crate. Implemented by every backend of Burn that the features select; the default bodies
/// are composed from Burn's own ops. Arguments are taken as validated: shapes and dtypes are those of the
/// call's problem.
#[diagnostic::on_unimplemented(
    message = "the features of burn-conv-ops do not agree with Burn's: `{Self}` has no convolutions",
    label = "turn on the features of burn-conv-ops (`fusion`, `autodiff`, `wgpu`, `cuda`, `rocm`, `flex`) that Burn has on"
)]
#[backend_extension(
    Autodiff: cfg(feature = "autodiff"),
    Fusion: cfg(feature = "fusion"),
    Cube: cfg(feature = "cubecl"),
    Flex: cfg(feature = "flex"),
)]
pub trait ConvOps: Backend {
    /// y `[N, O, OD, OH, OW]` of x `[N, C, D, H, W]`, weight `[O, C/groups, KD, KH, KW]`, bias `[O]` and the
    /// residual of y's shape, added after the activation.
    #[fusion(dtype = x, shape = Shape::from(call.problem.y_shape()))]
    fn conv3d_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        #[extension_type] residual: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        conv3d::portable::forward::<Self>(x, weight, [bias, residual], &call.problem)
    }

    /// [`conv3d_forward`](Self::conv3d_forward) that keeps the value before the activation: y, the same bits,
    /// and that value in fp32.
    #[fusion(meta = |x, _weight, _bias, _residual, call| (
        TensorSpec::new(Shape::from(call.problem.y_shape()), x.dtype),
        TensorSpec::new(Shape::from(call.problem.y_shape()), burn::tensor::DType::F32),
    ))]
    fn conv3d_forward_with_pre(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        #[extension_type] residual: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        conv3d::portable::forward_with_pre::<Self>(x, weight, [bias, residual], &call.problem)
    }

    /// [`conv3d_forward`](Self::conv3d_forward) of the cache `[N, C, frames, H, W]` and x joined along depth.
    #[fusion(dtype = x, shape = Shape::from(call.problem.y_shape()))]
    fn conv3d_forward_cached(
        x: FloatTensor<Self>,
        cache: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        #[extension_type] residual: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        let joined = Self::float_cat(vec![cache, x], 2);
        conv3d::portable::forward::<Self>(joined, weight, [bias, residual], &call.problem)
    }

    /// [`conv3d_forward_with_pre`](Self::conv3d_forward_with_pre) of the cache and x joined along depth.
    #[fusion(meta = |x, _cache, _weight, _bias, _residual, call| (
        TensorSpec::new(Shape::from(call.problem.y_shape()), x.dtype),
        TensorSpec::new(Shape::from(call.problem.y_shape()), burn::tensor::DType::F32),
    ))]
    fn conv3d_forward_cached_with_pre(
        x: FloatTensor<Self>,
        cache: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        #[extension_type] residual: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let joined = Self::float_cat(vec![cache, x], 2);
        conv3d::portable::forward_with_pre::<Self>(joined, weight, [bias, residual], &call.problem)
    }

    /// [`conv3d_weight_gradient`](Self::conv3d_weight_gradient) of the cache and x joined along depth.
    #[fusion(dtype = x, shape = Shape::from(call.problem.weight_shape()))]
    fn conv3d_weight_gradient_cached(
        x: FloatTensor<Self>,
        cache: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        conv3d::portable::weight_gradient::<Self>(Self::float_cat(vec![cache, x], 2), dy, &call.problem)
    }

    /// The weight as [`conv3d_forward_prepared`](Self::conv3d_forward_prepared) takes it, fp32. Asked only of
    /// backends whose forward plan for the call is Winograd's in this tile; others have none.
    #[fusion(dtype = burn::tensor::DType::F32, shape = Shape::from(winograd::prepared_shape(&call.problem, *tile)))]
    fn conv3d_prepare(weight: FloatTensor<Self>, call: Conv3dCall, tile: WinogradTile) -> FloatTensor<Self> {
        let _ = (weight, call, tile);
        conv3d::portable::no_filters()
    }

    /// [`conv3d_forward`](Self::conv3d_forward) with a weight that [`conv3d_prepare`](Self::conv3d_prepare)
    /// has transformed in the tile of the plan: the same bits.
    #[fusion(dtype = x, shape = Shape::from(call.problem.y_shape()))]
    fn conv3d_forward_prepared(
        x: FloatTensor<Self>,
        filters: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        #[extension_type] residual: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        let _ = (x, filters, bias.into_option(), residual.into_option(), call);
        conv3d::portable::no_filters()
    }

    /// Gradient of x from dy, the gradient before the activation, and the weight.
    #[fusion(dtype = dy, shape = Shape::from(call.problem.x_shape()))]
    fn conv3d_input_gradient(
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        conv3d::portable::input_gradient::<Self>(dy, weight, &call.problem)
    }

    /// The transposed convolution: [`conv3d_input_gradient`](Self::conv3d_input_gradient) of x, which has the
    /// problem's y shape, with bias `[C]` and the window's activation.
    #[fusion(dtype = x, shape = Shape::from(call.problem.x_shape()))]
    fn conv3d_transposed(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        conv3d::portable::transposed::<Self>(x, weight, bias.into_option(), &call.problem)
    }

    /// [`conv3d_transposed`](Self::conv3d_transposed) that keeps the value before the activation: y, the same
    /// bits, and that value in fp32.
    #[fusion(meta = |x, _weight, _bias, call| (
        TensorSpec::new(Shape::from(call.problem.x_shape()), x.dtype),
        TensorSpec::new(Shape::from(call.problem.x_shape()), burn::tensor::DType::F32),
    ))]
    fn conv3d_transposed_with_pre(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        call: Conv3dCall,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        conv3d::portable::transposed_with_pre::<Self>(x, weight, bias.into_option(), &call.problem)
    }

    /// Gradient of the weight from x and dy, the gradient before the activation.
    #[fusion(dtype = x, shape = Shape::from(call.problem.weight_shape()))]
    fn conv3d_weight_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        call: Conv3dCall,
    ) -> FloatTensor<Self> {
        conv3d::portable::weight_gradient::<Self>(x, dy, &call.problem)
    }

    /// Gradients of the weight and of the bias from x and dy, the gradient before the activation.
    #[fusion(meta = |x, _dy, call| (
        TensorSpec::new(Shape::from(call.problem.weight_shape()), x.dtype),
        TensorSpec::new(Shape::from([call.problem.out_channels]), x.dtype),
    ))]
    fn conv3d_weight_and_bias_gradient(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        call: Conv3dCall,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        (Self::conv3d_weight_gradient(x, dy.clone(), call), Self::conv3d_bias_gradient(dy, call))
    }

    /// Gradient of the bias from dy, the gradient before the activation.
    #[fusion(dtype = dy, shape = Shape::from([call.problem.out_channels]))]
    fn conv3d_bias_gradient(dy: FloatTensor<Self>, call: Conv3dCall) -> FloatTensor<Self> {
        conv3d::portable::bias_gradient::<Self>(dy, &call.problem)
    }

    /// The gradient before the activation from dy, in dy's dtype. `saved` is the value before the activation
    /// in fp32; for ReLU the output serves as well.
    #[fusion(dtype = dy, shape = dy)]
    fn conv3d_activation_gradient(
        saved: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        portable::activation_gradient::<Self>(saved, dy, activation)
    }

    /// y, of x's shape.
    #[fusion(dtype = inputs.x.dtype, shape = Shape::from(problem.x_shape()))]
    fn causal_conv1d(
        #[extension_type] inputs: CausalConv1dInputs<Self>,
        problem: CausalConv1dProblem,
    ) -> FloatTensor<Self> {
        causal_conv1d::portable::forward::<Self>(inputs, &problem)
    }

    /// Every gradient from the inputs and dy.
    #[fusion(meta = |inputs, _dy, _problem| CausalConv1dGradientsMetadata {
        x: inputs.x.clone(),
        weight: inputs.weight.clone(),
        bias: inputs.bias.clone(),
        initial_state: inputs.initial_state.clone(),
    })]
    fn causal_conv1d_backward(
        #[extension_type] inputs: CausalConv1dInputs<Self>,
        dy: FloatTensor<Self>,
        problem: CausalConv1dProblem,
    ) -> CausalConv1dGradients<Self> {
        causal_conv1d::portable::backward::<Self>(inputs, dy, &problem)
    }

    /// What the next step of each row's last sequence would read, `[B, C, W-1]`, from x, initial state and
    /// ids.
    #[fusion(dtype = portable::dtype_of(problem.state_dtype), shape = Shape::from(problem.state_shape()))]
    fn causal_conv1d_final_state(
        x: FloatTensor<Self>,
        #[extension_type] initial: OptionalTensor<Self>,
        #[extension_type] ids: OptionalIntTensor<Self>,
        problem: CausalConv1dProblem,
    ) -> FloatTensor<Self> {
        causal_conv1d::portable::final_state::<Self>(x, initial.into_option(), ids.into_option(), &problem)
    }

    /// One decoding step: y `[B, C]` and the new state `[B, C, S]` from x `[B, C]` and state `[B, C, S]`.
    #[fusion(meta = |x, state, _weight, _bias, _problem| (x.clone(), state.clone()))]
    fn causal_conv1d_update(
        x: FloatTensor<Self>,
        state: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        problem: UpdateProblem,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        decoding::portable::update::<Self>(x, state, weight, bias.into_option(), &problem)
    }

    /// L decoding steps, of at least one row and channel: y `[B, C, L]` and the state after the last, of the
    /// state's shape.
    #[fusion(meta = |inputs, _problem| (inputs.x.clone(), inputs.state.clone()))]
    fn causal_conv1d_update_steps(
        #[extension_type] inputs: CausalConv1dSteps<Self>,
        problem: UpdateProblem,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        decoding::portable::update_steps::<Self>(inputs, &problem)
    }

    /// The last `length` steps `[N, C, length]` of the sequences between the `N + 1` bounds in the one row of
    /// x.
    #[fusion(dtype = x, shape = Shape::from(last_states_shape(x, bounds, *length, *layout)))]
    fn causal_conv1d_last_states(
        x: FloatTensor<Self>,
        bounds: IntTensor<Self>,
        length: usize,
        layout: Conv1dLayout,
    ) -> FloatTensor<Self> {
        decoding::portable::last_states::<Self>(x, bounds, length, layout)
    }

    /// The ids `[1, length]` of the sequences between the bounds, -1 before the first bound and from the last
    /// on.
    #[fusion(dtype = bounds, shape = Shape::from([1, *length]))]
    fn causal_conv1d_seq_idx(bounds: IntTensor<Self>, length: usize) -> IntTensor<Self> {
        decoding::portable::seq_idx::<Self>(bounds, length)
    }

    /// The columns of an axis in another order: column p of the result is column `from[p]` of x. `to` is the
    /// order back, which the gradient takes.
    #[fusion(dtype = x, shape = x)]
    fn causal_conv1d_move_columns(
        x: FloatTensor<Self>,
        from: IntTensor<Self>,
        to: IntTensor<Self>,
        axis: usize,
    ) -> FloatTensor<Self> {
        let _ = to;
        Self::float_select(x, axis, from)
    }

    /// The tokens, rotated by their positions; by the opposite angles when `inverse`.
    #[fusion(dtype = tokens, shape = Shape::from(problem.tokens_shape()))]
    fn rope(
        tokens: FloatTensor<Self>,
        #[extension_type] positions: RopePositions<Self>,
        problem: RopeProblem,
        inverse: bool,
    ) -> FloatTensor<Self> {
        rope::portable::rotate::<Self>(tokens, positions, &problem, inverse)
    }

    /// Queries and keys, each rotated by its positions: one launch where the backend can.
    #[fusion(meta = |q, k, _q_positions, _k_positions, _q_problem, _k_problem| (q.clone(), k.clone()))]
    fn rope_qk(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        #[extension_type] q_positions: RopePositions<Self>,
        #[extension_type] k_positions: RopePositions<Self>,
        q_problem: RopeProblem,
        k_problem: RopeProblem,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let q = rope::portable::rotate::<Self>(q, q_positions, &q_problem, false);
        (q, rope::portable::rotate::<Self>(k, k_positions, &k_problem, false))
    }
}

#[cfg(feature = "flex")]
impl ConvOps for burn::backend::Flex {}
