//! What turns by which angle: axes, order of the pairs, bases, scaling.

use crate::error::{ConvError, invalid};

/// Which frequencies belong to which axis. Pairs of elements are numbered along the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RopeAxes {
    /// One, two or three axes with equal parts of the rotated elements: language models have one, CroCo two.
    Even(usize),
    /// Elements of the head per axis, one axis after the other, each with frequencies of its own, 0 where
    /// there is no such axis: Wan, HunyuanVideo and CogVideoX.
    Dims([usize; 3]),
    /// Pairs per axis, one axis after the other, in one list of frequencies: M-RoPE of Qwen2-VL.
    Sections([usize; 3]),
    /// The same list, whose pairs go to the axes in turn: pair 3i + a to axis a, as long as a has pairs left,
    /// the others to axis 0. M-RoPE of Qwen3-VL.
    Interleaved([usize; 3]),
}

/// Which elements of a head are a pair (u, v).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RopePairs {
    /// Neighbours: 0 and 1, 2 and 3. GPT-J, Wan, HunyuanVideo, CogVideoX.
    Neighbours,
    /// The first half of what is rotated with the second: LLaMA, Qwen.
    #[default]
    Halves,
    /// The same within the part of each axis: CroCo, DUSt3R, VGGT. The axes have parts of their own then.
    HalvesOfAxes,
}

/// How frequencies are changed for sequences longer than those of training.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// Divided by a factor: position interpolation.
    Linear(f32),
    /// The base is multiplied by `factor^(d / (d - 2))` for the d elements that share it (NTK-aware scaling):
    /// the highest frequency stays, the lowest is divided by the factor.
    Ntk(f32),
}

/// How a head is rotated: axes, pairs, and the frequencies `f0 * base^(-i / count)` of pair i in a list of
/// `count`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeAngles {
    /// Which frequencies belong to which axis.
    pub axes: RopeAxes,
    /// Which elements are a pair.
    pub pairs: RopePairs,
    /// Ratio of the highest to about the lowest frequency of each axis.
    pub base: [f32; 3],
    /// Factor of every angle.
    pub f0: f32,
    /// What is done to the frequencies.
    pub scaling: RopeScaling,
}

/// The angle of a pair from one position to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frequency {
    /// The axis whose positions count: 0, 1 or 2.
    pub axis: usize,
    /// The angle, rounded to f64: what the op means by the frequency, so that angles of all positions are
    /// exact.
    pub radians: f64,
}

/// Largest rotation of the fastest frequency from one position to the next, in radians. Beyond it, fp32
/// positions cannot tell rotations apart.
pub const MAX_RADIANS: f64 = (1u32 << 20) as f64;

impl RopeAngles {
    /// CroCo's: rows and columns, base 100, halves of each.
    pub fn rope2d(base: f32, f0: f32) -> Self {
        let (axes, pairs) = (RopeAxes::Even(2), RopePairs::HalvesOfAxes);
        Self { axes, pairs, base: [base; 3], f0, scaling: RopeScaling::None }
    }

    /// Number of axes.
    pub fn count(&self) -> usize {
        match self.axes {
            RopeAxes::Even(count) => count,
            RopeAxes::Dims(parts) | RopeAxes::Sections(parts) | RopeAxes::Interleaved(parts) => {
                3 - parts.iter().rev().take_while(|part| **part == 0).count()
            }
        }
    }

    /// The elements that the axes name; `None` where they take what there is.
    pub(super) fn named(&self) -> Option<usize> {
        let sum = |parts: [usize; 3]| parts.into_iter().fold(0usize, usize::saturating_add);
        match self.axes {
            RopeAxes::Even(_) => None,
            RopeAxes::Dims(parts) => Some(sum(parts)),
            RopeAxes::Sections(parts) | RopeAxes::Interleaved(parts) => Some(sum(parts).saturating_mul(2)),
        }
    }

    /// Pairs of each axis of `rotated` elements.
    pub(super) fn pairs_of_axes(&self, rotated: usize) -> [usize; 3] {
        match self.axes {
            RopeAxes::Even(count) => {
                std::array::from_fn(|axis| if axis < count { rotated / 2 / count } else { 0 })
            }
            RopeAxes::Dims(parts) => parts.map(|part| part / 2),
            RopeAxes::Sections(parts) | RopeAxes::Interleaved(parts) => parts,
        }
    }

