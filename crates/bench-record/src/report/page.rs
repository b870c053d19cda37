//! The HTML around the plots.

use super::Plot;
use super::select::distinct;
use crate::Record;
use crate::peers::{Group, groups};
use crate::record::COLUMNS;
use crate::statistics::short;
use std::fmt::Write;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#111;\
background:#fff}table{border-collapse:collapse;font-size:13px}td,th{padding:2px 10px 2px 0;text-align:left;\
white-space:nowrap}td.n{text-align:right;font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}\
details{overflow-x:auto}";

/// The whole page.
pub(super) fn page(records: &[Record], title: &str, plots: &[Plot]) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title><style>{STYLE}</style>\n<h1>{0}</h1>\n",
        escape(title)
    );
    let devices = distinct(records, |record| &record.device).join(", ");
    let backends = distinct(records, |record| &record.backend).join("; ");
    let _ = writeln!(
        html,
        "<p>{}. Backends: {}. {} rows.</p>",
        escape(&devices),
        escape(&backends),
        records.len()
    );
    html += &summary(records);
    for plot in plots {
        let _ = writeln!(html, "<h2>{}</h2>\n{}", escape(&plot.title), plot.svg);
    }
    html += &rows(records);
    html + "</html>\n"
}

/// How many times as fast as each peer, by op, dtype and pass.
fn summary(records: &[Record]) -> String {
    let mut html = String::new();
    let header = ["peer", "op", "dtype", "pass"].map(|name| format!("<th>{name}")).concat();
    for Group { peer, of: [op, dtype, pass], cases, mean, range } in groups(records) {
        let words = [peer, op, dtype, pass].map(|word| format!("<td>{}", escape(word))).concat();
        let numbers = [cases.to_string(), short(mean), short(range.0), short(range.1)];
        let numbers = numbers.map(|number| format!("<td class=n>{number}")).concat();
        let _ = writeln!(html, "<tr>{words}{numbers}");
    }
    if html.is_empty() {
        return html;
    }
    format!(
        "<h2>Times as fast as peers</h2>\n<table><tr>{header}<th>cases<th>geometric mean<th>least<th>most\n{html}</table>\n"
    )
}

/// Every row, as in the file.
fn rows(records: &[Record]) -> String {
    let mut html = String::from("<h2>Rows</h2>\n<details><summary>every measurement</summary><table>\n<tr>");
    html += &COLUMNS.map(|name| format!("<th>{name}")).concat();
    for record in records {
        html += "\n<tr>";
        let texts =
            [&record.op, &record.case, &record.dtype, &record.pass, &record.implementation, &record.plan];
        for text in texts.into_iter().chain([&record.device, &record.backend]) {
            let _ = write!(html, "<td>{}", escape(text));
        }
        let times = [record.median_ms, record.p10_ms, record.p90_ms, record.gflops, record.gbps];
        for value in times.into_iter().chain([record.share_of_limit]) {
            let _ = write!(html, "<td class=n>{}", value.map_or(String::new(), short));
        }
        for value in [record.max_err, record.rms_err] {
            let _ =
                write!(html, "<td class=n>{}", value.map_or(String::new(), |value| format!("{value:.1e}")));
        }
        let _ = write!(html, "<td>{}", record.verified.map_or("", |yes| if yes { "yes" } else { "no" }));
    }
    html + "\n</table></details>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_has_a_line_per_peer_op_dtype_and_pass() {
        let rows = crate::report::tests::rows();
        let html = summary(&rows);
        let line = "<tr><td>burn<td>conv3d<td>f32<td>fwd<td class=n>1<td class=n>4.00<td class=n>4.00<td class=n>4.00";
        assert!(html.contains(line), "{html}");
        assert!(summary(&rows[2..]).is_empty());
    }
}
