//! Training of a small Wan.

use std::path::Path;

use anyhow::Result;
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Distribution, Tensor};
use burn::train::metric::LossMetric;
use burn::train::{InferenceStep, RegressionOutput, TrainOutput, TrainStep};
use example_common::loader::EpochLoader;
use example_common::progress::{Values, Wording, value};
use example_common::random::stream;
use example_common::shapes::{MOTIONS, render_clip};
use example_common::train::{self, Plan};
use image::RgbImage;
use serde::Serialize;

use crate::clip::to_tensor;
use crate::stream::Stream;
use crate::wan::{WanConfig, WanVae};

/// Clips to train on, and held out.
pub(crate) const CLIPS: [usize; 2] = [160, 16];
/// Frames of each.
pub(crate) const FRAMES: usize = 9;
/// Seed of the clips; it has no option, so that everyone's are the same.
const SEED: u64 = 20_260_101;
/// Weight of the latents' divergence from a normal distribution.
const DIVERGENCE: f64 = 1e-4;

/// What decides the outcome of a run, as stored in `run.json`. The names are those of the options.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Settings {
    pub(crate) epochs: usize,
    pub(crate) steps: Option<usize>,
    pub(crate) batch_size: usize,
    pub(crate) learning_rate: f64,
    pub(crate) seed: u64,
    pub(crate) held_out_frames: usize,
}

/// Wan in small: a latent stands for 4 x 4 pixels of two frames.
pub(crate) fn config() -> WanConfig {
    WanConfig {
        base_dim: 8,
        z_dim: 8,
        dim_mult: vec![1, 2, 2],
        num_res_blocks: 1,
        temperal_downsample: vec![false, true],
        ..WanConfig::default()
    }
}

/// A clip of moving shapes; each number is another one.
pub(crate) fn shapes(number: usize, frames: usize) -> Vec<RgbImage> {
    render_clip(MOTIONS[number % MOTIONS.len()].1, frames, &mut stream(SEED, number))
}

/// Clips `[N, 3, T, H, W]`, from -1 to 1.
#[derive(Clone, Debug)]
pub(crate) struct ClipBatch {
    clips: Tensor<5>,
}

/// Batches of the clips to train on, and of those held out.
fn loaders(settings: &Settings) -> [EpochLoader<ClipBatch>; 2] {
    let loader = |first: usize, count: usize| {
        let clips: Vec<Vec<RgbImage>> = (first..first + count).map(|number| shapes(number, FRAMES)).collect();
        EpochLoader::new(count, "clips", settings.batch_size, move |_, items, device: &Device| {
            let clips = items.iter().map(|&item| to_tensor(&Vec::from_iter(&clips[item]), device)).collect();
            Ok(ClipBatch { clips: Tensor::cat(clips, 0) })
        })
    };
    let [train, test] = CLIPS;
    [
        loader(0, train).shuffled(settings.seed).at_most(settings.steps.unwrap_or(usize::MAX)),
        loader(train, test).at_most(settings.steps.unwrap_or(usize::MAX)),
    ]
}

/// Mean squared error of the clips through latents drawn at random, and a little of the divergence.
fn loss(vae: &WanVae, batch: &ClipBatch) -> RegressionOutput {
    let [mean, log_variance] = vae.encode(batch.clips.clone(), &mut Stream::default());
    let log_variance = log_variance.clamp(-30.0, 20.0);
    let noise = Tensor::random(mean.shape(), Distribution::Normal(0.0, 1.0), &mean.device());
    let latents = mean.clone() + (log_variance.clone() * 0.5).exp() * noise;
    let decoded = vae.decode(latents, &mut Stream::default());
    let rows = |clips: Tensor<5>| clips.flatten::<2>(1, 4);
    let (output, targets) = (rows(decoded), rows(batch.clips.clone()));
    let divergence = (mean.square() + log_variance.clone().exp() - log_variance - 1.0).mean() * 0.5;
    let error = (output.clone() - targets.clone()).square().mean();
    RegressionOutput::new(error + divergence * DIVERGENCE, output, targets)
}

impl TrainStep for WanVae {
    type Input = ClipBatch;
    type Output = RegressionOutput;

    fn step(&self, batch: ClipBatch) -> TrainOutput<RegressionOutput> {
        let output = loss(self, &batch);
        TrainOutput::new(self, output.loss.backward(), output)
    }
}

impl InferenceStep for WanVae {
    type Input = ClipBatch;
    type Output = RegressionOutput;

    fn step(&self, batch: ClipBatch) -> RegressionOutput {
        loss(self, &batch)
    }
}

/// Plain-text progress: `loss 0.0123`.
const WORDING: Wording = Wording { unit: "clips", summary };

fn summary(values: &Values) -> String {
    format!("loss {:.4}", value(values, "Loss"))
}

/// Trains `vae` and returns it as it is after the last step taken; metric logs go to `artifacts`.
pub(crate) fn train(vae: WanVae, settings: &Settings, artifacts: &Path, plain: bool) -> Result<WanVae> {
    let optimizer = AdamWConfig::new().with_weight_decay(0.01).init();
    let Settings { epochs, learning_rate, .. } = *settings;
    let plan = Plan { epochs, learning_rate, artifacts, plain, wording: WORDING };
    train::train(vae, optimizer, loaders(settings), (LossMetric::new(),), plan)
}
