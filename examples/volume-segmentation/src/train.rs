//! Training, and what is measured on the held-out volumes.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use burn::backend::ExecutionError;
use burn::optim::AdamWConfig;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Int, Tensor, TensorData, TensorReadError};
use burn::train::metric::{
    Adaptor, LossInput, LossMetric, Metric, MetricAttributes, MetricMetadata, MetricName, Numeric,
    NumericAttributes, NumericEntry, SerializedEntry,
};
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use example_common::loader::EpochLoader;
use example_common::progress::{Values, Wording, value};
use example_common::train::{self, Plan};
use serde::Serialize;

use crate::cubes::{Cube, CubeBatch};
use crate::data::Case;
use crate::model::UNet;

/// What decides the outcome of a run, as stored in `run.json`. The names are those of the options.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Settings {
    pub(crate) size: usize,
    pub(crate) channels: usize,
    pub(crate) epochs: usize,
    pub(crate) steps: Option<usize>,
    pub(crate) batch_size: usize,
    pub(crate) learning_rate: f64,
    pub(crate) seed: u64,
}

/// Plain-text progress: `loss 0.123  Dice 0.912`, the middle of each volume.
const WORDING: Wording = Wording { unit: "volumes", summary };

fn summary(values: &Values) -> String {
    format!("loss {:.3}  Dice {:.3}", value(values, "Loss"), value(values, DICE))
}

/// Trains `network` and returns it as it is after the last step taken; metric logs go to `artifacts`.
pub(crate) fn train(
    network: UNet,
    loaders: [EpochLoader<CubeBatch>; 2],
    settings: &Settings,
    artifacts: &Path,
    plain: bool,
) -> Result<UNet> {
    let optimizer = AdamWConfig::new().with_weight_decay(1e-2).init();
    let Settings { epochs, learning_rate, .. } = *settings;
    let plan = Plan { epochs, learning_rate, artifacts, plain, wording: WORDING };
    train::train(network, optimizer, loaders, (LossMetric::new(), DiceMetric::new()), plan)
}

/// What burn-train's metrics are told of a batch.
pub(crate) struct Segmented {
    loss: Tensor<1>,
    /// [`Overlap`] of a batch, `[3, K]`.
    overlap: Tensor<2>,
}

impl ItemLazy for Segmented {
    fn sync(self) -> Result<Self, ExecutionError> {
        self.loss.device().flush()?;
        Ok(Self { loss: self.loss.without_autodiff(), overlap: self.overlap.without_autodiff() })
    }
}

impl Adaptor<LossInput> for Segmented {
    fn adapt(&self) -> LossInput {
        LossInput::new(self.loss.clone())
    }
}

impl Adaptor<Tensor<2>> for Segmented {
    fn adapt(&self) -> Tensor<2> {
        self.overlap.clone()
    }
}

/// Sums of `[N, K, D, H, W]` by class, `[1, K]`.
fn by_class(x: Tensor<5>) -> Tensor<2> {
    let classes = x.dims()[1];
    x.sum_dims(&[0, 2, 3, 4]).reshape([1, classes])
}

/// Cross-entropy, and 1 minus the soft Dice of all classes but the background.
fn segmented(logits: Tensor<5>, truth: Tensor<5>) -> Segmented {
    let classes = logits.dims()[1];
    let log_parts = log_softmax(logits.clone(), 1);
    let cross_entropy = (log_parts.clone() * truth.clone()).sum_dim(1).mean().neg();
    let parts = log_parts.exp();
    let true_sums = by_class(truth.clone());
    let (both, sums) = (by_class(parts.clone() * truth.clone()), by_class(parts) + true_sums.clone());
    // The ones make a class that is not there a match.
    let dice = (both * 2.0 + 1.0) / (sums + 1.0);
    let loss = cross_entropy + 1.0 - dice.narrow(1, 1, classes - 1).mean();

    let class = Tensor::<1, Int>::arange(0..classes as i64, &truth.device()).reshape([1, classes, 1, 1, 1]);
    let predicted = logits.argmax(1).equal(class).float();
    let overlap = vec![by_class(predicted.clone() * truth), by_class(predicted), true_sums];
    Segmented { loss, overlap: Tensor::cat(overlap, 0) }
}

impl TrainStep for UNet {
    type Input = CubeBatch;
    type Output = Segmented;

    fn step(&self, batch: CubeBatch) -> TrainOutput<Segmented> {
        let output = segmented(self.forward(batch.images), batch.truth);
        TrainOutput::new(self, output.loss.backward(), output)
    }
}

impl InferenceStep for UNet {
    type Input = CubeBatch;
    type Output = Segmented;

    fn step(&self, batch: CubeBatch) -> Segmented {
        segmented(self.forward(batch.images), batch.truth)
    }
}

/// Voxels by class: predicted and true, predicted, true.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Overlap(Vec<[f64; 3]>);

