//! What the tests of the examples' command lines share: a program run as a user runs it, what it says and
//! what it leaves.

use std::path::Path;
use std::process::{Command, Output};

/// The program on the CPU in this folder.
///
/// # Panics
/// If it cannot be started.
pub fn run(program: &str, folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.current_dir(folder).args(args).args(["--device", "flex"]);
    command.output().expect("the program starts")
}

/// What a successful run printed.
///
/// # Panics
/// If it failed.
pub fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("the output is text")
}

/// What a refused run printed.
///
/// # Panics
/// If it was not refused.
pub fn stderr(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).expect("the error is text")
}

/// Requires an error of one line that begins like this.
///
/// # Panics
/// If it is another one.
pub fn assert_one_line(error: &str, start: &str) {
    assert!(error.starts_with(start) && error.lines().count() == 1, "{error}");
}

/// Requires files that are not empty.
///
/// # Panics
/// If one is missing or empty.
pub fn assert_written(folder: &Path, files: &[&str]) {
    for file in files {
        assert!(folder.join(file).metadata().is_ok_and(|file| file.len() > 0), "{file}");
    }
}

/// Requires that a finished run in the folder `out` is not overwritten by accident, and that the same seed
/// gives the same `result` again.
///
/// # Panics
/// If either is not so.
pub fn assert_repeats(run: impl Fn(&[&str]) -> Output, args: &[&str], result: &Path) {
    let error = stderr(&run(args));
    assert!(error.starts_with("error: out already holds a run: add --overwrite"), "{error}");
    let first = std::fs::read(result).expect("the run has a result");
    stdout(&run(&[args, &["--overwrite"]].concat()));
    assert!(std::fs::read(result).is_ok_and(|again| again == first), "{} differs", result.display());
}
