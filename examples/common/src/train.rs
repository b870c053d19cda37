//! Training through burn-train's `SupervisedTraining`: the learning rate falls to 0 along a cosine, and
//! metric logs go to the folder of the run.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::optim::ModuleOptimizer;
use burn::train::logger::FileMetricLogger;
use burn::train::metric::LearningRateMetric;
use burn::train::{
    InferenceStep, Interrupter, Learner, LearnerModel, MetricRegistration, SupervisedTraining, TrainStep,
};

use crate::loader::EpochLoader;
use crate::progress::{self, Wording};

/// What training needs besides the model, its optimizer and its data.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Passes over the training data.
    pub epochs: usize,
    /// Learning rate at the start.
    pub learning_rate: f64,
    /// Folder of the logs.
    pub artifacts: &'a Path,
    /// Plain text even on a terminal.
    pub plain: bool,
    /// How plain text puts it.
    pub wording: Wording,
}

/// Trains `model` on the batches of the first loader, measures on those of the second after every epoch, and
/// returns the model as it is after the last step taken.
///
/// # Errors
/// When a batch cannot be made.
pub fn train<M, B, Metrics>(
    model: M,
    optimizer: ModuleOptimizer,
    loaders: [EpochLoader<B>; 2],
    metrics: Metrics,
    plan: Plan<'_>,
) -> Result<M>
where
    M: LearnerModel + TrainStep<Input = B> + InferenceStep<Input = B>,
    B: Send + 'static,
    Metrics: MetricRegistration<M>,
{
    let Plan { epochs, learning_rate, artifacts, plain, wording } = plan;
    let steps = epochs * loaders[0].batches();
    let schedule = CosineAnnealingLrSchedulerConfig::new(learning_rate, steps).init();
    let schedule = schedule.map_err(|error| anyhow!(error)).context("no learning rate schedule")?;
    let interrupter = Interrupter::new();
    let [train, test] = loaders.map(Arc::new);
    let result = SupervisedTraining::new(artifacts, train, test)
        .num_epochs(epochs)
        .metrics(metrics)
        .metric_train_numeric(LearningRateMetric::new())
        .with_metric_logger(FileMetricLogger::new(artifacts))
        .with_interrupter(interrupter.clone())
        .renderer(progress::renderer(plain, &interrupter, 0, wording))
        .launch(Learner::new(model, optimizer, schedule));
    match result.error {
        Some(error) => bail!("training stopped: {error}"),
        None => Ok(result.model),
    }
}
