//! Runs the program as a user does: a short run, and what it refuses.

use std::path::Path;
use std::process::Output;

use example_common::program::{self, assert_one_line, assert_repeats, assert_written, stderr, stdout};
use image::{GrayImage, Luma};

/// Volumes of 10 slices of 9 x 12: a bright box on a dark ground, labelled 255.
fn write_volumes(root: &Path, volumes: u32) {
    for volume in 0..volumes {
        for (kind, ground, body) in [("images", 40, 200), ("labels", 0, 255)] {
            let folder = root.join("volumes").join(kind).join(format!("{volume:02}"));
            std::fs::create_dir_all(&folder).unwrap();
            for slice in 0..10u32 {
                let inside = |x: u32, y: u32| {
                    (2..7).contains(&slice) && (volume % 3..volume % 3 + 5).contains(&x) && y > 5
                };
                let pixel = |x, y| Luma([if inside(x, y) { body } else { ground }]);
                GrayImage::from_fn(9, 12, pixel).save(folder.join(format!("{slice}.png"))).unwrap();
            }
        }
    }
}

/// The program on the CPU in this folder.
fn run(root: &Path, args: &[&str]) -> Output {
    let shared = ["--data", "volumes", "--artifacts", "out"];
    program::run(env!("CARGO_BIN_EXE_volume-segmentation"), root, &[&shared[..], args].concat())
}

#[test]
fn a_short_run_writes_everything_and_is_not_overwritten_by_accident() {
    let dir = tempfile::tempdir().unwrap();
    write_volumes(dir.path(), 11);
    let args = ["--size", "8", "--channels", "2", "--epochs", "2", "--steps", "2"];
    let output = stdout(&run(dir.path(), &args));
    assert!(output.contains("8 volumes to train on, 3 held out; labels 255."), "{output}");
    assert!(output.contains("Running on the CPU (Flex"), "{output}");
    assert!(output.contains("epoch 2/2") && output.contains("After 2 epochs in"), "{output}");
    assert!(output.contains("Mean Dice of 2 whole held-out volumes:"), "{output}");
    let out = dir.path().join("out");
    assert_written(&out, &["run.json", "plot.svg", "model.bpk", "sheet.png"]);
    let steps = std::fs::read_to_string(out.join("train/epoch-2/Dice.log")).unwrap();
    assert_eq!(steps.lines().count(), 2 + 1, "a line per step and the mean: {steps}");
    // A row per held-out volume.
    let (width, height) = image::image_dimensions(out.join("sheet.png")).unwrap();
    assert!(width > 4 * 128 && height > 2 * 128 && height < 3 * 128 + 80, "{width} x {height}");

    assert_repeats(|args| run(dir.path(), args), &args, &out.join("sheet.png"));
}

#[test]
fn what_cannot_be_used_is_named_before_training_starts() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |args: &[&str]| stderr(&run(dir.path(), args));
    let error = refused(&[]);
    assert_eq!(error, "error: volumes is not a folder of volumes: it needs the folders images and labels\n");
    write_volumes(dir.path(), 3);
    assert_eq!(refused(&["--size", "18"]), "error: --size 18 is not a multiple of 4\n");
    std::fs::write(dir.path().join("volumes/labels/01/3.png"), b"\x89PNG").unwrap();
    assert_one_line(&refused(&[]), "error: slice volumes/labels/01/3.png cannot be decoded: ");
    std::fs::remove_dir_all(dir.path().join("volumes/labels/01")).unwrap();
    std::fs::write(dir.path().join("volumes/labels/01.nii.gz"), b"no volume").unwrap();
    assert_one_line(&refused(&[]), "error: label volumes/labels/01.nii.gz cannot be read: ");
    assert!(!dir.path().join("out").exists(), "a run was started");
}
