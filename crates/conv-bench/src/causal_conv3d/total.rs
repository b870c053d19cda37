//! What a step of a decoder takes: the medians of its layers, each as often as a step has it.

use super::OP;
use crate::options::Pass;
use bench_record::Record;
use bench_record::compare::plain;
use bench_record::record::OURS;
use bench_record::statistics::short;
use conv_cases::workloads::{self, CausalConv3dWorkload};

/// The step by one way of one implementation.
#[derive(Clone, Debug, PartialEq)]
struct Total {
    /// Step, storage type, implementation, way and clock.
    of: [String; 5],
    /// Milliseconds of all calls.
    milliseconds: f64,
    /// That over the time of the op in the same layers, by the same clock.
    ratio: Option<f64>,
    layers: usize,
}

/// The table of totals; none where nothing was timed.
pub(super) fn table(records: &[Record], layers: &[CausalConv3dWorkload]) -> Option<String> {
    let totals = totals(records, layers);
    let header = ["step", "dtype", "whose", "way", "clock", "ms", "ours is", "layers"];
    let mut table = plain(&header, 5);
    for total in &totals {
        let all = workloads::causal_conv3d().iter().filter(|layer| layer.step == total.of[0]).count();
        let ratio = total.ratio.map_or(String::new(), |ratio| format!("{ratio:.3}x"));
        let figures = [short(total.milliseconds), ratio, format!("{} of {all}", total.layers)];
        table.add_row(total.of.iter().cloned().chain(figures));
    }
    let title = "A step of the decoder: its layers' forward passes, as often as it has them; \"ours is\" compares \
                 with `causal` in the same layers";
    (!totals.is_empty()).then(|| format!("\n{title}\n{table}"))
}

/// The way of a row's plan: what precedes the plan of ours, or all of a peer's.
fn way(record: &Record) -> &str {
    match record.plan.split_once(", ") {
        Some((way, _)) if record.implementation == OURS => way,
        _ => &record.plan,
    }
}

fn totals(records: &[Record], layers: &[CausalConv3dWorkload]) -> Vec<Total> {
    let rows: Vec<(&Record, &CausalConv3dWorkload)> = records
        .iter()
        .filter(|record| record.op == OP && record.pass == Pass::Fwd.name() && record.median_ms.is_some())
        .filter_map(|record| Some((record, layers.iter().find(|layer| layer.case.name == record.case)?)))
        .collect();
    let clock = |record: &Record| if record.is_wall() { "wall" } else { "device" };
    let key = |(record, layer): &(&Record, &CausalConv3dWorkload)| {
        [&layer.step, &record.dtype, &record.implementation]
            .map(String::clone)
            .into_iter()
            .chain([clock(record).into()])
    };
    // What each layer takes; a layer without a cache takes the same in every way.
    let times = |[step, dtype, whose, way_of, clock_of]: [&str; 5]| -> Vec<(&str, f64)> {
        rows.iter()
            .filter(|(record, layer)| {
                let same =
                    record.dtype == dtype && record.implementation == whose && clock(record) == clock_of;
                same && layer.step == step && (layer.cached() == 0 || way(record) == way_of)
            })
            .map(|(record, layer)| {
                (record.case.as_str(), layer.calls as f64 * record.median_ms.unwrap_or_default())
            })
            .collect()
    };
    let mut totals: Vec<Total> = Vec::new();
    for pair @ (record, layer) in &rows {
        if layer.cached() == 0 {
            continue;
        }
        let [step, dtype, whose, clock]: [String; 4] =
            key(pair).collect::<Vec<_>>().try_into().expect("four words");
        let of = [step, dtype, whose, way(record).to_string(), clock];
        if totals.iter().any(|total| total.of == of) {
            continue;
        }
        let [step, dtype, whose, way, clock] = of.each_ref().map(String::as_str);
        let own = times([step, dtype, whose, way, clock]);
        let op = times([step, dtype, OURS, "causal", clock]);
        let sum = |times: &[(&str, f64)], among: &[(&str, f64)]| -> f64 {
            times
                .iter()
                .filter(|(case, _)| among.iter().any(|(other, _)| case == other))
                .map(|(_, ms)| ms)
                .sum()
        };
        let ratio = (sum(&own, &op) / sum(&op, &own)).abs();
        totals.push(Total {
            milliseconds: own.iter().map(|(_, ms)| ms).sum(),
            ratio: (ratio.is_finite() && way != "causal").then_some(ratio),
            layers: own.len(),
            of,
        });
    }
    totals.sort_by(|a, b| (&a.of[0], &a.of[1]).cmp(&(&b.of[0], &b.of[1])));
    totals
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench_record::record::WALL_CLOCK;

    #[test]
    fn layers_count_as_often_as_a_step_has_them() {
        let layers = workloads::causal_conv3d();
        let find = |name: &str| {
            let found =
                layers.iter().find(|layer| layer.case.name == format!("wan2_1_decode_480x832_{name}"));
            found.expect("a layer").clone()
        };
        let (stage, single, time) = (find("stage1"), find("up0"), find("time1"));
        assert_eq!((stage.calls, single.calls, time.calls), (5, 1, 1));
        let row = |layer: &CausalConv3dWorkload, whose: &str, plan: &str, clock: &str, median: f64| Record {
            op: OP.into(),
            case: layer.case.name.clone(),
            dtype: "f16".into(),
            pass: "fwd".into(),
            implementation: whose.into(),
            plan: plan.into(),
            backend: format!("wgpu{clock}"),
            median_ms: Some(median),
            ..Record::default()
        };
        let records = [
            row(&stage, OURS, "causal, winograd_4x4", "", 2.0),
            row(&stage, OURS, "causal, winograd_4x4", WALL_CLOCK, 9.0),
            row(&stage, OURS, "joined, winograd_4x4", "", 1.5),
            row(&stage, "burn", "pad+cat+conv3d", "", 6.0),
            row(&single, OURS, "winograd_4x4", "", 1.0),
            row(&time, OURS, "causal, gemm_64x64", "", 4.0),
            row(&time, OURS, "joined, gemm_64x64", "", 3.5),
        ];
        let words = |total: &Total| (total.of[2..].join(" "), total.milliseconds, total.ratio, total.layers);
        let totals: Vec<_> = totals(&records, &layers).iter().map(words).collect();
        assert_eq!(
            totals,
            [
                ("ours causal device".into(), 15.0, None, 3),
                ("ours causal wall".into(), 45.0, None, 1),
                ("ours joined device".into(), 12.0, Some(12.0 / 15.0), 3),
                ("burn pad+cat+conv3d device".into(), 30.0, Some(3.0), 1),
            ]
        );
        assert!(table(&records, &layers).unwrap().contains("3 of 16") && table(&[], &layers).is_none());
    }
}
