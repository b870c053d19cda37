//! A paper model: what each workload's kernels do on an M1 in operations and bytes, and the time that takes
//! at least on four Apple GPUs. Nothing here was measured; a Mac's owner can compare.
//!
//! ```text
//! operations   those the plan executes, padding of its tiles included
//! least bytes  every tensor once; V and M of Winograd twice
//! tile bytes   what threadgroups ask for, as if no cache held anything
//! from         max(operations / rate, least bytes / bandwidth): every cache hits, every unit is busy
//! to           operations / rate + tile bytes / bandwidth: no cache hits, nothing overlaps
//! ```
//!
//! Rates are those of plain multiply-adds; half types get no more on these GPUs. Bandwidths and the rates of
//! M1 and M1 Max are Apple's figures; M3 Max and M4 have 128 lanes per core at two operations and the clocks
//! that public GPU tables give.

use anyhow::{Context, Result};
use conv_cases::conv3d::Conv3dCase;
use conv_cases::workloads;
use conv_kernels::conv3d::{Algorithm, Conv3dProblem, Pass, Plan, Window, plan};
use conv_kernels::{FloatType, Limits};
use std::path::Path;

/// An Apple GPU.
#[derive(Clone, Copy, Debug)]
pub struct Chip {
    /// Name and cores.
    pub name: &'static str,
    /// Operations per second, a multiply-add counted as two.
    pub rate: f64,
    /// Bytes per second.
    pub bandwidth: f64,
}

/// Sources: Apple's announcements of M1 (2020: 2.6 TFLOP/s), M1 Max (2021: 10.4 TFLOP/s, 400 GB/s) and M4
/// (2024: 120 GB/s), the technical specifications of MacBook Air (M1, 68 GB/s) and MacBook Pro (M3 Max, 400
/// GB/s); clocks of 1.398 GHz (M3 Max) and 1.470 GHz (M4) from hmc-tech.com.
pub const CHIPS: [Chip; 4] = [
    Chip { name: "M1, 8 cores", rate: 2.6e12, bandwidth: 68e9 },
    Chip { name: "M1 Max, 32 cores", rate: 10.4e12, bandwidth: 400e9 },
    Chip { name: "M3 Max, 40 cores", rate: 40.0 * 128.0 * 2.0 * 1.398e9, bandwidth: 400e9 },
    Chip { name: "M4, 10 cores", rate: 10.0 * 128.0 * 2.0 * 1.470e9, bandwidth: 120e9 },
];

/// What one pass of a workload does.
#[derive(Clone, Debug)]
pub struct Work {
    /// Op and workload.
    pub name: String,
    /// Pass and plan.
    pub pass: String,
    /// Storage type.
    pub dtype: FloatType,
    /// Threadgroups.
    pub threadgroups: f64,
    /// Executed operations.
    pub operations: f64,
    /// Every tensor once.
    pub least_bytes: f64,
    /// What threadgroups read and write.
    pub tile_bytes: f64,
}

impl Work {
    /// Bounds of the time in seconds: from, to.
    pub fn seconds(&self, chip: &Chip) -> (f64, f64) {
        let compute = self.operations / chip.rate;
        let least = compute.max(self.least_bytes / chip.bandwidth);
        (least, (compute + self.tile_bytes / chip.bandwidth).max(least))
    }
}

/// Every workload, pass and type that an M1 serves, under the automatic plan.
pub fn all() -> Vec<Work> {
    let mut all = Vec::new();
    for dtype in [FloatType::F32, FloatType::F16] {
        for workload in workloads::conv3d() {
            for pass in [Pass::Forward, Pass::InputGradient, Pass::WeightGradient] {
                all.extend(conv3d(&workload.case, pass, dtype));
            }
        }
        all.extend(conv3d(&third_of_mlx(), Pass::Forward, dtype));
        all.extend(workloads::causal_conv1d().iter().map(|workload| causal_conv1d(&workload.case, dtype)));
        all.extend(workloads::rope2d().iter().map(|workload| rope2d(&workload.case, dtype)));
    }
    all
}

