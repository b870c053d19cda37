//! Problem descriptions of causal conv1d and of its decoding step, validated before planning and launching.

use crate::Activation;
use crate::dtype::FloatType;
use crate::error::{ConvError, invalid};

/// Order of the axes of x, y, dx and dy. The state is `[B, C, W-1]` in either layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Conv1dLayout {
    /// `[B, C, T]`.
    #[default]
    Bct,
    /// `[B, T, C]`.
    Btc,
}

impl Conv1dLayout {
    /// The axis of x that its steps are along.
    pub fn step_axis(self) -> usize {
        match self {
            Self::Bct => 2,
            Self::Btc => 1,
        }
    }

    /// `[B, C, T]` from extents in this order, and back.
    pub fn swapped(self, [batch, second, third]: [usize; 3]) -> [usize; 3] {
        if self.step_axis() == 2 { [batch, second, third] } else { [batch, third, second] }
    }
}

/// Shapes of the optional inputs; `None` where there is no such input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OptionalShapes {
    /// Elements of the bias.
    pub bias: Option<usize>,
    /// Shape of the initial state.
    pub initial_state: Option<[usize; 3]>,
    /// Shape of the sequence ids.
    pub seq_idx: Option<[usize; 2]>,
    /// Shape of the residual.
    pub residual: Option<[usize; 3]>,
}

/// A causal conv1d problem, in `[B, C, T]` order:
///
/// ```text
/// y[b,c,t] = activation( bias[c] + sum over k < W of weight[c,k] * x[b, c, t - (W-1) + k] )
///            + residual[b,c,t]
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CausalConv1dProblem {
    /// B.
    pub batch: usize,
    /// C.
    pub channels: usize,
    /// T.
    pub length: usize,
    /// W.
    pub width: usize,
    /// Order of the axes of x, y and their gradients.
    pub layout: Conv1dLayout,
    /// Fused into the forward pass.
    pub activation: Activation,
    /// Whether a bias is added.
    pub bias: bool,
    /// Whether the steps before the first are given; else they are 0.
    pub initial_state: bool,
    /// Whether several sequences and padding share a row.
    pub seq_idx: bool,
    /// Whether a tensor is added after the activation.
    pub residual: bool,
    /// Storage type of x, y, the residual and their gradients.
    pub dtype: FloatType,
    /// Storage type of weight, bias and their gradients.
    pub weight_dtype: FloatType,
    /// Storage type of the states and their gradients: x's, or fp32.
    pub state_dtype: FloatType,
}

impl CausalConv1dProblem {
    /// The problem of these shapes: x `[B, C, T]` or `[B, T, C]` as `layout` says, weight `[C, W]`, bias
    /// `[C]`, initial state `[B, C, W-1]`, sequence ids `[B, T]`, residual of x's shape.
    ///
    /// # Errors
    /// A [`ConvError`] with the offending numbers.
    pub fn new(
        x: [usize; 3],
        weight: [usize; 2],
        optional: OptionalShapes,
        layout: Conv1dLayout,
        activation: Activation,
        dtype: FloatType,
        weight_dtype: FloatType,
    ) -> Result<Self, ConvError> {
        let [batch, channels, length] = layout.swapped(x);
        let width = weight[1];
        check_weight("causal_conv1d", weight, channels)?;
        check_bias("causal_conv1d", optional.bias, channels)?;
        let problem = Self {
            batch,
            channels,
            length,
            width,
            layout,
            activation,
            bias: optional.bias.is_some(),
            initial_state: optional.initial_state.is_some(),
            seq_idx: optional.seq_idx.is_some(),
            residual: optional.residual.is_some(),
            dtype,
            weight_dtype,
            state_dtype: dtype,
        };
        let padded = length.checked_add(width);
        let elements = padded.and_then(|padded| checked_product(&[batch, channels.max(1), padded]));
        if elements.is_none() {
            return Err(ConvError::TooLarge(format!(
                "causal_conv1d: the input {x:?} with width {width} has more elements than can be addressed"
            )));
        }
        if let Some(shape) = optional.initial_state
            && shape != problem.state_shape()
        {
            let expected = problem.state_shape();
            let message = format!(
                "causal_conv1d: the initial state has shape {shape:?}, input and weight need {expected:?} \
                 (batch, channels, width - 1)"
            );
            return Err(ConvError::shape("initial_state", &expected, &shape, message));
        }
        if let Some(shape) = optional.seq_idx
            && shape != [batch, length]
        {
            let expected = [batch, length];
            let message = format!(
                "causal_conv1d: seq_idx has shape {shape:?}, the input needs {expected:?} (batch, steps)"
            );
            return Err(ConvError::shape("seq_idx", &expected, &shape, message));
        }
        if let Some(shape) = optional.residual
            && shape != x
        {
            let message = format!(
                "causal_conv1d: the residual has shape {shape:?}, the input {x:?}, the shapes must match"
            );
            return Err(ConvError::shape("residual", &x, &shape, message));
        }
        Ok(problem)
    }

