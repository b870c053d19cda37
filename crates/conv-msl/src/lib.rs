//! Every kernel of conv-kernels in every dtype and plan, lowered to Metal by [`msl_host`]: launch functions
//! run over tables of problems, and whatever they launch is the list.
//!
//! The tables are full products of the options that kernels are specialized by; causal conv1d has so many
//! that its table is two products (see [`causal_conv1d`]). They are public because this crate's conformance
//! test compares the same tables with the references: what is listed is executed and compared. The program of
//! this crate is `cargo xtask msl`; [`first_calls`] counts what a network's first step compiles.

pub mod causal_conv1d;
pub mod conv3d;
pub mod first_calls;
mod residual;
pub mod rope;

use conv_kernels::{ConvError, FloatType, IndexOperand, IndexType, Limits, Needs, Operand};
use cubecl::prelude::Client;
use msl_host::{Facts, Kernel, Label, Log, Recorder};
use std::collections::HashSet;

/// The kernels of every op, and the launches that were refused.
#[derive(Debug, Default)]
pub struct Variants {
    /// Distinct kernels in the order of their first launch; [`all`] lists none twice.
    pub kernels: Vec<Kernel>,
    /// Launches in all.
    pub launches: usize,
    /// A sentence for each launch that was refused although its plan is eligible.
    pub refused: Vec<String>,
}

/// An op whose kernels are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Op {
    /// conv3d, of which 2D, 1D and transposed convolutions are calls.
    Conv3d,
    /// Causal depthwise conv1d.
    CausalConv1d,
    /// Rotary position embedding.
    Rope,
}

impl Op {
    /// Every op.
    pub const ALL: [Self; 3] = [Self::Conv3d, Self::CausalConv1d, Self::Rope];
}

/// Lowers the kernels of `ops`, one thread per dtype. Each distinct kernel is compiled once per dtype.
pub fn all(ops: &[Op]) -> Variants {
    join(FloatType::ALL, |dtype| of_dtype(dtype, ops))
}

/// Runs `lower` for each dtype on its own thread and merges the results.
fn join<const N: usize>(dtypes: [FloatType; N], lower: impl Fn(FloatType) -> Variants + Sync) -> Variants {
    let lower = &lower;
    let results = std::thread::scope(|scope| {
        let threads = dtypes.map(|dtype| scope.spawn(move || lower(dtype)));
        threads.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let mut variants = Variants::default();
    let mut known = HashSet::new();
    for result in results {
        variants.launches += result.launches;
        variants.refused.extend(result.refused);
        variants.kernels.extend(result.kernels.into_iter().filter(|kernel| known.insert(kernel.id.clone())));
    }
    variants
}

/// The kernels of a Mac before macOS 15, lowered through WGSL. Types that such a device does not serve are
/// left out.
pub fn before_macos_15(ops: &[Op]) -> Variants {
    let lower = |dtype| {
        let mut variants = Variants::default();
        let recorder = Recorder::before_macos_15();
        let limits = Limits::of(recorder.client());
        variants.record(&recorder, (&limits, IndexWidth::Narrow), dtype, ops);
        variants.collect(&recorder);
        variants
    };
    join([FloatType::F32, FloatType::F16], lower)
}

/// The variants of [`all`] whose tensors are of `dtype`.
pub fn of_dtype(dtype: FloatType, ops: &[Op]) -> Variants {
    let mut variants = Variants::default();
    let recorder = Recorder::apple_m1();
    for index in IndexWidth::ALL {
        let limits = index.limits(&Limits::of(recorder.client()));
        variants.record(&recorder, (&limits, index), dtype, ops);
    }
    variants.collect(&recorder);
    variants
}

/// Width of the kernels' element offsets. The tables for 64 bits cover every kernel function and plan but not
/// every product of options: the type changes nothing but the offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexWidth {
    /// 32 bits, what tensors below 2^31 elements get.
    Narrow,
    /// 64 bits.
    Wide,
}

impl IndexWidth {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Narrow, Self::Wide];

    /// Limits with which small problems get kernels of this width.
    pub fn limits(self, limits: &Limits) -> Limits {
        let narrow_elements = if self == Self::Narrow { limits.narrow_elements } else { 0 };
        Limits { narrow_elements, ..limits.clone() }
    }
}

impl Variants {
    /// Launches the tables of `ops`.
    fn record(&mut self, recorder: &Recorder, limits: (&Limits, IndexWidth), dtype: FloatType, ops: &[Op]) {
        for op in ops {
            match op {
                Op::Conv3d => conv3d::record(recorder, limits, dtype, &mut self.refused),
                Op::CausalConv1d => causal_conv1d::record(recorder, limits, dtype, &mut self.refused),
                Op::Rope => rope::record(recorder, limits.0, dtype, &mut self.refused),
            }
        }
    }

    fn collect(&mut self, recorder: &Recorder) {
        let log = recorder.log();
        self.launches += log.launches.len();
        self.kernels.extend(log.kernels.iter().cloned());
    }
}

/// Records a refused launch of the problem `case`.
fn note_refusal(result: Result<(), ConvError>, label: &Label, case: &str, refused: &mut Vec<String>) {
    if let Err(error) = result {
        refused.push(format!("{label} ({case}): {error}"));
    }
}

/// Launches from `first` on that need more than their plan says.
fn understated(log: &Log, first: usize, needs: &Needs, label: &Label) -> Vec<String> {
    let kernels = log.launches[first..].iter().map(|launch| &log.kernels[launch.kernel]);
    let lowered = kernels.filter_map(|kernel| kernel.lowered.as_ref().ok());
    let understates = |facts: &Facts| {
        facts.threadgroup_bytes > needs.shared_bytes
            || facts.declared_threads as usize > needs.threads
            || facts.bindings > needs.bindings
    };
    let found = lowered.filter(|lowered| understates(&lowered.facts));
    found.map(|lowered| format!("{label}: {:?} where the plan says {needs:?}", lowered.facts)).collect()
}

/// A row-major tensor with undefined contents.
fn tensor(client: &Client, shape: &[usize], dtype: FloatType) -> Operand {
    let bytes = shape.iter().product::<usize>() * dtype.size();
    Operand::contiguous(client.empty(bytes.max(dtype.size())), shape, dtype)
}

/// A row-major tensor of integers with undefined contents.
fn indices(client: &Client, shape: &[usize], dtype: IndexType) -> IndexOperand {
    let bytes = shape.iter().product::<usize>() * dtype.size();
    IndexOperand::contiguous(client.empty(bytes.max(dtype.size())), shape, dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conv_kernels_sees_the_m1_that_it_plans_for() {
        let limits = Limits::of(Recorder::apple_m1().client());
        let expected = Limits::apple_m1();
        // wgpu's cap is a byte below 4 GiB.
        assert_eq!(limits, Limits { buffer_bytes: expected.buffer_bytes - 1, ..expected });
    }
}
