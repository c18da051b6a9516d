//! The plot: a dot for each round on a logarithmic axis of seconds, a bar at the median.

use std::fmt::Write as _;

use super::run::{Row, Spread};

const LEFT: f64 = 210.0;
const WIDTH: f64 = 560.0;
const LINE: f64 = 20.0;

/// Draws the walls (with the output synced) of all pipelines on all images.
pub fn svg(images: &[(String, Vec<Row>)]) -> String {
    let all = || {
        images
            .iter()
            .flat_map(|(_, rows)| rows)
            .flat_map(|row| row.walls.iter().copied())
    };
    let (low, high) = all().fold((f64::MAX, 0.01_f64), |(low, high), wall| {
        (low.min(wall), high.max(wall))
    });
    let (low, high) = (low.min(high).max(1e-3).log10().floor(), high.log10().ceil());
    let x = |seconds: f64| LEFT + WIDTH * (seconds.max(1e-3).log10() - low) / (high - low);
    let lines: usize = images.iter().map(|(_, rows)| rows.len() + 2).sum();
    let bottom = LINE * (lines as f64 + 1.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        LEFT + WIDTH + 60.0,
        bottom + 40.0
    );
    let mut tick = 10f64.powf(low);
    while tick <= 10f64.powf(high) * 1.001 {
        let at = x(tick);
        let _ = writeln!(out, "<path d=\"M{at:.1} 10V{bottom:.1}\" stroke=\"#ddd\"/>");
        let _ = writeln!(
            out,
            "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick:.3} s</text>",
            bottom + 16.0
        );
        tick *= 10.0;
    }
    let mut y = LINE;
    for (image, rows) in images {
        let _ = writeln!(
            out,
            "<text x=\"8\" y=\"{:.1}\" font-weight=\"bold\">{image}</text>",
            y + 4.0
        );
        y += LINE;
        for row in rows {
            let own = matches!(row.name, super::pipelines::VMLET | super::pipelines::FLOOR);
            let colour = if own { "#c0392b" } else { "#2c3e50" };
            let _ = writeln!(out, "<text x=\"24\" y=\"{:.1}\">{}</text>", y + 4.0, row.name);
            for wall in &row.walls {
                let _ = writeln!(
                    out,
                    "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\" opacity=\"0.5\"/>",
                    x(*wall)
                );
            }
            let median = Spread::of(row.walls.clone()).median;
            let at = x(median);
            let _ = writeln!(
                out,
                "<path d=\"M{at:.1} {:.1}v14\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                y - 7.0
            );
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{median:.2}</text>",
                x(Spread::of(row.walls.clone()).most) + 8.0,
                y + 4.0
            );
            y += LINE;
        }
        y += LINE;
    }
    out.push_str("</svg>\n");
    out
}
