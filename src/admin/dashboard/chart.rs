//! Charts as SVG, drawn on the server. Each has a title and a summary for those who hear it, the numbers of a
//! moment under the pointer, and a table of the same beside it.

use maud::{Markup, html};

use crate::admin::text::time_of_day;
use crate::clock::Millis;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 24.0;
/// Rows of the table.
const ROWS_MAX: usize = 24;

/// A line, in the colour of its number.
pub(super) struct Line {
    pub name: &'static str,
    /// As the style calls its colour.
    pub colour: &'static str,
    /// One for each point in time; none: nothing is known.
    pub values: Vec<Option<f64>>,
}

pub(super) struct Chart<'a> {
    /// Also the id of the figure.
    pub id: &'static str,
    pub title: &'static str,
    /// When the first point begins, and how long each of them is.
    pub from: Millis,
    pub step: Millis,
    pub points: usize,
    pub lines: Vec<Line>,
    pub area: bool,
    pub text: &'a dyn Fn(f64) -> String,
    /// The least that the highest mark of the scale is.
    pub least: f64,
}

impl Chart<'_> {
    fn x(&self, point: usize) -> f64 {
        let last = self.points.saturating_sub(1).max(1);
        LEFT + (WIDTH - LEFT - RIGHT) * point as f64 / last as f64
    }

    fn y(&self, value: f64, top: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value / top).clamp(0.0, 1.0)
    }

    fn time(&self, point: usize) -> Millis {
        self.from + self.step * point as u64
    }

    /// The value at the top of the scale: 1, 2 or 5 times a power of ten.
    fn top(&self) -> f64 {
        let values = self.lines.iter().flat_map(|line| line.values.iter().flatten());
        let most = values.fold(self.least, |most, value| most.max(*value));
        let power = 10f64.powf(most.log10().floor());
        [1.0, 2.0, 5.0].into_iter().map(|step| step * power).find(|top| *top >= most).unwrap_or(10.0 * power)
    }

    /// Pieces of a line without gaps, as the points of a polyline.
    fn pieces(&self, line: &Line, top: f64) -> Vec<Vec<(f64, f64)>> {
        let mut pieces = vec![Vec::new()];
        for (point, value) in line.values.iter().enumerate() {
            match (value, pieces.last_mut()) {
                (Some(value), Some(piece)) => piece.push((self.x(point), self.y(*value, top))),
                (None, Some(piece)) if !piece.is_empty() => pieces.push(Vec::new()),
                _ => {}
            }
        }
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }

    fn latest(&self, line: &Line) -> String {
        line.values.iter().rev().find_map(|value| *value).map_or("–".to_owned(), |value| (self.text)(value))
    }

    fn summary(&self) -> String {
        let lines: Vec<String> = self
            .lines
            .iter()
            .map(|line| {
                let most = line.values.iter().flatten().copied().reduce(f64::max);
                let most = most.map_or("nothing yet".to_owned(), |most| format!("at most {}", (self.text)(most)));
                format!("{}: now {}, {most}", line.name, self.latest(line))
            })
            .collect();
        format!("{}.", lines.join("; "))
    }

    /// The numbers of a moment.
    fn moment(&self, point: usize) -> String {
        let values = self.lines.iter().map(|line| {
            let value = line.values.get(point).copied().flatten();
            format!("{} {}", line.name, value.map_or("–".to_owned(), |value| (self.text)(value)))
        });
        format!("{} UTC: {}", time_of_day(self.time(point)), values.collect::<Vec<_>>().join(", "))
    }

    pub(super) fn draw(&self) -> Markup {
        let top = self.top();
        let (title, text) = (format!("{}-title", self.id), format!("{}-text", self.id));
        let band = (WIDTH - LEFT - RIGHT) / self.points.saturating_sub(1).max(1) as f64;
        html! {
            figure.chart id=(self.id) {
                figcaption {
                    h2 { (self.title) }
                    ul.legend {
                        @for line in &self.lines {
                            li { span class={ "key " (line.colour) } {} (line.name) " " b { (self.latest(line)) } }
                        }
                    }
                }
                svg role="img" aria-labelledby={ (title) " " (text) } viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } {
                    title id=(title) { (self.title) }
                    desc id=(text) { (self.summary()) }
                    (self.scale(top))
                    @for line in &self.lines {
                        @for piece in self.pieces(line, top) { (self.piece(line, &piece)) }
                    }
                    g.bands {
                        @for point in 0..self.points {
                            rect x=(round(self.x(point) - band / 2.0)) y=(TOP) width=(round(band)) height=(HEIGHT - TOP - BOTTOM) {
                                title { (self.moment(point)) }
                            }
                        }
                    }
                }
                (self.table())
            }
        }
    }

    fn scale(&self, top: f64) -> Markup {
        let marks = [0.0, 0.5, 1.0].map(|share| (self.y(top * share, top), (self.text)(top * share)));
        let times = [0, self.points / 4, self.points / 2, self.points * 3 / 4, self.points.saturating_sub(1)];
        let ends = (0, self.points.saturating_sub(1));
        html! {
            g.scale {
                @for (y, text) in marks {
                    line x1=(LEFT) x2=(WIDTH - RIGHT) y1=(round(y)) y2=(round(y)) {}
                    text x=(LEFT - 6.0) y=(round(y + 3.5)) text-anchor="end" { (text) }
                }
                @for point in times {
                    @let anchor = if point == ends.0 { "start" } else if point == ends.1 { "end" } else { "middle" };
                    text x=(round(self.x(point))) y=(HEIGHT - 6.0) text-anchor=(anchor) {
                        (time_of_day(self.time(point)).chars().take(5).collect::<String>())
                    }
                }
            }
        }
    }

    fn piece(&self, line: &Line, piece: &[(f64, f64)]) -> Markup {
        let points: Vec<String> = piece.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let points = points.join(" ");
        let (first, last) = (piece.first().map_or(0.0, |point| point.0), piece.last().map_or(0.0, |point| point.0));
        let floor = HEIGHT - BOTTOM;
        html! {
            @if self.area && piece.len() > 1 {
                polygon class={ "area " (line.colour) } points={ (format!("{first:.1},{floor:.1} {points} {last:.1},{floor:.1}")) } {}
            }
            @if let [(x, y)] = piece {
                circle class={ "dot " (line.colour) } cx=(round(*x)) cy=(round(*y)) r="2.5" {}
            } @else {
                polyline class={ "line " (line.colour) } points=(points) {}
            }
        }
    }

    fn table(&self) -> Markup {
        let every = self.points.div_ceil(ROWS_MAX).max(1);
        let known = |point: &usize| self.lines.iter().any(|line| line.values.get(*point).copied().flatten().is_some());
        let points: Vec<usize> = (0..self.points).rev().step_by(every).filter(known).collect();
        html! {
            details.numbers {
                summary { "As a table" }
                @if points.is_empty() { p.muted { "There are no numbers yet." } } @else {
                    table {
                        caption.hidden { (self.title) }
                        thead { tr { th scope="col" { "Time (UTC)" } @for line in &self.lines { th.right scope="col" { (line.name) } } } }
                        tbody {
                            @for point in points {
                                tr {
                                    th scope="row" { (time_of_day(self.time(point))) }
                                    @for line in &self.lines {
                                        @let value = line.values.get(point).copied().flatten();
                                        td.right { (value.map_or("–".to_owned(), |value| (self.text)(value))) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn round(value: f64) -> String {
    format!("{value:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(values: Vec<Option<f64>>) -> Chart<'static> {
        let line = Line { name: "mail", colour: "c1", values };
        Chart {
            id: "mail",
            title: "Mail",
            from: 1_800_000_000_000,
            step: 60_000,
            points: 4,
            lines: vec![line],
            area: true,
            text: &|value| format!("{value:.0}"),
            least: 1.0,
        }
    }

    #[test]
    fn the_scale_ends_at_a_round_number() {
        for (most, top) in [(0.0, 1.0), (1.0, 1.0), (1.2, 2.0), (3.0, 5.0), (7.0, 10.0), (101.0, 200.0)] {
            assert_eq!(chart(vec![Some(most)]).top(), top, "{most}");
        }
    }

    #[test]
    fn a_gap_is_a_gap() {
        let chart = chart(vec![Some(1.0), None, Some(2.0), Some(3.0)]);
        let drawn = chart.draw().into_string();
        assert_eq!(drawn.matches("<polyline").count(), 1);
        assert_eq!(drawn.matches("<circle").count(), 1);
        assert_eq!(drawn.matches("<rect").count(), 4);
        assert!(drawn.contains("mail: now 3, at most 3."), "{drawn}");
        assert!(drawn.contains("08:01:00 UTC: mail –"), "{drawn}");
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        let chart = chart(vec![None; 4]);
        let drawn = chart.draw().into_string();
        assert!(!drawn.contains("<polyline") && drawn.contains("There are no numbers yet."), "{drawn}");
    }
}
