//! Training.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use burn::grad_clipping::GradientClippingConfig;
use burn::optim::AdamWConfig;
use burn::tensor::Device;
use burn::train::metric::LossMetric;
use example_common::progress::{Values, Wording, value};
use example_common::train::{self, Plan};
use serde::Serialize;

use crate::model::MambaText;
use crate::text::{Text, held_out_windows, training_windows};

/// What decides the outcome of a run, as stored in `run.json`. The names are those of the options.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Settings {
    pub(crate) length: usize,
    pub(crate) epochs: usize,
    pub(crate) steps: usize,
    pub(crate) batch_size: usize,
    pub(crate) learning_rate: f64,
    pub(crate) seed: u64,
}

/// Plain-text progress: `loss 1.234`, in nats per character.
const WORDING: Wording = Wording { unit: "windows", summary };

fn summary(values: &Values) -> String {
    format!("loss {:.3}", value(values, "Loss"))
}

/// Trains on `text` and returns the network as it is after the last step taken; metric logs go to
/// `artifacts`.
pub(crate) fn train(
    text: &Arc<Text>,
    settings: &Settings,
    device: &Device,
    artifacts: &Path,
    plain: bool,
) -> Result<MambaText> {
    let Settings { length, epochs, steps, batch_size, learning_rate, seed } = *settings;
    device.seed(seed);
    let model = MambaText::new(text.vocabulary.len(), &device.clone().autodiff());
    let optimizer = AdamWConfig::new()
        .with_weight_decay(0.1)
        .with_grad_clipping(Some(GradientClippingConfig::Norm(1.0)))
        .init();
    let loaders = [
        training_windows(text.clone(), length, batch_size, steps, seed),
        held_out_windows(text.clone(), length, batch_size),
    ];
    let plan = Plan { epochs, learning_rate, artifacts, plain, wording: WORDING };
    train::train(model, optimizer, loaders, (LossMetric::new(),), plan)
}
