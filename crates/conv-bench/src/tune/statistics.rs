//! What is said of a layer's plans: which was fastest, what the choice lost, whether the model ranks them
//! right. Functions of numbers alone.

use bench_record::statistics::geometric_mean;

/// A plan of a layer's pass: what the model says and what was measured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Timed {
    pub(crate) plan: String,
    /// Plans of one kind, which share constants of the model.
    pub(crate) family: &'static str,
    pub(crate) predicted_ms: f64,
    pub(crate) measured_ms: f64,
}

/// The plans of one pass of one layer in one storage type.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) pass: &'static str,
    /// At least one.
    pub(crate) plans: Vec<Timed>,
    /// The plan that `Auto` takes, which may not have been timed.
    pub(crate) chosen: String,
}

impl Layer {
    pub(crate) fn fastest(&self) -> &Timed {
        let fastest = self.plans.iter().min_by(|a, b| a.measured_ms.total_cmp(&b.measured_ms));
        fastest.expect("a layer has a plan")
    }

    /// The choice, if it was timed.
    pub(crate) fn chosen(&self) -> Option<&Timed> {
        self.plans.iter().find(|plan| plan.plan == self.chosen)
    }

    /// Times of the choice in that of the fastest plan; none where there was nothing to choose from, or the
    /// choice was not timed.
    pub(crate) fn regret(&self) -> Option<f64> {
        let chosen = self.chosen().filter(|_| self.plans.len() > 1)?;
        Some(chosen.measured_ms / self.fastest().measured_ms)
    }

    /// The regret of timing `count` plans and keeping the fastest: the choice, the best plan of each other
    /// family by the model, then the best of all others (as `kernels/src/conv3d/tune.rs` takes them).
    pub(crate) fn regret_of_best(&self, count: usize) -> Option<f64> {
        let chosen = self.chosen().filter(|_| self.plans.len() > 1)?;
        let mut others: Vec<_> = self.plans.iter().filter(|plan| plan.plan != self.chosen).collect();
        others.sort_by(|a, b| a.predicted_ms.total_cmp(&b.predicted_ms));
        let mut families = vec![chosen.family];
        let (mut tried, mut same_family) = (vec![chosen], Vec::new());
        for plan in others {
            if families.contains(&plan.family) {
                same_family.push(plan);
            } else {
                families.push(plan.family);
                tried.push(plan);
            }
        }
        tried.extend(same_family);
        let best = tried.into_iter().take(count).map(|plan| plan.measured_ms).reduce(f64::min)?;
        Some(best / self.fastest().measured_ms)
    }

    /// Spearman's correlation of predicted and measured times; none of fewer than three plans.
    pub(crate) fn rank_correlation(&self) -> Option<f64> {
        if self.plans.len() < 3 {
            return None;
        }
        let pairs: Vec<_> = self.plans.iter().map(|plan| (plan.predicted_ms, plan.measured_ms)).collect();
        spearman(&pairs)
    }
}

/// Spearman's rank correlation; equal values share the mean of their ranks. None of fewer than two pairs, or
/// where one side has only equal values.
pub(crate) fn spearman(pairs: &[(f64, f64)]) -> Option<f64> {
    let (first, second): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
    let (first, second) = (ranks(&first), ranks(&second));
    let mean = (pairs.len() as f64 + 1.0) / 2.0;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    let scale = (product(&first, &first) * product(&second, &second)).sqrt();
    (scale > 0.0).then(|| product(&first, &second) / scale)
}

/// The rank of each value, from 1.
fn ranks(values: &[f64]) -> Vec<f64> {
    let below = |value: f64| values.iter().filter(|other| **other < value).count() as f64;
    let equal = |value: f64| values.iter().filter(|other| **other == value).count() as f64;
    values.iter().map(|value| below(*value) + (equal(*value) + 1.0) / 2.0).collect()
}

/// Milliseconds from which a row tells rates: launches and partly filled devices no longer count.
const LONG_MS: f64 = 0.5;

/// Measured over predicted time of a family's plans.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) family: &'static str,
    pub(crate) dtype: &'static str,
    pub(crate) count: usize,
    /// Geometric mean.
    pub(crate) mean: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    /// Of the family's fastest plan of each layer: how many are long, and their geometric mean.
    pub(crate) long: Option<(usize, f64)>,
}