/// The layer of MLX's three published times that is no workload: 17x64x64 results of 256 channels in 9 ms on
/// an M3 Max.
fn third_of_mlx() -> Conv3dCase {
    Conv3dCase::new("mlx_17x64x64", [1, 256, 19, 66, 66], 256, [3; 3])
}

/// Nothing where the problem passes the device's limits.
fn conv3d(case: &Conv3dCase, pass: Pass, dtype: FloatType) -> Option<Work> {
    let window = Window {
        stride: case.stride,
        padding: case.padding,
        dilation: case.dilation,
        groups: case.groups,
        ..Window::default()
    };
    let bias = case.bias.then_some(case.o);
    let problem = Conv3dProblem::new(case.input_shape(), case.weight_shape(), bias, window, dtype).ok()?;
    let plan = plan(&problem, pass, Algorithm::Auto, &Limits::apple_m1()).ok()?;
    let elements = |shape: [usize; 5]| shape.iter().map(|&size| size as f64).product::<f64>();
    let tensors = [problem.x_shape(), problem.weight_shape(), problem.y_shape()].map(elements);
    let bytes = dtype.size() as f64;
    let macs = case.macs() as f64;
    let out = tensors[match pass {
        Pass::Forward => 2,
        Pass::InputGradient => 0,
        Pass::WeightGradient => 1,
    }];
    let (threadgroups, operations, loads) = match (plan.tiles(&problem, pass), plan) {
        (Some(tiles), _) => {
            let [count, m, n, k, reads] =
                [tiles.count, tiles.rows, tiles.columns, tiles.terms, tiles.reads].map(|value| value as f64);
            (count, 2.0 * count * m * n * k, count * reads)
        }
        // A tile of about 32x64 outputs reads its rim as well.
        (None, Plan::Depthwise) => {
            let rim = |size: f64, taps: usize| (size + taps as f64 - 1.0) / size;
            let read = rim(32.0, problem.kernel[1]) * rim(64.0, problem.kernel[2]);
            ((out / 2048.0).ceil(), 2.0 * macs, tensors[0] * read)
        }
        (None, Plan::Winograd(config)) => {
            let cost = config.cost(&problem, pass);
            (cost.threadgroups, cost.operations, (cost.bytes + cost.threadgroup_bytes) / bytes - out)
        }
        // One thread per output, two loads per product.
        _ => ((out / 256.0).ceil(), 2.0 * macs, 2.0 * macs),
    };
    Some(Work {
        name: format!("conv3d {}", case.name),
        pass: format!("{} {}", pass.name(), plan.name()),
        dtype,
        threadgroups,
        operations,
        // Winograd's intermediate tensors are larger than caches.
        least_bytes: match plan {
            Plan::Winograd(config) => config.cost(&problem, pass).bytes,
            _ => tensors.iter().sum::<f64>() * bytes,
        },
        tile_bytes: (loads + out) * bytes,
    })
}

/// The forward pass: four steps per thread where the width is narrow, with the columns before them.
fn causal_conv1d(case: &conv_cases::causal_conv1d::Case, dtype: FloatType) -> Work {
    let (elements, w) = ((case.b * case.c * case.t) as f64, case.w as f64);
    let steps = if case.w <= conv_kernels::causal_conv1d::NARROW_WIDTH { 4.0 } else { 1.0 };
    let loads = elements / steps * (w + steps - 1.0 + w);
    let bytes = dtype.size() as f64;
    Work {
        name: format!("causal_conv1d {}", case.name),
        pass: "forward".into(),
        dtype,
        threadgroups: (elements / steps / 256.0).ceil(),
        operations: 2.0 * elements * w,
        least_bytes: (2.0 * elements + case.c as f64 * (w + 1.0)) * bytes,
        tile_bytes: (loads + elements) * bytes,
    }
}

