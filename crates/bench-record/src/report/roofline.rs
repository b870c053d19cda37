//! Operations per second against operations per byte, under what the device can do.

use super::Plot;
use super::dots::{Area, colour, legend};
use super::select::{Limits, ours};
use crate::Record;
use crate::statistics::short;
use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// Width and height in pixels.
const SIZE: (u32, u32) = (860, 480);

/// The rows of a dtype that have both rates; none without such rows or a limit.
pub(super) fn plot(records: &[Record], dtype: &str) -> Result<Option<Plot>> {
    let Some(limits) = Limits::of(records, dtype) else { return Ok(None) };
    let rows = ours(records).into_iter().filter(|row| row.dtype == dtype);
    let point = |row: &'_ Record| {
        let (gflops, gbps) = (row.gflops?, row.gbps?);
        Some((gflops / gbps, gflops))
    };
    let points: Vec<_> =
        rows.filter_map(|row| Some((point(row)?, row.op.clone(), row.pass.clone()))).collect();
    if points.is_empty() {
        return Ok(None);
    }
    let peak = limits.gflops.map_or(String::new(), |gflops| format!(", {} TFLOP/s", short(gflops * 1e-3)));
    let title = format!("Roofline, {dtype}: {} GB/s{peak}", short(limits.gbps));
    let mut svg = String::new();
    draw(&mut svg, &title, &points, limits).map_err(|error| anyhow!("{title} cannot be drawn: {error}"))?;
    Ok(Some(Plot { name: format!("roofline-{dtype}"), title, svg }))
}

/// Operations per byte and per ns, op and pass.
type Point = ((f64, f64), String, String);

fn draw(svg: &mut String, title: &str, points: &[Point], limits: Limits) -> Result<(), String> {
    let text = |error: DrawingAreaErrorKind<_>| -> String { error.to_string() };
    let span = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, 0.0f64), |(low, high), value| (low.min(value), high.max(value)))
    };
    let (left, right) = span(&mut points.iter().map(|point| point.0.0));
    let (low, high) = span(&mut points.iter().map(|point| point.0.1));
    let (left, right) = (left / 1.5, right * 1.5);
    let top = limits.gflops.unwrap_or(high).max(high) * 2.0;
    let area: Area<'_> = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(text)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .margin_bottom(26)
        .x_label_area_size(40)
        .y_label_area_size(84)
        .build_cartesian_2d((left..right).log_scale(), (low / 1.5..top).log_scale())
        .map_err(text)?;
    chart
        .configure_mesh()
        .x_desc("operations per byte (circles: conv3d, triangles: sequence ops)")
        .x_labels(12)
        .y_labels(12)
        .x_label_formatter(&|value| format!("{value}"))
        .y_label_formatter(&|value| format!("{value}"))
        .y_desc("GFLOP/s (operations of the direct algorithm)")
        .max_light_lines(0)
        .label_style(("sans-serif", 13))
        .draw()
        .map_err(text)?;
    let roof = |x: f64| limits.gflops.map_or(x * limits.gbps, |gflops| gflops.min(x * limits.gbps));
    let mut corners = vec![left, right];
    corners.extend(limits.gflops.map(|gflops| gflops / limits.gbps).filter(|x| (left..right).contains(x)));
    corners.sort_by(f64::total_cmp);
    let line = LineSeries::new(corners.into_iter().map(|x| (x, roof(x))), BLACK.stroke_width(2));
    chart.draw_series(line).map_err(text)?;
    // Circles are layers, triangles the other ops.
    let (layers, others): (Vec<&Point>, Vec<&Point>) = points.iter().partition(|point| point.1 == "conv3d");
    let style = |pass: &str| colour(pass).mix(0.75).filled();
    let circles = layers.iter().map(|point| Circle::new(point.0, 4, style(&point.2)));
    chart.draw_series(circles).map_err(text)?;
    let triangles = others.iter().map(|point| TriangleMarker::new(point.0, 5, style(&point.2)));
    chart.draw_series(triangles).map_err(text)?;
    let mut passes: Vec<&str> = Vec::new();
    points.iter().for_each(|point| {
        if !passes.contains(&point.2.as_str()) {
            passes.push(&point.2)
        }
    });
    legend(&area, &passes, (14, SIZE.1 as i32 - 14))?;
    area.present().map_err(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_with_both_rates_are_points() {
        let rows = crate::report::tests::rows();
        let plot = plot(&rows, "f32").unwrap().unwrap();
        assert_eq!(plot.title, "Roofline, f32: 4000 GB/s, 60.0 TFLOP/s");
        // One layer and the legend's dot; one sequence.
        assert_eq!(plot.svg.matches("<circle").count(), 2);
        assert_eq!(plot.svg.matches("<polygon").count(), 1);
        assert!(super::plot(&rows[1..2], "f32").unwrap().is_none());
    }
}
