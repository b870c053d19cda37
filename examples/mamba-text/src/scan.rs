//! The selective scan of Mamba-2, in Burn's tensor operations.
//!
//! Each head keeps a state h of N x P numbers. A step forgets by the head's own decay and writes its input
//! along b; the output reads along c:
//!
//! ```text
//! h_t = exp(dt_t a) h_(t-1) + dt_t b_t x_t^T          a < 0, dt_t > 0
//! y_t = c_t^T h_t
//! ```
//!
//! [`scan`] evaluates a whole sequence in chunks. Inside a chunk it is a causal attention without softmax,
//! `y = (c b^T . decay) (dt x)`, three matrix products; only the state goes from chunk to chunk one after the
//! other. [`step`] is the recurrence as it stands, for decoding.

use burn::tensor::{Bool, Tensor};

/// Time steps per chunk: longer chunks mean fewer, larger products and work that grows with the length.
const CHUNK: usize = 32;

/// What a sequence brings to the scan.
#[derive(Clone)]
pub(crate) struct ScanInputs {
    /// `[B, T, H, P]`
    pub(crate) x: Tensor<4>,
    /// Step sizes `[B, T, H]`, positive.
    pub(crate) dt: Tensor<3>,
    /// Where a step writes, `[B, T, N]`, shared by the heads.
    pub(crate) b: Tensor<3>,
    /// Where a step reads, `[B, T, N]`, shared by the heads.
    pub(crate) c: Tensor<3>,
}

/// y `[B, T, H, P]` and the state after the last step, from the state `[B, H, N, P]` before the first and the
/// heads' rates a `[H]`.
pub(crate) fn scan(inputs: ScanInputs, a: Tensor<1>, mut state: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    let ScanInputs { x, dt, b, c } = inputs;
    let time = x.dims()[1];
    let mut outputs = Vec::with_capacity(time.div_ceil(CHUNK));
    for start in (0..time).step_by(CHUNK) {
        let length = CHUNK.min(time - start);
        let chunk = ScanInputs {
            x: x.clone().narrow(1, start, length),
            dt: dt.clone().narrow(1, start, length),
            b: b.clone().narrow(1, start, length),
            c: c.clone().narrow(1, start, length),
        };
        let (y, next) = scan_chunk(chunk, a.clone(), state);
        outputs.push(y);
        state = next;
    }
    (Tensor::cat(outputs, 1), state)
}

fn scan_chunk(inputs: ScanInputs, a: Tensor<1>, state: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    let ScanInputs { x, dt, b, c } = inputs;
    let [batch, length, heads, _] = x.dims();
    let written = (x * dt.clone().unsqueeze_dim(3)).swap_dims(1, 2); // [B, H, Q, P]
    let b = b.unsqueeze_dim::<4>(1); // [B, 1, Q, N]
    let c = c.unsqueeze_dim::<4>(1);

    // Logarithm of the decay from the chunk's beginning up to and with each step.
    let log_decay = (dt * a.reshape([1, 1, heads])).swap_dims(1, 2).cumsum(2); // [B, H, Q]
    let to_here = log_decay.clone().unsqueeze_dim::<4>(3); // [B, H, Q, 1]
    let since = to_here.clone() - log_decay.clone().unsqueeze_dim::<4>(2); // [B, H, Q, Q]
    // Later steps are masked before the exponential: their exponents are positive and could overflow.
    let later = Tensor::<2, Bool>::tril_mask([length, length], 0, &since.device());
    let later = later.reshape([1, 1, length, length]).expand([batch, heads, length, length]);
    let decay = since.mask_fill(later, f32::NEG_INFINITY).exp();

    let scores = c.clone().matmul(b.clone().swap_dims(2, 3)); // [B, 1, Q, Q]
    let within = (scores * decay).matmul(written.clone());
    let carried = for_heads(c, heads).matmul(state.clone()) * to_here.exp();
    let y = (within + carried).swap_dims(1, 2);

    let whole = log_decay.clone().narrow(2, length - 1, 1); // [B, H, 1]
    let to_end = (whole.clone() - log_decay).exp().unsqueeze_dim::<4>(3); // [B, H, Q, 1]
    let added = for_heads(b.swap_dims(2, 3), heads).matmul(written * to_end); // [B, H, N, P]
    (y, state * whole.exp().unsqueeze_dim(3) + added)
}

/// `[B, 1, .., ..]`, the same for every head.
fn for_heads(shared: Tensor<4>, heads: usize) -> Tensor<4> {
    let [batch, _, rows, columns] = shared.dims();
    shared.expand([batch, heads, rows, columns])
}

