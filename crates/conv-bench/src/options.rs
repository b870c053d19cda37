//! The command line.

use clap::{Parser, ValueEnum};
use conv_kernels::FloatType;
use cubecl::config::autotune::AutotuneLevel;
use std::path::PathBuf;

/// Verifies, then times, every workload of conv-kernels against Burn's own op.
///
/// A result is compared with f64 arithmetic before it is timed; a row whose result was not verified is not
/// written. Writes DIR/DATE-DEVICE.csv, a benchmark record (docs/performance.md).
#[derive(Clone, Debug, Parser)]
#[command(name = "conv-bench", version)]
pub(crate) struct Options {
    /// Real shapes, or the same layers scaled down until a software adapter runs them [default: full on a
    /// GPU]
    #[arg(long, value_enum)]
    pub(crate) size: Option<Size>,

    /// Which op
    #[arg(long, value_enum, default_value_t = Op::All)]
    pub(crate) op: Op,

    /// Only cases whose name contains one of these [default: all]
    #[arg(long, value_delimiter = ',', value_name = "SUBSTRING,..")]
    pub(crate) case: Vec<String>,

    /// Storage types [default: those the device serves]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TYPE,..")]
    pub(crate) dtype: Vec<Dtype>,

    /// Passes: forward, gradients of input, weight, bias, all gradients, forward and gradients [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PASS,..")]
    pub(crate) pass: Vec<Pass>,

    /// The plan that is chosen automatically, every eligible one (`all`), or those with one of these in their
    /// names
    #[arg(long, default_value = AUTO, value_delimiter = ',', value_name = "auto|all|SUBSTRING,..")]
    pub(crate) plan: Vec<String>,

    /// Memory order: channels (rope2d: heads) before what they are convolved along, behind it, or both
    #[arg(long, value_enum, default_value_t = Layouts::First)]
    pub(crate) layout: Layouts,

    /// The default GPU, or the software adapter
    #[arg(long, value_enum, default_value_t = DeviceChoice::Default)]
    pub(crate) device: DeviceChoice,

    /// Timed runs per row at least; runs of more than a second are timed three times [default: 15, small 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) samples: Option<u64>,

    /// Leave Burn's own op out, and of training steps Burn's kernels
    #[arg(long)]
    pub(crate) no_burn: bool,

    /// How many kernels Burn's tuner tries, where it is compiled in: `minimal` bounds its trials, `full`
    /// tries all [default: CubeCL's configuration, `balanced`]
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub(crate) tuner: Option<Tuner>,

    /// How often Burn's tuner times a kernel at least, and at most twice as often
    /// [default: CubeCL's configuration, 3 to 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(crate) tuner_samples: Option<u64>,

    /// Leave Burn's own op out where one forward pass has more operations than this
    #[arg(long, default_value_t = 600.0, value_name = "GFLOP")]
    pub(crate) burn_max_gflop: f64,

    /// Run nothing: print which plan conv3d's layers get on these Apple chips ("Apple M3 Max"), the
    /// milliseconds that the model predicts, and MLX's by the same model
    #[arg(long, value_delimiter = ',', value_name = "CHIP,..")]
    pub(crate) predict: Vec<String>,

    /// Time every eligible plan of conv3d, hold the model of the choice against the times, and write both to
    /// this file, for an issue; leaves everything but --size, --case, --dtype, --pass, --layout, --device,
    /// --samples, --max-gib and --out as it is
    #[arg(long, value_name = "FILE")]
    pub(crate) tune: Option<PathBuf>,

    /// With --tune: run nothing, take the times of these records
    #[arg(long, value_delimiter = ',', value_name = "RECORD,..", requires = "tune")]
    pub(crate) record: Vec<PathBuf>,

    /// With --record: whose rates the model counts with, "h200" or an Apple chip [default: the record's
    /// device]
    #[arg(long, value_name = "CHIP", requires = "record")]
    pub(crate) chip: Option<String>,

    /// Also time PyTorch, MLX and causal-conv1d on the same problems, where Python has them
    #[arg(long)]
    pub(crate) peers: bool,

