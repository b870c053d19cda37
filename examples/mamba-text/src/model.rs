//! The network: characters in, logits of the next character out.
//!
//! ```text
//! embedding -> BLOCKS x (x + block(norm(x))) -> norm -> linear to the characters
//!
//! block (Mamba-2):  in_proj -> z | x b c | dt
//!                   x b c   -> causal conv1d, SiLU            (burn-conv-ops)
//!                   y        = selective scan of x by dt, b, c; + D x
//!                   out      = out_proj(norm(y SiLU(z)))
//! ```
//!
//! The last steps that the convolutions saw and the states of the scans are all that a block knows of the
//! past, so decoding a character costs the same after ten characters as after ten thousand.

use burn::module::{Module, Param};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{
    Dropout, DropoutConfig, Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig,
};
use burn::tensor::activation::{silu, softplus};
use burn::tensor::{Device, Int, Tensor};
use burn::train::{ClassificationOutput, InferenceStep, TrainOutput, TrainStep};
use burn_conv_ops::nn::{CausalConv1d, CausalConv1dConfig};
use burn_conv_ops::{Activation, Conv1dLayout};

use crate::scan::{self, ScanInputs};
use crate::text::TextBatch;

/// Features of a character between the blocks.
const WIDTH: usize = 96;
/// Blocks.
const BLOCKS: usize = 3;
/// Heads of a block.
const HEADS: usize = 6;
/// P, features of a head: together twice the width.
const HEAD_WIDTH: usize = 2 * WIDTH / HEADS;
/// N, rows of a head's state.
const STATE: usize = 16;
/// Steps that the convolution sees.
const TAPS: usize = 4;
/// Share of the blocks' inputs and outputs that training leaves out at random: texts that a CPU learns in
/// minutes are short enough to be learned by heart otherwise.
const DROPOUT: f64 = 0.3;
/// Features of all heads.
const INNER: usize = HEADS * HEAD_WIDTH;
/// Features that pass through the convolution: x, b and c.
const CONVOLVED: usize = INNER + 2 * STATE;

/// A character model.
#[derive(Module, Debug)]
pub(crate) struct MambaText {
    embedding: Embedding,
    dropout: Dropout,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
}

/// What the network knows of the characters so far, one entry per block.
pub(crate) type State = Vec<BlockState>;

impl MambaText {
    /// A network with random weights for `characters` different characters.
    pub(crate) fn new(characters: usize, device: &Device) -> Self {
        Self {
            embedding: EmbeddingConfig::new(characters, WIDTH).init(device),
            dropout: DropoutConfig::new(DROPOUT).init(),
            blocks: (0..BLOCKS).map(|_| Block::new(device)).collect(),
            norm: RmsNormConfig::new(WIDTH).init(device),
            head: LinearConfig::new(WIDTH, characters).init(device),
        }
    }

    /// The state before the first character.
    pub(crate) fn empty_state(&self, batch: usize) -> State {
        self.blocks.iter().map(|block| block.empty_state(batch)).collect()
    }

    /// Logits `[B, T, characters]` after each of the characters `[B, T]`, and the state after the last.
    pub(crate) fn forward(&self, characters: Tensor<2, Int>, state: State) -> (Tensor<3>, State) {
        let mut x = self.dropout.forward(self.embedding.forward(characters));
        let mut next = Vec::with_capacity(BLOCKS);
        for (block, state) in self.blocks.iter().zip(state) {
            let (y, state) = block.forward(x.clone(), state);
            x = x + self.dropout.forward(y);
            next.push(state);
        }
        (self.head.forward(self.norm.forward(x)), next)
    }

    /// Decodes one character: logits `[B, characters]` after the characters `[B]`, and the new state.
    pub(crate) fn step(&self, characters: Tensor<1, Int>, state: State) -> (Tensor<2>, State) {
        let mut x = self.embedding.forward(characters.unsqueeze_dim(1)).squeeze_dim::<2>(1);
        let mut next = Vec::with_capacity(BLOCKS);
        for (block, state) in self.blocks.iter().zip(state) {
            let (y, state) = block.step(x.clone(), state);
            x = x + y;
            next.push(state);
        }
        (self.head.forward(self.norm.forward(x)), next)
    }

