//! The loss and accuracy of a run as an SVG.

use std::ops::Range;
use std::path::Path;

use anyhow::{Result, anyhow};
use burn::train::{LearnerSummary, MetricSummary};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// One value per finished epoch, counted from 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Curve(pub(crate) Vec<(f64, f64)>);

/// The four curves of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct History {
    pub(crate) train_loss: Curve,
    pub(crate) test_loss: Curve,
    pub(crate) train_accuracy: Curve,
    pub(crate) test_accuracy: Curve,
}

impl History {
    /// Reads burn-train's metric logs under `artifacts`, up to epoch `finished`; a resumed run finds its
    /// first epochs there too.
    pub(crate) fn read(artifacts: &Path, finished: usize) -> Result<Self> {
        let summary =
            LearnerSummary::new(artifacts, &["Loss", "Accuracy"]).map_err(|error| anyhow!(error))?;
        let curve = |metrics: &[MetricSummary], name: &str| {
            let entries =
                metrics.iter().filter(|metric| metric.name == name).flat_map(|metric| &metric.entries);
            let points = entries.filter(|entry| entry.step <= finished);
            Curve(points.map(|entry| (entry.step as f64, entry.value)).collect())
        };
        Ok(Self {
            train_loss: curve(&summary.metrics.train, "Loss"),
            test_loss: curve(&summary.metrics.valid, "Loss"),
            train_accuracy: curve(&summary.metrics.train, "Accuracy"),
            test_accuracy: curve(&summary.metrics.valid, "Accuracy"),
        })
    }
}

/// Blue and vermilion of the Okabe-Ito palette, told apart by every kind of colour vision.
const TRAIN: RGBColor = RGBColor(0, 114, 178);
const TEST: RGBColor = RGBColor(213, 94, 0);

/// Draws `history` to `path`.
pub(crate) fn draw(history: &History, path: &Path) -> Result<()> {
    let failed = |error: String| anyhow!("{} cannot be drawn: {error}", path.display());
    let area = SVGBackend::new(path, (960, 400)).into_drawing_area();
    area.fill(&WHITE).map_err(|error| failed(error.to_string()))?;
    let (left, right) = area.split_horizontally(480);
    let losses = history.train_loss.0.iter().chain(&history.test_loss.0).map(|point| point.1);
    let top = losses.filter(|loss| loss.is_finite()).fold(0.1, f64::max) * 1.05;
    panel(&left, "cross-entropy loss", 0.0..top, [&history.train_loss, &history.test_loss])
        .and_then(|()| {
            panel(&right, "accuracy, %", 0.0..100.0, [&history.train_accuracy, &history.test_accuracy])
        })
        .and_then(|()| area.present().map_err(|error| error.to_string()))
        .map_err(failed)
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    y: Range<f64>,
    curves: [&Curve; 2],
) -> Result<(), String> {
    let last = curves.iter().flat_map(|curve| &curve.0).map(|point| point.0).fold(2.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 22))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(44)
        .build_cartesian_2d(1.0..last, y)
        .map_err(|error| error.to_string())?;
    chart
        .configure_mesh()
        .x_desc("epoch")
        .x_labels((last as usize).min(10))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_labels(6)
        .y_label_formatter(&|value| format!("{value}"))
        .label_style(("sans-serif", 17))
        .max_light_lines(0)
        .draw()
        .map_err(|error| error.to_string())?;
    for ((curve, colour), name) in curves.into_iter().zip([TRAIN, TEST]).zip(["train", "test"]) {
        line(&mut chart, curve, colour, name).map_err(|error| error.to_string())?;
    }
    chart
        .configure_series_labels()
        .label_font(("sans-serif", 17))
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(|error| error.to_string())
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn line(
    chart: &mut Chart<'_, '_>,
    curve: &Curve,
    colour: RGBColor,
    name: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    chart
        .draw_series(LineSeries::new(curve.0.clone(), colour.filled().stroke_width(2)).point_size(3))?
        .label(name)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_panels_are_drawn_with_a_line_per_curve() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plot.svg");
        let curve =
            |values: [f64; 3]| Curve(values.iter().enumerate().map(|(i, &v)| (i as f64 + 1.0, v)).collect());
        let history = History {
            train_loss: curve([2.0, 1.0, 0.5]),
            test_loss: curve([2.1, 1.2, 0.8]),
            train_accuracy: curve([10.0, 50.0, 90.0]),
            test_accuracy: curve([12.0, 40.0, 85.0]),
        };
        draw(&history, &path).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for colour in ["#0072B2", "#D55E00"] {
            let lines = svg.lines().filter(|l| l.contains("<polyline") && l.contains(colour)).count();
            // Two curves and two legend strokes.
            assert_eq!(lines, 4, "{colour}: {svg}");
        }
        assert!(svg.contains("accuracy") && svg.contains("loss") && svg.contains("epoch"));
    }

    #[test]
    fn one_epoch_or_a_loss_that_is_not_finite_still_gives_a_plot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plot.svg");
        let history = History { train_loss: Curve(vec![(1.0, f64::NAN)]), ..History::default() };
        draw(&history, &path).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("</svg>\n"));
    }

    #[test]
    fn a_folder_without_logs_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(History::read(dir.path(), 1).is_err());
    }
}
