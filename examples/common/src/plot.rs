//! Curves of a run as an SVG.

use std::ops::Range;
use std::path::Path;

use anyhow::{Result, anyhow};
use burn::train::{LearnerSummary, MetricSummary};
pub use plotters::chart::SeriesLabelPosition;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// A line: one value per finished epoch, counted from 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    /// What the legend calls it.
    pub name: &'static str,
    /// (epoch, value)
    pub points: Vec<(f64, f64)>,
}

/// One diagram.
#[derive(Clone, Debug)]
pub struct Panel<'a> {
    /// What the values are.
    pub title: &'a str,
    /// The values that the axis spans.
    pub y: Range<f64>,
    /// At most three lines.
    pub curves: &'a [Curve],
    /// A place for the legend where no line passes.
    pub legend: SeriesLabelPosition,
}

/// Reads a metric from burn-train's logs under `artifacts`: its values on the training data and on the
/// held-out data, up to epoch `finished`; a resumed run finds its earlier epochs there too.
///
/// # Errors
/// When there are no logs.
pub fn read_metric(artifacts: &Path, metric: &str, finished: usize) -> Result<[Curve; 2]> {
    let summary = LearnerSummary::new(artifacts, &[metric]).map_err(|error| anyhow!(error))?;
    let curve = |metrics: &[MetricSummary], name| {
        let entries = metrics.iter().flat_map(|metric| &metric.entries);
        let points = entries.filter(|entry| entry.step <= finished);
        Curve { name, points: points.map(|entry| (entry.step as f64, entry.value)).collect() }
    };
    Ok([curve(&summary.metrics.train, "train"), curve(&summary.metrics.valid, "test")])
}

/// An axis from 0 that holds every finite value.
#[must_use]
pub fn from_zero(curves: &[Curve]) -> Range<f64> {
    let values = curves.iter().flat_map(|curve| &curve.points).map(|point| point.1);
    let top = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
    0.0..if top > 0.0 { top * 1.05 } else { 1.0 }
}

/// Blue, vermilion and bluish green of the Okabe-Ito palette, told apart by every kind of colour vision.
const COLOURS: [RGBColor; 3] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115)];

/// Width and height of a panel in pixels.
const PANEL: (u32, u32) = (480, 400);

/// Draws the panels side by side to `path`.
///
/// # Errors
/// When the file cannot be written.
pub fn draw(panels: &[Panel<'_>], path: &Path) -> Result<()> {
    let failed = |error: String| anyhow!("{} cannot be drawn: {error}", path.display());
    let area = SVGBackend::new(path, (PANEL.0 * panels.len() as u32, PANEL.1)).into_drawing_area();
    area.fill(&WHITE).map_err(|error| failed(error.to_string()))?;
    for (area, panel) in area.split_evenly((1, panels.len())).iter().zip(panels) {
        draw_panel(area, panel).map_err(failed)?;
    }
    area.present().map_err(|error| failed(error.to_string()))
}

fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    panel: &Panel<'_>,
) -> Result<(), String> {
    let last = panel.curves.iter().flat_map(|curve| &curve.points).map(|point| point.0).fold(2.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 22))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(44)
        .build_cartesian_2d(1.0..last, panel.y.clone())
        .map_err(|error| error.to_string())?;
    chart
        .configure_mesh()
        .x_desc("epoch")
        .x_labels((last as usize).min(10))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_labels(6)
        // 0.6, not the 0.6000000000000001 that the axis comes to.
        .y_label_formatter(&|value| format!("{}", *value as f32))
        .label_style(("sans-serif", 17))
        .max_light_lines(0)
        .draw()
        .map_err(|error| error.to_string())?;
    for (curve, colour) in panel.curves.iter().zip(COLOURS) {
        line(&mut chart, curve, colour).map_err(|error| error.to_string())?;
    }
    chart
        .configure_series_labels()
        .position(panel.legend.clone())
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
) -> Result<(), Box<dyn std::error::Error>> {
    chart
        .draw_series(LineSeries::new(curve.points.clone(), colour.filled().stroke_width(2)).point_size(3))?
        .label(curve.name)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(name: &'static str, values: &[f64]) -> Curve {
        Curve { name, points: values.iter().enumerate().map(|(i, &v)| (i as f64 + 1.0, v)).collect() }
    }

    fn svg(panels: &[Panel<'_>]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plot.svg");
        draw(panels, &path).unwrap();
        std::fs::read_to_string(&path).unwrap()
    }

    #[test]
    fn every_panel_is_drawn_with_a_line_per_curve() {
        let losses = [curve("train", &[2.0, 1.0, 0.5]), curve("test", &[2.1, 1.2, 0.8])];
        let accuracies = [curve("train", &[10.0, 50.0, 90.0]), curve("test", &[12.0, 40.0, 85.0])];
        let legend = SeriesLabelPosition::LowerLeft;
        let svg = svg(&[
            Panel { title: "loss", y: from_zero(&losses), curves: &losses, legend: legend.clone() },
            Panel { title: "accuracy", y: 0.0..100.0, curves: &accuracies, legend },
        ]);
        for colour in ["#0072B2", "#D55E00"] {
            let lines = svg.lines().filter(|l| l.contains("<polyline") && l.contains(colour)).count();
            // Two curves and two legend strokes.
            assert_eq!(lines, 4, "{colour}: {svg}");
        }
        for text in ["accuracy", "loss", "epoch", "train", "test"] {
            assert!(svg.contains(text), "{text}");
        }
    }

    #[test]
    fn one_epoch_or_a_loss_that_is_not_finite_still_gives_a_plot() {
        let curves = [curve("train", &[f64::NAN, f64::INFINITY]), curve("test", &[2.0])];
        assert_eq!(from_zero(&curves), 0.0..2.1);
        let curves = [Curve { name: "train", points: vec![(1.0, f64::NAN)] }, Curve::default()];
        let svg = svg(&[Panel {
            title: "loss",
            y: from_zero(&curves),
            curves: &curves,
            legend: SeriesLabelPosition::LowerLeft,
        }]);
        assert!(svg.ends_with("</svg>\n"));
    }

    #[test]
    fn labels_have_the_digits_they_need() {
        let curves = [curve("test", &[0.1, 0.9])];
        let legend = SeriesLabelPosition::LowerRight;
        let svg = svg(&[Panel { title: "part", y: 0.0..1.0, curves: &curves, legend }]);
        assert!(svg.contains("0.6\n") && !svg.contains("0.60"), "{svg}");
    }

    #[test]
    fn a_folder_without_logs_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_metric(dir.path(), "Loss", 1).is_err());
    }
}
