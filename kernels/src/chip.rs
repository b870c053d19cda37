//! What a device does in a second, by its name: the figures that the choice among plans counts with.
//!
//! ```text
//! Apple, 128 lanes of multiply-adds per core:
//!   matrices   256 FLOP * cores * clock * 0.795 (M1, M2) or 0.895 (M3 and later)
//!   fma        0.72 of that: GEMMs on plain multiply-adds (assumed; no such kernel was timed)
//!   bandwidth  0.9 of the published one
//! ```
//!
//! Sources: cores, clocks and cycles of an MMA from philipturner/metal-benchmarks; 0.895 fitted to three
//! times of MLX's implicit GEMM on an M3 Max (ml-explore/mlx #3785); cores and bandwidths from Apple's
//! specifications. Nothing here was timed on an Apple GPU by this project. The H200 was measured.
//!
//! A chip is what its name says: one of the table, the latest known generation for a later one, the M1 for
//! other Apple chips. Binned chips with fewer cores count as whole ones; both rates are proportional to
//! cores, so choices hardly change.

/// Rates of a device, and the sizes that follow from them.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Chip {
    /// FLOP per second of a GEMM on fp32 multiply-adds.
    pub fma: f64,
    /// FLOP per second of a GEMM on matrix units, in the types that the device has them for.
    pub matrices: f64,
    /// Bytes per second between memory and the chip.
    pub bandwidth: f64,
    /// Threadgroups in one wave, which fills the device.
    pub threadgroups: usize,
    /// Bytes of workspace a plan may ask for: a 32nd of the least memory that the chip is sold with, between
    /// 256 MiB and 1 GiB.
    pub workspace_bytes: u64,
    /// FLOP of one dispatch.
    pub dispatch_operations: f64,
}

/// What is assumed of devices that nobody measured: AMD's, Intel's and Qualcomm's, and software. Rates of a
/// small integrated GPU.
const UNKNOWN: Chip = Chip {
    fma: 1.6e12,
    matrices: 1.6e12,
    bandwidth: 40e9,
    threadgroups: 64,
    workspace_bytes: MIB_256,
    // 12 to 25 ms, below what the macOS watchdog kills.
    dispatch_operations: 25e9,
};

/// Four threadgroups of 256 threads for each of 132 multiprocessors; 41 TFLOP/s of the gathered implicit GEMM
/// and 4.1 TB/s of a copy, both measured.
const H200: Chip = Chip {
    fma: 41e12,
    matrices: 400e12,
    bandwidth: 4.1e12,
    threadgroups: 528,
    workspace_bytes: MIB_256,
    // A dispatch of 25 GFLOP ends before the device is full.
    dispatch_operations: 250e9,
};

const MIB_256: u64 = 256 << 20;

/// Cores of each variant's GPU and GB/s: the plain chip, Pro, Max and Ultra; none where it is not sold.
struct Generation {
    /// GHz of the GPU.
    clock: f64,
    /// Share of the peak that a GEMM on matrix units reaches.
    share: f64,
    variants: [Option<(usize, f64)>; 4],
}

/// M1 to M5.
const GENERATIONS: [Generation; 5] = [
    Generation {
        clock: 1.28,
        share: 0.795,
        variants: [Some((8, 68.0)), Some((16, 200.0)), Some((32, 400.0)), Some((64, 800.0))],
    },
    Generation {
        clock: 1.40,
        share: 0.795,
        variants: [Some((10, 100.0)), Some((19, 200.0)), Some((38, 400.0)), Some((76, 800.0))],
    },
    Generation {
        clock: 1.40,
        share: 0.895,
        variants: [Some((10, 100.0)), Some((18, 150.0)), Some((40, 400.0)), Some((80, 819.0))],
    },
    Generation {
        clock: 1.47,
        share: 0.895,
        variants: [Some((10, 120.0)), Some((20, 273.0)), Some((40, 546.0)), None],
    },
    // Its neural accelerators are out of reach of CubeCL 0.11; the clock is the M4's.
    Generation {
        clock: 1.47,
        share: 0.895,
        variants: [Some((10, 153.0)), Some((20, 307.0)), Some((40, 614.0)), None],
    },
];

