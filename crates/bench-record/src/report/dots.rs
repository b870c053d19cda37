//! One line per case, one dot per pass: how many times as fast as a peer, or the share of a copy's rate.

use super::Plot;
use super::select::{Limits, ours};
use crate::Record;
use crate::peers::{pairs, speed_up};
use crate::statistics::{geometric_mean, short};
use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Blue, vermilion, bluish green, purple, orange and black of the Okabe-Ito palette, told apart by every kind
/// of colour vision.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
];

/// The passes in the order of their colours.
const PASSES: [&str; 6] = ["fwd", "dx", "dw", "bwd", "fwd_bwd", "db"];

/// The colour of a pass.
pub(super) fn colour(pass: &str) -> RGBColor {
    COLOURS[PASSES.iter().position(|other| *other == pass).unwrap_or(5)]
}

/// Labels of the passes in `passes`, in their colours, one after the other from `(x, y)`.
pub(super) fn legend(area: &Area<'_>, passes: &[&str], (x, y): (i32, i32)) -> Result<(), String> {
    for (index, pass) in passes.iter().enumerate() {
        let x = x + 70 * index as i32;
        let dot = Circle::new((x, y), 4, colour(pass).filled());
        area.draw(&dot).map_err(|error| error.to_string())?;
        let font = ("sans-serif", 13).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
        let text = Text::new((*pass).to_string(), (x + 8, y), font);
        area.draw(&text).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// A drawing that ends in a string.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// A value of a case.
struct Dot<'a> {
    case: &'a str,
    pass: &'a str,
    value: f64,
}

/// Ratios of a peer's time to ours; none without pairs.
pub(super) fn peer_plot(records: &[Record], op: &str, dtype: &str, peer: &str) -> Result<Option<Plot>> {
    let mut pairs = pairs(records, peer);
    pairs.retain(|(ours, _)| ours.op == op && ours.dtype == dtype);
    let dots: Vec<Dot<'_>> = pairs
        .iter()
        .filter_map(|pair| Some(Dot { case: &pair.0.case, pass: &pair.0.pass, value: speed_up(pair)? }))
        .collect();
    let values: Vec<f64> = dots.iter().map(|dot| dot.value).collect();
    let Some(mean) = geometric_mean(&values) else { return Ok(None) };
    let low = values.iter().copied().fold(0.8, f64::min) / 1.1;
    let high = values.iter().copied().fold(1.25, f64::max) * 1.1;
    let title = format!("{op} {dtype}: times as fast as {peer} (geometric mean {})", short(mean));
    let axis = "times as fast (logarithmic)";
    let steps = (-3..6).flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(decade)));
    let ticks: Vec<_> = steps.filter(|x| (low..high).contains(x)).map(|x| (x, format!("{x}x"))).collect();
    let svg = draw(&dots, &title, axis, (low..high).log_scale(), (low, 1.0), &ticks)?;
    Ok(Some(Plot { name: format!("{op}-{dtype}-{peer}"), title, svg }))
}

/// Shares of the copy's rate, of rows that bytes bind; none without such rows.
pub(super) fn share_plot(records: &[Record], op: &str, dtype: &str) -> Result<Option<Plot>> {
    let Some(limits) = Limits::of(records, dtype) else { return Ok(None) };
    let rows = ours(records).into_iter().filter(|row| row.op == op && row.dtype == dtype);
    let dots: Vec<Dot<'_>> = rows
        .filter(|row| limits.bytes_bind(row))
        .filter_map(|row| Some(Dot { case: &row.case, pass: &row.pass, value: 100.0 * row.share_of_limit? }))
        .collect();
    if dots.is_empty() {
        return Ok(None);
    }
    let title = format!("{op} {dtype}: share of a copy's bandwidth");
    let top = dots.iter().map(|dot| dot.value).fold(100.0, f64::max) * 1.02;
    let ticks: Vec<_> = (0..=10).map(|tenth| (10.0 * f64::from(tenth), format!("{}", 10 * tenth))).collect();
    let axis = format!("% of {} GB/s", short(limits.gbps));
    let svg = draw(&dots, &title, &axis, 0.0..top, (0.0, 100.0), &ticks)?;
    Ok(Some(Plot { name: format!("{op}-{dtype}-share"), title, svg }))
}

