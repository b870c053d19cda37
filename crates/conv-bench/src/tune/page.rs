//! Model against measurement as text.

use super::statistics::{Layer, Ratio, ratios, spearman};
use bench_record::statistics::{geometric_mean, short};
use comfy_table::Table;
use conv_kernels::Limits;
use std::fmt::Write;

/// Rows of the tables of the worst.
const WORST: usize = 10;
/// Plans that are timed at most, in the table of what timing some of them would leave.
const MOST_TRIED: usize = 4;

/// Where the times come from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) adapter: String,
    pub(crate) backend: String,
    /// Whose rates the model counts with.
    pub(crate) rates_of: String,
    pub(crate) size: String,
    /// The measured bandwidth and peaks of a run.
    pub(crate) measured: String,
}

/// What is printed: every layer, the worst rows and the constants.
pub(crate) fn summary(layers: &[Layer], unknown: usize, limits: &Limits) -> String {
    let mut text = layer_table(layers).to_string();
    let regrets: Vec<f64> = layers.iter().filter_map(Layer::regret).collect();
    let correlations: Vec<f64> = layers.iter().filter_map(Layer::rank_correlation).collect();
    let single = layers.iter().filter(|layer| layer.plans.len() < 2).count();
    let _ = writeln!(text, "\n\n{} passes of layers; {single} of them with one plan only", layers.len());
    let untimed = layers.iter().filter(|layer| layer.chosen().is_none()).count();
    if untimed > 0 {
        let _ = writeln!(text, "the choice was not timed in {untimed}");
    }
    if unknown > 0 {
        let _ = writeln!(text, "{unknown} rows have plans that the device does not list (any more)");
    }
    if let Some(mean) = geometric_mean(&regrets) {
        let worst = regrets.iter().copied().fold(1.0, f64::max);
        let right = regrets.iter().filter(|regret| **regret < 1.02).count();
        let _ = writeln!(
            text,
            "regret of the choice: {} on average, {} at worst; {right} of {} within 2 % of the fastest plan",
            times(mean),
            times(worst),
            regrets.len()
        );
        for count in 2..=MOST_TRIED {
            let regrets: Vec<f64> = layers.iter().filter_map(|layer| layer.regret_of_best(count)).collect();
            let worst = regrets.iter().copied().fold(1.0, f64::max);
            let mean = geometric_mean(&regrets).unwrap_or(1.0);
            let _ = writeln!(
                text,
                "  with {count} plans timed, as the feature autotune takes them: {} on average, {} at worst",
                times(mean),
                times(worst)
            );
        }
    }
    if !correlations.is_empty() {
        let mean = correlations.iter().sum::<f64>() / correlations.len() as f64;
        let least = correlations.iter().copied().fold(1.0, f64::min);
        let _ = writeln!(
            text,
            "rank correlation of a layer's plans (Spearman): {mean:.2} on average, {least:.2} at worst, of {}",
            correlations.len()
        );
    }
    if let Some(across) = across(layers) {
        let _ = writeln!(text, "rank correlation of all rows, across layers: {across:.2}");
    }
    let _ = write!(text, "\nWorst choices\n{}\n", worst_table(layers));
    let ratios = ratios(layers);
    let _ = write!(text, "\nMeasured over predicted time\n{}\n", ratio_table(&ratios));
    let _ = write!(text, "\nSuggested rates\n{}", rates(&ratios, limits));
    text
}

/// What goes into the file: where the times come from, the summary, then every row.
pub(crate) fn page(layers: &[Layer], unknown: usize, limits: &Limits, origin: &Origin) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut text = format!("burn-conv-ops {version}, tune: plans of conv3d, model against measurement\n\n");
    for (name, value) in [
        ("adapter", &origin.adapter),
        ("backend", &origin.backend),
        ("rates of", &origin.rates_of),
        ("sizes", &origin.size),
        ("measured", &origin.measured),
    ] {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:9} {value}");
        }
    }
    let _ = write!(text, "limits    {limits:?}\n\n{}\n\n", summary(layers, unknown, limits));
    text += "layer,dtype,pass,plan,family,chosen,predicted_ms,measured_ms\n";
    for layer in layers {
        for plan in &layer.plans {
            let chosen = plan.plan == layer.chosen;
            let _ = writeln!(
                text,
                "{},{},{},{},\"{}\",{chosen},{:.6},{:.6}",
                layer.name,
                layer.dtype,
                layer.pass,
                plan.plan,
                plan.family,
                plan.predicted_ms,
                plan.measured_ms
            );
        }
    }
    text
}

fn times(value: f64) -> String {
    format!("{value:.2}x")
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(header.iter().copied());
    table
}

fn layer_row(layer: &Layer) -> Vec<String> {
    let fastest = layer.fastest();
    let chosen = layer.chosen();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    vec![
        layer.name.clone(),
        layer.dtype.into(),
        layer.pass.into(),
        layer.plans.len().to_string(),
        layer.chosen.clone(),
        or_dash(chosen.map(|plan| short(plan.predicted_ms))),
        or_dash(chosen.map(|plan| short(plan.measured_ms))),
        fastest.plan.clone(),
        short(fastest.measured_ms),
        or_dash(layer.regret().map(times)),
        or_dash(layer.rank_correlation().map(|correlation| format!("{correlation:.2}"))),
    ]
}

