//! The network: completes the masked patches of one view of a scene from its visible ones and a second view.
//!
//! ```text
//! encoder, the same for both views:   visible patches of view 1 -> tokens
//!                                     all patches of view 2     -> tokens
//! decoder: tokens of view 1, and a learned token in the place of each masked patch
//!          -> DECODER x (self-attention, cross-attention to view 2, MLP) -> pixels of the masked patches
//! ```
//!
//! Where a token lies is told by RoPE2D alone, which turns the queries and keys of every attention by the
//! tokens' rows and columns. The order of the tokens means nothing, so the masked ones simply follow the
//! visible ones.

use burn::module::{Module, Param};
use burn::nn::{Gelu, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Distribution, Int, Tensor};
use burn::train::{InferenceStep, RegressionOutput, TrainOutput, TrainStep};
use burn_conv_ops::nn::{Rope2d, Rope2dConfig};

use crate::pairs::{PATCH_VALUES, PairBatch};

/// Features of a token.
const WIDTH: usize = 96;
/// Heads of an attention; the features of a head must divide by 4 for RoPE2D.
const HEADS: usize = 6;
/// Blocks of the encoder and of the decoder.
const ENCODER: usize = 2;
const DECODER: usize = 4;

/// A cross-view completion network.
#[derive(Module, Debug)]
pub(crate) struct CrossView {
    patch_embedding: Linear,
    encoder: Vec<EncoderBlock>,
    encoder_norm: LayerNorm,
    /// What stands in the place of a masked patch, `[1, 1, WIDTH]`.
    mask_token: Param<Tensor<3>>,
    decoder_embedding: Linear,
    decoder: Vec<DecoderBlock>,
    decoder_norm: LayerNorm,
    head: Linear,
}

impl CrossView {
    /// A network with random weights.
    pub(crate) fn new(device: &Device) -> Self {
        let token = Tensor::random([1, 1, WIDTH], Distribution::Normal(0.0, 0.02), device);
        Self {
            patch_embedding: LinearConfig::new(PATCH_VALUES, WIDTH).init(device),
            encoder: (0..ENCODER).map(|_| EncoderBlock::new(device)).collect(),
            encoder_norm: LayerNormConfig::new(WIDTH).init(device),
            mask_token: Param::from_tensor(token),
            decoder_embedding: LinearConfig::new(WIDTH, WIDTH).init(device),
            decoder: (0..DECODER).map(|_| DecoderBlock::new(device)).collect(),
            decoder_norm: LayerNormConfig::new(WIDTH).init(device),
            head: LinearConfig::new(WIDTH, PATCH_VALUES).init(device),
        }
    }

    /// The masked patches `[B, M, PATCH_VALUES]`, their pixels' values around 0 to 1.
    pub(crate) fn forward(&self, batch: &PairBatch) -> Tensor<3> {
        let [count, masked, _] = batch.masked.dims();
        let [_, visible, _] = batch.visible.dims();
        let first = self.encode(batch.visible.clone(), &batch.visible_positions);
        let second = self.encode(batch.second.clone(), &batch.second_positions);
        let unseen = self.mask_token.val().expand([count, masked, WIDTH]);
        let mut tokens = Tensor::cat(vec![self.decoder_embedding.forward(first), unseen], 1);
        let positions = Tensor::cat(vec![batch.visible_positions.clone(), batch.masked_positions.clone()], 1);
        for block in &self.decoder {
            tokens = block.forward(tokens, &positions, &second, &batch.second_positions);
        }
        let tokens = self.decoder_norm.forward(tokens.narrow(1, visible, masked));
        self.head.forward(tokens) + 0.5
    }

    fn encode(&self, patches: Tensor<3>, positions: &Tensor<3, Int>) -> Tensor<3> {
        // Pixels to about -2..2: the mean and spread of natural images.
        let mut tokens = self.patch_embedding.forward((patches - 0.5) * 4.0);
        for block in &self.encoder {
            tokens = block.forward(tokens, positions);
        }
        self.encoder_norm.forward(tokens)
    }

    fn forward_loss(&self, batch: &PairBatch) -> RegressionOutput {
        let rows = |tensor: Tensor<3>| tensor.flatten::<2>(0, 1);
        let (output, targets) = (rows(self.forward(batch)), rows(batch.masked.clone()));
        let loss = (output.clone() - targets.clone()).square().mean();
        RegressionOutput::new(loss, output, targets)
    }
}