    /// The same problem with states of another storage type than x's.
    ///
    /// # Errors
    /// [`ConvError::Dtype`] if that is neither x's nor fp32.
    pub fn with_state_dtype(self, state_dtype: FloatType) -> Result<Self, ConvError> {
        check_state_dtype("causal_conv1d", self.dtype, state_dtype)?;
        Ok(Self { state_dtype, ..self })
    }

    /// `[B, C, T]` or `[B, T, C]`.
    pub fn x_shape(&self) -> [usize; 3] {
        self.layout.swapped([self.batch, self.channels, self.length])
    }

    /// Row, channel and step of the element at a row-major index of x.
    pub fn x_element(&self, index: usize) -> [usize; 3] {
        let [_, second, third] = self.x_shape();
        self.layout.swapped([index / (second * third), index / third % second, index % third])
    }

    /// `[C, W]`.
    pub fn weight_shape(&self) -> [usize; 2] {
        [self.channels, self.width]
    }

    /// `[B, C, W-1]`, oldest step first.
    pub fn state_shape(&self) -> [usize; 3] {
        [self.batch, self.channels, self.width - 1]
    }

    /// `[B, T]`.
    pub fn seq_idx_shape(&self) -> [usize; 2] {
        [self.batch, self.length]
    }
}

/// One decoding step: `y[b,c] = activation(bias[c] + sum over k < W of weight[c,k] * h[S+1-W+k])` where
/// `h = [state[b,c,..] | x[b,c]]`, and the new state is the last S elements of h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpdateProblem {
    /// B.
    pub batch: usize,
    /// C.
    pub channels: usize,
    /// W.
    pub width: usize,
    /// S, at least W-1.
    pub state_length: usize,
    /// Fused into the step.
    pub activation: Activation,
    /// Whether a bias is added.
    pub bias: bool,
    /// Storage type of x and y.
    pub dtype: FloatType,
    /// Storage type of weight and bias.
    pub weight_dtype: FloatType,
    /// Storage type of the states: x's, or fp32.
    pub state_dtype: FloatType,
}

impl UpdateProblem {
    /// The problem of these shapes: x `[B, C]`, state `[B, C, S]`, weight `[C, W]`, bias `[C]`.
    ///
    /// # Errors
    /// A [`ConvError`] with the offending numbers.
    pub fn new(
        x: [usize; 2],
        state: [usize; 3],
        weight: [usize; 2],
        bias: Option<usize>,
        activation: Activation,
        dtype: FloatType,
        weight_dtype: FloatType,
    ) -> Result<Self, ConvError> {
        let [rows, channels, _] = state;
        if [rows, channels] != x {
            invalid!(
                "causal_conv1d_update: the state {state:?} belongs to {rows} rows of {channels} channels, \
                 the \
                 input is {x:?}"
            );
        }
        Self::with_slots(x, state, weight, bias, activation, dtype, weight_dtype)
    }

