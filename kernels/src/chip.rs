//! What a device does in a second, by its name: the figures that the choice among plans counts with.
//!
//! ```text
//! Apple, 128 lanes of multiply-adds per core:
//!   matrices   256 FLOP * cores * clock * 0.795 (M1, M2) or 0.895 (M3 and later)
//!   fma        0.72 of that: GEMMs on plain multiply-adds (assumed; no such kernel was timed)
//!   bandwidth  0.9 of the published one
//!   launch     3 us, between two that others measured
//! ```
//!
//! Sources: cores, clocks and cycles of an MMA from philipturner/metal-benchmarks; 0.895 fitted to three
//! times of MLX's implicit GEMM on an M3 Max (ml-explore/mlx #3785); cores and bandwidths from Apple's
//! specifications; a dispatch that waits for the one before takes 2.05 us of the GPU's time in
//! penta2himajin/qwisp #143, 5.16 us with the work of a small kernel in antonellof/ferrox #149. Nothing here
//! was timed on an Apple GPU by this project. The H200 was measured.
//!
//! A chip is what its name says: one of the table, the latest known generation for a later one, the M1 for
//! other Apple chips. Binned chips with fewer cores count as whole ones; both rates are proportional to
//! cores, so choices hardly change. AMD's, Intel's and Qualcomm's have a class each, of a small GPU of theirs
//! (`integrated`): nothing was measured on them, and a larger one is faster at everything.

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
    /// Seconds that each launch of a pass takes by itself: it waits for the one before.
    pub launch: f64,
    /// The part of a wave, beyond whole ones, in which a product on multiply-adds fills the device and leaves
    /// it.
    pub idle_waves: f64,
    /// What kinds of kernels reach.
    pub shares: Shares,
    /// Threadgroups in one wave, which fills the device.
    pub threadgroups: usize,
    /// Bytes of workspace a plan may ask for where the device does not say how much memory it has: on Apple's
    /// a 32nd of the least memory that the chip is sold with, between 256 MiB and 1 GiB.
    pub workspace_bytes: u64,
    /// Whether the workspace follows the memory that the device reports ([`Chip::workspace_of`]).
    pub workspace_by_memory: bool,
    /// FLOP of one dispatch.
    pub dispatch_operations: f64,
}

/// The share of the rate of the units they run on that kinds of kernels reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// The gathered GEMM on matrix units.
    pub gathered: f64,
    /// Window kernels.
    pub window: f64,
    /// The gathered GEMM on multiply-adds in tiles of up to 4, 8 and 32 columns; of wider ones it is 1.
    pub narrow: [f64; 3],
    /// One result per thread.
    pub direct: f64,
}

/// Where nothing was measured: rates are those of whole kernels, narrow tiles somewhat slower, `Direct` by
/// its operand loads, four times a GEMM's.
const ASSUMED: Shares = Shares { gathered: 1.0, window: 1.0, narrow: [0.8; 3], direct: 0.25 };

/// Measured on the H200 (docs/decisions/launch.md).
const MEASURED: Shares = Shares { gathered: 0.35, window: 0.675, narrow: [0.2, 0.35, 0.8], direct: 0.02 };

/// What is assumed of devices that nobody measured and of software. Rates of a small integrated GPU.
const UNKNOWN: Chip = Chip {
    fma: 1.6e12,
    matrices: 1.6e12,
    bandwidth: 40e9,
    launch: MEASURED_LAUNCH,
    idle_waves: IDLE_WAVES,
    shares: ASSUMED,
    threadgroups: 64,
    workspace_bytes: MIB_256,
    workspace_by_memory: false,
    // 12 to 25 ms, below what the macOS watchdog kills.
    dispatch_operations: 25e9,
};

/// Four threadgroups of 256 threads for each of 132 multiprocessors; 41 TFLOP/s of the gathered implicit GEMM
/// and 4.1 TB/s of a copy, both measured.
const H200: Chip = Chip {
    fma: 41e12,
    matrices: 400e12,
    bandwidth: 4.1e12,
    launch: MEASURED_LAUNCH,
    idle_waves: IDLE_WAVES,
    shares: MEASURED,
    threadgroups: 528,
    // That of every record.
    workspace_bytes: MIB_256,
    workspace_by_memory: false,
    // A dispatch of 25 GFLOP ends before the device is full.
    dispatch_operations: 250e9,
};

/// Seconds of a launch on the H200, fitted to short layers.
const MEASURED_LAUNCH: f64 = 5e-6;

/// Fitted to the H200's plans, assumed elsewhere.
const IDLE_WAVES: f64 = 0.2;

/// A small GPU of a vendor's: a share of its peak FLOP per second and of its published bytes per second.
///
/// Assumed are half of the peak, a third where a subgroup's registers do not hold the 64 sums of each thread
/// of a tile, and 0.8 of the bandwidth. Four threadgroups in each of 4 to 12 cores are fewer than 64, the
/// least. None has matrix units for these kernels, which need subgroups of exactly 32 threads.
const fn integrated([peak, share]: [f64; 2], bandwidth: f64) -> Chip {
    let fma = peak * share;
    Chip {
        fma,
        matrices: fma,
        bandwidth: 0.8 * bandwidth,
        workspace_by_memory: true,
        // 15 ms, ten times as long for a single wave.
        dispatch_operations: 0.015 * fma,
        ..UNKNOWN
    }
}

/// RDNA 2 with 12 compute units at 2.4 GHz (Radeon 680M: 3.7 TFLOP/s; LPDDR5 102 GB/s). Subgroups of 32 or 64
/// threads, which the driver decides; 64 KiB of LDS for a threadgroup, of which Vulkan gives 64 and WGSL 16
/// or 32; 256 registers a thread ("RDNA 2" and "RDNA 3" Instruction Set Architecture, AMD).
const AMD: Chip = integrated([3.7e12, 1.0 / 2.0], 102e9);

