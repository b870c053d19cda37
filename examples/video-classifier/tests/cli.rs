//! Runs the program as a user does: a first run, a bad clip, a run that is killed and resumed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use example_common::program::{assert_one_line, assert_written, stderr, stdout};
use image::{Rgb, RgbImage};

/// A folder of clips, two classes that differ in the direction a bright column moves; 4 frames of 16 x 16.
fn write_clips(root: &Path, per_class: u32) {
    for (class, step) in [("left", 13), ("right", 3)] {
        for clip in 0..per_class {
            let folder = root.join(class).join(format!("{clip:03}"));
            std::fs::create_dir_all(&folder).unwrap();
            for frame in 0..4 {
                let column = (7 * clip + step * frame) % 16;
                let pixel =
                    |x, y| if x == column { Rgb([250, 200, (40 * y) as u8]) } else { Rgb([clip as u8; 3]) };
                RgbImage::from_fn(16, 16, pixel).save(folder.join(format!("{frame}.png"))).unwrap();
            }
        }
    }
}

struct Place {
    _dir: tempfile::TempDir,
    root: PathBuf,
}

impl Place {
    fn new(per_class: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        write_clips(&root.join("clips"), per_class);
        Self { _dir: dir, root }
    }

    /// The program on the CPU with this place's clips.
    fn command(&self, artifacts: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_video-classifier"));
        command.current_dir(&self.root);
        command.args(["--data", "clips", "--device", "flex", "--artifacts", artifacts]);
        command.args(args);
        command
    }

    fn run(&self, artifacts: &str, args: &[&str]) -> Output {
        self.command(artifacts, args).output().unwrap()
    }
}

/// Every metric log of a run, by name: each holds one line per step.
fn logs(artifacts: &Path) -> BTreeMap<String, String> {
    let mut logs = BTreeMap::new();
    for split in ["train", "valid"] {
        for epoch in std::fs::read_dir(artifacts.join(split)).unwrap() {
            for file in std::fs::read_dir(epoch.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                let name = path.strip_prefix(artifacts).unwrap().display().to_string();
                logs.insert(name, std::fs::read_to_string(path).unwrap());
            }
        }
    }
    logs
}

#[test]
fn a_run_that_is_killed_and_resumed_ends_as_one_that_is_not() {
    let place = Place::new(40);
    let settings = ["--frames", "4", "--size", "16", "--batch-size", "4", "--epochs", "4", "--seed", "9"];
    let whole = stdout(&place.run("whole", &settings));
    let expected = logs(&place.root.join("whole"));
    assert_eq!(expected["train/epoch-4/Loss.log"].lines().count(), 16 + 1, "a line per step and the mean");

    // SIGKILL in the middle of epoch 2: no handler of the program can help.
    let mut child = place.command("killed", &settings).stdout(Stdio::null()).spawn().unwrap();
    let killed = place.root.join("killed");
    let second_epoch = killed.join("train/epoch-2/Loss.log");
    let started = Instant::now();
    while std::fs::read_to_string(&second_epoch).map_or(0, |log| log.lines().count()) < 3 {
        assert!(started.elapsed() < Duration::from_secs(300), "epoch 2 is never reached");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!killed.join("model.bpk").exists(), "the run ended before it could be killed");
    let lost = logs(&killed);
    assert!(!lost.contains_key("train/epoch-4/Loss.log"), "the run was almost over when it was killed");

    // No setting is repeated: they are in the run's folder.
    let resumed = stdout(&place.run("killed", &["--resume"]));
    assert!(resumed.contains("Resuming after epoch "), "{resumed}");
    let found = logs(&killed);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, expected) in &expected {
        assert_eq!(&found[name], expected, "{name} differs from the uninterrupted run");
    }
    let accuracy = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("Test accuracy")).unwrap();
        line.split(" after ").next().unwrap().to_owned()
    };
    assert_eq!(accuracy(&resumed), accuracy(&whole));

    // A finished run can be resumed too: there is nothing left to train, and the report comes out again.
    let again = stdout(&place.run("killed", &["--resume"]));
    assert_eq!(accuracy(&again), accuracy(&whole));
    let error = stderr(&place.run("killed", &["--resume", "--epochs", "6"]));
    assert!(error.contains("started with epochs 4, this one has 6"), "{error}");
}

#[test]
fn a_smoke_run_writes_everything_and_is_not_overwritten_by_accident() {
    let place = Place::new(10);
    let args = ["--frames", "2", "--size", "8", "--batch-size", "2", "--steps", "2"];
    let text = stdout(&place.run("out", &args));
    assert!(text.contains("16 clips to train on, 4 held out"), "{text}");
    assert!(text.contains("Running on the CPU (Flex"), "{text}");
    assert!(text.contains("epoch 1/1"), "{text}");
    assert!(text.contains("of 4 held-out clips) after 1 epoch in"), "{text}");
    let artifacts = place.root.join("out");
    let files = ["run.json", "plot.svg", "model.bpk", "experiment.log", "checkpoint/optim-1.bpk"];
    assert_written(&artifacts, &files);
    assert_eq!(logs(&artifacts)["train/epoch-1/Loss.log"].lines().count(), 2 + 1);

    let error = stderr(&place.run("out", &args));
    assert!(error.contains("out already holds a run (1 of its epochs finished)"), "{error}");
    stdout(&place.run("out", &[&args[..], &["--overwrite"]].concat()));
}

#[test]
fn a_clip_that_cannot_be_read_is_named_before_training_starts() {
    let place = Place::new(3);
    std::fs::write(place.root.join("clips/right/001/2.png"), b"\x89PNG").unwrap();
    let error = stderr(&place.run("out", &[]));
    assert_one_line(&error, "error: frame clips/right/001/2.png cannot be decoded: ");
    assert!(!place.root.join("out").exists(), "a run was started");
}

#[test]
fn what_is_not_there_is_named() {
    let place = Place::new(2);
    let error = stderr(&place.run("several", &["--devices", "2"]));
    assert!(
        error.starts_with("error: --devices asks for 2 devices, there is 1 here: the CPU (Flex"),
        "{error}"
    );
    assert!(!place.root.join("several").exists(), "a run was started");
    let error = stderr(&place.run("nothing", &["--resume"]));
    assert_eq!(error, "error: nothing holds no run to resume\n");
    let output = Command::new(env!("CARGO_BIN_EXE_video-classifier")).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("--data <DIR>"), "{error}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_video-classifier"));
    command.current_dir(&place.root).args(["--data", "clips", "--device", "vulkan", "--artifacts", "out"]);
    let error = stderr(&command.output().unwrap());
    assert!(error.contains("--features vulkan") || error.contains("Vulkan offers no"), "{error}");
    assert!(!place.root.join("out").exists(), "a run was started");
}
