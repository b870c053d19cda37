//! Error bounds against the f64 reference: a rigorous bound per element and a statistical guard.
//!
//! A kernel reads inputs in the storage type, accumulates in fp32 and rounds once. With `magnitude` the same
//! sum in f64 over absolute values, and `terms` its length,
//!
//! ```text
//! |y - ref| <= u_storage * |ref| + (terms + 8) * u_f32 * magnitude + subnormal step
//! ```
//!
//! holds for every order of summation, so a correct kernel never fails it: an excess, however small, is a
//! fault of the kernel or the reference. [`Expected`] adds the slope of an activation, Winograd's
//! transforms and a second rounding where there is one. The bound is wide for long sums; the [`Guard`] on
//! the RMS error of normally distributed data detects kernels that silently lose precision. Both are
//! mandatory where the data allow it: an aggregate alone hides single wrong elements.

use crate::dtype::FloatType;

/// Statistical limits for N(0, 1) data, relative to the RMS of the reference over elements with at least one
/// term.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guard {
    /// RMS of the error.
    pub rms: f64,
    /// Largest error.
    pub max: f64,
}

/// The fewest results with a term that a guard judges.
const FEWEST_RESULTS: usize = 64;
/// The fewest results that carry the RMS: the square of the sum of squares over the sum of fourth powers, a
/// third of the number of N(0, 1) results. Below, the rounding of one large result is the statistic: 65
/// results of SiLU in bf16, one of 6 RMS among them, exceeded the guard by a fifth although each was
/// rounded once.
const FEWEST_CARRYING: f64 = 16.0;

impl Guard {
    /// fp32 sums of up to 4096 terms: direct, implicit GEMM, F(2x2).
    pub const SUM: Self = Self { rms: 5e-6, max: 3e-5 };
    /// Winograd F(4x4) with its balanced interpolation points.
    pub const WINOGRAD_4X4: Self = Self { rms: 1e-5, max: 8e-5 };
    /// Winograd F(6x6).
    pub const WINOGRAD_6X6: Self = Self { rms: 2e-5, max: 2e-4 };
    /// Two-pass sums over all windows of a batch.
    pub const WEIGHT_GRADIENT: Self = Self { rms: 1e-5, max: 1e-4 };

    /// The guard for results stored as `dtype`: their rounding dominates for half types.
    pub fn stored_as(self, dtype: FloatType) -> Self {
        match dtype {
            FloatType::F32 => self,
            // One unit in the last place of the largest output, which is below 8 RMS for the sizes tested.
            FloatType::F16 => Self { rms: 3e-4, max: 8.0 * 2f64.powi(-10) },
            FloatType::Bf16 => Self { rms: 2.4e-3, max: 8.0 * 2f64.powi(-7) },
        }
    }
}

/// The expected values and the parameters of their bound.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The f64 reference on the same (rounded) inputs.
    pub values: &'a [f64],
    /// The same algorithm in f64 on absolute values, per element.
    pub magnitudes: &'a [f64],
    /// Length of the longest sum, with the number of roundings per term of the algorithm beyond one.
    pub terms: usize,
    /// Type the result is stored as.
    pub dtype: FloatType,
    /// Largest slope of the activation (1; 1.1 for SiLU).
    pub slope: f64,
}

/// Measured errors, for tables.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// Largest absolute error.
    pub max: f64,
    /// RMS error over the RMS of the reference.
    pub relative_rms: f64,
}