    fn forward_loss(&self, batch: TextBatch) -> ClassificationOutput {
        let [count, time] = batch.characters.dims();
        let (logits, _) = self.forward(batch.characters, self.empty_state(count));
        let characters = logits.dims()[2];
        let logits = logits.reshape([count * time, characters]);
        let next = batch.next.reshape([count * time]);
        let loss = CrossEntropyLossConfig::new().init(&logits.device()).forward(logits.clone(), next.clone());
        ClassificationOutput::new(loss, logits, next)
    }
}

impl TrainStep for MambaText {
    type Input = TextBatch;
    type Output = ClassificationOutput;

    fn step(&self, batch: TextBatch) -> TrainOutput<ClassificationOutput> {
        let output = self.forward_loss(batch);
        TrainOutput::new(self, output.loss.backward(), output)
    }
}

impl InferenceStep for MambaText {
    type Input = TextBatch;
    type Output = ClassificationOutput;

    fn step(&self, batch: TextBatch) -> ClassificationOutput {
        self.forward_loss(batch)
    }
}

/// What a block knows of the past.
#[derive(Clone, Debug)]
pub(crate) struct BlockState {
    /// The last inputs of the convolution, `[B, CONVOLVED, TAPS - 1]`.
    conv: Tensor<3>,
    /// The states of the scan, `[B, HEADS, STATE, HEAD_WIDTH]`.
    scan: Tensor<4>,
}

/// A block of Mamba-2; its parameters have the names they have there.
#[derive(Module, Debug)]
struct Block {
    norm_in: RmsNorm,
    in_proj: Linear,
    conv1d: CausalConv1d,
    /// `[HEADS]`, what softplus turns into the usual step sizes.
    dt_bias: Param<Tensor<1>>,
    /// `[HEADS]`, logarithms of the rates of decay.
    a_log: Param<Tensor<1>>,
    /// `[HEADS]`, how much of x passes the scan by.
    d: Param<Tensor<1>>,
    norm: RmsNorm,
    out_proj: Linear,
}

impl Block {
    fn new(device: &Device) -> Self {
        // Evenly from the first head to the last: rates 1 to 16, and step sizes 0.001 to 0.1 by their
        // logarithms.
        let evenly = |head: usize| head as f32 / (HEADS - 1) as f32;
        let parameter = |value: fn(f32) -> f32| {
            let values: [f32; HEADS] = std::array::from_fn(|head| value(evenly(head)));
            Param::from_tensor(Tensor::from_floats(values, device))
        };
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        Self {
            norm_in: RmsNormConfig::new(WIDTH).init(device),
            in_proj: linear(WIDTH, INNER + CONVOLVED + HEADS),
            conv1d: CausalConv1dConfig::new(CONVOLVED, TAPS)
                .with_activation(Activation::Silu)
                .with_layout(Conv1dLayout::Btc)
                .init(device),
            dt_bias: parameter(|part| (0.001 * 100.0f32.powf(part)).exp_m1().ln()),
            a_log: parameter(|part| (1.0 + 15.0 * part).ln()),
            d: parameter(|_| 1.0),
            norm: RmsNormConfig::new(INNER).init(device),
            out_proj: linear(INNER, WIDTH),
        }
    }

    fn empty_state(&self, batch: usize) -> BlockState {
        BlockState {
            conv: self.conv1d.empty_state(batch),
            scan: Tensor::zeros([batch, HEADS, STATE, HEAD_WIDTH], &self.d.val().device()),
        }
    }

    /// The block's part of `[B, T, WIDTH]`, and the state after the last step.
    fn forward(&self, x: Tensor<3>, state: BlockState) -> (Tensor<3>, BlockState) {
        let [batch, time, _] = x.dims();
        let [z, convolved, dt] = self.project(x);
        let (convolved, conv) = self.conv1d.forward_with_state(convolved, state.conv);
        let [x, b, c] = split(convolved, [INNER, STATE, STATE]);
        let x = x.reshape([batch, time, HEADS, HEAD_WIDTH]);
        let inputs = ScanInputs { x: x.clone(), dt, b, c };
        let (y, scan) = scan::scan(inputs, self.rates(), state.scan);
        let y = y + x * self.d.val().reshape([1, 1, HEADS, 1]);
        (self.gate(y.reshape([batch, time, INNER]), z), BlockState { conv, scan })
    }

