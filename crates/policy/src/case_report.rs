//! Test results in the formats of CI systems: JUnit XML and TAP 13.

use std::fmt::Write;

use crate::text::plain;

/// A group of cases, such as those of one file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Suite {
    /// Its name, such as a file.
    pub name: String,
    /// Its cases, in order.
    pub cases: Vec<Case>,
}

/// One case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// The file.
    pub file: String,
    /// The line in the file, from 1.
    pub line: u64,
    /// The result.
    pub result: CaseResult,
    /// A sentence for each remark.
    pub remarks: Vec<String>,
}

/// The result of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaseResult {
    /// The case passed.
    Passed,
    /// The case failed.
    Failed(Vec<Complaint>),
    /// The case could not run, for this reason.
    Errored(String),
    /// The case was skipped, for this reason.
    Skipped(String),
}

/// One reason for a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// Its kind, such as the layer that denied.
    pub kind: String,
    /// The message, as one sentence.
    pub message: String,
}

/// The number of cases by outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counts {
    all: usize,
    failed: usize,
    errored: usize,
    skipped: usize,
}

impl Counts {
    fn of<'a>(cases: impl Iterator<Item = &'a Case>) -> Self {
        let mut counts = Self::default();
        for case in cases {
            counts.all += 1;
            match case.result {
                CaseResult::Passed => {}
                CaseResult::Failed(_) => counts.failed += 1,
                CaseResult::Errored(_) => counts.errored += 1,
                CaseResult::Skipped(_) => counts.skipped += 1,
            }
        }
        counts
    }

    fn attributes(self) -> [(&'static str, String); 4] {
        [
            ("tests", self.all.to_string()),
            ("failures", self.failed.to_string()),
            ("errors", self.errored.to_string()),
            ("skipped", self.skipped.to_string()),
        ]
    }
}

/// Formats the suites as JUnit XML.
pub fn junit(name: &str, suites: &[Suite]) -> String {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let all = Counts::of(suites.iter().flat_map(|suite| &suite.cases));
    let attributes = [("name", xml(name))].into_iter().chain(all.attributes());
    element(&mut text, "testsuites", attributes, |text| {
        for suite in suites {
            let counts = Counts::of(suite.cases.iter());
            let name = [("name", xml(&suite.name))];
            let attributes = name.into_iter().chain(counts.attributes());
            element(text, "testsuite", attributes, |text| {
                for case in &suite.cases {
                    write_case(text, suite, case);
                }
            });
        }
    });
    text.push('\n');
    text
}

fn write_case(text: &mut String, of: &Suite, case: &Case) {
    let attributes = [
        ("name", xml(&case.name)),
        ("classname", xml(&of.name)),
        ("file", xml(&case.file)),
        ("line", case.line.to_string()),
    ];
    element(text, "testcase", attributes, |text| {
        match &case.result {
            CaseResult::Passed => {}
            CaseResult::Failed(complaints) => {
                for complaint in complaints {
                    let attributes = [
                        ("type", xml(&complaint.kind)),
                        ("message", xml(&complaint.message)),
                    ];
                    let place = format!("{}:{}: {}", case.file, case.line, complaint.message);
                    element(text, "failure", attributes, |text| *text += &xml(&place));
                }
            }
            CaseResult::Errored(why) => element(text, "error", [("message", xml(why))], |_| {}),
            CaseResult::Skipped(why) => element(text, "skipped", [("message", xml(why))], |_| {}),
        }
        if !case.remarks.is_empty() {
            let remarks: Vec<_> = case.remarks.iter().map(|remark| xml(remark)).collect();
            element(text, "system-out", [], |text| {
                *text += &remarks.join("&#xA;")
            });
        }
    });
}