impl TrainStep for CrossView {
    type Input = PairBatch;
    type Output = RegressionOutput;

    fn step(&self, batch: PairBatch) -> TrainOutput<RegressionOutput> {
        let output = self.forward_loss(&batch);
        TrainOutput::new(self, output.loss.backward(), output)
    }
}

impl InferenceStep for CrossView {
    type Input = PairBatch;
    type Output = RegressionOutput;

    fn step(&self, batch: PairBatch) -> RegressionOutput {
        self.forward_loss(&batch)
    }
}

#[derive(Module, Debug)]
struct EncoderBlock {
    norm: LayerNorm,
    attention: Attention,
    mlp: Mlp,
}

impl EncoderBlock {
    fn new(device: &Device) -> Self {
        let norm = LayerNormConfig::new(WIDTH).init(device);
        Self { norm, attention: Attention::new(device), mlp: Mlp::new(device) }
    }

    fn forward(&self, tokens: Tensor<3>, positions: &Tensor<3, Int>) -> Tensor<3> {
        let normed = self.norm.forward(tokens.clone());
        let tokens = tokens + self.attention.forward(normed.clone(), positions, normed, positions);
        self.mlp.forward(tokens)
    }
}

#[derive(Module, Debug)]
struct DecoderBlock {
    norm: LayerNorm,
    attention: Attention,
    cross_norm: LayerNorm,
    cross_attention: Attention,
    mlp: Mlp,
}

impl DecoderBlock {
    fn new(device: &Device) -> Self {
        Self {
            norm: LayerNormConfig::new(WIDTH).init(device),
            attention: Attention::new(device),
            cross_norm: LayerNormConfig::new(WIDTH).init(device),
            cross_attention: Attention::new(device),
            mlp: Mlp::new(device),
        }
    }

    /// `second` is normed already, by the end of the encoder.
    fn forward(
        &self,
        tokens: Tensor<3>,
        positions: &Tensor<3, Int>,
        second: &Tensor<3>,
        second_positions: &Tensor<3, Int>,
    ) -> Tensor<3> {
        let normed = self.norm.forward(tokens.clone());
        let tokens = tokens + self.attention.forward(normed.clone(), positions, normed, positions);
        let normed = self.cross_norm.forward(tokens.clone());
        let seen = self.cross_attention.forward(normed, positions, second.clone(), second_positions);
        self.mlp.forward(tokens + seen)
    }
}

/// Attention over several heads, with RoPE2D on queries and keys.
#[derive(Module, Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    rope: Rope2d,
}

impl Attention {
    fn new(device: &Device) -> Self {
        let linear = || LinearConfig::new(WIDTH, WIDTH).init(device);
        Self {
            query: linear(),
            key: linear(),
            value: linear(),
            output: linear(),
            rope: Rope2dConfig::new().init(),
        }
    }

    /// What the tokens `[B, N, WIDTH]` at `positions` find in `[B, K, WIDTH]` at `context_positions`.
    fn forward(
        &self,
        tokens: Tensor<3>,
        positions: &Tensor<3, Int>,
        context: Tensor<3>,
        context_positions: &Tensor<3, Int>,
    ) -> Tensor<3> {
        let [batch, count, _] = tokens.dims();
        let query = heads(self.query.forward(tokens));
        let key = heads(self.key.forward(context.clone()));
        let value = heads(self.value.forward(context));
        let (query, key) = self.rope.forward_qk(query, key, positions.clone(), context_positions.clone());
        let scale = ((WIDTH / HEADS) as f64).sqrt().recip();
        let weights = softmax(query.matmul(key.swap_dims(2, 3)) * scale, 3);
        let found = weights.matmul(value).swap_dims(1, 2).reshape([batch, count, WIDTH]);
        self.output.forward(found)
    }
}

/// `[B, N, WIDTH]` as `[B, HEADS, N, WIDTH / HEADS]`.
fn heads(tokens: Tensor<3>) -> Tensor<4> {
    let [batch, count, _] = tokens.dims();
    tokens.reshape([batch, count, HEADS, WIDTH / HEADS]).swap_dims(1, 2)
}

/// `x + linear(gelu(linear(norm(x))))`
#[derive(Module, Debug)]
struct Mlp {
    norm: LayerNorm,
    up: Linear,
    down: Linear,
    gelu: Gelu,
}

