//! Runs the program as a user does: a short run, and what it refuses.

use std::path::Path;
use std::process::{Command, Output};

/// The program on the CPU in this folder.
fn run(root: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mamba-text"));
    command.current_dir(root).args(["--device", "flex", "--artifacts", "out"]).args(args);
    command.output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
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
    for file in ["run.json", "plot.svg", "model.bpk", "sample.txt"] {
        assert!(out.join(file).metadata().is_ok_and(|file| file.len() > 0), "{file}");
    }
    let sample = std::fs::read_to_string(out.join("sample.txt")).unwrap();
    assert!(sample.starts_with("ab") && sample.chars().count() == 2 + 25 + 1, "{sample:?}");
    assert!(output.contains(sample[2..].trim_end()), "{output}");

    let error = stderr(&run(dir.path(), &args));
    assert!(error.starts_with("error: out already holds a run: add --overwrite"), "{error}");
    // The same seed gives the same text.
    stdout(&run(dir.path(), &[&args[..], &["--overwrite"]].concat()));
    assert_eq!(std::fs::read_to_string(out.join("sample.txt")).unwrap(), sample);
}

#[test]
fn what_cannot_be_used_is_named_before_training_starts() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |args: &[&str]| stderr(&run(dir.path(), args));
    let error = refused(&["--text", "no.txt"]);
    assert!(error.starts_with("error: no.txt cannot be read: ") && error.lines().count() == 1, "{error}");
    std::fs::write(dir.path().join("bytes.txt"), [0xff; 999]).unwrap();
    assert!(refused(&["--text", "bytes.txt"]).starts_with("error: bytes.txt is not UTF-8 text: "));
    std::fs::write(dir.path().join("short.txt"), "too short").unwrap();
    assert!(refused(&["--text", "short.txt"]).starts_with("error: the text has 9 characters, at least 258"));
    assert_eq!(refused(&["--prompt", "\u{7}"]), "error: --prompt: '\\u{7}' does not occur in the text\n");
    assert_eq!(refused(&["--prompt", ""]), "error: --prompt needs at least one character\n");
    assert!(!dir.path().join("out").exists(), "a run was started");
}