/// One step: y `[B, H, P]` and the new state, from x `[B, H, P]`, dt `[B, H]`, b and c `[B, N]` and the state
/// `[B, H, N, P]`.
pub(crate) fn step(
    x: Tensor<3>,
    dt: Tensor<2>,
    b: Tensor<2>,
    c: Tensor<2>,
    a: Tensor<1>,
    state: Tensor<4>,
) -> (Tensor<3>, Tensor<4>) {
    let [batch, heads, _, channels] = state.dims();
    let decay = (dt.clone() * a.unsqueeze()).exp().reshape([batch, heads, 1, 1]);
    let written = (x * dt.unsqueeze_dim(2)).unsqueeze_dim::<4>(2); // [B, H, 1, P]
    let b = b.unsqueeze_dim::<3>(1).unsqueeze_dim::<4>(3); // [B, 1, N, 1]
    let c = c.unsqueeze_dim::<3>(1).unsqueeze_dim::<4>(3);
    let state = state * decay + b * written;
    let y = (state.clone() * c).sum_dim(2).reshape([batch, heads, channels]);
    (y, state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution, Tolerance};

    const SIZES: [usize; 4] = [2, 3, 4, 5];

    fn inputs(time: usize, device: &Device) -> (ScanInputs, Tensor<1>, Tensor<4>) {
        device.seed(3);
        let [batch, heads, states, channels] = SIZES;
        let normal = Distribution::Normal(0.0, 1.0);
        let inputs = ScanInputs {
            x: Tensor::random([batch, time, heads, channels], normal, device),
            dt: Tensor::random([batch, time, heads], Distribution::Uniform(0.001, 2.0), device),
            b: Tensor::random([batch, time, states], normal, device),
            c: Tensor::random([batch, time, states], normal, device),
        };
        // The fastest head forgets by e^-16 per unit of dt: the masked exponents would overflow.
        let a = Tensor::from_floats([-0.1, -1.0, -16.0], device);
        (inputs, a, Tensor::random([batch, heads, states, channels], normal, device))
    }

    fn step_by_step(inputs: &ScanInputs, a: &Tensor<1>, mut state: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let mut outputs = Vec::new();
        for t in 0..inputs.x.dims()[1] {
            let at = |tensor: &Tensor<3>| tensor.clone().narrow(1, t, 1).squeeze_dim::<2>(1);
            let x = inputs.x.clone().narrow(1, t, 1).squeeze_dim::<3>(1);
            let (y, next) = step(x, at(&inputs.dt), at(&inputs.b), at(&inputs.c), a.clone(), state);
            outputs.push(y.unsqueeze_dim::<4>(1));
            state = next;
        }
        (Tensor::cat(outputs, 1), state)
    }

    #[test]
    fn chunks_equal_the_recurrence_for_every_length() {
        let device = Device::flex();
        for time in [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7] {
            let (inputs, a, state) = inputs(time, &device);
            let (expected, expected_state) = step_by_step(&inputs, &a, state.clone());
            let (y, last) = scan(inputs, a, state);
            let tolerance = Tolerance::<f32>::rel_abs(1e-4, 1e-4);
            y.into_data().assert_approx_eq::<f32>(&expected.into_data(), tolerance);
            last.into_data().assert_approx_eq::<f32>(&expected_state.into_data(), tolerance);
        }
    }

    #[test]
    fn gradients_of_the_chunks_equal_those_of_the_recurrence() {
        let device = Device::flex().autodiff();
        // Drawn once: other tests draw from the device's generator at the same time.
        let drawn = inputs(CHUNK + 9, &device);
        let gradients = |whole: bool| {
            let (mut inputs, a, state) = drawn.clone();
            inputs.x = inputs.x.require_grad();
            inputs.dt = inputs.dt.require_grad();
            let (x, dt, a) = (inputs.x.clone(), inputs.dt.clone(), a.require_grad());
            let (y, last) =
                if whole { scan(inputs, a.clone(), state) } else { step_by_step(&inputs, &a, state) };
            let gradients = (y.powf_scalar(2.0).mean() + last.mean()).backward();
            [
                x.grad(&gradients).unwrap().into_data(),
                dt.grad(&gradients).unwrap().into_data(),
                a.grad(&gradients).unwrap().into_data(),
            ]
        };
        for (found, expected) in gradients(true).iter().zip(gradients(false)) {
            found.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-3, 1e-4));
        }
    }
}
