//! The weights that training starts from.
//!
//! Frames pass from end to end through the convolutions outside the residual branches. Each of these starts
//! as an orthogonal matrix in the tap of the output's own pixel and frame, with zeros in its other taps
//! ("delta orthogonal", Xiao et al. 2018, arXiv:1806.05393), so colours stay apart. A product of random
//! matrices keeps little but the brightness, and training needs hundreds of steps to find the rest: 17.4 dB
//! after 640 steps of 4 clips, and grey; with these weights 22.3 dB after 800 steps of 2 clips. Residual
//! branches end in zeros, latents are drawn with little noise, and there are no biases.

use burn::module::{Initializer, Module, ModuleMapper, Param};
use burn::tensor::Tensor;

use crate::wan::WanVae;

/// Logarithm of the variance with which latents are drawn.
const LOG_VARIANCE: f64 = -6.0;
/// PyTorch's first weights have a third of the variance that keeps an activation's size.
const BRANCH_GAIN: f64 = 1.73;

/// `vae` with the weights that training starts from.
pub(crate) fn start(vae: WanVae) -> WanVae {
    vae.map(&mut Start::default())
}

/// Sets one parameter after another.
#[derive(Default)]
struct Start {
    /// Names of the modules around the parameter, then its own.
    path: Vec<String>,
}

impl Start {
    fn within(&self, modules: &[&str]) -> bool {
        self.path.iter().any(|name| modules.contains(&name.as_str()))
    }
}

impl ModuleMapper for Start {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.last().map_or("", String::as_str);
        // Its outputs are the means of the latents, then the logarithms of their variances.
        let moments = self.within(&["quant_conv"]);
        let first = |weights: Tensor<D>| match (name, moments) {
            ("bias", true) => halves(weights.zeros_like(), weights.zeros_like() + LOG_VARIANCE),
            ("bias", false) => weights.zeros_like(),
            _ if self.within(&["conv1", "to_qkv"]) => weights * BRANCH_GAIN,
            _ if self.within(&["conv2", "proj"]) => weights.zeros_like(),
            (_, true) => halves(weights.clone(), weights.zeros_like()),
            (_, false) => orthogonal(&weights),
        };
        match name {
            "bias" | "weight" => param.map(|weights| first(weights).detach().require_grad()),
            _ => param,
        }
    }
}

/// The first half of `a` along the outputs, and the second of `b`.
fn halves<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    let half = a.dims()[0] / 2;
    Tensor::cat(vec![a.narrow(0, 0, half), b.narrow(0, half, half)], 0)
}

/// A filter `[C_out, C_in, ...]` like `weights`: an orthogonal matrix in the tap of the output's own pixel
/// and frame. In time this is the last tap, in a frame the middle one.
fn orthogonal<const D: usize>(weights: &Tensor<D>) -> Tensor<D> {
    let dims = weights.dims();
    let [c_out, c_in] = [dims[0], dims[1]];
    let matrix: Tensor<2> =
        Initializer::Orthogonal { gain: 1.0 }.init([c_out, c_in], &weights.device()).val();
    let mut tap = dims.map(|taps| taps / 2..taps / 2 + 1);
    tap[0] = 0..c_out;
    tap[1] = 0..c_in;
    if D == 5 {
        tap[2] = dims[2] - 1..dims[2];
    }
    let mut shape = [1; D];
    shape[..2].copy_from_slice(&[c_out, c_in]);
    weights.zeros_like().slice_assign(tap, matrix.reshape(shape))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, Tensor};

    use super::*;
    use crate::stream::Stream;
    use crate::train::config;

    #[test]
    fn latents_start_with_little_noise() {
        let device = Device::flex();
        let vae = start(WanVae::new(&config(), &device.clone().autodiff())).valid();
        let clip = Tensor::random([1, 3, 3, 16, 16], Distribution::Default, &device);
        let [_, log_variance] = vae.encode(clip, &mut Stream::default());
        let log_variance = log_variance.into_data().try_to_vec::<f32>().unwrap();
        assert!(log_variance.iter().all(|&value| value == LOG_VARIANCE as f32), "{log_variance:?}");
    }

    #[test]
    fn a_filter_is_an_orthogonal_matrix_in_the_last_frames_middle_tap() {
        let filter = orthogonal(&Tensor::<5>::zeros([8, 3, 3, 3, 3], &Device::flex()));
        let tap = filter.clone().slice([0..8, 0..3, 2..3, 1..2, 1..2]).reshape([8, 3]);
        let other_taps = filter.square().sum() - tap.clone().square().sum();
        assert!(other_taps.into_scalar::<f32>().abs() < 1e-5);
        let error = (tap.clone().transpose().matmul(tap) - Tensor::eye(3, &Device::flex())).abs().max();
        assert!(error.into_scalar::<f32>() < 1e-5);
    }
}
