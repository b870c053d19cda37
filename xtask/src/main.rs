//! The project's commands: `cargo xtask demo | test | fuzz | bench | tune | msl | gauge | check | tidy`.
//!
//! This program stays light, so that it builds in seconds; everything heavy is a crate of its own that it
//! starts through cargo.

mod driver;
mod gauge;
mod tidy;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use std::fs::File;
use std::io::Seek;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Commands of the burn-conv-ops workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Train an example on the best device present: the video classifier, on moving shapes that it makes
    /// first, or another one.
    Demo {
        /// Which example.
        #[arg(long, value_enum, default_value_t = Example::VideoClassifier)]
        example: Example,
        /// Video classifier: where the clips are written (and read again).
        #[arg(long, default_value = "data/moving-shapes")]
        data: PathBuf,
        /// Further options of the example, such as `--device software` or `--epochs 3`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Make sure a Vulkan driver and clang exist (Debian and Ubuntu: install lavapipe and clang), then run
    /// every test.
    Test {
        /// Every launch of every table instead of a covering of them (docs/testing.md).
        #[arg(long)]
        full: bool,
        /// Further options for `cargo test`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Random problems of every op and plan against the f64 references; a failing one is made small and
    /// printed as a line.
    Fuzz {
        /// Options of the program (`--seconds N`, `--seed S`, `--device metal|software|vulkan`,
        /// `--replay LINE`); `-- --help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Verify, then time, every workload against Burn's own op, with `--peers` against PyTorch, MLX and
    /// causal-conv1d too; or read records that were written before (docs/performance.md).
    Bench {
        /// Lower through SPIR-V instead of WGSL: real GPUs on Linux and Windows.
        #[arg(long)]
        vulkan: bool,
        /// Print what got slower between two records by more than the noise, and geometric means.
        #[arg(long, num_args = 2, value_names = ["OLD", "NEW"], conflicts_with = "report")]
        compare: Vec<String>,
        /// Turn a record into an HTML page with plots; `--plots DIR` behind it writes these as files too.
        #[arg(long, value_name = "RECORD")]
        report: Option<String>,
        /// Options of the benchmark program (`--op`, `--case`, `--dtype`, `--pass`, `--plan all`, `--layout`,
        /// `--size small`, `--device software`, `--peers`); `-- --help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Verify and time every eligible plan of conv3d on the device, and hold the model that chooses among
    /// them against the times: regret, rank correlation, suggested constants, as a file for an issue.
    Tune {
        /// Lower through SPIR-V instead of WGSL: real GPUs on Linux and Windows.
        #[arg(long)]
        vulkan: bool,
        /// The file.
        #[arg(long, default_value = "bench/results/tune.txt")]
        out: PathBuf,
        /// Options of the benchmark program (`--size small`, `--case`, `--dtype`, `--pass`,
        /// `--device software`; `--record RECORD --chip h200` reads a record and runs nothing).
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Write the Metal source of every kernel with its resource table; fail over Apple's budget.
    Msl {
        /// Options of the program; `-- --help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Compile the Metal source of every kernel to an M1's machine code and compare registers, occupancy and
    /// spills with docs/gauge.csv (Linux; once: tools/agx-gauge/setup).
    Gauge {
        /// Only kernels whose names match this regular expression; the record stays.
        #[arg(long)]
        filter: Option<String>,
        /// Record the figures although some kernels got worse.
        #[arg(long)]
        accept: bool,
    },
    /// Formatting, clippy, documentation, licences (where cargo-deny is installed) and tidy.
    Check {
        /// Leave out clippy and documentation: the build was made with both, as `.ci/run` does.
        #[arg(long)]
        built: bool,
    },
    /// The project's own rules: file length, module docs, a reference next to each op, safety comments.
    Tidy,
}

#[derive(Clone, Copy, ValueEnum)]
enum Example {
    /// conv3d: tells video clips apart.
    VideoClassifier,
    /// Causal conv1d: learns a text and writes on.
    MambaText,
    /// RoPE2D: completes masked images from a second view.
    CrossView,
    /// Causal conv3d: takes clips to latents and back.
    VideoVae,
    /// conv3d and transposed conv3d: finds what is labelled in volumes.
    VolumeSegmentation,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Task::Demo { example, data, options } => demo(example, &data, &options),
        Task::Test { full, options } => test(full, &options),
        Task::Fuzz { options } => fuzz(&options),
        Task::Bench { vulkan, compare, report, options } => bench(vulkan, &compare, report, &options),
        Task::Tune { vulkan, out, options } => {
            let tune = ["--tune".to_string(), out.display().to_string()];
            conv_bench(vulkan, &[&tune, &options[..]].concat())
        }
        Task::Msl { options } => run("conv-msl", &options),
        Task::Gauge { filter, accept } => {
            run("conv-msl", &[])?;
            gauge::run(&root(), &root().join("target/msl"), filter.as_deref(), accept)
        }
        Task::Check { built } => check(built),
        Task::Tidy => tidy::run(&root()),
    }
}

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Cores of this machine.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Cargo in the workspace.
fn cargo_command(arguments: impl IntoIterator<Item = String>) -> Command {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Runs cargo in the workspace with the terminal passed through.
fn cargo(arguments: impl IntoIterator<Item = String>) -> Result<()> {
    finish(&mut cargo_command(arguments))
}

/// Runs a command of [`cargo_command`] to its end.
fn finish(command: &mut Command) -> Result<()> {
    let arguments: Vec<_> =
        command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let status =
        command.status().with_context(|| format!("cargo {} could not be started", arguments.join(" ")))?;
    if !status.success() {
        bail!("`cargo {}` failed ({status})", arguments.join(" "));
    }
    Ok(())
}

/// Builds one of the workspace's programs and runs it. `--workspace` makes cargo choose the features of all
/// members together, so that the tests, the demo and this share one build of Burn.
fn run(program: &str, options: &[String]) -> Result<()> {
    cargo(words(&format!("build --workspace --bin {program}")))?;
    // A relative folder is one of the workspace's, since that is where cargo runs.
    let target = root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()));
    let path = target.join("debug").join(program).with_extension(std::env::consts::EXE_EXTENSION);
    let status = Command::new(&path)
        .args(options)
        .current_dir(root())
        .status()
        .with_context(|| format!("{} could not be started", path.display()))?;
    if !status.success() {
        bail!("{program} failed ({status})");
    }
    Ok(())
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(String::from).collect()
}

fn demo(example: Example, data: &Path, options: &[String]) -> Result<()> {
    println!("building the example (minutes the first time) ...");
    match example {
        Example::VideoClassifier => video_classifier(data, options),
        Example::MambaText => run("mamba-text", options),
        Example::CrossView => run("cross-view", options),
        Example::VideoVae => run("video-vae", options),
        Example::VolumeSegmentation => run("volume-segmentation", options),
    }
}

fn video_classifier(data: &Path, options: &[String]) -> Result<()> {
    let data = if data.is_absolute() { data.to_path_buf() } else { root().join(data) };
    let data = data.display().to_string();
    if !Path::new(&data).exists() {
        run("video-classifier", &["--make-data".into(), data.clone()])?;
    }
    let options: Vec<String> = ["--data".into(), data].into_iter().chain(options.iter().cloned()).collect();
    run("video-classifier", &options)
}

/// What a tier sets in the environment of the tests, but for what `is_set` already.
fn tier(full: bool, is_set: impl Fn(&str) -> bool) -> Vec<(&'static str, &'static str)> {
    let mut tier = if full {
        vec![("CONV_TESTS", "full"), ("MSL_HOST_LIBRARIES", "off"), ("PROPTEST_CASES", "10000")]
    } else {
        // lavapipe compiles most kernels for one small launch: without LLVM's optimizations the suites take
        // an eighth less.
        vec![("GALLIVM_PERF", "nopt")]
    };
    tier.retain(|(name, _)| *name == "CONV_TESTS" || !is_set(name));
    tier
}

fn test(full: bool, options: &[String]) -> Result<()> {
    driver::ensure()?;
    if driver::EXECUTES_METAL {
        driver::ensure_compiler()?;
    }
    let suite = words("test --workspace --no-fail-fast");
    let metal = words("test --workspace --test metal");
    // All of both together.
    cargo(words("test --workspace --lib --bins --test * --no-run"))?;
    let tests = |suite: &[String]| {
        let mut command = cargo_command(suite.iter().chain(options).cloned());
        command.envs(tier(full, |name| std::env::var_os(name).is_some()));
        command
    };
    // The software driver leaves a core idle, which runs the emitted Metal source meanwhile; what is left of
    // it afterwards has all cores, so it gives way. Its output is shown at the end.
    let output = tempfile::tempfile()?;
    let tested = tests(&metal);
    let mut metal_tests = Command::new("nice");
    metal_tests.args(["-n", "10"]).arg(tested.get_program()).args(tested.get_args()).current_dir(root());
    metal_tests.envs(tested.get_envs().filter_map(|(name, value)| Some((name, value?))));
    metal_tests
        .env("RUST_TEST_THREADS", threads().to_string())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?);
    let metal_tests = if driver::EXECUTES_METAL { Some(metal_tests.spawn()) } else { None };
    let metal_tests =
        metal_tests.transpose().context("the tests of the emitted Metal source could not be started")?;
    let tested = finish(&mut tests(&suite));
    if let Some(mut metal_tests) = metal_tests {
        println!("the emitted Metal source on the CPU ...");
        let metal = metal_tests.wait()?;
        show(output)?;
        if !metal.success() {
            tested?;
            bail!("the tests of the emitted Metal source failed ({metal})");
        }
    } else {
        println!("skipped: {}", driver::NO_METAL);
    }
    tested?;
    println!("again without Burn's fusion layer ...");
    // With `--workspace` only Burn's upper crates are built again: all others have the features of the build
    // above.
    let features = "burn-conv-ops/std,burn-conv-ops/wgpu,burn-conv-ops/flex,burn-conv-ops/autodiff";
    finish(&mut tests(&words(&format!(
        "test --workspace --test burn --no-default-features --features {features}"
    ))))
}

fn bench(vulkan: bool, compare: &[String], report: Option<String>, options: &[String]) -> Result<()> {
    // Light: nothing of Burn is built for it.
    let record = |command: &str, files: &[String]| {
        let arguments = words("run --quiet -p bench-record --").into_iter().chain([command.to_string()]);
        cargo(arguments.chain(files.iter().chain(options).cloned()))
    };
    if !compare.is_empty() {
        return record("compare", compare);
    }
    if let Some(report) = report {
        return record("report", &[report]);
    }
    conv_bench(vulkan, options)
}

/// Builds the benchmark program as its options need it and runs it.
fn conv_bench(vulkan: bool, options: &[String]) -> Result<()> {
    // Nothing is run.
    let reads = |option: &String| {
        option.starts_with("--predict") || option.starts_with("--record") || is_help(option)
    };
    if options.iter().any(reads) {
        return run("conv-bench", options);
    }
    // Times on a rasterizer say little, so it makes do with the build that the tests have.
    if options.iter().any(|option| option == "software" || option == "--device=software") {
        driver::ensure()?;
        return run("conv-bench", options);
    }
    let features = if vulkan { "vulkan,autotune" } else { "autotune" };
    println!("building with optimization, apart from the tests' build (minutes the first time) ...");
    let arguments = ["run", "--release", "-p", "conv-bench", "--features", features, "--"];
    cargo(arguments.into_iter().map(String::from).chain(options.iter().cloned()))
}

/// Whether an option asks for the list of options.
fn is_help(option: &str) -> bool {
    option == "--help" || option == "-h"
}

fn fuzz(options: &[String]) -> Result<()> {
    if options.iter().any(|option| is_help(option)) {
        return run("conv-fuzz", options);
    }
    driver::ensure()?;
    driver::ensure_compiler()?;
    if options.iter().any(|option| option == "vulkan" || option == "--device=vulkan") {
        let arguments = words("run --release -p conv-fuzz --features vulkan --");
        return cargo(arguments.into_iter().chain(options.iter().cloned()));
    }
    run("conv-fuzz", options)
}

/// Copies a finished program's output to the terminal.
fn show(mut output: File) -> Result<()> {
    output.rewind()?;
    std::io::copy(&mut output, &mut std::io::stdout())?;
    Ok(())
}

fn check(built: bool) -> Result<()> {
    cargo(words("fmt --all --check"))?;
    if !built {
        cargo(words("clippy --workspace --all-targets -- -D warnings"))?;
        cargo(words("clippy --workspace --test metal -- -D warnings"))?;
        let warnings = r#"build.rustdocflags=["-Dwarnings"]"#.to_string();
        // Of the whole workspace, which shares clippy's builds of the dependencies.
        let doc = words("doc --no-deps --workspace --lib --config");
        cargo(doc.into_iter().chain([warnings]))?;
    }
    // The smallest build: no GPU, no autodiff, no fusion.
    cargo(words("check -p burn-conv-ops --no-default-features --features std,flex"))?;
    // Every other backend, in one build of Burn anew; as on docs.rs without the LLVM that ROCm and CPU fetch.
    if !built {
        let features = "std,vulkan,metal,webgpu,cuda,rocm,cpu,tracing";
        let check = format!("check -p burn-conv-ops --no-default-features --features {features}");
        finish(cargo_command(words(&check)).env("DOCS_RS", "1"))?;
    }
    let deny = Command::new("cargo").args(["deny", "--version"]).output();
    if deny.is_ok_and(|output| output.status.success()) {
        cargo(words("deny check licenses bans sources"))?;
    } else {
        println!("cargo-deny is not installed: licences were not checked");
    }
    tidy::run(&root())
}

#[cfg(test)]
mod tests;
