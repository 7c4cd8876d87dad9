//! What tests of connections come to, for people: a line for each leg with its time, then the verdict.

use super::text::{Paint, clean, print};
use super::{Failure, print_json};
use crate::trail::{Leg, Mark, Problem, Tested};

/// Prints what came of a test. A problem is a failure.
pub(super) fn tell(tested: &Tested, json: bool, good: &str) -> Result<(), Failure> {
    if json {
        print_json(tested)?;
    } else {
        for line in lines(tested, good, Paint::for_stdout()) {
            print(&line)?;
        }
    }
    ended(tested.problem.as_ref(), json)
}

/// The exit status, and what to do.
pub(super) fn ended(problem: Option<&Problem>, json: bool) -> Result<(), Failure> {
    match problem {
        None => Ok(()),
        Some(_) if json => Err(Failure::new("")),
        Some(problem) => {
            Err(Failure::new(format!("{}: {}", problem.group.name(), clean(&problem.what))).remedy(&problem.remedy))
        }
    }
}

fn lines(tested: &Tested, good: &str, paint: Paint) -> Vec<String> {
    let ends = match (&tested.from, &tested.to) {
        (Some(from), Some(to)) => format!(": from <{}> to <{}>", clean(from), clean(to)),
        _ => String::new(),
    };
    let mut lines = vec![format!("{} {}{ends}", tested.test, clean(&tested.name))];
    lines.extend(legs(&tested.marks));
    lines.push(match tested.problem {
        Some(_) => paint.red("It does not do."),
        None => paint.green(good),
    });
    lines
}

/// One line for each leg; what EHLO offers stands below it.
pub(super) fn legs(marks: &[Mark]) -> Vec<String> {
    let mut lines = Vec::new();
    for Mark { leg, millis, what, offers } in marks {
        lines.push(format!("  {:<13} {millis:>6} ms  {}", name(*leg), clean(what)));
        lines.extend(offers.iter().map(|offer| format!("{:26}{}", "", clean(offer))));
    }
    lines
}

fn name(leg: Leg) -> &'static str {
    match leg {
        Leg::Configuration => "configuration",
        Leg::Token => "token",
        Leg::Pop => "POP3",
        Leg::Dns => "DNS",
        Leg::Connect => "TCP",
        Leg::Banner => "banner",
        Leg::Ehlo => "EHLO",
        Leg::Starttls => "STARTTLS",
        Leg::Tls => "TLS",
        Leg::Auth => "AUTH",
        Leg::Mail => "MAIL",
        Leg::Rcpt => "RCPT",
        Leg::Data => "DATA",
        Leg::Message => "message",
        Leg::Reset => "RSET",
        Leg::Graph => "Graph",
        Leg::Folder => "folder",
        Leg::Messages => "messages",
        Leg::Writing => "writing",
        Leg::Program => "program",
        Leg::Request => "request",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_told_line_by_line_and_cannot_steer_the_terminal() {
        let mark = |leg, what: &str| Mark { leg, millis: 7, what: what.to_owned(), offers: Vec::new() };
        let tested = Tested {
            test: "fetch".to_owned(),
            name: "sales".to_owned(),
            good: true,
            from: None,
            to: None,
            sent: false,
            marks: vec![mark(Leg::Dns, "a is at b"), mark(Leg::Banner, "hi\x1b[2J")],
            problem: None,
        };
        let wanted = [
            "fetch sales",
            "  DNS                7 ms  a is at b",
            "  banner             7 ms  hi?[2J",
            "Mail can be fetched from there.",
        ];
        assert_eq!(lines(&tested, "Mail can be fetched from there.", Paint::none()), wanted);
    }
}