    /// The block's part of one step `[B, WIDTH]`, and the new state.
    fn step(&self, x: Tensor<2>, state: BlockState) -> (Tensor<2>, BlockState) {
        let [batch, _] = x.dims();
        let [z, convolved, dt] = self.project(x);
        let (convolved, conv) = self.conv1d.step(convolved, state.conv);
        let [x, b, c] = split(convolved, [INNER, STATE, STATE]);
        let x = x.reshape([batch, HEADS, HEAD_WIDTH]);
        let (y, scan) = scan::step(x.clone(), dt, b, c, self.rates(), state.scan);
        let y = y + x * self.d.val().reshape([1, HEADS, 1]);
        (self.gate(y.reshape([batch, INNER]), z), BlockState { conv, scan })
    }

    /// z, what the convolution gets, and dt.
    fn project<const D: usize>(&self, x: Tensor<D>) -> [Tensor<D>; 3] {
        let projected = self.in_proj.forward(self.norm_in.forward(x));
        let [z, convolved, dt] = split(projected, [INNER, CONVOLVED, HEADS]);
        [z, convolved, softplus(dt + self.dt_bias.val().unsqueeze(), 1.0)]
    }

    fn gate<const D: usize>(&self, y: Tensor<D>, z: Tensor<D>) -> Tensor<D> {
        self.out_proj.forward(self.norm.forward(y * silu(z)))
    }

    /// a, negative.
    fn rates(&self) -> Tensor<1> {
        -self.a_log.val().exp()
    }
}

/// The last axis in three parts.
fn split<const D: usize>(tensor: Tensor<D>, sizes: [usize; 3]) -> [Tensor<D>; 3] {
    let part = |start, size| tensor.clone().narrow(D - 1, start, size);
    [part(0, sizes[0]), part(sizes[0], sizes[1]), part(sizes[0] + sizes[1], sizes[2])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    const CHARACTERS: usize = 11;

    fn network(device: &Device) -> (MambaText, Tensor<2, Int>) {
        device.seed(5);
        let text: Vec<i32> = (0..2 * 50).map(|i| (i * i + i / 7) % CHARACTERS as i32).collect();
        let text = Tensor::<1, Int>::from_ints(text.as_slice(), device).reshape([2, 50]);
        (MambaText::new(CHARACTERS, device), text)
    }

    #[test]
    fn reading_a_prompt_and_stepping_on_equals_reading_everything() {
        let device = Device::flex();
        let (network, text) = network(&device);
        let (expected, _) = network.forward(text.clone(), network.empty_state(2));
        // Prompts shorter than the convolution and the chunk, and longer than both.
        for prompt in [1, 2, 37] {
            let (logits, mut state) =
                network.forward(text.clone().narrow(1, 0, prompt), network.empty_state(2));
            let mut all = vec![logits];
            for t in prompt..50 {
                let character = text.clone().narrow(1, t, 1).squeeze_dim::<1>(1);
                let (logits, next) = network.step(character, state);
                all.push(logits.unsqueeze_dim::<3>(1));
                state = next;
            }
            let found = Tensor::cat(all, 1).into_data();
            found.assert_approx_eq::<f32>(&expected.to_data(), Tolerance::rel_abs(1e-4, 1e-4));
        }
    }

    #[test]
    fn no_character_sees_a_later_one() {
        let device = Device::flex();
        let (network, text) = network(&device);
        let logits = |text| network.forward(text, network.empty_state(2)).0;
        let changed = text.clone().slice_fill([0..2, 40..41], 3);
        let difference = (logits(text) - logits(changed)).abs().max_dim(2).max_dim(0).flatten::<1>(0, 2);
        let difference = difference.try_into_vec_as::<f32>().unwrap();
        assert!(difference[..40].iter().all(|&d| d == 0.0), "{difference:?}");
        assert!(difference[40..].iter().all(|&d| d > 0.0), "{difference:?}");
    }

    #[test]
    fn a_few_steps_learn_a_text_by_heart() {
        use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
        let device = Device::flex().autodiff();
        let (mut network, text) = network(&device);
        let batch = TextBatch { characters: text.clone().narrow(1, 0, 20), next: text.narrow(1, 1, 20) };
        let mut optimizer: ModuleOptimizer = AdamWConfig::new().init();
        let mut losses = Vec::new();
        for _ in 0..15 {
            let output = network.forward_loss(batch.clone());
            losses.push(output.loss.clone().into_scalar::<f32>());
            let gradients = GradientsParams::from_grads(output.loss.backward(), &network);
            network = optimizer.step(1e-2, network, gradients);
        }
        assert!(losses[14] < 0.2 * losses[0], "the loss does not fall: {losses:?}");
    }
}