const LAYER_HEADER: [&str; 11] = [
    "layer",
    "dtype",
    "pass",
    "plans",
    "chosen",
    "predicted ms",
    "measured ms",
    "fastest",
    "ms",
    "regret",
    "ranks",
];

fn layer_table(layers: &[Layer]) -> Table {
    let mut table = table(&LAYER_HEADER);
    table.add_rows(layers.iter().map(layer_row));
    table
}

/// The layers that lose most by the choice.
fn worst_table(layers: &[Layer]) -> Table {
    let mut worst: Vec<_> = layers.iter().filter_map(|layer| Some((layer.regret()?, layer))).collect();
    worst.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut table = table(&LAYER_HEADER);
    table.add_rows(worst.iter().take(WORST).map(|(_, layer)| layer_row(layer)));
    table
}

fn ratio_table(ratios: &[Ratio]) -> Table {
    let mut table = table(&["family", "dtype", "rows", "geometric mean", "least", "most"]);
    for ratio in ratios {
        table.add_row([
            ratio.family.to_string(),
            ratio.dtype.into(),
            ratio.count.to_string(),
            times(ratio.mean),
            times(ratio.least),
            times(ratio.most),
        ]);
    }
    table
}

/// Spearman's correlation over all rows, whatever the layer.
fn across(layers: &[Layer]) -> Option<f64> {
    let rows = layers.iter().flat_map(|layer| &layer.plans);
    let pairs: Vec<_> = rows.map(|plan| (plan.predicted_ms, plan.measured_ms)).collect();
    if pairs.len() < 3 { None } else { spearman(&pairs) }
}

/// The constants of `kernels/src/chip.rs`, and to what the families that run at them would set them: their
/// fastest plans of long layers.
fn rates(ratios: &[Ratio], limits: &Limits) -> Table {
    let chip = &limits.chip;
    let mut table = table(&["constant", "now", "by the times", "from"]);
    for (name, now, families) in [
        ("fma", chip.fma, &["gemm, multiply-adds"][..]),
        ("matrices", chip.matrices, &["gemm, matrix units", "window gemm"]),
        ("bandwidth", chip.bandwidth, &["depthwise"]),
    ] {
        let of: Vec<_> = ratios.iter().filter(|ratio| families.contains(&ratio.family)).collect();
        let long: Vec<_> = of.iter().filter_map(|ratio| ratio.long).collect();
        let rows = long.iter().map(|(count, _)| count).sum::<usize>();
        let logarithms = long.iter().map(|(count, mean)| *count as f64 * mean.ln()).sum::<f64>();
        let suggested = (rows > 0).then(|| now / (logarithms / rows as f64).exp());
        table.add_row([
            name.to_string(),
            format!("{now:.3e}"),
            suggested.map_or("-".into(), |rate| format!("{rate:.3e}")),
            format!("{rows} layers of half a millisecond and more by {}", families.join(", ")),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::statistics::tests::layer;
    use super::*;

    #[test]
    fn the_page_has_origin_summary_and_every_row() {
        let layers = [layer(&[(1.0, 6.0), (3.0, 2.0), (2.0, 3.0)]), layer(&[(1.0, 2.0)])];
        let limits = Limits::apple_m1();
        let origin = Origin {
            adapter: "Apple M3 Max".into(),
            backend: "wgpu<msl>".into(),
            rates_of: "Apple M3 Max".into(),
            size: "full".into(),
            measured: String::new(),
        };
        let text = page(&layers, 2, &limits, &origin);
        for part in [
            "adapter   Apple M3 Max\n",
            "limits    Limits {",
            "2 passes of layers; 1 of them with one plan only",
            "2 rows have plans that the device does not list",
            "regret of the choice: 3.00x on average, 3.00x at worst; 0 of 1 within 2 %",
            "with 2 plans timed, as the feature autotune takes them: 1.50x on average",
            "with 3 plans timed, as the feature autotune takes them: 1.00x on average",
            "rank correlation of a layer's plans (Spearman): -1.00 on average",
            "\na,f32,fwd,plan_1,\"gemm\",false,3.000000,2.000000\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing:\n{text}");
        }
        assert!(!text.contains("measured \n"), "{text}");
    }

    #[test]
    fn rates_follow_the_families_that_run_at_them() {
        let ratio = |family, count, mean| {
            let long = Some((count, mean));
            Ratio { family, dtype: "f32", count: 2 * count, mean: 7.0, least: 1.0, most: 9.0, long }
        };
        let limits = Limits::apple_m1();
        let text =
            rates(&[ratio("gemm, multiply-adds", 2, 2.0), ratio("direct", 1, 9.0)], &limits).to_string();
        assert!(text.contains(&format!("{:.3e}", limits.chip.fma / 2.0)), "{text}");
        assert!(text.contains("0 layers of half a millisecond and more by depthwise"), "{text}");
    }
}