/// The ratios of every family and type, in order of appearance.
pub(crate) fn ratios(layers: &[Layer]) -> Vec<Ratio> {
    let mut groups = Vec::new();
    for (dtype, plan) in layers.iter().flat_map(|layer| layer.plans.iter().map(|plan| (layer.dtype, plan))) {
        if !groups.contains(&(plan.family, dtype)) {
            groups.push((plan.family, dtype));
        }
    }
    let ratio = |plan: &Timed| plan.measured_ms / plan.predicted_ms;
    let summary = |(family, dtype)| {
        let of = |layer: &&Layer| layer.dtype == dtype;
        let plans = |layer: &'_ Layer| -> Vec<Timed> {
            let plans = layer.plans.iter().filter(|plan| plan.family == family && plan.predicted_ms > 0.0);
            plans.cloned().collect()
        };
        let all: Vec<f64> = layers.iter().filter(of).flat_map(plans).map(|plan| ratio(&plan)).collect();
        // A tile that does not fit its layer tells nothing of rates either.
        let best = layers.iter().filter(of).filter_map(|layer| {
            plans(layer).into_iter().min_by(|a, b| a.measured_ms.total_cmp(&b.measured_ms))
        });
        let long: Vec<f64> =
            best.filter(|plan| plan.measured_ms >= LONG_MS).map(|plan| ratio(&plan)).collect();
        Some(Ratio {
            family,
            dtype,
            count: all.len(),
            mean: geometric_mean(&all)?,
            least: all.iter().copied().reduce(f64::min)?,
            most: all.iter().copied().reduce(f64::max)?,
            long: geometric_mean(&long).map(|mean| (long.len(), mean)),
        })
    };
    groups.into_iter().filter_map(summary).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A layer of plans with these predicted and measured times; the first one is the choice.
    pub(crate) fn layer(times: &[(f64, f64)]) -> Layer {
        let plans = times.iter().enumerate().map(|(index, &(predicted_ms, measured_ms))| Timed {
            plan: format!("plan_{index}"),
            family: if index == 0 { "winograd" } else { "gemm" },
            predicted_ms,
            measured_ms,
        });
        let plans = plans.collect();
        Layer { name: "a".into(), dtype: "f32", pass: "fwd", plans, chosen: "plan_0".into() }
    }

    #[test]
    fn ranks_are_compared_and_not_values() {
        assert_eq!(spearman(&[(1.0, 10.0), (2.0, 1e6), (3.0, 1e7)]), Some(1.0));
        assert_eq!(spearman(&[(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]), Some(-1.0));
        // d = 0, 1, 1, 0: 1 - 6 * 2 / (4 * 15).
        let swapped = spearman(&[(1.0, 1.0), (2.0, 3.0), (3.0, 2.0), (4.0, 4.0)]).unwrap();
        assert!((swapped - 0.8).abs() < 1e-12, "{swapped}");
        // Equal predictions share a rank: ranks 1.5, 1.5, 3 against 1, 2, 3.
        let tied = spearman(&[(1.0, 1.0), (1.0, 2.0), (2.0, 3.0)]).unwrap();
        assert!((tied - 3f64.sqrt() / 2.0).abs() < 1e-12, "{tied}");
        assert_eq!(spearman(&[(1.0, 1.0), (1.0, 2.0)]), None);
        assert_eq!(spearman(&[(1.0, 1.0)]), None);
    }

    #[test]
    fn regret_is_what_the_choice_lost() {
        let of = layer(&[(1.0, 6.0), (3.0, 2.0), (2.0, 3.0), (4.0, 8.0)]);
        assert_eq!((of.fastest().plan.as_str(), of.regret()), ("plan_1", Some(3.0)));
        // In the order of the model: the choice, plan 2, plan 1, plan 3.
        let best = |of: &Layer| [1, 2, 3, 4].map(|count| of.regret_of_best(count).unwrap());
        assert_eq!(best(&of), [3.0, 1.5, 1.0, 1.0]);
        // Another family comes first, however slow the model says it is.
        let mut families = of.clone();
        families.plans[1].family = "window";
        families.plans[1].predicted_ms = 9.0;
        families.plans[2].family = "winograd";
        assert_eq!(best(&families), [3.0, 3.0, 1.0, 1.0]);
        // Ranks 1 3 2 4 against 3 1 2 4: 1 - 6 * 8 / (4 * 15).
        assert!((of.rank_correlation().unwrap() - 0.2).abs() < 1e-12);
        // Nothing to choose from, and a choice that was not timed.
        assert_eq!(layer(&[(1.0, 6.0)]).regret(), None);
        let unknown = Layer { chosen: "other".into(), ..of };
        assert_eq!((unknown.regret(), unknown.regret_of_best(4)), (None, None));
        assert_eq!(layer(&[(1.0, 6.0), (2.0, 7.0)]).rank_correlation(), None);
    }

    #[test]
    fn families_have_a_ratio_each() {
        let ratios = ratios(&[layer(&[(1.0, 2.0), (1.0, 4.0), (0.1, 0.1)]), layer(&[(2.0, 16.0)])]);
        let winograd = &ratios[0];
        assert_eq!(
            (winograd.family, winograd.count, winograd.least, winograd.most),
            ("winograd", 2, 2.0, 8.0)
        );
        let four = |mean: f64| (mean - 4.0).abs() < 1e-12;
        assert!(four(winograd.mean) && winograd.long.is_some_and(|(count, mean)| count == 2 && four(mean)));
        let gemm = &ratios[1];
        assert_eq!((gemm.family, gemm.count, gemm.least, gemm.most), ("gemm", 2, 1.0, 4.0));
        // Its fastest plan is short.
        assert_eq!(gemm.long, None);
    }
}