/// Writes an element. The values of attributes are escaped already.
fn element(
    text: &mut String,
    name: &str,
    attributes: impl IntoIterator<Item = (&'static str, String)>,
    content: impl FnOnce(&mut String),
) {
    // Writing into a String cannot fail.
    let _ = write!(text, "<{name}");
    for (key, value) in attributes {
        let _ = write!(text, " {key}=\"{value}\"");
    }
    text.push('>');
    content(text);
    let _ = write!(text, "</{name}>");
}

/// Escapes a text to one line of XML 1.0 without characters that it does not support.
fn xml(text: &str) -> String {
    let text = plain(text);
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Formats the suites as TAP version 13.
pub fn tap(suites: &[Suite]) -> String {
    let cases = || suites.iter().flat_map(|suite| &suite.cases);
    let mut text = format!("TAP version 13\n1..{}\n", cases().count());
    for (number, case) in (1..).zip(cases()) {
        // A `#` would start a directive.
        let name = plain(&case.name).replace('\\', "\\\\").replace('#', "\\#");
        let (word, directive) = match &case.result {
            CaseResult::Passed => ("ok", String::new()),
            CaseResult::Skipped(why) => ("ok", format!(" # SKIP {}", plain(why))),
            CaseResult::Failed(_) | CaseResult::Errored(_) => ("not ok", String::new()),
        };
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{word} {number} - {name}{directive}");
        let place = plain(&format!("{}:{}", case.file, case.line));
        let mut remark = |what: &str| {
            let _ = writeln!(text, "# {place}: {}", plain(what));
        };
        match &case.result {
            CaseResult::Failed(complaints) => {
                complaints.iter().for_each(|one| remark(&one.message));
            }
            CaseResult::Errored(why) => remark(why),
            CaseResult::Passed | CaseResult::Skipped(_) => {}
        }
        case.remarks.iter().for_each(|one| remark(one));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suites() -> Vec<Suite> {
        let case = |name: &str, result| Case {
            name: name.into(),
            file: "a.yaml".into(),
            line: 3,
            result,
            remarks: Vec::new(),
        };
        let complaint = |message: &str| Complaint {
            kind: "grants".into(),
            message: message.into(),
        };
        let failed = vec![complaint("no <grant> & \"none\"\n]]>"), complaint("b")];
        let mut passed = case("fine # todo", CaseResult::Passed);
        passed.remarks.push("worth\u{1}knowing".into());
        vec![Suite {
            name: "a.yaml".into(),
            cases: vec![
                passed,
                case("bad\nok 2", CaseResult::Failed(failed)),
                case("odd", CaseResult::Errored("it failed".into())),
                case("late", CaseResult::Skipped("to do".into())),
            ],
        }]
    }

    #[test]
    fn threat_25_junit_is_well_formed_whatever_names_hold() {
        assert_eq!(
            junit("rolegate", &suites()),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <testsuites name=\"rolegate\" tests=\"4\" failures=\"1\" errors=\"1\" skipped=\"1\">\
             <testsuite name=\"a.yaml\" tests=\"4\" failures=\"1\" errors=\"1\" skipped=\"1\">\
             <testcase name=\"fine # todo\" classname=\"a.yaml\" file=\"a.yaml\" line=\"3\">\
             <system-out>worth\\u{1}knowing</system-out></testcase>\
             <testcase name=\"bad\\u{a}ok 2\" classname=\"a.yaml\" file=\"a.yaml\" line=\"3\">\
             <failure type=\"grants\" message=\"no &lt;grant&gt; &amp; &quot;none&quot;\\u{a}]]&gt;\">\
             a.yaml:3: no &lt;grant&gt; &amp; &quot;none&quot;\\u{a}]]&gt;</failure>\
             <failure type=\"grants\" message=\"b\">a.yaml:3: b</failure></testcase>\
             <testcase name=\"odd\" classname=\"a.yaml\" file=\"a.yaml\" line=\"3\">\
             <error message=\"it failed\"></error></testcase>\
             <testcase name=\"late\" classname=\"a.yaml\" file=\"a.yaml\" line=\"3\">\
             <skipped message=\"to do\"></skipped></testcase></testsuite></testsuites>\n"
        );
    }

    #[test]
    fn threat_25_tap_has_one_line_a_case_and_no_directive_of_a_name() {
        assert_eq!(
            tap(&suites()),
            "TAP version 13\n1..4\n\
             ok 1 - fine \\# todo\n# a.yaml:3: worth\\u{1}knowing\n\
             not ok 2 - bad\\\\u{a}ok 2\n\
             # a.yaml:3: no <grant> & \"none\"\\u{a}]]>\n# a.yaml:3: b\n\
             not ok 3 - odd\n# a.yaml:3: it failed\n\
             ok 4 - late # SKIP to do\n"
        );
    }
}
