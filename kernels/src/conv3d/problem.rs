//! What a conv3d call asks for: shapes, window and dtype, validated before anything is planned or launched.

use super::pass::Pass;
use crate::activation::Activation;
use crate::dtype::FloatType;
use crate::error::{ConvError, invalid};
use crate::geometry::AxisGeometry;

/// What taps outside the input read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PaddingMode {
    /// Zero.
    #[default]
    Zeros,
    /// The nearest element of the input.
    Replicate,
    /// The input mirrored at its edge elements, which are not repeated.
    Reflect,
    /// The input's other end, as if it were repeated.
    Circular,
}

/// The window of a convolution: where it reads, and the activation fused into the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Distance between windows along D, H, W.
    pub stride: [usize; 3],
    /// Padding before and after D, H, W.
    pub padding: [(usize, usize); 3],
    /// Distance between taps along D, H, W.
    pub dilation: [usize; 3],
    /// Groups into which the channels C and O are split.
    pub groups: usize,
    /// What taps outside the input read along D, H, W.
    pub padding_mode: [PaddingMode; 3],
    /// Fused into the forward pass, or into that of the transposed convolution.
    pub activation: Activation,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            stride: [1; 3],
            padding: [(0, 0); 3],
            dilation: [1; 3],
            groups: 1,
            padding_mode: [PaddingMode::Zeros; 3],
            activation: Activation::None,
        }
    }
}

impl Window {
    /// The modes with those replaced that nothing reads, which are those of axes without padding: zeros or
    /// replicate padding of all other axes becomes that of every axis, in any other case these replicate.
    fn canonical_modes(&self) -> [PaddingMode; 3] {
        let is_read = |axis: usize| self.padding[axis] != (0, 0);
        let read = |mode: PaddingMode| (0..3).all(|axis| !is_read(axis) || self.padding_mode[axis] == mode);
        [PaddingMode::Zeros, PaddingMode::Replicate].into_iter().find(|mode| read(*mode)).map_or_else(
            || {
                [0, 1, 2]
                    .map(|axis| if is_read(axis) { self.padding_mode[axis] } else { PaddingMode::Replicate })
            },
            |mode| [mode; 3],
        )
    }
}

/// A conv3d problem: `y[N, O, OD, OH, OW] = activation(conv(x[N, C, D, H, W], w[O, C/groups, KD, KH, KW]) +
/// b[O]) + residual[N, O, OD, OH, OW]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv3dProblem {
    /// N.
    pub batch: usize,
    /// C.
    pub channels: usize,
    /// O.
    pub out_channels: usize,
    /// D, H, W.
    pub input: [usize; 3],
    /// KD, KH, KW.
    pub kernel: [usize; 3],
    /// Strides, padding, dilation, groups, activation.
    pub window: Window,
    /// Whether a bias is added.
    pub bias: bool,
    /// Whether a residual is added, after the activation.
    pub residual: bool,
    /// Storage type of every tensor.
    pub dtype: FloatType,
    /// Whether y's bits must not depend on how many frames a call has ([`Self::for_streams`]).
    pub streaming: bool,
}

/// The most elements of a tensor: 4 TiB in fp32, beyond every device's memory. Counts derived from it fit 64
/// bits.
const MOST_ELEMENTS: usize = 1 << 40;

const AXES: [&str; 3] = ["depth", "height", "width"];

impl Conv3dProblem {
    /// The problem of these shapes: x `[N, C, D, H, W]`, weight `[O, C/groups, KD, KH, KW]`, bias `[O]`.
    ///
    /// # Errors
    /// A [`ConvError`] with the offending numbers.
    pub fn new(
        x: [usize; 5],
        weight: [usize; 5],
        bias: Option<usize>,
        window: Window,
        dtype: FloatType,
    ) -> Result<Self, ConvError> {
        let [batch, channels, d, h, w] = x;
        let [out_channels, group_channels, kd, kh, kw] = weight;
        let window = Window { padding_mode: window.canonical_modes(), ..window };
        let groups = window.groups;
        if groups == 0 {
            let message = "conv3d: groups is 0, it must be at least 1".into();
            return Err(ConvError::out_of_range("groups", 1..=channels.max(1), 0, message));
        }
        if channels % groups != 0 {
            invalid!("conv3d: {channels} input channels cannot be split into {groups} groups");
        }
        if out_channels % groups != 0 {
            invalid!("conv3d: {out_channels} output channels cannot be split into {groups} groups");
        }
        if group_channels != channels / groups {
            let fitting = channels / groups;
            let message = format!(
                "conv3d: the weight expects {group_channels} channels per group, the input has {channels} \
                 channels in {groups} groups ({fitting} per group)"
            );
            return Err(ConvError::shape("weight", &[out_channels, fitting, kd, kh, kw], &weight, message));
        }
        if let Some(length) = bias
            && length != out_channels
        {
            let message = format!(
                "conv3d: the bias has {length} elements, the weight has {out_channels} output channels"
            );
            return Err(ConvError::shape("bias", &[out_channels], &[length], message));
        }
        let problem = Self {
            batch,
            channels,
            out_channels,
            input: [d, h, w],
            kernel: [kd, kh, kw],
            window,
            bias: bias.is_some(),
            residual: false,
            dtype,
            streaming: false,
        };
        problem.validate()?;
        Ok(problem)
    }

