//! conv3d problems: the conformance table, empty problems and named regressions.
//!
//! [`conformance`] is a covering of all pairs of 14 options (see `conv3d/covering.rs`) followed by
//! hand-picked edges (`conv3d/edges.rs`) and padding of each axis by itself (`conv3d/padding.rs`).
//! [`regressions`] holds shapes that public bugs of other libraries were found with.

mod covering;
mod edges;
mod few_inputs;
mod few_outputs;
mod padding;
mod regressions;
mod windows;

pub use few_inputs::few_input_layers;
pub use few_outputs::few_output_layers;
pub use windows::{
    contiguous_slices, depthwise_tiles, few_frames, many_taps, shared_windows, strided_windows,
};

use std::fmt;

/// The largest number of multiply-accumulates of one forward pass in [`conformance`].
pub const MAX_CONFORMANCE_MACS: u64 = 1_500_000;

/// The largest number of multiply-accumulates of one forward pass in [`regressions`].
pub const MAX_REGRESSION_MACS: u64 = 5_000_000;

/// What is applied to the output of the convolution and bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    None,
    /// `max(v, 0)`.
    Relu,
    /// `v * sigmoid(v)`.
    Silu,
}

/// What taps outside the input read along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Padding {
    /// Zero.
    Zeros,
    /// The nearest element.
    Replicate,
    /// The mirrored input.
    Reflect,
    /// The other end.
    Circular,
}

/// One conv3d problem: `x [N, C, D, H, W]`, `weight [O, C/groups, KD, KH, KW]`, `bias [O]`,
/// `y [N, O, OD, OH, OW]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conv3dCase {
    /// Unique within its table: lower case words joined by `_`.
    pub name: String,
    /// Batch.
    pub n: usize,
    /// Input channels.
    pub c: usize,
    /// Input depth.
    pub d: usize,
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Output channels.
    pub o: usize,
    /// Kernel extents KD, KH, KW.
    pub kernel: [usize; 3],
    /// Stride of depth, height, width.
    pub stride: [usize; 3],
    /// Padding (begin, end) of depth, height, width.
    pub padding: [(usize, usize); 3],
    /// Dilation of depth, height, width.
    pub dilation: [usize; 3],
    /// Groups; divides `c` and `o`.
    pub groups: usize,
    /// Padding repeats the edge voxel instead of zero.
    pub replicate: bool,
    /// The padding of each axis, in place of `replicate`.
    pub modes: Option<[Padding; 3]>,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether there is a residual.
    pub residual: bool,
    /// Fused activation.
    pub activation: Activation,
}

impl Conv3dCase {
    /// A case with input `[N, C, D, H, W]`, `o` output channels and a kernel; stride 1, no padding, dilation
    /// 1, one group, a bias, no residual and no activation.
    #[must_use]
    pub fn new(name: &str, [n, c, d, h, w]: [usize; 5], o: usize, kernel: [usize; 3]) -> Self {
        Self {
            name: name.to_string(),
            n,
            c,
            d,
            h,
            w,
            o,
            kernel,
            stride: [1; 3],
            padding: [(0, 0); 3],
            dilation: [1; 3],
            groups: 1,
            replicate: false,
            modes: None,
            bias: true,
            residual: false,
            activation: Activation::None,
        }
    }

    /// The padding of depth, height, width.
    #[must_use]
    pub fn padding_modes(&self) -> [Padding; 3] {
        self.modes.unwrap_or([if self.replicate { Padding::Replicate } else { Padding::Zeros }; 3])
    }

    /// `[OD, OH, OW]`; 0 on an axis where the dilated kernel is larger than the padded input.
    #[must_use]
    pub fn output_extents(&self) -> [usize; 3] {
        let input = [self.d, self.h, self.w];
        std::array::from_fn(|i| {
            let span = self.dilation[i] * (self.kernel[i] - 1) + 1;
            let padded = input[i] + self.padding[i].0 + self.padding[i].1;
            padded.checked_sub(span).map_or(0, |rest| rest / self.stride[i] + 1)
        })
    }

    /// `[N, C, D, H, W]`.
    #[must_use]
    pub fn input_shape(&self) -> [usize; 5] {
        [self.n, self.c, self.d, self.h, self.w]
    }

    /// `[O, C/groups, KD, KH, KW]`.
    #[must_use]
    pub fn weight_shape(&self) -> [usize; 5] {
        let [kd, kh, kw] = self.kernel;
        [self.o, self.c / self.groups, kd, kh, kw]
    }

    /// `[N, O, OD, OH, OW]`.
    #[must_use]
    pub fn output_shape(&self) -> [usize; 5] {
        let [od, oh, ow] = self.output_extents();
        [self.n, self.o, od, oh, ow]
    }

    /// Multiply-accumulates of one forward pass, counting those on padding.
    #[must_use]
    pub fn macs(&self) -> u64 {
        let product = |extents: &[usize]| extents.iter().map(|&e| e as u64).product::<u64>();
        product(&self.output_shape()) * product(&self.weight_shape()[1..])
    }
}