    /// The Python that runs the peers
    #[arg(long, default_value = "python3", value_name = "PROGRAM")]
    pub(crate) python: PathBuf,

    /// Cut launches after so many operations instead of where the device's limits say
    #[arg(long, value_name = "GFLOP")]
    pub(crate) dispatch_gflop: Option<f64>,

    /// Skip cases that need more device memory than this
    #[arg(long, default_value_t = 8.0, value_name = "GIB")]
    pub(crate) max_gib: f64,

    /// Folder of the record
    #[arg(long, default_value = "bench/results", value_name = "DIR")]
    pub(crate) out: PathBuf,
}

/// Sizes of the workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Size {
    /// Scaled down: the whole table runs on a software adapter in minutes.
    Small,
    /// As published.
    Full,
}

/// The ops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Op {
    /// Three-dimensional convolution.
    #[value(name = "conv3d")]
    Conv3d,
    /// Layers of video decoders on pieces of a clip, next to joining the frames first.
    #[value(name = "causal_conv3d")]
    CausalConv3d,
    /// Causal depthwise convolution.
    #[value(name = "causal_conv1d")]
    CausalConv1d,
    /// Rotary position embedding over two axes.
    #[value(name = "rope2d")]
    Rope2d,
    /// Rotary position embedding of language and video models.
    Rope,
    /// Steps of whole networks, by Burn as it is and patched.
    #[value(name = "training_step")]
    TrainingStep,
    /// Every op; not the training steps.
    All,
}

/// Storage types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl From<Dtype> for FloatType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// Levels of Burn's tuner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tuner {
    /// The fewest candidates.
    Minimal,
    /// What CubeCL does by itself.
    Balanced,
    /// More.
    Extensive,
    /// Every candidate.
    Full,
}

impl From<Tuner> for AutotuneLevel {
    fn from(tuner: Tuner) -> Self {
        match tuner {
            Tuner::Minimal => Self::Minimal,
            Tuner::Balanced => Self::Balanced,
            Tuner::Extensive => Self::Extensive,
            Tuner::Full => Self::Full,
        }
    }
}

/// What is computed in one timed run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Pass {
    /// The output.
    Fwd,
    /// The gradient of the input.
    Dx,
    /// The gradient of the weight.
    Dw,
    /// The gradient of the bias.
    Db,
    /// Every gradient.
    Bwd,
    /// The output, then every gradient.
    FwdBwd,
}

impl Pass {
    /// The name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fwd => "fwd",
            Self::Dx => "dx",
            Self::Dw => "dw",
            Self::Db => "db",
            Self::Bwd => "bwd",
            Self::FwdBwd => "fwd_bwd",
        }
    }
}

/// The automatic choice, in `--plan`.
const AUTO: &str = "auto";
/// Every eligible plan, in `--plan`.
const ALL: &str = "all";

/// Memory orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layouts {
    /// NCDHW, BCT and BHND.
    First,
    /// NDHWC, BTC and BNHD.
    Last,
    /// Both.
    All,
}

impl Layouts {
    /// Whether channels are last, for each order asked for.
    pub(crate) fn channels_last(self) -> &'static [bool] {
        match self {
            Self::First => &[false],
            Self::Last => &[true],
            Self::All => &[false, true],
        }
    }
}

/// Devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceChoice {
    /// The best GPU.
    Default,
    /// A rasterizer on the CPU.
    Software,
}

impl Options {
    /// What `--tune` runs: our plans of conv3d alone, those of single passes.
    pub(crate) fn for_tuning(self) -> Self {
        let single = |pass: &Pass| matches!(pass, Pass::Fwd | Pass::Dx | Pass::Dw);
        let mut pass: Vec<_> = self.pass.iter().copied().filter(single).collect();
        if pass.is_empty() {
            pass = vec![Pass::Fwd, Pass::Dx, Pass::Dw];
        }
        let plan = vec![ALL.into()];
        Self { op: Op::Conv3d, plan, pass, no_burn: true, peers: false, predict: Vec::new(), ..self }
    }