impl Mlp {
    fn new(device: &Device) -> Self {
        Self {
            norm: LayerNormConfig::new(WIDTH).init(device),
            up: LinearConfig::new(WIDTH, 4 * WIDTH).init(device),
            down: LinearConfig::new(4 * WIDTH, WIDTH).init(device),
            gelu: Gelu::new(),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let inner = self.gelu.forward(self.up.forward(self.norm.forward(x.clone())));
        x + self.down.forward(inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    /// Two pairs of 3 x 3 patches, 4 of them visible.
    fn batch(device: &Device) -> PairBatch {
        device.seed(4);
        let random =
            |count| Tensor::random([2, count, PATCH_VALUES], Distribution::Uniform(0.0, 1.0), device);
        let positions = Rope2d::grid(2, 3, 3, device);
        PairBatch {
            visible: random(4),
            visible_positions: positions.clone().narrow(1, 0, 4),
            masked: random(5),
            masked_positions: positions.clone().narrow(1, 4, 5),
            second: random(9),
            second_positions: positions,
        }
    }

    fn difference(a: &Tensor<3>, b: &Tensor<3>) -> f32 {
        (a.clone() - b.clone()).abs().max().into_scalar::<f32>()
    }

    #[test]
    fn predictions_depend_on_both_views_and_not_on_what_is_masked() {
        let device = Device::flex();
        let batch = batch(&device);
        let network = CrossView::new(&device);
        let found = network.forward(&batch);
        assert_eq!(found.dims(), [2, 5, PATCH_VALUES]);
        let other = PairBatch { second: batch.second.clone().flip([1]), ..batch.clone() };
        assert!(difference(&network.forward(&other), &found) > 1e-4);
        let other = PairBatch { visible: batch.visible.clone() * 0.5, ..batch.clone() };
        assert!(difference(&network.forward(&other), &found) > 1e-4);
        let other = PairBatch { masked: batch.masked.clone() * 0.5, ..batch };
        assert_eq!(difference(&network.forward(&other), &found), 0.0);
    }

    #[test]
    fn tokens_are_told_apart_by_their_positions_alone() {
        let device = Device::flex();
        let batch = batch(&device);
        let network = CrossView::new(&device);
        let found = network.forward(&batch);
        // Visible patches in another order, each with its position: nothing changes.
        let other = PairBatch {
            visible: batch.visible.clone().flip([1]),
            visible_positions: batch.visible_positions.clone().flip([1]),
            ..batch.clone()
        };
        let tolerance = Tolerance::<f32>::rel_abs(1e-4, 1e-4);
        network.forward(&other).into_data().assert_approx_eq::<f32>(&found.to_data(), tolerance);
        // The same patches at other positions: everything does.
        let other =
            PairBatch { visible_positions: batch.visible_positions.clone().flip([1]), ..batch.clone() };
        assert!(difference(&network.forward(&other), &found) > 1e-4);
        // Masked patches are predicted for their positions.
        let first = |patches: &Tensor<3>| patches.clone().narrow(1, 0, 1);
        assert!(difference(&first(&found), &first(&found.clone().flip([1]))) > 1e-4);
        let other = PairBatch { masked_positions: batch.masked_positions.clone().flip([1]), ..batch.clone() };
        let flipped = network.forward(&other).flip([1]).into_data();
        flipped.assert_approx_eq::<f32>(&found.to_data(), tolerance);
        // Only differences of positions count: a shift of everything changes nothing, one of a view does.
        let other = PairBatch {
            visible_positions: batch.visible_positions.clone() + 3,
            masked_positions: batch.masked_positions.clone() + 3,
            ..batch.clone()
        };
        assert!(difference(&network.forward(&other), &found) > 1e-4);
        let other = PairBatch { second_positions: batch.second_positions + 3, ..other };
        network.forward(&other).into_data().assert_approx_eq::<f32>(&found.to_data(), tolerance);
    }

    #[test]
    fn a_few_steps_fit_two_pairs() {
        use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
        let device = Device::flex().autodiff();
        let batch = batch(&device);
        let mut network = CrossView::new(&device);
        let mut optimizer: ModuleOptimizer = AdamWConfig::new().init();
        let mut losses = Vec::new();
        for _ in 0..30 {
            let output = network.forward_loss(&batch);
            losses.push(output.loss.clone().into_scalar::<f32>());
            let gradients = GradientsParams::from_grads(output.loss.backward(), &network);
            network = optimizer.step(3e-3, network, gradients);
        }
        assert!(losses[29] < 0.5 * losses[0], "the loss does not fall: {losses:?}");
    }
}
