//! The text format of Prometheus (version 0.0.4), as far as it is needed here. Names begin with
//! `postrider_`; label values are words of this program, never of a message or a peer, so that the
//! number of series is bounded.

use std::fmt::{Display, Write};

/// Content-type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page of metrics.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

impl Page {
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, help, "counter");
        self.line(name, "", "", value);
    }

    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, help, "gauge");
        self.line(name, "", "", value);
    }

    /// One metric with one label and several values.
    pub fn labelled<'a, V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, V)>,
    ) {
        self.head(name, help, kind);
        for (value_of, value) in values {
            self.line(name, label, value_of, value);
        }
    }

    /// `buckets`: upper bounds and how many values lie in each alone, in order; the last one is
    /// without bound.
    pub fn histogram(&mut self, name: &str, help: &str, buckets: &[(f64, u64)], sum: f64) {
        self.head(name, help, "histogram");
        let bucket = format!("{name}_bucket");
        let mut total = 0;
        for (bound, count) in buckets {
            total += count;
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
            self.line(&bucket, "le", &bound, total);
        }
        self.line(&format!("{name}_sum"), "", "", sum);
        self.line(&format!("{name}_count"), "", "", total);
    }

    pub fn finish(self) -> String {
        self.text
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Writing into a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, label: &str, value_of: &str, value: impl Display) {
        let _ = if label.is_empty() {
            writeln!(self.text, "{name} {value}")
        } else {
            let value_of = value_of.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            writeln!(self.text, "{name}{{{label}=\"{value_of}\"}} {value}")
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_as_prometheus_reads_it() {
        let mut page = Page::default();
        page.counter("a_total", "What a is.", 3);
        page.labelled("b", "gauge", "What b is.", "kind", [("x", 1), ("y\"\\", 2)]);
        page.histogram("c_seconds", "What c is.", &[(0.5, 2), (1.0, 0), (f64::INFINITY, 1)], 4.25);
        let wanted = "\
# HELP a_total What a is.
# TYPE a_total counter
a_total 3
# HELP b What b is.
# TYPE b gauge
b{kind=\"x\"} 1
b{kind=\"y\\\"\\\\\"} 2
# HELP c_seconds What c is.
# TYPE c_seconds histogram
c_seconds_bucket{le=\"0.5\"} 2
c_seconds_bucket{le=\"1\"} 2
c_seconds_bucket{le=\"+Inf\"} 3
c_seconds_sum 4.25
c_seconds_count 3
";
        assert_eq!(page.finish(), wanted);
    }
}