impl Expected<'_> {
    /// The bound of the module documentation for element `index`.
    pub fn bound(&self, index: usize) -> f64 {
        let unit = FloatType::F32.unit_roundoff();
        let sum = (self.terms as f64 + 8.0) * unit * self.magnitudes[index] * self.slope;
        // Results beyond the largest finite half become infinite in any correct kernel; tests stay far below.
        self.dtype.unit_roundoff() * (self.values[index].abs() + sum) + sum + self.dtype.subnormal_roundoff()
    }

    /// Compares `got` element by element, and statistically where a guard is given.
    ///
    /// # Errors
    /// A report with the worst element: index, result, reference, error and bound.
    pub fn check(&self, got: &[f64], guard: Option<Guard>) -> Result<Errors, String> {
        if got.len() != self.values.len() {
            return Err(format!("{} elements instead of {}", got.len(), self.values.len()));
        }
        let (mut squares, mut reference, mut fourth, mut errors) = (0.0, 0.0, 0.0, Errors::default());
        let (mut wrong, mut worst) = (0usize, (0usize, 0.0f64));
        // Elements without any term (dx between strided windows) are 0 and do not count for the RMS.
        let mut sums = 0usize;
        for (index, (got, want)) in got.iter().zip(self.values).enumerate() {
            let error = (got - want).abs();
            let bound = self.bound(index);
            let ratio = if error.is_nan() { f64::INFINITY } else { error / bound };
            if ratio > 1.0 {
                wrong += 1;
            }
            if ratio > worst.1 {
                worst = (index, ratio);
            }
            errors.max = errors.max.max(error);
            squares += error * error;
            reference += want * want;
            fourth += (want * want).powi(2);
            sums += usize::from(self.magnitudes[index] > 0.0);
        }
        if wrong > 0 {
            let (index, ratio) = worst;
            return Err(format!(
                "{wrong} of {} elements are wrong; worst at {index}: got {:e}, reference {:e}, \
                 error {ratio:.1} x bound {:e}",
                got.len(),
                got[index],
                self.values[index],
                self.bound(index)
            ));
        }
        if reference > 0.0 {
            errors.relative_rms = (squares / reference).sqrt();
        }
        // Too few elements for statistics.
        if let Some(guard) = guard
            && sums >= FEWEST_RESULTS
            && reference * reference >= FEWEST_CARRYING * fourth
        {
            let rms = (reference / sums.max(1) as f64).sqrt();
            if errors.relative_rms > guard.rms || errors.max > guard.max * rms {
                return Err(format!(
                    "inside the element bound, but relative RMS error {:e} (guard {:e}), \
                     largest error {:e} RMS (guard {:e})",
                    errors.relative_rms,
                    guard.rms,
                    errors.max / rms,
                    guard.max
                ));
            }
        }
        Ok(errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_missing_and_nan_elements_are_reported_with_their_place() {
        let values = [1.0, 2.0, 3.0];
        let expected =
            Expected { values: &values, magnitudes: &values, terms: 4, dtype: FloatType::F32, slope: 1.0 };
        assert!(expected.check(&[1.0, 2.0, 3.0 + 1e-7], None).is_ok());
        for (got, place) in [(vec![1.0, 2.01, 3.0], "worst at 1"), (vec![f64::NAN, 2.0, 3.0], "worst at 0")] {
            assert!(expected.check(&got, None).unwrap_err().contains(place));
        }
        assert!(expected.check(&[1.0], None).is_err());
    }

    /// One result of the size of all others together: its own rounding is no statistic.
    #[test]
    fn the_guard_does_not_judge_one_result_among_many() {
        let guard = Guard { rms: 1e-3, max: 0.1 };
        let check = |large: f64| {
            let mut values = [1.0; 65];
            values[0] = large;
            let terms = 4096;
            let expected = Expected {
                values: &values,
                magnitudes: &[1e4; 65],
                terms,
                dtype: FloatType::F32,
                slope: 1.0,
            };
            expected.check(&values.map(|value| value * 1.002), Some(guard))
        };
        assert!(check(1.0).is_err());
        assert!(check(8.0).is_ok());
    }

    #[test]
    fn the_guard_notices_lost_precision_that_the_bound_allows() {
        let values: Vec<f64> = (0..200).map(|i| 1.0 + f64::from(i) * 1e-3).collect();
        let expected =
            Expected { values: &values, magnitudes: &values, terms: 4096, dtype: FloatType::F32, slope: 1.0 };
        let rounded: Vec<f64> = values.iter().map(|v| v * (1.0 + 1e-5)).collect();
        assert!(expected.check(&rounded, None).is_ok());
        assert!(expected.check(&rounded, Some(Guard::SUM)).unwrap_err().contains("RMS"));
    }

    #[test]
    fn elements_without_terms_do_not_lower_the_rms() {
        // One element in 27 has terms, with an error that the guard allows; the zeros must not tighten it.
        let values: Vec<f64> = (0..64 * 27).map(|i| if i % 27 == 0 { 1.0 } else { 0.0 }).collect();
        let expected =
            Expected { values: &values, magnitudes: &values, terms: 1, dtype: FloatType::Bf16, slope: 1.0 };
        let with_error = |error: f64| -> Vec<f64> { values.iter().map(|v| v * (1.0 + error)).collect() };
        let guard = Guard { rms: 1.0, max: 3e-3 };
        assert!(expected.check(&with_error(2e-3), Some(guard)).is_ok());
        assert!(expected.check(&with_error(3.5e-3), Some(guard)).unwrap_err().contains("guard"));
    }
}
