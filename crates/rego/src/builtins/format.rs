//! `sprintf` with the verbs of Go's `fmt`, for values as OPA passes them.

use std::fmt::Write as _;

use regorus::Value;

use super::go_fmt::{self, Argument, Spec};
use super::{MAX_TEXT, bounded, text};

/// Maximum field width and precision; the same as in Go.
const MAX_WIDTH: usize = 1_000_000;

pub(super) fn sprintf(arguments: &[Value]) -> anyhow::Result<Value> {
    let (Some(format), Some(Value::Array(values))) = (text(arguments, 0), arguments.get(1)) else {
        return Ok(Value::Undefined);
    };
    let arguments = values
        .iter()
        .map(Argument::of)
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut printer = Printer {
        rest: format,
        arguments: &arguments,
        next: 0,
        reordered: false,
        out: String::new(),
    };
    while let Some((before, behind)) = printer.rest.split_once('%') {
        printer.out.push_str(before);
        printer.rest = behind;
        if !printer.verb()? {
            break;
        }
        anyhow::ensure!(
            printer.out.len() <= MAX_TEXT,
            "sprintf: more than {MAX_TEXT} bytes"
        );
    }
    printer.end()
}

struct Printer<'a> {
    rest: &'a str,
    arguments: &'a [Argument],
    /// Index of the next argument.
    next: usize,
    /// True if arguments were selected by number.
    reordered: bool,
    out: String,
}

/// An explicit argument index, such as `[2]`.
#[derive(PartialEq, Eq, Clone, Copy)]
enum Index {
    Absent,
    Good,
    Bad,
}

impl Printer<'_> {
    /// Formats the text after a `%`. Returns false if the format string ends there.
    fn verb(&mut self) -> anyhow::Result<bool> {
        let mut spec = self.flags();
        let mut good = true;
        let mut index = self.index(&mut good);
        if self.skip('*') {
            match self.number_of_argument() {
                Some(width) => {
                    spec.minus |= width < 0;
                    spec.width = usize::try_from(width.unsigned_abs()).ok();
                }
                None => self.out.push_str("%!(BADWIDTH)"),
            }
            index = Index::Absent;
        } else {
            spec.width = self.number();
            good &= index != Index::Good || spec.width.is_none();
        }
        // Go reads a final point as a verb.
        if self.rest.len() > 1 && self.skip('.') {
            good &= index != Index::Good;
            index = self.index(&mut good);
            if self.skip('*') {
                match self.number_of_argument() {
                    Some(precision) if precision >= 0 => {
                        spec.precision = usize::try_from(precision).ok();
                    }
                    _ => self.out.push_str("%!(BADPREC)"),
                }
                index = Index::Absent;
            } else {
                spec.precision = Some(self.number().unwrap_or(0));
            }
        }
        if index != Index::Good {
            self.index(&mut good);
        }
        let Some(verb) = self.rest.chars().next() else {
            self.out.push_str("%!(NOVERB)");
            return Ok(false);
        };
        self.skip(verb);
        let argument = self.arguments.get(self.next);
        match (verb, argument) {
            ('%', _) => self.out.push('%'),
            _ if !good => {
                let _ = write!(self.out, "%!{verb}(BADINDEX)");
            }
            (_, None) => {
                let _ = write!(self.out, "%!{verb}(MISSING)");
            }
            (_, Some(argument)) => {
                go_fmt::write(verb, argument, spec, &mut self.out)?;
                self.next += 1;
            }
        }
        Ok(true)
    }

    fn skip(&mut self, c: char) -> bool {
        let behind = self.rest.strip_prefix(c);
        self.rest = behind.unwrap_or(self.rest);
        behind.is_some()
    }

    fn flags(&mut self) -> Spec {
        let mut spec = Spec::default();
        while let Some(flag) = self.rest.chars().next() {
            match flag {
                '-' => spec.minus = true,
                '+' => spec.plus = true,
                '#' => spec.sharp = true,
                ' ' => spec.space = true,
                '0' => spec.zero = true,
                _ => break,
            }
            self.skip(flag);
        }
        spec
    }

    /// Parses a decimal number. As in Go, a number that is far too large ends the format.
    fn number(&mut self) -> Option<usize> {
        let end = self
            .rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(self.rest.len());
        let (digits, behind) = self.rest.split_at(end);
        if digits.is_empty() {
            return None;
        }
        self.rest = behind;
        // Go compares the number before each further digit.
        let before_last = digits.get(..digits.len() - 1).unwrap_or("");
        let too_large = |digits: &str| digits.parse().is_ok_and(|number: usize| number > MAX_WIDTH);
        if digits.len() > 8 || too_large(before_last) {
            self.rest = "";
            return None;
        }
        digits.parse().ok()
    }

    /// Parses `[n]`.
    fn index(&mut self, good: &mut bool) -> Index {
        if !self.rest.starts_with('[') {
            return Index::Absent;
        }
        self.reordered = true;
        let inside = self.rest.get(1..).unwrap_or("");
        let closed = inside.split_once(']').filter(|_| inside.len() > 1);
        let Some((number, behind)) = closed else {
            *good = false;
            self.rest = inside;
            return Index::Bad;
        };
        self.rest = behind;
        let is_number = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
        let place = number
            .parse::<usize>()
            .ok()
            .filter(|number| is_number && *number <= MAX_WIDTH);
        match place {
            Some(place) if (1..=self.arguments.len()).contains(&place) => {
                self.next = place - 1;
                Index::Good
            }
            // The index of a missing argument is still an index.
            Some(_) => {
                *good = false;
                Index::Good
            }
            None => {
                *good = false;
                Index::Bad
            }
        }
    }

    /// Returns the next argument as a width or precision.
    fn number_of_argument(&mut self) -> Option<i64> {
        let argument = self.arguments.get(self.next)?;
        self.next += 1;
        match argument {
            Argument::Int(number) => {
                let most = i64::try_from(MAX_WIDTH).unwrap_or(i64::MAX);
                (-most..=most).contains(number).then_some(*number)
            }
            _ => None,
        }
    }

    /// Appends the rest of the format string and unused arguments.
    fn end(mut self) -> anyhow::Result<Value> {
        self.out.push_str(self.rest);
        let unused = self.arguments.get(self.next..).unwrap_or_default();
        if !self.reordered && !unused.is_empty() {
            self.out.push_str("%!(EXTRA ");
            for (place, argument) in unused.iter().enumerate() {
                self.out.push_str(if place > 0 { ", " } else { "" });
                go_fmt::extra(argument, Spec::default(), &mut self.out)?;
            }
            self.out.push(')');
        }
        bounded(self.out)
    }
}
