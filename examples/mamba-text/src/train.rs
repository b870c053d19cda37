//! Training through burn-train's `SupervisedTraining`.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use burn::grad_clipping::GradientClippingConfig;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::optim::AdamWConfig;
use burn::tensor::Device;
use burn::train::logger::FileMetricLogger;
use burn::train::metric::{LearningRateMetric, LossMetric};
use burn::train::{Interrupter, Learner, SupervisedTraining};
use example_common::progress::{self, Values, Wording, value};
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
    let schedule = CosineAnnealingLrSchedulerConfig::new(learning_rate, epochs * steps).init();
    let schedule = schedule.map_err(|error| anyhow!(error)).context("no learning rate schedule")?;
    let optimizer = AdamWConfig::new()
        .with_weight_decay(0.1)
        .with_grad_clipping(Some(GradientClippingConfig::Norm(1.0)))
        .init();
    let interrupter = Interrupter::new();
    let result = SupervisedTraining::new(
        artifacts,
        Arc::new(training_windows(text.clone(), length, batch_size, steps, seed)),
        Arc::new(held_out_windows(text.clone(), length, batch_size)),
    )
    .num_epochs(epochs)
    .metrics((LossMetric::new(),))
    .metric_train_numeric(LearningRateMetric::new())
    .with_metric_logger(FileMetricLogger::new(artifacts))
    .with_interrupter(interrupter.clone())
    .renderer(progress::renderer(plain, &interrupter, 0, WORDING))
    .launch(Learner::new(model, optimizer, schedule));
    match result.error {
        Some(error) => bail!("training stopped: {error}"),
        None => Ok(result.model),
    }
}