/// Either direction: a thread turns a pair of elements, with a cosine and a sine from the tables.
fn rope2d(case: &conv_cases::rope2d::Case, dtype: FloatType) -> Work {
    let elements = (case.b * case.h * case.n * case.d) as f64;
    let positions = 8.0 * 2.0 * (case.b * case.n) as f64;
    let least_bytes = 2.0 * elements * dtype.size() as f64 + positions;
    Work {
        name: format!("rope2d {}", case.name),
        pass: "rotation".into(),
        dtype,
        threadgroups: (elements / 2.0 / 256.0).ceil(),
        operations: 3.0 * elements,
        least_bytes,
        tile_bytes: least_bytes + elements / 2.0 * 2.0 * 4.0,
    }
}

/// Writes `paper.csv` into `folder`: a line per workload, pass and type, with the bounds in milliseconds for
/// each chip.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write(all: &[Work], folder: &Path) -> Result<()> {
    let path = folder.join("paper.csv");
    let failed = || format!("cannot write {}", path.display());
    let mut csv = csv::Writer::from_path(&path).with_context(failed)?;
    let mut header: Vec<String> = [
        "workload",
        "pass",
        "dtype",
        "threadgroups",
        "operations_per_threadgroup",
        "bytes_per_threadgroup",
        "gflop",
        "least_mb",
        "tile_mb",
    ]
    .map(String::from)
    .to_vec();
    header.extend(
        CHIPS.iter().flat_map(|chip| [format!("{} from ms", chip.name), format!("{} to ms", chip.name)]),
    );
    csv.write_record(&header).with_context(failed)?;
    for work in all {
        let mut record = vec![work.name.clone(), work.pass.clone(), work.dtype.name().into()];
        let groups = work.threadgroups.max(1.0);
        record.push(format!("{groups:.0}"));
        record.push(format!("{:.0}", work.operations / groups));
        record.push(format!("{:.0}", work.tile_bytes / groups));
        record.push(format!("{:.3}", work.operations * 1e-9));
        record.extend([work.least_bytes, work.tile_bytes].map(|bytes| format!("{:.3}", bytes * 1e-6)));
        for chip in &CHIPS {
            let (from, to) = work.seconds(chip);
            record.extend([from, to].map(|seconds| format!("{:.4}", seconds * 1e3)));
        }
        csv.write_record(&record).with_context(failed)?;
    }
    csv.flush().with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointwise_product_is_counted_by_hand() {
        // 128 positions, 64 channels to 64: two tiles of 64 x 64, four stages of 16.
        let case = Conv3dCase { bias: false, ..Conv3dCase::new("hand", [1, 64, 1, 8, 16], 64, [1, 1, 1]) };
        let work = conv3d(&case, Pass::Forward, FloatType::F32).unwrap();
        assert_eq!((work.threadgroups, work.operations), (2.0, 2.0 * 128.0 * 64.0 * 64.0));
        assert_eq!(work.least_bytes, 4.0 * (2.0 * 128.0 * 64.0 + 64.0 * 64.0));
        assert_eq!(work.tile_bytes, 4.0 * (2.0 * 128.0 * 64.0 + 128.0 * 64.0));
        let chip = Chip { name: "one", rate: 1e6, bandwidth: 1e9 };
        let (from, to) = work.seconds(&chip);
        assert!((from - 1.048576).abs() < 1e-9 && (to - from - 98_304e-9).abs() < 1e-9, "{from} {to}");
    }

    #[test]
    fn every_workload_has_its_line_and_ordered_bounds() {
        let all = all();
        let expected = workloads::causal_conv1d().len() + workloads::rope2d().len();
        assert!(all.len() >= 2 * (expected + 2 * workloads::conv3d().len()), "{} lines", all.len());
        for work in &all {
            assert!(work.least_bytes > 0.0 && work.operations > 0.0, "{work:?}");
            for chip in &CHIPS {
                let (from, to) = work.seconds(chip);
                assert!(from > 0.0 && from <= to, "{work:?}");
            }
        }
        let folder = tempfile::tempdir().unwrap();
        write(&all, folder.path()).unwrap();
        let csv = std::fs::read_to_string(folder.path().join("paper.csv")).unwrap();
        assert_eq!(csv.lines().count(), 1 + all.len());
    }
}