/// The name and every number of the case, on one line.
impl fmt::Display for Conv3dCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let padding = self.padding.map(|(begin, end)| format!("{begin}+{end}")).join(",");
        let mode = match self.modes {
            Some(modes) => format!(" {modes:?}").to_lowercase(),
            None => if self.replicate { " replicate" } else { "" }.into(),
        };
        let bias = if self.bias { "bias" } else { "no bias" };
        let residual = if self.residual { " residual" } else { "" };
        write!(
            f,
            "{}: x {:?} -> o {} kernel {:?} stride {:?} padding [{padding}]{mode} dilation {:?} groups {} {bias} {:?}{residual}",
            self.name,
            self.input_shape(),
            self.o,
            self.kernel,
            self.stride,
            self.dilation,
            self.groups,
            self.activation,
        )
    }
}

/// Problems that every plan must get right: all pairs of options, then hand-picked edges and modes of
/// padding. None is empty.
#[must_use]
pub fn conformance() -> Vec<Conv3dCase> {
    let mut cases = covering::cases();
    cases.extend(edges::cases());
    cases.extend(padding::cases());
    cases
}

/// Problems with batch 0 or O 0 (an empty output) or with C 0 (the output is the bias).
#[must_use]
pub fn empty() -> Vec<Conv3dCase> {
    edges::empty()
}

/// Pointwise problems one below, at and one above every tile boundary (4, 8, 32, 64, 128 and 256 rows or
/// columns, K stages of 16 and 32): positions x output channels x input channels, so that each pass meets
/// each boundary in each of M, N and K.
#[must_use]
pub fn tile_boundaries() -> Vec<Conv3dCase> {
    const EXTENTS: [usize; 6] = [31, 32, 33, 63, 64, 65];
    const STAGES: [usize; 3] = [15, 16, 17];
    let mut cases = Vec::new();
    let mut add = |w: usize, o: usize, c: usize| {
        let name = format!("boundary_{w}_positions_{c}_to_{o}");
        cases.push(Conv3dCase { bias: false, ..Conv3dCase::new(&name, [1, c, 1, 1, w], o, [1, 1, 1]) });
    };
    for stage in STAGES {
        for extents in [[31, 33], [32, 64], [33, 63], [63, 32], [64, 65], [65, 31]] {
            // K is the input channels (forward), the output channels (dx) and the positions (dw).
            add(extents[0], extents[1], stage);
            add(extents[0], stage, extents[1]);
            add(stage, extents[0], extents[1]);
        }
    }
    EXTENTS.iter().for_each(|&extent| add(extent, extent, extent));
    for (extents, stage) in
        [([127, 129], 31), ([129, 128], 33), ([128, 127], 32), ([255, 4], 16), ([257, 9], 17)]
    {
        add(extents[0], extents[1], stage);
        add(extents[0], stage, extents[1]);
        add(stage, extents[0], extents[1]);
    }
    cases
}

/// Shapes that public bugs of other libraries were found with; the name begins with the library and bug
/// number.
#[must_use]
pub fn regressions() -> Vec<Conv3dCase> {
    regressions::cases()
}