    /// The axis of each of the pairs, and its number and their count in the list of frequencies.
    fn places(&self, rotated: usize) -> Vec<(usize, usize, usize)> {
        let pairs = self.pairs_of_axes(rotated);
        let all = rotated / 2;
        let one_after_the_other = || (0..3).flat_map(|axis| (0..pairs[axis]).map(move |i| (axis, i)));
        match self.axes {
            RopeAxes::Even(_) | RopeAxes::Dims(_) => {
                one_after_the_other().map(|(axis, i)| (axis, i, pairs[axis])).collect()
            }
            RopeAxes::Sections(_) => {
                one_after_the_other().enumerate().map(|(at, (axis, _))| (axis, at, all)).collect()
            }
            RopeAxes::Interleaved(_) => {
                let axis = |at: usize| if at / 3 < pairs[at % 3] { at % 3 } else { 0 };
                (0..all).map(|at| (axis(at), at, all)).collect()
            }
        }
    }

    /// The frequency of every pair of `rotated` elements, along the head.
    pub(super) fn frequencies(&self, rotated: usize) -> Vec<Frequency> {
        let of = |(axis, i, count): (usize, usize, usize)| {
            let (mut base, mut scale) = (f64::from(self.base[axis]), f64::from(self.f0));
            match self.scaling {
                RopeScaling::None => {}
                RopeScaling::Linear(factor) => scale /= f64::from(factor),
                RopeScaling::Ntk(factor) if count > 1 => {
                    base *= f64::from(factor).powf(count as f64 / (count as f64 - 1.0));
                }
                RopeScaling::Ntk(_) => {}
            }
            Frequency { axis, radians: scale * base.powf(-(i as f64) / count as f64) }
        };
        self.places(rotated).into_iter().map(of).collect()
    }

    /// Refuses what cannot be computed, whatever the head.
    pub(super) fn check(&self) -> Result<(), ConvError> {
        let count = self.count();
        if !(1..=3).contains(&count) {
            invalid!("rope: there are {count} axes, the op serves one, two and three");
        }
        for base in &self.base[..count] {
            if !(*base > 0.0 && base.is_finite()) {
                invalid!("rope: the base is {base}, it must be positive and finite");
            }
        }
        if !self.f0.is_finite() {
            invalid!("rope: f0 is {}, it must be finite", self.f0);
        }
        if let RopeScaling::Linear(factor) | RopeScaling::Ntk(factor) = self.scaling
            && !(factor > 0.0 && factor.is_finite())
        {
            invalid!("rope: the scaling factor is {factor}, it must be positive and finite");
        }
        if let RopeAxes::Dims(parts) = self.axes
            && let Some(odd) = parts.iter().find(|part| *part % 2 != 0)
        {
            invalid!("rope: an axis has {odd} elements of a head ({parts:?}), they must be pairs");
        }
        let parts_of_their_own = matches!(self.axes, RopeAxes::Even(_) | RopeAxes::Dims(_));
        if self.pairs == RopePairs::HalvesOfAxes && !parts_of_their_own {
            invalid!("rope: sections are parts of one list of pairs, they have no halves of their own");
        }
        if let RopeAxes::Interleaved(parts) = self.axes {
            let all = parts.iter().fold(0usize, |sum, part| sum.saturating_add(*part));
            for (axis, part) in parts.iter().enumerate().skip(1) {
                // Pair 3 * (part - 1) + axis is the axis' last one.
                if part.checked_mul(3).is_none_or(|end| *part > 0 && end - 3 + axis >= all) {
                    invalid!(
                        "rope: of {all} pairs dealt in turn axis {axis} cannot get {part} (sections {parts:?})"
                    );
                }
            }
        }
        Ok(())
    }

    /// Refuses frequencies beyond [`MAX_RADIANS`].
    pub(super) fn check_speed(&self, rotated: usize) -> Result<(), ConvError> {
        let fastest =
            self.frequencies(rotated).into_iter().max_by(|a, b| a.radians.abs().total_cmp(&b.radians.abs()));
        match fastest {
            Some(Frequency { axis, radians }) if radians.is_nan() || radians.abs() > MAX_RADIANS => {
                invalid!(
                    "rope: f0 {} with base {} rotates by up to {} radians from one position to the next, the \
                     limit is {MAX_RADIANS}",
                    self.f0,
                    self.base[axis],
                    radians.abs()
                )
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "angles_tests.rs"]
mod tests;
