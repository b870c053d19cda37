//! Folders that programs write: the artifacts of a run, and a generated data set.

use std::path::Path;

use anyhow::{Context, Result, bail};
use burn::module::Module;
use serde::Serialize;

/// Prepares `dir` for a new run: removes what an earlier run wrote there (`written`, and nothing else) and
/// writes the settings to `run.json`. Without `overwrite` a folder that holds a run is refused.
///
/// # Errors
/// When the folder holds a run and `overwrite` is not set, or cannot be written.
pub fn start(dir: &Path, settings: &impl Serialize, written: &[&str], overwrite: bool) -> Result<()> {
    if dir.join("run.json").exists() && !overwrite {
        bail!(
            "{} already holds a run: add --overwrite to replace it, or name another folder with --artifacts",
            dir.display()
        );
    }
    for name in ["run.json", "train", "valid", "experiment.log"].iter().chain(written) {
        let path = dir.join(name);
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else if path.exists() {
            std::fs::remove_file(&path)
        } else {
            Ok(())
        };
        removed.with_context(|| format!("{} cannot be removed", path.display()))?;
    }
    let path = dir.join("run.json");
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&path, serde_json::to_string_pretty(settings)? + "\n"))
        .with_context(|| format!("{} cannot be written", path.display()))
}

/// Writes the weights to `model.bpk` in `dir`.
///
/// # Errors
/// When the file cannot be written.
pub fn save_weights(dir: &Path, model: impl Module) -> Result<()> {
    let path = dir.join("model.bpk");
    model.into_record().save(&path).with_context(|| format!("{} cannot be written", path.display()))
}

/// File that marks a generated folder as written whole.
pub const MARKER: &str = "ABOUT.txt";

/// Has `write` fill a new folder that then says `about` in its `ABOUT.txt`; false where exactly that folder
/// is there already.
///
/// It is written next to `dir` first and renamed at the end, so that an interrupted run leaves nothing
/// half-done.
///
/// # Errors
/// When `dir` holds anything else, or cannot be written.
pub fn generate(dir: &Path, about: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<bool> {
    if std::fs::read_to_string(dir.join(MARKER)).is_ok_and(|text| text == about) {
        return Ok(false);
    }
    if dir.exists() && std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_some()) {
        bail!("{} is not an empty folder, so the data set is not written there", dir.display());
    }
    let mut name = dir.file_name().with_context(|| format!("{} names no folder", dir.display()))?.to_owned();
    name.push(".partial");
    let partial = dir.with_file_name(name);
    if partial.exists() {
        std::fs::remove_dir_all(&partial)
            .with_context(|| format!("{} cannot be removed", partial.display()))?;
    }
    write(&partial)?;
    let marker = partial.join(MARKER);
    std::fs::write(&marker, about).with_context(|| format!("{} cannot be written", marker.display()))?;
    if dir.exists() {
        std::fs::remove_dir(dir).with_context(|| format!("{} cannot be replaced", dir.display()))?;
    }
    std::fs::rename(&partial, dir).with_context(|| format!("{} cannot be written", dir.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_not_overwritten_by_accident_and_foreign_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("deep/er");
        start(&dir, &7, &["plot.svg"], false).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("run.json")).unwrap(), "7\n");
        for name in ["thesis.txt", "plot.svg"] {
            std::fs::write(dir.join(name), "old").unwrap();
        }
        std::fs::create_dir(dir.join("train")).unwrap();
        let error = start(&dir, &8, &["plot.svg"], false).unwrap_err().to_string();
        assert!(error.contains("already holds a run") && error.contains("--overwrite"), "{error}");
        start(&dir, &8, &["plot.svg"], true).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("run.json")).unwrap(), "8\n");
        assert!(!dir.join("plot.svg").exists() && !dir.join("train").exists());
        assert!(dir.join("thesis.txt").exists());
    }

    #[test]
    fn a_generated_folder_is_whole_or_not_there_and_foreign_folders_stay() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("data");
        let write = |to: &Path| Ok(std::fs::create_dir(to)?);
        let fail = |to: &Path| {
            std::fs::create_dir(to)?;
            bail!("disk full")
        };
        generate(&dir, "numbers", fail).unwrap_err();
        assert!(!dir.exists());
        assert!(generate(&dir, "numbers", write).unwrap());
        assert!(!generate(&dir, "numbers", fail).unwrap(), "it was there already");
        let error = generate(&dir, "letters", write).unwrap_err().to_string();
        assert!(error.contains("not an empty folder"), "{error}");
    }
}
