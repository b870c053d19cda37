//! What is said of several runs.

/// The distribution of one row's runs, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Samples {
    /// Half of the runs took less.
    pub median: f64,
    /// A tenth of the runs took less.
    pub p10: f64,
    /// Nine tenths of the runs took less.
    pub p90: f64,
}

impl Samples {
    /// Quantiles of at least one run.
    ///
    /// # Panics
    /// Without a run.
    #[must_use]
    pub fn of(mut runs: Vec<f64>) -> Self {
        runs.sort_by(f64::total_cmp);
        Self { median: quantile(&runs, 0.5), p10: quantile(&runs, 0.1), p90: quantile(&runs, 0.9) }
    }
}

/// The quantile of sorted values, interpolated between neighbours.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// The geometric mean of positive values; none of nothing.
#[must_use]
pub fn geometric_mean(values: &[f64]) -> Option<f64> {
    let logarithms: f64 = values.iter().map(|value| value.ln()).sum();
    (!values.is_empty()).then(|| (logarithms / values.len() as f64).exp())
}

/// `value` rounded to six significant digits.
#[must_use]
pub fn digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// Three significant digits, without an exponent.
#[must_use]
pub fn short(value: f64) -> String {
    let magnitude = value.abs().max(1e-9).log10().floor() as i32;
    let decimals = (2 - magnitude).clamp(0, 6) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated_and_do_not_depend_on_the_order() {
        let samples = Samples::of(vec![5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!(samples.median, 3.0);
        assert!((samples.p10 - 1.4).abs() < 1e-12 && (samples.p90 - 4.6).abs() < 1e-12, "{samples:?}");
        assert_eq!(Samples::of(vec![2.0, 1.0]).median, 1.5);
        assert_eq!(Samples::of(vec![7.0]), Samples { median: 7.0, p10: 7.0, p90: 7.0 });
    }

    #[test]
    fn the_geometric_mean_treats_twice_and_half_alike() {
        assert!((geometric_mean(&[2.0, 0.5, 8.0]).unwrap() - 2.0).abs() < 1e-12);
        assert_eq!(geometric_mean(&[]), None);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [(0.012345, "0.0123"), (1.2345, "1.23"), (123.45, "123"), (98765.4, "98765")] {
            assert_eq!(short(value), text);
        }
        assert_eq!(digits(1.0 / 3.0), 0.333333);
    }
}
