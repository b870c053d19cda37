//! Training through burn-train's `SupervisedTraining`, and the final test.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use burn::data::dataloader::DataLoader;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::optim::AdamWConfig;
use burn::tensor::Device;
use burn::train::checkpoint::KeepLastNCheckpoints;
use burn::train::logger::FileMetricLogger;
use burn::train::metric::{AccuracyMetric, LearningRateMetric, LossMetric};
use burn::train::{ExecutionStrategy, Interrupter, Learner, MultiDeviceOptim, SupervisedTraining};
use example_common::loader::EpochLoader;
use example_common::progress::{self, Values, Wording, value};

use crate::artifacts::{Artifacts, Settings};
use crate::loader::{ClipBatch, Clips, loader};
use crate::model::{VideoNet, predictions};

/// Everything a run needs.
pub(crate) struct Job<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) artifacts: &'a Artifacts,
    pub(crate) classes: usize,
    pub(crate) train: Arc<Clips>,
    pub(crate) test: Arc<Clips>,
    /// Without autodiff; the first one tests and keeps the weights.
    pub(crate) devices: &'a [Device],
    /// Epochs already finished by the run that is resumed.
    pub(crate) finished: usize,
    /// Plain text even on a terminal.
    pub(crate) plain: bool,
}

impl Job<'_> {
    /// Training steps per epoch.
    pub(crate) fn steps_per_epoch(&self) -> usize {
        self.clips_per_epoch().div_ceil(self.settings.batch_size)
    }

    /// Clips that an epoch trains on.
    pub(crate) fn clips_per_epoch(&self) -> usize {
        self.train_loader().num_items()
    }

    fn train_loader(&self) -> EpochLoader<ClipBatch> {
        let Settings { batch_size, parts, steps, .. } = *self.settings;
        // One device takes the parts in the order of the epoch.
        let dealt = self.devices.len();
        self.loader(&self.train, batch_size / parts, dealt, steps.map(|steps| steps * parts / dealt))
    }

    fn test_loader(&self) -> EpochLoader<ClipBatch> {
        // Shuffled, so that the few batches of a smoke run are not all of one class.
        self.loader(&self.test, self.settings.batch_size, 1, self.settings.steps)
    }

    fn loader(
        &self,
        clips: &Arc<Clips>,
        batch_size: usize,
        parts: usize,
        steps: Option<usize>,
    ) -> EpochLoader<ClipBatch> {
        loader(clips.clone(), (batch_size, parts), self.settings.seed, self.finished + 1, steps)
    }
}

/// Plain-text progress: `loss 0.123  accuracy  98.0 %`.
const WORDING: Wording = Wording { unit: "clips", summary };

fn summary(values: &Values) -> String {
    format!("loss {:.3}  accuracy {:5.1} %", value(values, "Loss"), value(values, "Accuracy"))
}

/// Trains up to `settings.epochs` and returns the network as it is after the last step taken.
///
/// The run may end early, on the user's wish: ask [`Artifacts::finished_epochs`].
pub(crate) fn train(job: &Job<'_>) -> Result<VideoNet> {
    let Settings { epochs, learning_rate, seed, .. } = *job.settings;
    let main = &job.devices[0];
    main.seed(seed);
    let model = VideoNet::new(job.classes, &main.clone().autodiff()).with_parts(job.settings.parts);
    let schedule = CosineAnnealingLrSchedulerConfig::new(learning_rate, epochs * job.steps_per_epoch());
    let schedule = schedule.init().map_err(|error| anyhow!(error)).context("no learning rate schedule")?;
    let optimizer = AdamWConfig::new().with_weight_decay(1e-2).init();
    let train = job.train_loader();
    let interrupter = Interrupter::new();
    let artifacts = job.artifacts;
    let mut training = SupervisedTraining::new(artifacts.dir(), Arc::new(train), Arc::new(job.test_loader()))
        .num_epochs(epochs)
        .metrics((AccuracyMetric::new(), LossMetric::new()))
        .metric_train_numeric(LearningRateMetric::new())
        .with_metric_logger(FileMetricLogger::new(artifacts.dir()))
        .with_custom_checkpointers(
            artifacts.checkpointer("model"),
            artifacts.checkpointer("optim"),
            artifacts.checkpointer("scheduler"),
        )
        .with_checkpointing_strategy(KeepLastNCheckpoints::new(2))
        .with_interrupter(interrupter.clone())
        .renderer(progress::renderer(job.plain, &interrupter, job.finished, WORDING));
    if job.finished > 0 {
        training = training.checkpoint(job.finished);
    }
    if job.devices.len() > 1 {
        let devices = job.devices.iter().map(|device| device.clone().autodiff()).collect();
        let strategy = ExecutionStrategy::multi(devices, MultiDeviceOptim::OptimMainDevice);
        training = training.with_training_strategy(strategy.into());
    } else if job.settings.parts > 1 {
        training = training.grads_accumulation(job.settings.parts);
    }
    let result = training.launch(Learner::new(model, optimizer, schedule));
    if let Some(error) = result.error {
        bail!("training stopped: {error}");
    }
    Ok(result.model)
}

