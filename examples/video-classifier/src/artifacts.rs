//! The folder of one run: its settings, checkpoints, logs, plot and weights.
//!
//! ```text
//! run.json                          the settings, so that --resume needs none
//! checkpoint/{model,optim,scheduler}-<epoch>.bpk   the last two finished epochs
//! {train,valid}/epoch-<n>/*.log     burn-train's metric logs
//! plot.svg, model.bpk, experiment.log
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::train::checkpoint::{Checkpoint, Checkpointer, CheckpointerError, FileCheckpointer};
use example_common::run_folder;
use serde::{Deserialize, Serialize};

/// What decides the outcome of a run, as stored in `run.json`. The names are those of the options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Settings {
    pub(crate) frames: usize,
    pub(crate) size: usize,
    pub(crate) epochs: usize,
    pub(crate) batch_size: usize,
    pub(crate) learning_rate: f64,
    pub(crate) seed: u64,
    pub(crate) steps: Option<usize>,
    #[serde(default = "one")]
    pub(crate) devices: usize,
    #[serde(default = "one")]
    pub(crate) parts: usize,
}

/// Of a run whose file does not say.
fn one() -> usize {
    1
}

/// `run.json`: the settings and what the data looked like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Run {
    #[serde(flatten)]
    pub(crate) settings: Settings,
    pub(crate) classes: Vec<String>,
    pub(crate) train_clips: usize,
    pub(crate) test_clips: usize,
}

/// The three files of one checkpoint.
const PARTS: [&str; 3] = ["model", "optim", "scheduler"];

/// What a run writes next to burn-train's logs; `--overwrite` removes these and nothing else.
const WRITTEN: [&str; 3] = ["checkpoint", "plot.svg", "model.bpk"];

/// The folder of one run.
#[derive(Clone, Debug)]
pub(crate) struct Artifacts {
    dir: PathBuf,
}

impl Artifacts {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file of the run.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The settings of the run in this folder, if there is one.
    pub(crate) fn saved_run(&self) -> Result<Option<Run>> {
        let path = self.path("run.json");
        if !path.exists() {
            return Ok(None);
        }
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let run = serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
        Ok(Some(run))
    }

    /// Prepares the folder for a new run; `overwrite` allows another run's files to be removed.
    pub(crate) fn start(&self, run: &Run, overwrite: bool) -> Result<()> {
        if self.path("run.json").exists() && !overwrite {
            bail!(
                "{} already holds a run ({} of its epochs finished): add --resume to continue it, --overwrite \
                 to replace it, or name another folder with --artifacts",
                self.dir.display(),
                self.finished_epochs()
            );
        }
        run_folder::start(&self.dir, run, &WRITTEN, true)
    }

    /// Checks that `run` continues `saved` and returns how many epochs are finished.
    pub(crate) fn resume(&self, saved: &Run, run: &Run) -> Result<usize> {
        ensure!(
            saved.classes == run.classes,
            "the run in {} knows the classes {}, the data has {}",
            self.dir.display(),
            saved.classes.join(", "),
            run.classes.join(", ")
        );
        let (before, now) = (serde_json::to_value(saved)?, serde_json::to_value(run)?);
        for (name, value) in now.as_object().into_iter().flatten() {
            let old = &before[name];
            ensure!(
                old == value,
                "the run in {} was started with {name} {old}, this one has {value}; a resumed run keeps its \
                 settings",
                self.dir.display()
            );
        }
        Ok(self.finished_epochs())
    }

    /// The last epoch whose checkpoint is whole, 0 if there is none.
    pub(crate) fn finished_epochs(&self) -> usize {
        let whole = |epoch: &usize| PARTS.iter().all(|part| self.checkpoint_file(part, *epoch).exists());
        let names = std::fs::read_dir(self.path("checkpoint")).into_iter().flatten().flatten();
        names
            .filter_map(|entry| {
                entry.file_name().to_str()?.strip_prefix("model-")?.strip_suffix(".bpk")?.parse().ok()
            })
            .filter(whole)
            .max()
            .unwrap_or(0)
    }

    fn checkpoint_file(&self, part: &str, epoch: usize) -> PathBuf {
        self.path("checkpoint").join(format!("{part}-{epoch}.bpk"))
    }

