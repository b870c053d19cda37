//! Runs the program as a user does: a short run, and what it refuses.

use std::path::Path;
use std::process::Output;

use example_common::program::{self, assert_one_line, assert_repeats, assert_written, stderr, stdout};
use image::{Rgb, RgbImage};

/// Pairs of 16 x 16 pictures: a slope of brightness, and the same one pixel to the side.
fn write_pairs(root: &Path, pairs: u8) {
    for pair in 0..pairs {
        let folder = root.join("images").join(format!("{pair:02}"));
        std::fs::create_dir_all(&folder).unwrap();
        for view in 0..2 {
            let pixel = |x, y| Rgb([(10 * (x + view)) as u8, (10 * y) as u8, 9 * pair]);
            RgbImage::from_fn(16, 16, pixel).save(folder.join(format!("{view}.png"))).unwrap();
        }
    }
}

/// The program on the CPU in this folder.
fn run(root: &Path, args: &[&str]) -> Output {
    let shared = ["--images", "images", "--artifacts", "out"];
    program::run(env!("CARGO_BIN_EXE_cross-view"), root, &[&shared[..], args].concat())
}

#[test]
fn a_short_run_writes_everything_and_is_not_overwritten_by_accident() {
    let dir = tempfile::tempdir().unwrap();
    write_pairs(dir.path(), 21);
    let args = ["--size", "8", "--batch-size", "4", "--epochs", "2", "--steps", "2"];
    let output = stdout(&run(dir.path(), &args));
    assert!(output.contains("18 pairs to train on, 3 held out; 3 of 4 patches"), "{output}");
    assert!(output.contains("Running on the CPU (Flex"), "{output}");
    assert!(output.contains("epoch 2/2") && output.contains("After 2 epochs in"), "{output}");
    let out = dir.path().join("out");
    assert_written(&out, &["run.json", "plot.svg", "model.bpk", "sheet.png"]);
    // The mean over all held-out pairs, by the program's own loop and by burn-train's.
    let last = output.lines().find(|line| line.starts_with("epoch 2/2")).unwrap();
    let reported = output.lines().find(|line| line.ends_with("  the network")).unwrap();
    assert_eq!(last.split("test loss ").nth(1).unwrap()[..6], reported.trim()[..6], "{output}");
    // A row per held-out pair.
    let (width, height) = image::image_dimensions(out.join("sheet.png")).unwrap();
    assert!(width > height && height > 3 * 128, "{width} x {height}");

    assert_repeats(|args| run(dir.path(), args), &args, &out.join("sheet.png"));
}

#[test]
fn what_cannot_be_used_is_named_before_training_starts() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |args: &[&str]| stderr(&run(dir.path(), args));
    assert_eq!(refused(&[]), "error: images is not a folder of pairs\n");
    write_pairs(dir.path(), 3);
    assert_eq!(refused(&["--size", "18"]), "error: --size 18 is not a multiple of 4\n");
    std::fs::write(dir.path().join("images/01/1.png"), b"\x89PNG").unwrap();
    assert_one_line(&refused(&[]), "error: picture images/01/1.png cannot be decoded: ");
    assert!(!dir.path().join("out").exists(), "a run was started");
}