/// Counts of a test: `counts[label][prediction]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Confusion {
    pub(crate) counts: Vec<Vec<usize>>,
}

impl Confusion {
    pub(crate) fn total(&self) -> usize {
        self.counts.iter().flatten().sum()
    }

    pub(crate) fn correct(&self) -> usize {
        (0..self.counts.len()).map(|class| self.counts[class][class]).sum()
    }

    /// For a class: its clips, the correct ones, and the class it was taken for most often by mistake.
    pub(crate) fn of_class(&self, class: usize) -> (usize, usize, Option<(usize, usize)>) {
        let row = &self.counts[class];
        let mistakes = row.iter().copied().enumerate().filter(|&(other, count)| other != class && count > 0);
        // On a tie the first class: `max_by_key` would take the last.
        let worst = mistakes.rev().max_by_key(|&(_, count)| count);
        (row.iter().sum(), row[class], worst)
    }
}

/// Runs the network over the held-out clips.
pub(crate) fn test(job: &Job<'_>, model: &VideoNet) -> Result<Confusion> {
    let mut counts = vec![vec![0; job.classes]; job.classes];
    for batch in job.test_loader().to_device(&job.devices[0].clone().inner()).iter() {
        let batch = batch.map_err(|error| anyhow!("{error}"))?;
        let predicted = predictions(model.forward(batch.clips)).try_into_vec_as::<i32>();
        let labels = batch.labels.try_into_vec_as::<i32>();
        let (predicted, labels) = (predicted.context("predictions")?, labels.context("labels")?);
        for (label, predicted) in labels.into_iter().zip(predicted) {
            counts[label as usize][predicted as usize] += 1;
        }
    }
    Ok(Confusion { counts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::Run;
    use crate::loader::tests::clips;

    /// The summed losses of each step of two epochs, 16 clips in steps of 8, each in two parts.
    fn losses(devices: &[Device]) -> Vec<f64> {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::new(dir.path());
        let settings = Settings {
            frames: 2,
            size: 1,
            epochs: 2,
            batch_size: 8,
            learning_rate: 1e-2,
            seed: 3,
            steps: None,
            devices: devices.len(),
            parts: 2,
        };
        let (train, test) = (clips(16), clips(4));
        let classes = (0..16).map(|class| class.to_string()).collect();
        let run = Run { settings, classes, train_clips: train.len(), test_clips: test.len() };
        artifacts.start(&run, false).unwrap();
        let job = Job {
            settings: &run.settings,
            artifacts: &artifacts,
            classes: 16,
            train,
            test,
            devices,
            finished: 0,
            plain: true,
        };
        super::train(&job).unwrap();
        let of_epoch = |epoch| {
            let path = dir.path().join(format!("train/epoch-{epoch}/Loss.log"));
            let text = std::fs::read_to_string(path).unwrap();
            let value = |line: &str| line.split(',').next().unwrap().parse::<f64>().unwrap();
            let values: Vec<f64> = text.lines().take(4).map(value).collect();
            assert_eq!(text.lines().count(), 4 + 1, "two parts of two steps, and the mean: {text}");
            values.chunks(2).map(|parts| parts.iter().sum::<f64>()).collect::<Vec<_>>()
        };
        [of_epoch(1), of_epoch(2)].concat()
    }

    /// Batch norm's statistics are those of a part either way, so that nothing but the order of sums differs.
    #[test]
    fn two_devices_train_as_one_that_takes_the_parts_in_turn() {
        let [one, two] = [1, 2].map(|count| losses(&vec![Device::flex(); count]));
        for (one, two) in one.iter().zip(&two) {
            assert!((one - two).abs() < 1e-4 * one, "{one} by one device, {two} by two");
        }
        assert!(one.windows(2).all(|pair| pair[0] != pair[1]), "nothing was trained: {one:?}");
    }

    #[test]
    fn a_confusion_table_is_summed_up_by_class() {
        let table = Confusion { counts: vec![vec![3, 1, 1], vec![0, 4, 0], vec![0, 2, 1]] };
        assert_eq!((table.total(), table.correct()), (12, 8));
        assert_eq!(table.of_class(0), (5, 3, Some((1, 1))));
        assert_eq!(table.of_class(1), (4, 4, None));
        assert_eq!(table.of_class(2), (3, 1, Some((1, 2))));
    }
}