    /// A checkpointer for `model`, `optim` or `scheduler`.
    pub(crate) fn checkpointer(&self, part: &str) -> WholeFiles {
        let dir = self.path("checkpoint");
        let partial = dir.join("partial");
        WholeFiles {
            whole: FileCheckpointer::new(&dir, part),
            partial: FileCheckpointer::new(&partial, part),
            partial_dir: partial,
            dir,
            part: part.to_owned(),
        }
    }
}

/// Burn's file checkpointer, writing aside and renaming: a run that is killed while it saves leaves no file
/// that looks like a checkpoint and is not.
pub(crate) struct WholeFiles {
    whole: FileCheckpointer,
    partial: FileCheckpointer,
    dir: PathBuf,
    partial_dir: PathBuf,
    part: String,
}

impl<R: Checkpoint> Checkpointer<R> for WholeFiles {
    fn save(&self, epoch: usize, record: R) -> Result<(), CheckpointerError> {
        self.partial.save(epoch, record)?;
        let name = format!("{}-{epoch}.bpk", self.part);
        std::fs::rename(self.partial_dir.join(&name), self.dir.join(&name))
            .map_err(CheckpointerError::IOError)
    }

    fn delete(&self, epoch: usize) -> Result<(), CheckpointerError> {
        Checkpointer::<R>::delete(&self.whole, epoch)
    }

    fn restore(&self, epoch: usize) -> Result<R, CheckpointerError> {
        self.whole.restore(epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        let settings = Settings {
            frames: 8,
            size: 32,
            epochs: 5,
            batch_size: 16,
            learning_rate: 1e-3,
            seed: 1,
            steps: None,
            devices: 1,
            parts: 1,
        };
        let classes = vec!["down".to_owned(), "up".to_owned()];
        Run { settings, classes, train_clips: 10, test_clips: 4 }
    }

    #[test]
    fn a_run_is_not_overwritten_by_accident_and_foreign_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::new(dir.path());
        std::fs::write(artifacts.path("thesis.txt"), "mine").unwrap();
        artifacts.start(&run(), false).unwrap();
        std::fs::write(artifacts.path("plot.svg"), "old").unwrap();
        let error = artifacts.start(&run(), false).unwrap_err().to_string();
        assert!(error.contains("--resume") && error.contains("--overwrite"), "{error}");
        artifacts.start(&run(), true).unwrap();
        assert!(!artifacts.path("plot.svg").exists());
        assert!(artifacts.path("thesis.txt").exists());
    }

    #[test]
    fn the_settings_survive_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::new(&dir.path().join("deep/er"));
        assert_eq!(artifacts.saved_run().unwrap(), None);
        artifacts.start(&run(), false).unwrap();
        assert_eq!(artifacts.saved_run().unwrap(), Some(run()));
        let text = std::fs::read_to_string(artifacts.path("run.json")).unwrap();
        let newer = |line: &&str| line.contains("devices") || line.contains("parts");
        let older = text.lines().filter(|line| !newer(line)).collect::<Vec<_>>().join("\n");
        assert_eq!(serde_json::from_str::<Run>(&older).unwrap(), run());
        std::fs::write(artifacts.path("run.json"), "{").unwrap();
        let error = format!("{:#}", artifacts.saved_run().unwrap_err());
        assert!(error.contains("run.json is damaged"), "{error}");
    }

    #[test]
    fn resuming_with_another_setting_names_it_with_both_values() {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::new(dir.path());
        assert_eq!(artifacts.resume(&run(), &run()).unwrap(), 0);
        let mut other = run();
        other.settings.batch_size = 32;
        let error = artifacts.resume(&run(), &other).unwrap_err().to_string();
        assert!(error.contains("batch-size 16") && error.contains("32"), "{error}");
        let mut other = run();
        other.classes.push("left".to_owned());
        let error = artifacts.resume(&run(), &other).unwrap_err().to_string();
        assert!(error.contains("down, up") && error.contains("left"), "{error}");
    }

    #[test]
    fn only_whole_checkpoints_count() {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::new(dir.path());
        std::fs::create_dir(artifacts.path("checkpoint")).unwrap();
        for (part, epoch) in [
            ("model", 9),
            ("model", 10),
            ("model", 11),
            ("optim", 9),
            ("optim", 10),
            ("scheduler", 9),
            ("scheduler", 10),
        ] {
            std::fs::write(artifacts.checkpoint_file(part, epoch), "").unwrap();
        }
        assert_eq!(artifacts.finished_epochs(), 10);
    }
}
