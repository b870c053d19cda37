//! Runs the program as a user does: a short run of training, its model on a clip, and what is refused.

use std::path::Path;
use std::process::Output;

use example_common::program::{self, assert_written, stderr, stdout};
use image::{Rgb, RgbImage};

/// The program on the CPU in this folder.
fn run(root: &Path, args: &[&str]) -> Output {
    program::run(env!("CARGO_BIN_EXE_video-vae"), root, args)
}

/// Six frames of 18 x 17 pixels, of which 16 x 16 are used.
fn write_clip(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for frame in 0..6u8 {
        let pixel = |x, y| Rgb([(10 * x) as u8, (10 * y) as u8, 40 * frame]);
        RgbImage::from_fn(18, 17, pixel).save(folder.join(format!("{frame}.png"))).unwrap();
    }
}

fn png_bytes(folder: &Path) -> Vec<Vec<u8>> {
    (0..6).map(|frame| std::fs::read(folder.join(format!("{frame:05}.png"))).unwrap()).collect()
}

#[test]
fn a_model_is_trained_and_takes_a_clip_to_latents_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let args = ["--batch-size", "1", "--steps", "1", "--held-out-frames", "11", "--artifacts", "out"];
    let output = stdout(&run(root, &args));
    assert!(output.contains("Running on the CPU (Flex") && output.contains("epoch 1/1"), "{output}");
    assert!(output.contains("held-out clip of 11 frames") && output.contains("After 1 epoch in"), "{output}");
    assert_written(&root.join("out"), &["run.json", "plot.svg", "before-after.gif", "config.json"]);

    write_clip(&root.join("clip"));
    let model = ["--model", "out"];
    let with = |args: &[&str]| run(root, &[args, &model].concat());
    let output = stdout(&with(&["encode", "clip", "-o", "latents.safetensors"]));
    // 1 frame, then 3 pairs, the last of them filled up.
    assert!(output.contains("6 frames as latents [1, 8, 4, 4, 4]"), "{output}");
    stdout(&with(&["decode", "latents.safetensors", "-o", "decoded"]));
    let output = stdout(&with(&["reconstruct", "clip", "-o", "again", "--chunk", "3"]));
    assert!(output.contains("6 frames in again") && output.contains(" dB over 6 frames"), "{output}");
    assert!(!root.join("decoded/00006.png").exists());
    assert_eq!(png_bytes(&root.join("decoded")), png_bytes(&root.join("again")), "chunks change the frames");
}

#[test]
fn the_decoder_is_timed_with_random_weights() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let text = r#"{"_class_name": "AutoencoderKLWan", "base_dim": 4, "dim_mult": [1, 2], "z_dim": 2,
        "temperal_downsample": [true], "num_res_blocks": 1}"#;
    std::fs::write(root.join("config.json"), text).unwrap();
    let timed = |size: &str| {
        let args = ["time", "--config", "config.json", "--size", size, "--frames", "6", "--repeats", "2"];
        run(root, &args)
    };
    let output = stdout(&timed("8x12"));
    assert!(output.contains("in f32: 4 latent frames, 1 at a time, of 8x12 pixels"), "{output}");
    assert!(output.contains("First decoding, kernels compiled and tuned on the way: "), "{output}");
    assert!(output.contains("(median of 2, ") && output.contains(" s) for 7 frames: "), "{output}");
    assert!(output.contains("s per second of video at 16 frames/s."), "{output}");
    assert!(output.contains("A chunk after the first one: ") && output.contains("(median of 6)"), "{output}");
    let error = stderr(&timed("8x13"));
    assert_eq!(error, "error: a latent of this model has 2x2 pixels, of which 8x13 is no multiple\n");
}

#[test]
fn what_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write_clip(&root.join("clip"));
    let refused = |args: &[&str]| stderr(&run(root, args));
    let error = refused(&["encode", "clip"]);
    assert_eq!(
        error,
        "error: artifacts/video-vae is no folder with config.json and diffusion_pytorch_model.safetensors\n"
    );
    let model = root.join("artifacts/video-vae");
    std::fs::create_dir_all(&model).unwrap();
    let config = |text: &str| std::fs::write(model.join("config.json"), text).unwrap();
    config(r#"{"_class_name": "AutoencoderKL"}"#);
    let error = refused(&["encode", "clip"]);
    assert!(error.contains("video-vae/config.json is no configuration of a known model"), "{error}");
    config(r#"{"_class_name": "AutoencoderKLLTXVideo", "timestep_conditioning": true}"#);
    let error = refused(&["encode", "clip"]);
    assert!(error.contains("config.json: timestep_conditioning is not built here"), "{error}");
    config(r#"{"_class_name": "AutoencoderKLWan", "base_dim": 2, "dim_mult": [1, 1, 1, 1], "z_dim": 1}"#);
    let error = refused(&["encode", "clip"]);
    assert!(error.contains("diffusion_pytorch_model.safetensors is missing"), "{error}");
    std::fs::write(model.join("diffusion_pytorch_model.safetensors"), b"not a model").unwrap();
    let error = refused(&["encode", "clip"]);
    assert!(error.contains("diffusion_pytorch_model.safetensors cannot be read: "), "{error}");
    std::fs::write(root.join("latents.safetensors"), b"nor latents").unwrap();
    let error = refused(&["decode", "latents.safetensors", "-o", "out"]);
    assert!(error.starts_with("error: latents.safetensors is no file of latents: "), "{error}");
}