impl Overlap {
    /// Of predicted and true classes, voxel by voxel.
    pub(crate) fn of(predicted: &[u8], truth: &[u8], classes: usize) -> Self {
        let mut counts = vec![[0.0; 3]; classes];
        for (&predicted, &truth) in predicted.iter().zip(truth) {
            counts[usize::from(predicted)][1] += 1.0;
            counts[usize::from(truth)][2] += 1.0;
            if predicted == truth {
                counts[usize::from(truth)][0] += 1.0;
            }
        }
        Self(counts)
    }

    fn add(&mut self, other: &Self) {
        self.0.resize(other.0.len().max(self.0.len()), [0.0; 3]);
        for (sum, count) in self.0.iter_mut().flatten().zip(other.0.iter().flatten()) {
            *sum += count;
        }
    }

    /// Dice of each class, none where it is neither predicted nor true.
    pub(crate) fn dice(&self) -> Vec<Option<f64>> {
        let dice = |&[both, predicted, truth]: &[f64; 3]| {
            (predicted + truth > 0.0).then(|| 2.0 * both / (predicted + truth))
        };
        self.0.iter().map(dice).collect()
    }
}

/// Mean of what is there, NaN where nothing is.
pub(crate) fn mean(values: impl Iterator<Item = Option<f64>>) -> f64 {
    let (sum, count) = values.flatten().fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

/// Name of [`DiceMetric`].
pub(crate) const DICE: &str = "Dice";

/// Mean Dice of all classes but the background, of the voxels of an epoch.
#[derive(Clone)]
struct DiceMetric {
    name: MetricName,
    epoch: Overlap,
    batch: Overlap,
}

impl DiceMetric {
    fn new() -> Self {
        Self { name: Arc::new(DICE.to_owned()), epoch: Overlap::default(), batch: Overlap::default() }
    }

    fn mean(overlap: &Overlap) -> f64 {
        mean(overlap.dice().into_iter().skip(1))
    }

    fn entry(&self, value: NumericEntry) -> SerializedEntry {
        let (epoch, batch) = (Self::mean(&self.epoch), Self::mean(&self.batch));
        SerializedEntry::new(format!("epoch {epoch:.3} - batch {batch:.3}"), value.serialize())
    }
}

impl Metric for DiceMetric {
    type Input = Tensor<2>;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes { unit: None, higher_is_better: true }.into()
    }

    fn update(
        &mut self,
        overlap: &Tensor<2>,
        _metadata: &MetricMetadata,
    ) -> Result<SerializedEntry, TensorReadError> {
        let classes = overlap.dims()[1];
        let counts = overlap.clone().try_into_vec_as::<f32>()?;
        let count = |row: usize, class: usize| f64::from(counts[row * classes + class]);
        self.batch = Overlap((0..classes).map(|class| [0, 1, 2].map(|row| count(row, class))).collect());
        self.epoch.add(&self.batch);
        Ok(self.entry(NumericEntry::Value(Self::mean(&self.batch))))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(self.entry(self.final_value()))
    }

    fn clear(&mut self) {
        (self.epoch, self.batch) = (Overlap::default(), Overlap::default());
    }
}

impl Numeric for DiceMetric {
    fn value(&self) -> Option<NumericEntry> {
        Some(NumericEntry::Value(Self::mean(&self.batch)))
    }

    fn running_value(&self) -> Option<NumericEntry> {
        Some(NumericEntry::Value(Self::mean(&self.epoch)))
    }

    fn final_value(&self) -> NumericEntry {
        NumericEntry::Final(Self::mean(&self.epoch))
    }
}

/// The class of every voxel of a volume, by the mean of the tiles that cover it.
pub(crate) fn predict(
    network: &UNet,
    case: &Case,
    size: usize,
    classes: usize,
    device: &Device,
) -> Result<Vec<u8>> {
    let count = case.classes.len();
    let mut sums = vec![0.0f32; classes * count];
    for tile in Cube::tiles(case.shape, size) {
        let x = Tensor::from_data(TensorData::new(tile.image(case), [1, 1, size, size, size]), device);
        let parts = softmax(network.forward(x), 1).try_into_vec_as::<f32>().context("predictions")?;
        for (class, parts) in parts.chunks_exact(size * size * size).enumerate() {
            for (voxel, part) in tile.voxels(case.shape).zip(parts) {
                if let Some(voxel) = voxel {
                    sums[class * count + voxel] += part;
                }
            }
        }
    }
    let best = |voxel: usize| {
        let sum = |class: usize| sums[class * count + voxel];
        // At most 16 classes.
        (1..classes).fold(0, |best, class| if sum(class) > sum(best) { class } else { best }) as u8
    };
    Ok((0..count).map(best).collect())
}

#[cfg(test)]
#[path = "train_tests.rs"]
mod tests;
