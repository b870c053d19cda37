//! Runs the program as a user does: a short run, and what it refuses.

use std::path::Path;
use std::process::Output;

use example_common::program::{self, assert_one_line, assert_repeats, assert_written, stderr, stdout};

/// The program on the CPU in this folder.
fn run(root: &Path, args: &[&str]) -> Output {
    program::run(env!("CARGO_BIN_EXE_mamba-text"), root, &[&["--artifacts", "out"][..], args].concat())
}

const SHORT: [&str; 8] = ["--epochs", "2", "--steps", "2", "--batch-size", "2", "--length", "20"];

#[test]
fn a_short_run_writes_everything_and_is_not_overwritten_by_accident() {
    let dir = tempfile::tempdir().unwrap();
    let text = "ab, ba. ".repeat(40);
    std::fs::write(dir.path().join("text.txt"), &text).unwrap();
    let args = [&SHORT[..], &["--text", "text.txt", "--prompt", "ab", "--characters", "25"]].concat();
    let output = stdout(&run(dir.path(), &args));
    assert!(output.contains("320 characters, 5 of them different; the last 32 are held out"), "{output}");
    assert!(output.contains("Running on the CPU (Flex"), "{output}");
    assert!(output.contains("epoch 2/2") && output.contains("After 2 epochs in"), "{output}");
    let out = dir.path().join("out");
    assert_written(&out, &["run.json", "plot.svg", "model.bpk", "sample.txt"]);
    let sample = std::fs::read_to_string(out.join("sample.txt")).unwrap();
    assert!(sample.starts_with("ab") && sample.chars().count() == 2 + 25 + 1, "{sample:?}");
    assert!(output.contains(sample[2..].trim_end()), "{output}");

    assert_repeats(|args| run(dir.path(), args), &args, &out.join("sample.txt"));
}

#[test]
fn what_cannot_be_used_is_named_before_training_starts() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |args: &[&str]| stderr(&run(dir.path(), args));
    assert_one_line(&refused(&["--text", "no.txt"]), "error: no.txt cannot be read: ");
    std::fs::write(dir.path().join("bytes.txt"), [0xff; 999]).unwrap();
    assert!(refused(&["--text", "bytes.txt"]).starts_with("error: bytes.txt is not UTF-8 text: "));
    std::fs::write(dir.path().join("short.txt"), "too short").unwrap();
    assert!(refused(&["--text", "short.txt"]).starts_with("error: the text has 9 characters, at least 258"));
    assert_eq!(refused(&["--prompt", "\u{7}"]), "error: --prompt: '\\u{7}' does not occur in the text\n");
    assert_eq!(refused(&["--prompt", ""]), "error: --prompt needs at least one character\n");
    assert!(!dir.path().join("out").exists(), "a run was started");
}