    /// As [`new`](Self::new), but the state `[slots, C, S]` has any number of slots, at least one, in place
    /// of a row for each row of x.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_slots(
        x: [usize; 2],
        state: [usize; 3],
        weight: [usize; 2],
        bias: Option<usize>,
        activation: Activation,
        dtype: FloatType,
        weight_dtype: FloatType,
    ) -> Result<Self, ConvError> {
        let op = "causal_conv1d_update";
        let [batch, channels] = x;
        let [slots, state_channels, state_length] = state;
        let width = weight[1];
        check_weight(op, weight, channels)?;
        check_bias(op, bias, channels)?;
        if slots == 0 && batch > 0 {
            invalid!("{op}: the state {state:?} has no slots for {batch} rows");
        }
        if state_channels != channels {
            invalid!(
                "{op}: the state {state:?} has {slots} slots of {state_channels} channels, the input is {x:?}"
            );
        }
        if state_length < width - 1 {
            invalid!(
                "{op}: the state {state:?} holds {state_length} steps, a weight of width {width} needs {}",
                width - 1
            );
        }
        let rows = slots.max(batch);
        if state_length == usize::MAX || checked_product(&[rows, channels, state_length + 1]).is_none() {
            return Err(ConvError::TooLarge(format!(
                "{op}: the state {state:?} has more elements than can be addressed"
            )));
        }
        let bias = bias.is_some();
        let state_dtype = dtype;
        Ok(Self { batch, channels, width, state_length, activation, bias, dtype, weight_dtype, state_dtype })
    }

    /// The same problem with states of another storage type than x's.
    ///
    /// # Errors
    /// [`ConvError::Dtype`] if that is neither x's nor fp32.
    pub fn with_state_dtype(self, state_dtype: FloatType) -> Result<Self, ConvError> {
        check_state_dtype("causal_conv1d_update", self.dtype, state_dtype)?;
        Ok(Self { state_dtype, ..self })
    }

    /// `[B, C]`.
    pub fn x_shape(&self) -> [usize; 2] {
        [self.batch, self.channels]
    }

    /// `[C, W]`.
    pub fn weight_shape(&self) -> [usize; 2] {
        [self.channels, self.width]
    }

    /// `[B, C, S]`, oldest step first.
    pub fn state_shape(&self) -> [usize; 3] {
        [self.batch, self.channels, self.state_length]
    }
}

fn check_weight(op: &str, [weight_channels, width]: [usize; 2], channels: usize) -> Result<(), ConvError> {
    if width == 0 {
        let message = format!("{op}: the weight has width 0, it must be at least 1");
        return Err(ConvError::out_of_range("width", 1..=i32::MAX as usize, 0, message));
    }
    if weight_channels != channels {
        let message = format!("{op}: the weight has {weight_channels} channels, the input has {channels}");
        return Err(ConvError::shape("weight", &[channels, width], &[weight_channels, width], message));
    }
    if checked_product(&[weight_channels, width]).is_none() {
        return Err(ConvError::TooLarge(format!(
            "{op}: the weight [{weight_channels}, {width}] has more elements than can be addressed"
        )));
    }
    Ok(())
}

fn check_state_dtype(op: &str, x: FloatType, state: FloatType) -> Result<(), ConvError> {
    if state != x && state != FloatType::F32 {
        let (x, got) = (x.name(), state.name());
        let message = format!("{op}: x is {x} and the state is {got}, a state is of x's dtype or f32");
        return Err(ConvError::dtype("state", &[x, FloatType::F32.name()], got, message));
    }
    Ok(())
}

fn check_bias(op: &str, bias: Option<usize>, channels: usize) -> Result<(), ConvError> {
    if let Some(length) = bias
        && length != channels
    {
        let message = format!("{op}: the bias has {length} elements, the input has {channels} channels");
        return Err(ConvError::shape("bias", &[channels], &[length], message));
    }
    Ok(())
}

/// The number of elements of `shape`, if an fp32 buffer of that size is addressable.
fn checked_product(shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size))?;
    elements.checked_mul(4).filter(|bytes| *bytes <= isize::MAX as usize).map(|_| elements)
}

#[cfg(test)]
#[path = "problem_tests.rs"]
mod tests;