/// Shapes that these kernels were once wrong for.
#[must_use]
pub fn faults() -> Vec<Conv3dCase> {
    regressions::faults()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn assert_well_formed(cases: &[Conv3dCase], max_macs: u64) {
        let mut names = HashSet::new();
        for case in cases {
            assert!(names.insert(&case.name), "two cases are named {}", case.name);
            assert!(
                case.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'),
                "{case}"
            );
            assert_eq!((case.c % case.groups, case.o % case.groups), (0, 0), "{case}");
            assert!(case.output_extents().iter().all(|&extent| extent > 0), "{case}");
            assert!(case.macs() <= max_macs, "{} multiply-accumulates in {case}", case.macs());
        }
    }

    #[test]
    fn conformance_is_large_in_count_and_small_in_work() {
        let cases = conformance();
        assert!(cases.len() >= 160, "{} cases", cases.len());
        assert_eq!(tile_boundaries().len(), 3 * 6 * 3 + 6 + 5 * 3);
        assert!(edges::cases().len() >= 30, "{} edges", edges::cases().len());
        assert_well_formed(&cases, MAX_CONFORMANCE_MACS);
        assert!(cases.iter().all(|case| case.macs() > 0));
        let total: u64 = cases.iter().map(Conv3dCase::macs).sum();
        assert!(total <= 25_000_000, "{total} multiply-accumulates in all");
        let largest = cases.iter().map(|case| case.input_shape().iter().product::<usize>()).max();
        assert!(largest <= Some(100_000), "the largest input has {largest:?} elements");
    }

    #[test]
    fn the_edge_list_is_covered() {
        let cases = conformance();
        let require = |what: &str, holds: &dyn Fn(&Conv3dCase, usize) -> bool| {
            assert!(cases.iter().any(|case| (0..3).any(|axis| holds(case, axis))), "no case has {what}");
        };
        let input = |case: &Conv3dCase, axis: usize| [case.d, case.h, case.w][axis];
        let span = |case: &Conv3dCase, axis: usize| case.dilation[axis] * (case.kernel[axis] - 1) + 1;
        require("kernel == input", &|case, i| case.kernel[i] > 1 && case.kernel[i] == input(case, i));
        require("kernel > input", &|case, i| case.kernel[i] > input(case, i));
        require("padding > kernel", &|case, i| case.padding[i].0 > case.kernel[i]);
        require("replicate with padding > input", &|case, i| {
            case.replicate && case.padding[i].0 > input(case, i)
        });
        require("stride > kernel", &|case, i| case.stride[i] > case.kernel[i]);
        require("stride > input", &|case, i| case.stride[i] > input(case, i));
        require("a dilated span > input", &|case, i| case.dilation[i] > 1 && span(case, i) > input(case, i));
        require("asymmetric padding", &|case, i| case.padding[i].0 != case.padding[i].1);
        require("a multiplier", &|case, _| case.groups > 1 && case.groups == case.c && case.o > case.c);
        for channels in [1, 2, 3, 5, 7, 15, 17, 31, 33, 63, 65] {
            require("each C", &|case, _| case.c == channels);
            require("each O", &|case, _| case.o == channels);
        }
        for kd in 1..=7 {
            require("each KD", &|case, _| case.kernel[0] == kd);
        }
        for extent in 1..=13 {
            require("each Winograd output extent", &|case, axis| {
                axis > 0 && winograd_shaped(case) && case.output_extents()[axis] == extent
            });
        }
    }

    fn winograd_shaped(case: &Conv3dCase) -> bool {
        let in_frame = |values: [usize; 3]| [values[1], values[2]];
        in_frame(case.kernel) == [3, 3]
            && in_frame(case.stride) == [1, 1]
            && in_frame(case.dilation) == [1, 1]
            && case.groups == 1
    }

    #[test]
    fn winograd_cases_reach_every_depth_option() {
        let cases: Vec<_> = conformance().into_iter().filter(winograd_shaped).collect();
        assert!(cases.len() >= 24, "{} cases", cases.len());
        let require = |what: &str, holds: &dyn Fn(&Conv3dCase) -> bool| {
            assert!(cases.iter().any(holds), "no Winograd-shaped case has {what}");
        };
        require("N > 1", &|case| case.n > 1);
        require("depth stride", &|case| case.stride[0] > 1 && case.output_extents()[0] > 1);
        require("depth dilation", &|case| case.dilation[0] > 1 && case.kernel[0] > 1);
        require("depth padding", &|case| case.padding[0].0 != case.padding[0].1 && case.kernel[0] > 1);
        require("replicate padding", &|case| case.replicate && case.padding[1].0 > 0);
        require("no padding", &|case| case.padding[1..] == [(0, 0); 2]);
        require("asymmetric padding of H or W", &|case| case.padding[2].0 != case.padding[2].1);
        require("an activation", &|case| case.activation != Activation::None);
    }

    #[test]
    fn empty_cases_are_empty() {
        let cases = empty();
        assert!(cases.len() >= 6);
        assert_well_formed(&cases, 0);
        for axis in 0..3 {
            assert!(cases.iter().any(|case| [case.n, case.c, case.o][axis] == 0));
        }
    }

    #[test]
    fn regressions_are_named_after_bugs() {
        let cases = regressions();
        assert!(cases.len() >= 30, "{} cases", cases.len());
        assert_well_formed(&cases, MAX_REGRESSION_MACS);
        assert_well_formed(&faults(), MAX_REGRESSION_MACS);
        let bugs =
            ["pytorch_197114", "burn_5626", "burn_4445", "cubecl_1636", "pytorch_129207", "pytorch_195163"];
        for bug in bugs {
            assert!(cases.iter().any(|case| case.name.starts_with(bug)), "{bug} has no case");
        }
        let long_sums = cases.iter().filter(|case| case.name.starts_with("pytorch_195163"));
        let depths: HashSet<usize> =
            long_sums.map(|case| case.weight_shape()[1..].iter().product()).collect();
        assert_eq!(depths, HashSet::from([32_766, 32_767, 32_768, 32_769]));
        let modes_of = |size| -> HashSet<Padding> {
            let frames = cases.iter().filter(|case| case.name.starts_with("pytorch_194922"));
            let of_size = frames.filter(|case| [case.h, case.w] == [size; 2] && case.padding == [(1, 1); 3]);
            of_size.map(|case| case.padding_modes()[1]).collect()
        };
        assert_eq!([256, 257].map(|size| modes_of(size).len()), [4; 2]);
    }

    #[test]
    fn output_extents_follow_the_formula() {
        let case = Conv3dCase {
            stride: [2, 3, 1],
            padding: [(0, 1), (2, 2), (0, 0)],
            dilation: [1, 2, 3],
            ..Conv3dCase::new("x", [2, 3, 8, 9, 7], 5, [3, 3, 2])
        };
        // Depth (8+1-3)/2+1, height (9+4-5)/3+1, width 7-4+1.
        assert_eq!(case.output_shape(), [2, 5, 4, 3, 4]);
        assert_eq!(case.macs(), (2 * 5 * 4 * 3 * 4) * (3 * 3 * 3 * 2));
        assert_eq!(Conv3dCase { d: 1, ..case }.output_extents()[0], 0);
    }
}
