//! `--make-data`: a data set of moving shapes, written to disk as PNG frames.
//!
//! The class is the motion, and only the motion: a network that looks at one frame stays at chance; one that
//! looks at several can be right every time.

use std::path::Path;

use anyhow::{Context, Result};
use example_common::random::stream;
use example_common::run_folder;
use example_common::shapes::{MOTIONS, SIZE, render_clip};
use indicatif::ProgressBar;

/// Frames per clip.
pub(crate) const FRAMES: usize = 8;
/// Clips per class in `train/` and in `test/`.
pub(crate) const CLIPS: [(&str, usize); 2] = [("train", 60), ("test", 20)];
/// Seed of the data set; it has no option, so that everyone's copy is the same.
const SEED: u64 = 20_240_229;

/// Writes the data set to `dir` as `{train,test}/<class>/<clip>/<frame>.png`, or says that it is there
/// already.
///
/// Fails when `dir` holds anything else.
pub(crate) fn make_data(dir: &Path) -> Result<()> {
    if !run_folder::generate(dir, &about(), write_clips)? {
        println!("{} already holds the moving shapes; left as it is.", dir.display());
        return Ok(());
    }
    println!(
        "Wrote {} clips of moving shapes to {}.",
        MOTIONS.len() * (CLIPS[0].1 + CLIPS[1].1),
        dir.display()
    );
    Ok(())
}

fn about() -> String {
    let classes: Vec<&str> = MOTIONS.iter().map(|(name, _)| *name).collect();
    format!(
        "Moving shapes, written by video-classifier --make-data (seed {SEED}).\n\
         {} training and {} test clips per class, {FRAMES} frames of {SIZE} x {SIZE} pixels.\n\
         Classes: {}.\n",
        CLIPS[0].1,
        CLIPS[1].1,
        classes.join(", ")
    )
}

fn write_clips(root: &Path) -> Result<()> {
    use rayon::prelude::*;
    let mut jobs = Vec::new();
    for (split, count) in CLIPS {
        for (class, motion) in MOTIONS {
            jobs.extend((0..count).map(|clip| (split, class, motion, clip)));
        }
    }
    let bar = ProgressBar::new(jobs.len() as u64).with_message("writing clips");
    jobs.par_iter().enumerate().try_for_each(|(number, &(split, class, motion, clip))| {
        let folder = root.join(split).join(class).join(format!("{clip:03}"));
        std::fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        // One stream per clip: the result does not depend on the order in which threads work.
        let mut rng = stream(SEED, number);
        for (frame, image) in render_clip(motion, FRAMES, &mut rng).iter().enumerate() {
            let file = folder.join(format!("{frame:02}.png"));
            image.save(&file).with_context(|| format!("{} cannot be written", file.display()))?;
        }
        bar.inc(1);
        anyhow::Ok(())
    })?;
    bar.finish_and_clear();
    Ok(())
}

#[cfg(test)]
#[path = "synth_tests.rs"]
mod tests;
