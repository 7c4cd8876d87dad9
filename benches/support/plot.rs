//! Grouped bars as SVG: one chart for each part, below one another. No dependency.

use std::fmt::Write as _;
use std::path::Path;

use super::book::{Book, number, unique};

const WIDTH: f64 = 960.0;
const CHART_HEIGHT: f64 = 250.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
const BARS_HEIGHT: f64 = 150.0;
/// Of the bars, by server; told apart without colours by their order and the numbers on them.
const COLOURS: [&str; 4] = ["#2563eb", "#d97706", "#9ca3af", "#059669"];

/// A chart of the medians of one part and unit.
#[derive(Clone, Copy, Debug)]
pub struct Chart {
    pub title: &'static str,
    pub part: &'static str,
    pub unit: &'static str,
}

pub fn write(book: &Book, charts: &[Chart], path: &Path) {
    let drawn: Vec<&Chart> = charts.iter().filter(|chart| book.series.iter().any(|s| is_of(s, chart))).collect();
    let height = CHART_HEIGHT * drawn.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (index, chart) in drawn.iter().enumerate() {
        let _ = writeln!(svg, "<g transform=\"translate(0 {})\">", index as f64 * CHART_HEIGHT);
        draw(&mut svg, book, chart);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    std::fs::write(path, svg).unwrap();
    println!("plot: {}", path.display());
}

fn is_of(series: &super::book::Series, chart: &Chart) -> bool {
    series.part == chart.part && series.unit == chart.unit
}

fn draw(svg: &mut String, book: &Book, chart: &Chart) {
    let chosen: Vec<_> = book.series.iter().filter(|series| is_of(series, chart)).collect();
    let cases = unique(chosen.iter().map(|series| series.case.as_str()));
    let servers = unique(chosen.iter().map(|series| series.server.as_str()));
    let highest = chosen.iter().map(|series| series.median).fold(f64::MIN_POSITIVE, f64::max);
    let group = (WIDTH - LEFT - 20.0) / cases.len() as f64;
    let bar = (group * 0.8 / servers.len() as f64).min(60.0);
    let base = TOP + BARS_HEIGHT;
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"18\" font-size=\"14\">{} ({})</text>", chart.title, chart.unit);
    for (index, server) in servers.iter().enumerate() {
        let (x, colour) = (WIDTH - 110.0 * (servers.len() - index) as f64, COLOURS[index % COLOURS.len()]);
        let _ = writeln!(svg, "<rect x=\"{x}\" y=\"9\" width=\"10\" height=\"10\" fill=\"{colour}\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"18\">{server}</text>", x + 14.0);
    }
    let _ = writeln!(svg, "<line x1=\"{LEFT}\" y1=\"{base}\" x2=\"{}\" y2=\"{base}\" stroke=\"#444\"/>", WIDTH - 20.0);
    for (position, case) in cases.iter().enumerate() {
        let left = LEFT + group * position as f64;
        let middle = left + bar * servers.len() as f64 / 2.0;
        for (line, part) in case.split(", ").enumerate() {
            let y = base + 14.0 + 12.0 * line as f64;
            let _ = writeln!(svg, "<text x=\"{middle}\" y=\"{y}\" text-anchor=\"middle\">{part}</text>");
        }
        for (index, server) in servers.iter().enumerate() {
            let Some(value) = book.median(chart.part, case, server, chart.unit) else { continue };
            let (x, high) = (left + bar * index as f64, BARS_HEIGHT * value / highest);
            let (y, colour) = (base - high, COLOURS[index % COLOURS.len()]);
            let wide = bar - 2.0;
            let _ = writeln!(svg, "<rect x=\"{x}\" y=\"{y}\" width=\"{wide}\" height=\"{high}\" fill=\"{colour}\"/>");
            let (centre, above) = (x + wide / 2.0, y - 3.0);
            let _ = writeln!(
                svg,
                "<text x=\"{centre}\" y=\"{above}\" text-anchor=\"middle\" font-size=\"9\">{}</text>",
                number(value)
            );
        }
    }
}
