//! Training, and what is measured on the held-out pairs.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use burn::data::dataloader::DataLoader;
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Tensor};
use burn::train::metric::LossMetric;
use example_common::loader::EpochLoader;
use example_common::progress::{Values, Wording, value};
use example_common::train::{self, Plan};
use serde::Serialize;

use crate::model::CrossView;
use crate::pairs::{PATCH_VALUES, PairBatch};

/// What decides the outcome of a run, as stored in `run.json`. The names are those of the options.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Settings {
    pub(crate) size: usize,
    pub(crate) mask_ratio: f64,
    pub(crate) epochs: usize,
    pub(crate) steps: Option<usize>,
    pub(crate) batch_size: usize,
    pub(crate) learning_rate: f64,
    pub(crate) seed: u64,
}

/// Plain-text progress: `loss 0.0123`, the mean squared error of the masked patches.
const WORDING: Wording = Wording { unit: "pairs", summary };

fn summary(values: &Values) -> String {
    format!("loss {:.4}", value(values, "Loss"))
}

/// Trains `network` and returns it as it is after the last step taken; metric logs go to `artifacts`.
pub(crate) fn train(
    network: CrossView,
    loaders: [EpochLoader<PairBatch>; 2],
    settings: &Settings,
    artifacts: &Path,
    plain: bool,
) -> Result<CrossView> {
    let optimizer = AdamWConfig::new().with_beta_2(0.95).with_weight_decay(0.05).init();
    let Settings { epochs, learning_rate, .. } = *settings;
    let plan = Plan { epochs, learning_rate, artifacts, plain, wording: WORDING };
    train::train(network, optimizer, loaders, (LossMetric::new(),), plan)
}

/// Mean squared errors over the masked patches of the held-out pairs, pixel values from 0 to 1.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Errors {
    /// Of the network.
    pub(crate) network: f64,
    /// Of the network when it is shown another pair's second view.
    pub(crate) wrong_view: f64,
    /// Of the second view's patches in the places of the masked ones.
    pub(crate) copied: f64,
    /// Of the mean colour of each picture's visible patches.
    pub(crate) mean_colour: f64,
}

/// Measures on every batch of `loader`.
pub(crate) fn measure(
    network: &CrossView,
    loader: &EpochLoader<PairBatch>,
    device: &Device,
) -> Result<Errors> {
    let mut sums = Errors::default();
    let mut pairs = 0.0;
    for batch in loader.to_device(device).iter() {
        let batch = batch.map_err(|error| anyhow!("{error}"))?;
        let count = batch.masked.dims()[0];
        let error = |predicted: Tensor<3>| -> Result<f64> {
            let error = (predicted - batch.masked.clone()).square().mean().try_into_scalar::<f32>();
            Ok(f64::from(error.context("errors")?) * count as f64)
        };
        sums.network += error(network.forward(&batch))?;
        let wrong = PairBatch { second: roll(batch.second.clone()), ..batch.clone() };
        sums.wrong_view += error(network.forward(&wrong))?;
        sums.copied += error(copied(&batch))?;
        sums.mean_colour += error(mean_colour(&batch))?;
        pairs += count as f64;
    }
    Ok(Errors {
        network: sums.network / pairs,
        wrong_view: sums.wrong_view / pairs,
        copied: sums.copied / pairs,
        mean_colour: sums.mean_colour / pairs,
    })
}

/// Each picture gets the one before it, the first the last.
fn roll(tensor: Tensor<3>) -> Tensor<3> {
    let count = tensor.dims()[0];
    let last = tensor.clone().narrow(0, count - 1, 1);
    if count == 1 { last } else { Tensor::cat(vec![last, tensor.narrow(0, 0, count - 1)], 0) }
}

/// The second view's patch in the place of every masked one.
fn copied(batch: &PairBatch) -> Tensor<3> {
    let [count, masked, _] = batch.masked.dims();
    let side = batch.second.dims()[1].isqrt() as i32;
    let row = batch.masked_positions.clone().narrow(2, 0, 1);
    let column = batch.masked_positions.clone().narrow(2, 1, 1);
    let index = (row * side + column).expand([count, masked, PATCH_VALUES]);
    batch.second.clone().gather(1, index)
}

/// The mean colour of the visible patches in the place of every masked one.
fn mean_colour(batch: &PairBatch) -> Tensor<3> {
    let [count, masked, _] = batch.masked.dims();
    let [_, visible, _] = batch.visible.dims();
    let pixels = PATCH_VALUES / 3;
    let colour = batch.visible.clone().reshape([count, visible * pixels, 3]).mean_dim(1);
    colour.expand([count, masked * pixels, 3]).reshape([count, masked, PATCH_VALUES])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Int;

    /// One picture's patches, each of two colours in turn.
    fn patches(colours: &[[[f32; 3]; 2]]) -> Tensor<3> {
        let values: Vec<f32> =
            colours.iter().flat_map(|pair| pair.as_flattened().repeat(PATCH_VALUES / 6)).collect();
        let flat = Tensor::<1>::from_floats(values.as_slice(), &Device::flex());
        flat.reshape([1, colours.len(), PATCH_VALUES])
    }

    fn batch(visible: [[f32; 3]; 2]) -> PairBatch {
        let positions = |pairs: &[i32]| {
            let flat = Tensor::<1, Int>::from_ints(pairs, &Device::flex());
            flat.reshape([1, pairs.len() / 2, 2])
        };
        PairBatch {
            visible: patches(&[visible, visible]),
            visible_positions: positions(&[0, 0, 1, 1]),
            masked: patches(&[[[0.0; 3]; 2]; 2]),
            masked_positions: positions(&[1, 0, 0, 1]),
            second: patches(&[0.1, 0.2, 0.3, 0.4].map(|level| [[level; 3]; 2])),
            second_positions: positions(&[0, 0, 0, 1, 1, 0, 1, 1]),
        }
    }

    #[test]
    fn the_mean_colour_is_that_of_the_visible_pixels() {
        let found = mean_colour(&batch([[0.0, 0.25, 1.0], [1.0, 0.25, 0.5]]));
        let found = found.try_into_vec_as::<f32>().unwrap();
        assert_eq!(found, [0.5, 0.25, 0.75].repeat(2 * PATCH_VALUES / 3));
    }

    #[test]
    fn patches_are_copied_from_where_the_masked_ones_are() {
        let found = copied(&batch([[0.0; 3]; 2])).try_into_vec_as::<f32>().unwrap();
        assert_eq!(found, [[0.3; PATCH_VALUES], [0.2; PATCH_VALUES]].concat());
    }

    #[test]
    fn pictures_are_passed_on_in_a_ring() {
        let numbers = Tensor::<3>::from_floats([[[0.0]], [[1.0]], [[2.0]]], &Device::flex());
        assert_eq!(roll(numbers.clone()).try_into_vec_as::<f32>().unwrap(), [2.0, 0.0, 1.0]);
        assert_eq!(roll(numbers.narrow(0, 1, 1)).try_into_vec_as::<f32>().unwrap(), [1.0]);
    }
}