/// Xe-LP with 80 EUs at 1.3 GHz (Iris Xe: 1.7 TFLOP/s; LPDDR4X 68 GB/s), five dual subslices of 128 KiB of
/// local memory. A hardware thread has 128 registers of 32 bytes for a subgroup of 8, 16 or 32 threads: 128,
/// 64 or 32 numbers a thread (oneAPI GPU Optimization Guide, "Xe GPU Architecture").
const INTEL: Chip = integrated([1.7e12, 1.0 / 3.0], 68e9);

/// Adreno 650 (1.2 TFLOP/s; LPDDR5 44 GB/s). Subgroups of 64 or 128 threads, which share the registers of a
/// core; 32 KiB of local memory (Snapdragon Mobile Platform OpenCL General Programming and Optimization,
/// 80-NB295-11).
const QUALCOMM: Chip = integrated([1.2e12, 1.0 / 3.0], 44e9);

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
    /// H200, everything unknown as a small one.
    pub fn of(name: &str) -> Self {
        let vendors: [(&[&str], Chip); 5] = [
            (&["llvmpipe", "SwiftShader"], UNKNOWN),
            (&["NVIDIA"], H200),
            (&["AMD ", "Radeon"], AMD),
            (&["Intel"], INTEL),
            (&["Adreno", "Qualcomm"], QUALCOMM),
        ];
        let named = vendors.iter().find(|(words, _)| words.iter().any(|word| name.contains(word)));
        if let Some((_, chip)) = named {
            return *chip;
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
            launch: 3e-6,
            idle_waves: IDLE_WAVES,
            shares: ASSUMED,
            // Four of 128 threads per core at 512 threads.
            threadgroups: (4 * cores).max(64),
            workspace_bytes: VARIANTS[variant].1,
            workspace_by_memory: true,
            dispatch_operations: 25e9,
        }
    }

    /// Bytes of workspace on a device that reports so many bytes of memory: a 20th in whole 256 MiB, from 256
    /// MiB to 1 GiB. Metal reports what a program should use at most, two thirds of a Mac's memory and more:
    /// 5.3, 10.7 and 21.3 GiB of 8, 16 and 32 give 256 MiB, 512 MiB and 1 GiB.
    pub fn workspace_of(&self, memory: Option<u64>) -> u64 {
        match memory {
            Some(memory) if self.workspace_by_memory => (memory / 20 / MIB_256).clamp(1, 4) * MIB_256,
            _ => self.workspace_bytes,
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
        // As drivers of Metal, Vulkan (Mesa, Windows, Android) and D3D12 name them.
        for (name, chip) in [
            ("AMD Radeon Pro 5500M", AMD),
            ("AMD Radeon RX 7900 XTX (RADV NAVI31)", AMD),
            ("Radeon RX Vega 64", AMD),
            ("Intel(R) UHD Graphics 630", INTEL),
            ("Intel(R) Arc(tm) A770 Graphics (DG2)", INTEL),
            ("Adreno (TM) 740", QUALCOMM),
            ("Qualcomm(R) Adreno(TM) X1-85 GPU", QUALCOMM),
            ("llvmpipe (LLVM 19.1.7, 256 bits)", UNKNOWN),
            ("SwiftShader Device (Subzero)", UNKNOWN),
            ("Mali-G715", UNKNOWN),
            ("", UNKNOWN),
        ] {
            assert_eq!(Chip::of(name), chip, "{name}");
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

    /// Slower at everything than what was measured.
    #[test]
    fn unmeasured_classes_are_conservative() {
        let m1 = Chip::of("Apple M1");
        for chip in [AMD, INTEL, QUALCOMM, UNKNOWN] {
            assert!(chip.fma < H200.fma && chip.bandwidth < H200.bandwidth, "{chip:?}");
            // As many operations in the time of a byte as on the other devices, or fewer.
            assert!((8.0..=41.0).contains(&(chip.fma / chip.bandwidth)), "{chip:?}");
            // 16 ms, and no more threadgroups at a time than on an M1.
            assert!(chip.dispatch_operations <= 0.016 * chip.fma, "{chip:?}");
            assert!(chip.threadgroups <= m1.threadgroups && chip.launch >= m1.launch, "{chip:?}");
            assert_eq!((chip.matrices, chip.shares), (chip.fma, ASSUMED));
        }
    }

    /// Whole 256 MiB of what is reported; the table's where nothing is, and on devices that were measured
    /// with it.
    #[test]
    fn the_workspace_follows_the_memory() {
        let gib = |size: f64| Some((size * f64::from(1 << 30)) as u64);
        let of = |name: &str, memory| Chip::of(name).workspace_of(memory) / MIB_256;
        for name in ["Apple M1", "AMD Radeon 680M", "Intel(R) Iris(R) Xe Graphics", "Adreno (TM) 650"] {
            let sizes = [0.5, 5.33, 9.9, 10.1, 10.67, 15.1, 21.33, 110.0];
            assert_eq!(sizes.map(|size| of(name, gib(size))), [1, 1, 1, 2, 2, 3, 4, 4], "{name}");
        }
        assert_eq!([None, gib(10.67), gib(72.0)].map(|memory| of("Apple M1 Max", memory)), [4, 2, 4]);
        for name in ["NVIDIA H200", "llvmpipe (LLVM 19)", "Mali-G715"] {
            assert_eq!([None, gib(140.0)].map(|memory| of(name, memory)), [1, 1], "{name}");
        }
    }
}
