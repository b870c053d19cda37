//! What a result must be: f64 values with error bounds, at every element of a small result and at sampled
//! elements of a large one.

use crate::data::{Host, Memory};
use conv_cases::fill;
use conv_kernels::FloatType;
use conv_kernels::tolerance::{Expected, Guard};
use rayon::prelude::*;

/// Elements of a large result that are compared.
pub(crate) const SAMPLES: usize = 512;

/// The f64 result of one tensor, as far as it is known.
#[derive(Clone, Debug)]
pub(crate) struct Truth {
    pub(crate) shape: Vec<usize>,
    /// How a result of ours lies in memory.
    pub(crate) memory: Memory,
    /// The elements that are known; none: all, in order.
    pub(crate) positions: Option<Vec<usize>>,
    pub(crate) values: Vec<f64>,
    /// The same sums over absolute values.
    pub(crate) magnitudes: Vec<f64>,
    /// Length of the longest sum.
    pub(crate) terms: usize,
    /// Largest slope of what is applied to the sum.
    pub(crate) slope: f64,
    /// Statistical limits for fp32 results.
    pub(crate) guard: Guard,
}

/// How far a result is from the truth.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Deviation {
    /// Largest error over the RMS of the truth.
    pub(crate) max: f64,
    /// RMS error over the RMS of the truth.
    pub(crate) rms: f64,
}

impl Deviation {
    /// The worse of both figures.
    pub(crate) fn worst(self, other: Self) -> Self {
        Self { max: self.max.max(other.max), rms: self.rms.max(other.rms) }
    }
}

impl Truth {
    /// Elements of the result, known or not.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The known elements.
    pub(crate) fn positions(&self) -> Vec<usize> {
        self.positions.clone().unwrap_or_else(|| (0..self.len()).collect())
    }

    /// How far `got` is from the truth, and whether it is inside the bounds that hold for every correct
    /// kernel.
    ///
    /// # Errors
    /// When `got` has another size or type, or an element, known or not, that is not finite.
    pub(crate) fn compare(
        &self,
        got: &Host,
        dtype: FloatType,
    ) -> Result<(Deviation, Result<(), String>), String> {
        if got.len() != self.len() || got.dtype != dtype {
            return Err(format!(
                "the result has {} elements of {}, expected {} of {}",
                got.len(),
                got.dtype.name(),
                self.len(),
                dtype.name()
            ));
        }
        if let Some(index) = (0..got.len()).into_par_iter().find_first(|index| !got.get(*index).is_finite()) {
            return Err(format!("element {index} of {} is {}", got.len(), got.get(index)));
        }
        let at = |index: usize| got.get(self.memory.place(&self.shape, index));
        let values: Vec<f64> = match &self.positions {
            Some(positions) => positions.iter().map(|index| at(*index)).collect(),
            None => (0..got.len()).map(at).collect(),
        };
        Ok(self.compare_known(&values, dtype))
    }

    /// As [`Self::compare`], from the known elements alone.
    pub(crate) fn compare_known(&self, values: &[f64], dtype: FloatType) -> (Deviation, Result<(), String>) {
        let expected = Expected {
            values: &self.values,
            magnitudes: &self.magnitudes,
            terms: self.terms,
            dtype,
            slope: self.slope,
        };
        let inside = expected.check(values, Some(self.guard().stored_as(dtype))).map(|_| ());
        (deviation(&self.values, values), inside)
    }

    /// The guard holds for sums of some thousand terms. The RMS error of a plain fp32 sum of K random terms
    /// is about 0.28 u sqrt(K) of its result, which is more for very long sums; twice that is allowed.
    fn guard(&self) -> Guard {
        let plain = 0.56 * FloatType::F32.unit_roundoff() * (self.terms as f64).sqrt();
        let factor = (plain / self.guard.rms).max(1.0);
        Guard { rms: self.guard.rms * factor, max: self.guard.max * factor }
    }
}

fn deviation(want: &[f64], got: &[f64]) -> Deviation {
    let count = want.len().max(1) as f64;
    let rms = (want.iter().map(|value| value * value).sum::<f64>() / count).sqrt();
    let (mut squares, mut largest) = (0.0, 0.0f64);
    for (want, got) in want.iter().zip(got) {
        let error = (want - got).abs();
        squares += error * error;
        largest = largest.max(error);
    }
    if squares == 0.0 {
        return Deviation::default();
    }
    Deviation { max: largest / rms, rms: (squares / count).sqrt() / rms }
}

/// Which elements of a tensor of `shape` to compare: its corners and then random ones, `count` in all; none
/// (meaning all) where it has no more than that.
pub(crate) fn sample(shape: &[usize], count: usize) -> Option<Vec<usize>> {
    let len: usize = shape.iter().product();
    if len <= count {
        return None;
    }
    let corner = |bits: usize| {
        shape
            .iter()
            .enumerate()
            .fold(0, |index, (axis, size)| index * size + if bits >> axis & 1 == 1 { size - 1 } else { 0 })
    };
    let mut positions: Vec<usize> = (0..1 << shape.len()).map(corner).collect();
    positions.extend((0..count as u64).map(|draw| (fill::hash(11, draw) % len as u64) as usize));
    let mut seen = std::collections::HashSet::new();
    positions.retain(|index| seen.insert(*index));
    positions.truncate(count);
    Some(positions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth(values: Vec<f64>, positions: Option<Vec<usize>>, len: usize) -> Truth {
        let magnitudes = values.iter().map(|value| value.abs()).collect();
        let (memory, guard) = (Memory::RowMajor, Guard::SUM);
        Truth { shape: vec![len], memory, positions, values, magnitudes, terms: 4, slope: 1.0, guard }
    }

    fn host(values: &[f32]) -> Host {
        Host { bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(), dtype: FloatType::F32 }
    }

    #[test]
    fn errors_outside_the_bound_and_holes_are_noticed() {
        let truth = truth(vec![1.0, -2.0], Some(vec![0, 2]), 4);
        let (deviation, inside) = truth.compare(&host(&[1.0, 9.0, -2.0, 9.0]), FloatType::F32).unwrap();
        assert_eq!((deviation, inside), (Deviation::default(), Ok(())));
        let (deviation, inside) = truth.compare(&host(&[1.0, 9.0, -2.1, 9.0]), FloatType::F32).unwrap();
        assert!(inside.is_err() && (deviation.max - 0.1 / 2.5f64.sqrt()).abs() < 1e-6, "{deviation:?}");
        // An element that was never written is noticed although it was not sampled.
        let hole = truth.compare(&host(&[1.0, f32::NAN, -2.0, 9.0]), FloatType::F32);
        assert!(hole.unwrap_err().contains("element 1 "));
        assert!(truth.compare(&host(&[1.0]), FloatType::F32).is_err());
    }

    #[test]
    fn long_sums_may_be_less_exact() {
        let mut truth = truth(vec![1.0], None, 1);
        assert_eq!(truth.guard(), Guard::SUM);
        truth.terms = 1 << 24;
        assert!(truth.guard().rms > 1e-4);
    }

    #[test]
    fn samples_have_the_corners_and_no_element_twice() {
        let positions = sample(&[3, 40, 50], 100).unwrap();
        assert!(positions.len() == 100 || positions.len() >= 95);
        for corner in [0, 49, 39 * 50, 40 * 50 - 1, 2 * 40 * 50, 3 * 40 * 50 - 1] {
            assert!(positions.contains(&corner), "{corner}");
        }
        assert!(positions.iter().all(|index| *index < 6000));
        assert_eq!(sample(&[10, 10], 100), None);
    }
}
