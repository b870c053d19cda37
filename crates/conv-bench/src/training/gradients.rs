//! Loss and gradients of a step on the host, and how far two of them are apart.

use super::models::Network;
use crate::verify::Deviation;
use burn::module::{ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};

/// The loss is multiplied by this, so that fp16 holds its gradients.
pub(super) const LOSS_SCALE: f64 = 16384.0;

/// RMS difference of all gradients from the truth, relative to their RMS, that rounding explains in fp32: a
/// ReLU whose input is nearer to zero than its error may switch, and a share p of them moves a gradient by
/// sqrt(p). In other types: [`TWICE`] what one output per thread has in that type.
const SAME_STEP: f64 = 1e-2;

/// By how much two roundings of the same step differ in their distance from the truth, at most.
const TWICE: f64 = 2.0;

/// The same of one convolution's weight alone, which has fewer elements to average over.
const ONE_WEIGHT: f64 = 3.0;

/// The loss, then a gradient of each parameter, with the parameter's rank.
pub(super) type Values = Vec<(usize, Vec<f32>)>;

struct Collect<'a> {
    gradients: &'a Gradients,
    values: Values,
}

impl ModuleVisitor for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        let gradient = parameter.val().grad(self.gradients);
        self.values.extend(gradient.map(|gradient| (D, host(gradient))));
    }
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_to_vec().expect("f32 after conversion")
}

/// Runs a step without its update.
pub(super) fn loss_and_gradients<M: Network>(model: &M, batch: M::Batch) -> Values {
    let loss = model.loss(batch).mul_scalar(LOSS_SCALE);
    let gradients = loss.backward();
    let mut collect = Collect { gradients: &gradients, values: vec![(1, host(loss.inner()))] };
    model.visit(&mut collect);
    collect.values
}

/// How far a step is from another one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Distance {
    /// Of all values together.
    pub(super) all: Deviation,
    /// RMS difference of the convolution's weight that is furthest off, relative to the RMS of its gradient.
    pub(super) weight: f64,
}

impl Distance {
    /// How far `got` is from `want`.
    pub(super) fn between(got: &Values, want: &Values) -> Self {
        let shapes =
            |values: &Values| -> Vec<_> { values.iter().map(|(rank, of)| (*rank, of.len())).collect() };
        assert_eq!(shapes(got), shapes(want), "the same parameters have gradients");
        let mut all = Sums::default();
        let mut weight = 0.0;
        for ((rank, got), (_, want)) in got.iter().zip(want) {
            let sums = Sums::of(got, want);
            all = all.and(sums);
            if *rank >= 4 {
                weight = larger(weight, sums.rms());
            }
        }
        Self { all: Deviation { max: all.largest / (all.want / all.count).sqrt(), rms: all.rms() }, weight }
    }

    /// Within the limits of `limit`; NaN is not.
    pub(super) fn within(&self, limit: &Self) -> bool {
        self.all.rms <= limit.all.rms && self.weight <= limit.weight
    }

    /// What a correct step in fp32 keeps.
    pub(super) fn limit() -> Self {
        Self { all: Deviation { max: f64::INFINITY, rms: SAME_STEP }, weight: ONE_WEIGHT * SAME_STEP }
    }

    /// What a correct step keeps in a type in which one output per thread is `self` off.
    pub(super) fn limit_of_type(&self) -> Self {
        let rms = TWICE * self.all.rms;
        Self { all: Deviation { max: f64::INFINITY, rms }, weight: ONE_WEIGHT * self.weight }
    }
}

/// Sums over values.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    count: f64,
    error: f64,
    want: f64,
    largest: f64,
}

impl Sums {
    fn of(got: &[f32], want: &[f32]) -> Self {
        let mut sums = Self { count: got.len() as f64, ..Self::default() };
        for (got, want) in got.iter().zip(want) {
            let (got, want) = (f64::from(*got), f64::from(*want));
            sums.error += (got - want) * (got - want);
            sums.want += want * want;
            sums.largest = larger(sums.largest, (got - want).abs());
        }
        sums
    }

    fn and(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            error: self.error + other.error,
            want: self.want + other.want,
            largest: larger(self.largest, other.largest),
        }
    }

    /// RMS difference over the RMS of what is wanted; none where both are zero.
    fn rms(&self) -> f64 {
        if self.error == 0.0 { 0.0 } else { (self.error / self.want).sqrt() }
    }
}

/// Not `max`, which would pass over NaN.
fn larger(most: f64, each: f64) -> f64 {
    if each > most || each.is_nan() { each } else { most }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(values: [&[f32]; 3]) -> Values {
        [1, 5, 1].into_iter().zip(values).map(|(rank, values)| (rank, values.to_vec())).collect()
    }

    #[test]
    fn one_wrong_weight_is_noticed_among_larger_gradients() {
        let want = step([&[1.0], &[1e-3, -1e-3], &[100.0, -100.0]]);
        let same = Distance::between(&want, &want);
        assert!(same.within(&Distance::limit()) && same.all.rms == 0.0);
        let wrong = step([&[1.0], &[-1e-3, 1e-3], &[100.0, -100.0]]);
        let distance = Distance::between(&wrong, &want);
        assert!(distance.all.rms < 1e-4 && (distance.weight - 2.0).abs() < 1e-6);
        assert!(!distance.within(&Distance::limit()));
    }

    #[test]
    fn limits_of_a_type_follow_what_rounding_does_in_it() {
        let want = step([&[1.0], &[1.0, -1.0], &[2.0, 2.0]]);
        let rounded = step([&[1.0], &[1.1, -1.1], &[2.0, 2.0]]);
        let limit = Distance::between(&rounded, &want).limit_of_type();
        let near = step([&[1.0], &[0.8, -0.9], &[2.0, 2.0]]);
        assert!(Distance::between(&near, &want).within(&limit));
        let far = step([&[1.0], &[0.6, -0.6], &[2.0, 2.0]]);
        assert!(!Distance::between(&far, &want).within(&limit));
        let nan = step([&[1.0], &[f32::NAN, -1.0], &[2.0, 2.0]]);
        let distance = Distance::between(&nan, &want);
        assert!(!distance.within(&limit));
        // Whatever follows it.
        assert!(distance.all.max.is_nan() && distance.weight.is_nan());
    }
}