    /// The problem of a piece of a clip, whose result is that of the whole clip bit for bit: the forward
    /// pass is planned for a single window along depth, by plans whose sums are not split. The first frames
    /// may be in a cache ([`super::forward_cached`]).
    #[must_use]
    pub fn for_streams(self) -> Self {
        Self { streaming: true, ..self }
    }

    /// The problem with a residual: a tensor of y's shape that is added after the activation.
    #[must_use]
    pub fn with_residual(self) -> Self {
        Self { residual: true, ..self }
    }

    /// The problem that a pass is planned for: of a stream, a single window along depth.
    pub(crate) fn planned(&self, pass: Pass) -> Self {
        if !self.streaming || pass != Pass::Forward {
            return *self;
        }
        let [_, height, width] = self.input;
        let [_, in_height, in_width] = self.window.padding;
        let window = Window { padding: [(0, 0), in_height, in_width], ..self.window };
        Self { input: [self.axis(0).span(), height, width], window, ..*self }
    }

    fn validate(&self) -> Result<(), ConvError> {
        for (axis, name) in AXES.iter().enumerate() {
            self.axis(axis).validate("conv3d", name)?;
            let (size, (before, after)) = (self.input[axis], self.window.padding[axis]);
            let out_of_range = |most, message| {
                ConvError::out_of_range(&format!("{name} padding"), 0..=most, before.max(after), message)
            };
            // An axis without padding has an element, and so none of these.
            match self.window.padding_mode[axis] {
                PaddingMode::Replicate if size == 0 => {
                    invalid!("conv3d: replicate padding of an input with {name} 0 has nothing to repeat")
                }
                PaddingMode::Reflect if before.max(after) >= size => {
                    let message = format!(
                        "conv3d: reflect padding of ({before}, {after}) must be below the input's {name}, \
                         which is {size}"
                    );
                    return Err(out_of_range(size.saturating_sub(1), message));
                }
                PaddingMode::Circular if before.max(after) > size => {
                    let message = format!(
                        "conv3d: circular padding of ({before}, {after}) must be at most the input's {name}, \
                         which is {size}"
                    );
                    return Err(out_of_range(size, message));
                }
                _ => {}
            }
        }
        let shapes = [
            ("input", self.x_shape()),
            ("weight", self.weight_shape()),
            ("output", self.y_shape()),
            ("padded input", self.explicitly_padded().x_shape()),
        ];
        for (what, shape) in shapes {
            // Extents of zero count as one: plans multiply the others.
            let elements = shape.iter().try_fold(1usize, |product, size| product.checked_mul((*size).max(1)));
            if elements.is_none_or(|elements| elements > MOST_ELEMENTS) {
                return Err(ConvError::TooLarge(format!(
                    "conv3d: the {what} {shape:?} has more elements than can be addressed"
                )));
            }
        }
        Ok(())
    }

    /// The same convolution of an input that holds its padding, so that none is left but zeros: the problem
    /// itself where all padding is zeros.
    pub(crate) fn explicitly_padded(&self) -> Self {
        let Window { padding, padding_mode, .. } = self.window;
        let held = [0, 1, 2].map(|axis| match padding_mode[axis] {
            PaddingMode::Zeros => (0, 0),
            _ => padding[axis],
        });
        let zeros = [0, 1, 2].map(|axis| (padding[axis].0 - held[axis].0, padding[axis].1 - held[axis].1));
        Self {
            input: [0, 1, 2].map(|axis| self.input[axis] + held[axis].0 + held[axis].1),
            window: Window { padding: zeros, padding_mode: [PaddingMode::Zeros; 3], ..self.window },
            ..*self
        }
    }

