//! Burn's conv3d.

use burn::tensor::ops::ConvOptions;
use burn::tensor::{Tensor, module};
use conv_kernels::conv3d::Conv3dProblem;

/// Burn's conv3d, which takes symmetric padding only; asymmetric padding is a `pad` before it.
#[derive(Clone, Debug)]
pub(crate) struct Conv3d {
    options: ConvOptions<3>,
    pad: Option<[(usize, usize); 3]>,
}

impl Conv3d {
    /// The op for a problem without bias and activation.
    pub(crate) fn of(problem: &Conv3dProblem) -> Self {
        let window = &problem.window;
        let symmetric = window.padding.iter().all(|(low, high)| low == high);
        let padding = if symmetric { window.padding.map(|(low, _)| low) } else { [0; 3] };
        Self {
            options: ConvOptions::new(window.stride, padding, window.dilation, window.groups),
            pad: (!symmetric).then_some(window.padding),
        }
    }

    /// The name in the column `plan`.
    pub(crate) fn name(&self) -> &'static str {
        if self.pad.is_some() { "pad+conv3d" } else { "conv3d" }
    }

    /// y.
    pub(crate) fn forward(&self, x: Tensor<5>, w: Tensor<5>) -> Tensor<5> {
        let x = match self.pad {
            Some([d, h, w]) => x.pad([(0, 0), (0, 0), d, h, w], 0.0),
            None => x,
        };
        module::conv3d(x, w, None, self.options.clone())
    }
}

/// The bias gradient, `[O]`, as Burn's conv3d backward computes it.
pub(crate) fn bias_gradient(dy: Tensor<5>) -> Tensor<1> {
    let [batch, channels, d, h, w] = dy.dims();
    dy.swap_dims(0, 1).reshape([channels, batch * d * h * w]).sum_dim(1).reshape([channels])
}
