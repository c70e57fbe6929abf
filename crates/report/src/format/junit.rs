//! JUnit XML, for CI systems.

use std::fmt::Write;

use rolegate_core::text::plain;

use super::{Format, Renderer};
use crate::cases::{Case, CaseResult, Cases, Counts, Suite};

/// The format.
pub(super) const FORMAT: Format = Format {
    name: "junit",
    help: "JUnit XML, for CI systems",
    renderer: Renderer::Cases(render),
};

fn render(cases: &Cases) -> String {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let name = [("name", xml(cases.title))];
    let attributes = name.into_iter().chain(attributes(Counts::of(cases.all())));
    element(&mut text, "testsuites", attributes, |text| {
        for suite in &cases.suites {
            write_suite(text, suite);
        }
    });
    text.push('\n');
    text
}

fn write_suite(text: &mut String, suite: &Suite) {
    let counts = Counts::of(suite.cases.iter());
    let name = [("name", xml(&suite.name))];
    let attributes = name.into_iter().chain(attributes(counts));
    element(text, "testsuite", attributes, |text| {
        for case in &suite.cases {
            write_case(text, suite, case);
        }
    });
}

fn attributes(counts: Counts) -> [(&'static str, String); 4] {
    [
        ("tests", counts.all.to_string()),
        ("failures", counts.failed.to_string()),
        ("errors", counts.errored.to_string()),
        ("skipped", counts.skipped.to_string()),
    ]
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
                    let place = format!("{}: {}", case.place(), complaint.message);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::tests::cases;

    #[test]
    fn threat_25_junit_is_well_formed_whatever_names_hold() {
        assert_eq!(
            render(&cases()),
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
}
