//! Progress of long reads, shown on a terminal.

use std::io::{self, IsTerminal, Stderr, Write};

/// A line on standard error that is rewritten, and cleared at the end.
pub(crate) struct Progress<W: Write = Stderr> {
    what: String,
    /// The terminal; `None` if standard error is another file.
    out: Option<W>,
    is_shown: bool,
}

impl Progress {
    /// Creates the progress of reading a kind of objects. It is shown if standard error is a
    /// terminal.
    pub(crate) fn new(what: &str) -> Self {
        let out = io::stderr();
        let is_seen = out.is_terminal();
        Self::on(is_seen.then_some(out), what)
    }
}

impl<W: Write> Progress<W> {
    fn on(out: Option<W>, what: &str) -> Self {
        Self {
            what: what.to_owned(),
            out,
            is_shown: false,
        }
    }

    /// Shows the number of objects read so far and the number of those that remain, if known. A
    /// single read is not shown.
    pub(crate) fn show(&mut self, count: usize, remaining: Option<i64>) {
        let remaining = remaining.and_then(|count| usize::try_from(count).ok());
        let is_all = remaining.unwrap_or_default() == 0;
        let Some(out) = self.out.as_mut().filter(|_| self.is_shown || !is_all) else {
            return;
        };
        let of = match remaining {
            Some(remaining) if !is_all => format!(" of {}", count.saturating_add(remaining)),
            _ => String::new(),
        };
        // Ignored: the terminal may be closed.
        let _ = write!(out, "\r\x1b[Kreading {}: {count}{of}", self.what);
        let _ = out.flush();
        self.is_shown = true;
    }
}

impl<W: Write> Drop for Progress<W> {
    fn drop(&mut self) {
        if let Some(out) = self.out.as_mut().filter(|_| self.is_shown) {
            let _ = write!(out, "\r\x1b[K");
            let _ = out.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_reads_are_counted_and_the_line_is_cleared() {
        let mut seen = Vec::new();
        let mut progress = Progress::on(Some(&mut seen), "pods");
        progress.show(500, Some(700));
        progress.show(1000, Some(200));
        progress.show(1200, None);
        drop(progress);
        let seen = String::from_utf8(seen).unwrap();
        let shown: Vec<_> = seen.split("\r\x1b[K").collect();
        let expected = [
            "",
            "reading pods: 500 of 1200",
            "reading pods: 1000 of 1200",
            "reading pods: 1200",
            "",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_is_read_at_once_is_not_shown() {
        let mut seen = Vec::new();
        Progress::on(Some(&mut seen), "pods").show(20, None);
        assert!(seen.is_empty());
        Progress::<Vec<u8>>::on(None, "pods").show(500, Some(1));
    }
}