/// Variants in the order of [`Generation::variants`], with their least memory's workspace.
const VARIANTS: [(&str, u64); 4] =
    [("", MIB_256), ("Pro", 2 * MIB_256), ("Max", 4 * MIB_256), ("Ultra", 4 * MIB_256)];

impl Chip {
    /// The chip of an adapter's name, such as "Apple M3 Max" or "NVIDIA H200". All of NVIDIA's count as the
    /// H200, everything unknown as the smallest.
    pub fn of(name: &str) -> Self {
        if name.contains("NVIDIA") {
            return H200;
        }
        let Some(apple) = name.strip_prefix("Apple ") else { return UNKNOWN };
        let mut words = apple.split_whitespace();
        let number = |word: &str| word.strip_prefix('M')?.parse::<usize>().ok();
        let Some(generation) = words.next().and_then(number) else { return Self::apple(1, 0) };
        let variant = words.next().unwrap_or_default();
        let variant = VARIANTS.iter().position(|(name, _)| *name == variant).unwrap_or(0);
        Self::apple(generation.clamp(1, GENERATIONS.len()), variant)
    }

    /// A chip of Apple's: the generation from 1, the variant's place in [`VARIANTS`].
    fn apple(generation: usize, variant: usize) -> Self {
        let table = &GENERATIONS[generation - 1];
        // A variant that is not sold yet: twice the next smaller one.
        let (cores, bandwidth) = table.variants[variant].unwrap_or_else(|| {
            let (cores, bandwidth) = table.variants[variant - 1].expect("every generation has a Max");
            (2 * cores, 2.0 * bandwidth)
        });
        let matrices = 256.0 * cores as f64 * table.clock * 1e9 * table.share;
        Self {
            fma: 0.72 * matrices,
            matrices,
            bandwidth: 0.9e9 * bandwidth,
            // Four of 128 threads per core at 512 threads.
            threadgroups: (4 * cores).max(64),
            workspace_bytes: VARIANTS[variant].1,
            dispatch_operations: 25e9,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_chips() {
        let tera = |name: &str| {
            let chip = Chip::of(name);
            [(chip.matrices * 1e-10).round() / 100.0, (chip.bandwidth * 1e-9).round()]
        };
        // Rates of the review that the choice goes back to: 2.08, 8.48, 12.8 and 3.37 TFLOP/s.
        assert_eq!(tera("Apple M1"), [2.08, 61.0]);
        assert_eq!(tera("Apple M1 Max"), [8.34, 360.0]);
        assert_eq!(tera("Apple M3 Max"), [12.83, 360.0]);
        assert_eq!(tera("Apple M4"), [3.37, 108.0]);
        assert_eq!(tera("Apple M2 Pro"), [5.41, 180.0]);
        let one = Chip::of("Apple M1");
        for unknown in ["Apple A17 Pro GPU", "Apple Paravirtual device", "Apple M", "Apple M0"] {
            assert_eq!(Chip::of(unknown), one, "{unknown}");
        }
        assert_eq!(Chip::of("Apple M9 Max"), Chip::of("Apple M5 Max"));
        assert_eq!(Chip::of("Apple M4 Ultra").threadgroups, 2 * Chip::of("Apple M4 Max").threadgroups);
        assert_eq!(Chip::of("Apple M1 (lowered, not run)"), one);
        for other in ["AMD Radeon Pro 5500M", "Intel(R) UHD Graphics 630", "Adreno", "llvmpipe (LLVM 15)", ""]
        {
            assert_eq!(Chip::of(other), UNKNOWN, "{other}");
        }
        assert_eq!(Chip::of("NVIDIA GeForce RTX 4090"), H200);
        // Larger chips of a generation are not slower at anything.
        for generation in 1..=GENERATIONS.len() {
            for variant in 1..VARIANTS.len() {
                let [small, large] = [variant - 1, variant].map(|variant| Chip::apple(generation, variant));
                assert!(large.matrices > small.matrices && large.bandwidth > small.bandwidth);
                assert!(large.threadgroups >= small.threadgroups);
                assert!(large.workspace_bytes >= small.workspace_bytes);
            }
        }
    }
}
