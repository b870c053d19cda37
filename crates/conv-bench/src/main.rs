//! Verifies, then times, every workload of conv-kernels against Burn's own op on the same device.
//!
//! ```text
//! options.rs                            the command line
//! device.rs                             the adapter, its copy bandwidth and peak rates
//! scale.rs                              small versions of the workloads
//! conv3d/ causal_conv1d/ rope*.rs       the rows of each op and the truth of their results
//! causal_conv3d/                        the layers of video decoders, and what a decoder's step takes
//! training/                             steps of whole networks, by Burn and patched
//! burn_peer/                            Burn's own ops
//! tune/                                 the model of the choice against measured times of every plan
//! predict.rs                            what the model says of Apple chips, without a device
//! peers.rs                              PyTorch, MLX and others, in a process of Python
//! data.rs                               inputs as functions of the index, results read back
//! bench.rs                              one row: verify.rs, then measure.rs, then report.rs
//! ```

mod bench;
mod burn_peer;
mod causal_conv1d;
mod causal_conv3d;
mod conv3d;
mod data;
mod device;
mod measure;
mod options;
mod peers;
mod predict;
mod report;
mod rope;
mod rope2d;
mod scale;
mod training;
mod tune;
mod verify;

use anyhow::Result;
use bench::Bench;
use bench_record::statistics::{Samples, short};
use clap::Parser;
use cubecl::config::autotune::AutotuneLevel;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use device::{Device, Roofline};
use measure::Timer;
use options::{Op, Options, Size};
use peers::Peers;
use report::Report;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conv-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut options: Options) -> Result<bool> {
    if let (Some(file), false) = (&options.tune, options.record.is_empty()) {
        return tune::of_records(&options, file).map(|()| true);
    }
    if options.tune.is_some() {
        options = options.for_tuning();
    }
    if !options.predict.is_empty() {
        return predict::run(&options, &options.predict).map(|()| true);
    }
    if options.tuner.is_some() || options.tuner_samples.is_some() {
        set_tuner(options.tuner.map(AutotuneLevel::from), options.tuner_samples);
    }
    let mut device = Device::open(options.device)?;
    if let Some(gflop) = options.dispatch_gflop {
        device.limits.dispatch_operations = gflop * 1e9;
    }
    if options.op == Op::TrainingStep {
        training::register(&device)?;
    }
    let size = options.size.unwrap_or(if device.software { Size::Small } else { Size::Full });
    let name = if size == Size::Small { "small" } else { "full" };
    let default_samples = if size == Size::Small { 5 } else { 15 };
    let clocks = (!device.software).then(|| Rc::new(device::clocks(&device)));
    let timer = Timer {
        client: device.client.clone(),
        samples: options.samples.unwrap_or(default_samples) as usize,
        warm_up: Duration::from_millis(if device.software { 0 } else { 100 }),
        clocks: clocks.clone(),
    };
    println!(
        "{} through {}, sizes: {name}, timed by {}",
        device.name,
        device.backend,
        if timer.has_time_stamps() {
            "the device's time stamps and the host's clock"
        } else {
            "the host's clock"
        }
    );
    // Takes seconds, and steps of networks are not held against it.
    let roofline = match options.op {
        Op::TrainingStep => None,
        _ => Some(Roofline::measure(&device, clocks)?),
    };
    if let Some(roofline) = &roofline {
        println!("measured limits: {}", roofline_text(roofline));
    }

    let steps = conv3d::cases(&options, size).len()
        + causal_conv3d::cases(&options, size).len()
        + causal_conv1d::cases(&options, size).len()
        + rope2d::cases(&options, size).len()
        + rope::cases(&options, size).len()
        + training::cases(&options, size).len();
    anyhow::ensure!(
        steps > 0,
        "no case of {:?} has \"{}\" in its name",
        options.op,
        options.case.join("\" or \"")
    );
    let peers = options.peers.then(|| Peers::start(&options.python, &timer, device.software));
    let peers = peers.and_then(|peers| peers.map_err(|error| println!("no peers: {error:#}")).ok());
    let suffix = if size == Size::Small { "-small" } else { "" };
    let report = Report::create(&options.out, &format!("{}{suffix}", device.slug()), steps)?;
    let mut bench = Bench { options, size, device, roofline, timer, report, peers };
    refuse_dtypes(&mut bench);
    conv3d::run(&mut bench)?;
    causal_conv3d::run(&mut bench)?;
    causal_conv1d::run(&mut bench)?;
    rope2d::run(&mut bench)?;
    rope::run(&mut bench)?;
    training::run(&mut bench)?;
    if let Some(file) = &bench.options.tune {
        let origin = tune::Origin {
            adapter: bench.device.name.clone(),
            backend: bench.device.backend.into(),
            rates_of: bench.device.name.clone(),
            size: name.into(),
            measured: bench.roofline.as_ref().map_or(String::new(), roofline_text).replace('\n', ", "),
        };
        tune::of_run(&bench.report, &bench.options, &bench.device.limits, &origin, file)?;
    }
    let low = bench.timer.clocks.as_ref().map_or(0, |clocks| clocks.low.get());
    if low > 0 {
        bench
            .report
            .skip(format!("{low} rows were timed, but the device did not keep its highest clocks meanwhile"));
    }
    Ok(bench.report.finish())
}

/// Before CubeCL reads its configuration, which is at the first use of a device.
fn set_tuner(level: Option<AutotuneLevel>, samples: Option<u64>) {
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    if let Some(level) = level {
        config.autotune.level = level;
    }
    if let Some(samples) = samples {
        config.autotune.bench.min_samples = samples as usize;
        config.autotune.bench.max_samples = 2 * samples as usize;
    }
    CubeClRuntimeConfig::set(config);
}

fn roofline_text(roofline: &Roofline) -> String {
    let peak = |(dtype, peak): &(conv_kernels::FloatType, f64)| {
        format!(", {} {:.1} TFLOP/s", dtype.name(), peak * 1e-12)
    };
    let peaks: String = roofline.compute.iter().map(peak).collect();
    let micro = |samples: Samples| samples.median * 1e3;
    let device = roofline
        .launch
        .device
        .map_or(String::new(), |samples| format!(", {:.1} us between time stamps", micro(samples)));
    format!(
        "copy {} GB/s{peaks}\na launch that does nothing: {:.1} us{device}",
        short(roofline.copy * 1e-9),
        micro(roofline.launch.wall)
    )
}

/// Says which storage types the device lacks; asking for one by name is no error, so that one command line
/// serves every machine.
fn refuse_dtypes(bench: &mut Bench) {
    let served = bench.dtypes();
    for dtype in bench.options.dtypes() {
        if !served.contains(&dtype) {
            let names: Vec<_> = bench.device.limits.dtypes.iter().map(|dtype| dtype.name()).collect();
            let names = names.join(", ");
            bench
                .report
                .skip(format!("{}: this device cannot hold such tensors, it serves {names}", dtype.name()));
        }
    }
}
