//! The figures of a run: every round of every case, medians, ratios, and the file they end in.

use std::path::Path;

use serde::Serialize;

/// The figure of one case and server, round by round.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// The part of the bench, such as "ingest".
    pub part: String,
    /// What was done, such as "16 sessions, 10 KiB".
    pub case: String,
    pub server: String,
    pub unit: String,
    pub rounds: Vec<f64>,
    pub median: f64,
}

/// Something to be reached, and what was.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    pub what: String,
    pub wanted: String,
    pub seen: f64,
    pub reached: bool,
}

#[derive(Debug, Default, Serialize)]
pub struct Book {
    pub about: Vec<(String, String)>,
    pub series: Vec<Series>,
    pub goals: Vec<Goal>,
}

impl Book {
    pub fn new() -> Book {
        let mut book = Book::default();
        book.note("version", env!("CARGO_PKG_VERSION"));
        book.note("cores", std::thread::available_parallelism().map_or(0, usize::from).to_string());
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        book.note("kernel", kernel.trim());
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        book.note("load before", load.split_whitespace().next().unwrap_or("?"));
        book
    }

    pub fn note(&mut self, what: &str, value: impl Into<String>) {
        self.about.push((what.to_owned(), value.into()));
    }

    /// One more round of a case.
    pub fn add(&mut self, part: &str, case: &str, server: &str, unit: &str, value: f64) {
        let is_it = |s: &&mut Series| s.part == part && s.case == case && s.server == server && s.unit == unit;
        match self.series.iter_mut().find(is_it) {
            Some(series) => {
                series.rounds.push(value);
                series.median = median(&series.rounds);
            }
            None => self.series.push(Series {
                part: part.to_owned(),
                case: case.to_owned(),
                server: server.to_owned(),
                unit: unit.to_owned(),
                rounds: vec![value],
                median: value,
            }),
        }
    }

    pub fn find(&self, part: &str, case: &str, server: &str, unit: &str) -> Option<&Series> {
        self.series.iter().find(|s| s.part == part && s.case == case && s.server == server && s.unit == unit)
    }

    pub fn median(&self, part: &str, case: &str, server: &str, unit: &str) -> Option<f64> {
        self.find(part, case, server, unit).map(|series| series.median)
    }

    /// The median of the ratios round by round: what slows a round down slows both.
    pub fn ratio(&self, part: &str, case: &str, unit: &str, (ours, theirs): (&str, &str)) -> Option<f64> {
        let ours = &self.find(part, case, ours, unit)?.rounds;
        let theirs = &self.find(part, case, theirs, unit)?.rounds;
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    }

    pub fn at_least(&mut self, what: &str, wanted: f64, seen: Option<f64>) {
        self.goal(what, format!(">= {wanted}"), seen, |seen| seen >= wanted);
    }

    pub fn at_most(&mut self, what: &str, wanted: f64, seen: Option<f64>) {
        self.goal(what, format!("<= {wanted}"), seen, |seen| seen <= wanted);
    }

    fn goal(&mut self, what: &str, wanted: String, seen: Option<f64>, reached: impl Fn(f64) -> bool) {
        // What was not measured is not a goal of this run.
        let Some(seen) = seen else { return };
        self.goals.push(Goal { what: what.to_owned(), wanted, seen, reached: reached(seen) });
    }

    /// Medians of a part and unit: a row a case, a column a server.
    pub fn print(&self, title: &str, part: &str, unit: &str) {
        let chosen: Vec<&Series> = self.series.iter().filter(|s| s.part == part && s.unit == unit).collect();
        if chosen.is_empty() {
            return;
        }
        let servers = unique(chosen.iter().map(|s| s.server.as_str()));
        println!("\n{title} ({unit}; medians of {} rounds)", chosen.iter().map(|s| s.rounds.len()).max().unwrap_or(0));
        let header: String = servers.iter().map(|server| format!("{server:>14}")).collect();
        println!("  {:<38}{header}", "");
        for case in unique(chosen.iter().map(|s| s.case.as_str())) {
            let cell = |server: &&str| match self.median(part, case, server, unit) {
                Some(value) => format!("{:>14}", number(value)),
                None => format!("{:>14}", "-"),
            };
            println!("  {case:<38}{}", servers.iter().map(cell).collect::<String>());
        }
    }

    pub fn print_goals(&self) {
        if self.goals.is_empty() {
            return;
        }
        println!("\n  {:<74}{:>10}{:>10}", "goal (ratios: medians of the ratios round by round)", "wanted", "seen");
        for Goal { what, wanted, seen, reached } in &self.goals {
            let mark = if *reached { "" } else { "   MISSED" };
            println!("  {what:<74}{wanted:>10}{:>10}{mark}", number(*seen));
        }
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, serde_json::to_vec_pretty(self).unwrap()).unwrap();
        println!("\nfigures: {}", path.display());
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => (sorted[even / 2 - 1] + sorted[even / 2]) / 2.0,
    }
}

/// Each once, in the order of their first appearance.
pub fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

/// Three digits that count.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