    /// What taps outside read along depth, and along H and W, where each is zeros or replicates: the paddings
    /// that Winograd reads, of streams too. An axis without padding does not count, but for a stream's depth
    /// in another mode: [`Self::planned`] takes the padding away, and the piece has it.
    pub(crate) fn winograd_padding(&self) -> Option<[PaddingMode; 2]> {
        use PaddingMode::{Replicate, Zeros};
        let Window { padding, padding_mode, .. } = self.window;
        let other_depth = self.streaming && !matches!(padding_mode[0], Zeros | Replicate);
        let shared = |axes: &[usize]| {
            let unpadded = |axis: usize| padding[axis] == (0, 0) && !(axis == 0 && other_depth);
            let is =
                |mode: &PaddingMode| axes.iter().all(|&axis| unpadded(axis) || padding_mode[axis] == *mode);
            [Zeros, Replicate].into_iter().find(is)
        };
        Some([shared(&[0])?, shared(&[1, 2])?])
    }

    /// Elements of y or, of an input gradient, of dx.
    pub(crate) fn result_elements(&self, pass: Pass) -> usize {
        let result = if pass == Pass::Forward { self.y_shape() } else { self.x_shape() };
        result.iter().product()
    }

    /// What window kernels, those of few outputs and depthwise ones read outside along depth, and along H
    /// and W: one mode for all axes, zeros or replicate. A stream's pieces differ in their padding along
    /// depth, so it may have two. The gathered GEMM and [`super::Plan::Direct`] read any padding, axis by
    /// axis; Winograd [`Self::winograd_padding`].
    pub(crate) fn window_padding(&self) -> Option<[PaddingMode; 2]> {
        if self.streaming {
            return self.winograd_padding();
        }
        self.has_shared_padding().then_some([self.shared_padding(); 2])
    }

    fn has_shared_padding(&self) -> bool {
        matches!(self.window.padding_mode, [PaddingMode::Zeros, ..] | [PaddingMode::Replicate, ..])
            && self.window.padding_mode == [self.window.padding_mode[0]; 3]
    }

    /// The mode of a problem whose padded axes share one.
    pub(crate) fn shared_padding(&self) -> PaddingMode {
        self.window.padding_mode[0]
    }

    /// One spatial axis (0 depth, 1 height, 2 width).
    pub fn axis(&self, axis: usize) -> AxisGeometry {
        AxisGeometry {
            input: self.input[axis],
            kernel: self.kernel[axis],
            stride: self.window.stride[axis],
            dilation: self.window.dilation[axis],
            padding: self.window.padding[axis],
        }
    }

    /// OD, OH, OW.
    pub fn output(&self) -> [usize; 3] {
        [0, 1, 2].map(|axis| self.axis(axis).output())
    }

    /// `[N, C, D, H, W]`.
    pub fn x_shape(&self) -> [usize; 5] {
        let [d, h, w] = self.input;
        [self.batch, self.channels, d, h, w]
    }

    /// `[O, C/groups, KD, KH, KW]`.
    pub fn weight_shape(&self) -> [usize; 5] {
        let [kd, kh, kw] = self.kernel;
        [self.out_channels, self.group_channels(), kd, kh, kw]
    }

    /// `[N, O, OD, OH, OW]`.
    pub fn y_shape(&self) -> [usize; 5] {
        let [d, h, w] = self.output();
        [self.batch, self.out_channels, d, h, w]
    }

    /// C / groups.
    pub fn group_channels(&self) -> usize {
        self.channels / self.window.groups
    }

    /// O / groups.
    pub fn group_out_channels(&self) -> usize {
        self.out_channels / self.window.groups
    }

    /// Channels per group that a pass reads and writes: of x and y, or (input gradient) of dy and dx.
    pub(crate) fn channels_of(&self, pass: Pass) -> (usize, usize) {
        match pass {
            Pass::Forward => (self.group_channels(), self.group_out_channels()),
            _ => (self.group_out_channels(), self.group_channels()),
        }
    }

    /// The activation in a pass's epilogue: gradients have none.
    pub(crate) fn activation_of(&self, pass: Pass) -> Activation {
        if pass == Pass::Forward { self.window.activation } else { Activation::None }
    }

    /// KD * KH * KW.
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// N * OD * OH * OW, the output positions of one channel.
    pub fn positions(&self) -> usize {
        self.batch * self.output().iter().product::<usize>()
    }

    /// Multiply-adds of one pass of the direct algorithm, taps in the padding included.
    pub fn multiply_adds(&self) -> f64 {
        self.positions() as f64 * self.out_channels as f64 * (self.group_channels() * self.taps()) as f64
    }
}

#[cfg(test)]
#[path = "problem_tests.rs"]
mod tests;