/// Width of a plot, height of a case's line, and of what is above and below the lines, in pixels.
const WIDTH: u32 = 860;
const LINE: u32 = 17;
const AROUND: u32 = 110;

/// Draws the dots over an axis from `left`, with a line at `mark`.
fn draw<X>(
    dots: &[Dot<'_>],
    title: &str,
    axis: &str,
    x: X,
    (left, mark): (f64, f64),
    ticks: &[(f64, String)],
) -> Result<String>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64> + Ranged<ValueType = f64>,
{
    let names: Vec<String> = dots.iter().map(|dot| dot.case.to_string()).collect();
    let mut svg = String::new();
    let cases = {
        let mut cases: Vec<&str> = Vec::new();
        names.iter().for_each(|name| {
            if !cases.contains(&name.as_str()) {
                cases.push(name)
            }
        });
        cases
    };
    let size = (WIDTH, AROUND + LINE * cases.len() as u32);
    let drawn = (|| -> Result<(), String> {
        let text = |error: DrawingAreaErrorKind<_>| -> String { error.to_string() };
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE).map_err(text)?;
        let count = cases.len() as f64;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(10)
            .margin_top(4)
            .x_label_area_size(40)
            .y_label_area_size(290)
            .build_cartesian_2d(x, count - 0.4..-0.6)
            .map_err(text)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_labels(0)
            .x_label_formatter(&|_| String::new())
            .y_labels(0)
            .x_desc(axis)
            .label_style(("sans-serif", 13))
            .draw()
            .map_err(text)?;
        let pale = BLACK.mix(0.12);
        for (index, case) in cases.iter().enumerate() {
            let y = index as f64;
            let (x, y) = chart.backend_coord(&(left, y));
            let font = ("sans-serif", 12).into_font().color(&BLACK).pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new((*case).to_string(), (x - 6, y), font)).map_err(text)?;
            area.draw(&PathElement::new([(x, y), (WIDTH as i32 - 12, y)], pale)).map_err(text)?;
        }
        for (value, label) in ticks {
            let (x, top) = chart.backend_coord(&(*value, -0.6));
            let (_, bottom) = chart.backend_coord(&(*value, count - 0.4));
            let colour = if *value == mark { BLACK.mix(0.6) } else { pale };
            area.draw(&PathElement::new([(x, top), (x, bottom)], colour)).map_err(text)?;
            let font = ("sans-serif", 13).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Top));
            area.draw(&Text::new(label.clone(), (x, bottom + 6), font)).map_err(text)?;
        }
        let places = dots.iter().map(|dot| {
            let line = cases.iter().position(|case| *case == dot.case).unwrap_or_default();
            Circle::new((dot.value, line as f64), 4, colour(dot.pass).mix(0.85).filled())
        });
        chart.draw_series(places).map_err(text)?;
        let passes: Vec<&str> =
            PASSES.into_iter().filter(|pass| dots.iter().any(|dot| dot.pass == *pass)).collect();
        legend(&area, &passes, (14, size.1 as i32 - 16))?;
        area.present().map_err(text)
    })();
    drawn.map_err(|error| anyhow!("{title} cannot be drawn: {error}"))?;
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_a_dot_and_every_case_a_line() {
        let mut rows = crate::report::tests::rows();
        let slower = |row: &Record| Record { case: "other".into(), pass: "dx".into(), ..row.clone() };
        rows.extend([slower(&rows[0]), slower(&rows[1])]);
        let plot = peer_plot(&rows, "conv3d", "f32", "burn").unwrap().unwrap();
        assert!(plot.title.ends_with("(geometric mean 4.00)"), "{}", plot.title);
        // Two dots and two of the legend.
        assert_eq!(plot.svg.matches("<circle").count(), 4);
        assert_eq!(plot.svg.matches(">\nother\n<").count(), 1);
        assert!(peer_plot(&rows, "rope2d", "f32", "burn").unwrap().is_none());
    }
}