    /// Whether the op is asked for.
    pub(crate) fn wants_op(&self, op: Op) -> bool {
        self.op == Op::All || self.op == op
    }

    /// Whether the case is asked for.
    pub(crate) fn wants_case(&self, name: &str) -> bool {
        self.case.is_empty() || self.case.iter().any(|part| name.contains(part))
    }

    /// Whether the pass is asked for.
    pub(crate) fn wants_pass(&self, pass: Pass) -> bool {
        self.pass.is_empty() || self.pass.contains(&pass)
    }

    /// Whether a plan is asked for; `chosen`: what a user gets without forcing one.
    pub(crate) fn wants_plan(&self, name: &str, chosen: bool) -> bool {
        self.plan.iter().any(|part| match part.as_str() {
            ALL => true,
            AUTO => chosen,
            part => name.contains(part),
        })
    }

    /// Those of `passes` that are asked for.
    pub(crate) fn passes(&self, passes: &[Pass]) -> Vec<Pass> {
        passes.iter().copied().filter(|pass| self.wants_pass(*pass)).collect()
    }

    /// The storage types asked for, every one when none is.
    pub(crate) fn dtypes(&self) -> Vec<FloatType> {
        if self.dtype.is_empty() {
            return FloatType::ALL.to_vec();
        }
        self.dtype.iter().map(|dtype| FloatType::from(*dtype)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_names_are_parsed() {
        let line = "conv-bench --op causal_conv1d --dtype f32,bf16 --pass fwd,fwd_bwd --case mamba,b64";
        let options = Options::try_parse_from(line.split(' ')).unwrap();
        assert!(options.wants_op(Op::CausalConv1d) && !options.wants_op(Op::Conv3d));
        assert_eq!(options.dtypes(), [FloatType::F32, FloatType::Bf16]);
        assert!(options.wants_pass(Pass::FwdBwd) && !options.wants_pass(Pass::Bwd));
        assert!(["mamba_130m", "decode_b64"].iter().all(|name| options.wants_case(name)));
        assert!(
            !options.wants_case("large")
                && Options::try_parse_from(["conv-bench"]).unwrap().wants_case("large")
        );
        assert!(Options::try_parse_from(["conv-bench", "--samples", "0"]).is_err());
        let tuner = Options::try_parse_from(["conv-bench", "--tuner", "minimal"]).unwrap().tuner;
        assert_eq!(tuner, Some(Tuner::Minimal));
        let wants = |line: &str| {
            let options = Options::try_parse_from(line.split(' ')).unwrap();
            [("gemm_64x64", true), ("gemm_128x64", false), ("direct", false)]
                .map(|(name, chosen)| options.wants_plan(name, chosen))
        };
        assert_eq!(wants("conv-bench"), [true, false, false]);
        assert_eq!(wants("conv-bench --plan all"), [true; 3]);
        assert_eq!(wants("conv-bench --plan 128x,direct"), [false, true, true]);
        assert_eq!(wants("conv-bench --plan auto,direct"), [true, false, true]);
        assert_eq!(Options::try_parse_from(["conv-bench"]).unwrap().dtypes(), FloatType::ALL);
    }

    #[test]
    fn tuning_runs_our_plans_of_single_passes() {
        let tuned = |line: &str| Options::try_parse_from(line.split(' ')).unwrap().for_tuning();
        let options = tuned("conv-bench --tune a.txt --op rope --peers --pass dx,fwd_bwd");
        assert!(options.wants_op(Op::Conv3d) && !options.wants_op(Op::Rope));
        assert!(options.no_burn && !options.peers && options.wants_plan("direct", false));
        assert_eq!(options.pass, [Pass::Dx]);
        assert_eq!(tuned("conv-bench --tune a.txt").pass, [Pass::Fwd, Pass::Dx, Pass::Dw]);
        assert!(Options::try_parse_from(["conv-bench", "--record", "a.csv"]).is_err());
        assert!(Options::try_parse_from(["conv-bench", "--tune", "a", "--chip", "h200"]).is_err());
    }
}
