//! Random problems of every op and plan against the f64 references, on one device.

use anyhow::{Result, anyhow, bail};
use clap::Parser;
use conv_fuzz::device::{Device, Kind};
use conv_fuzz::run::{Options, fuzz, regressions, run_named};
use conv_fuzz::text::{Case, Op};
use std::process::ExitCode;
use std::time::Duration;

/// Random problems of every op and plan against the f64 references. A failing problem is shrunk and printed
/// as a line, which `--replay` runs again and `crates/conv-fuzz/regressions.txt` keeps.
#[derive(Debug, Parser)]
#[command(name = "conv-fuzz", version)]
struct Arguments {
    /// Where problems run
    #[arg(long, value_enum, default_value_t = Kind::Software)]
    device: Kind,

    /// Which random problems: number n of a seed is always the same
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Seconds to run, shrinking aside
    #[arg(long, default_value_t = 60)]
    seconds: u64,

    /// Problems to run at most
    #[arg(long, default_value_t = u64::MAX)]
    problems: u64,

    /// Number of the first problem
    #[arg(long, default_value_t = 0)]
    first: u64,

    /// Problems of this op only (conv3d, causal_conv1d, update, packed, rope)
    #[arg(long)]
    op: Option<String>,

    /// Runs this line, and nothing else
    #[arg(long, value_name = "LINE")]
    replay: Option<String>,

    /// Runs the named regressions, and nothing else
    #[arg(long)]
    regressions: bool,

    /// Prints every problem before it is run
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("conv-fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let device = Device::open(arguments.device)?;
    if let Some(line) = &arguments.replay {
        return replay(&device, "the line", &Case::parse(line).map_err(|error| anyhow!(error))?);
    }
    if arguments.regressions {
        let all = regressions().map_err(|error| anyhow!(error))?;
        let failed = all.iter().filter(|(name, case)| {
            replay(&device, name, case).inspect_err(|error| println!("{error}")).is_err()
        });
        return match failed.count() {
            0 => Ok(()),
            count => bail!("{count} of {} regressions failed", all.len()),
        };
    }
    let ops = match &arguments.op {
        None => Op::ALL.to_vec(),
        Some(name) => Op::ALL.into_iter().filter(|op| op.name() == name).collect(),
    };
    if ops.is_empty() {
        bail!("there is no op `{}`", arguments.op.as_deref().unwrap_or_default());
    }
    let report = fuzz(
        &device,
        &Options {
            seed: arguments.seed,
            first: arguments.first,
            problems: arguments.problems,
            time: Duration::from_secs(arguments.seconds),
            ops,
            verbose: arguments.verbose,
        },
    );
    println!("{} seed {}: {report}", device.name, arguments.seed);
    if report.found.is_empty() { Ok(()) } else { bail!("{} different failures", report.found.len()) }
}

fn replay(device: &Device, name: &str, case: &Case) -> Result<()> {
    match run_named(device, case) {
        Ok(0) => println!("{name}: not run: its plan needs matrix units"),
        Ok(checks) => println!("{name}: {checks} checks hold"),
        Err(error) => bail!("{name}: {error}"),
    }
    Ok(())
}
