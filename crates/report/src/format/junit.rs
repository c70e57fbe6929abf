//! JUnit XML, for CI systems.

use aws_smithy_xml::encode::{ScopeWriter, XmlWriter};
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
    let mut writer = XmlWriter::new(&mut text);
    let mut root = writer.start_el("testsuites");
    root.write_attribute("name", &xml(cases.title));
    for (key, value) in attributes(Counts::of(cases.all())) {
        root.write_attribute(key, &value);
    }
    let mut root = root.finish();
    for suite in &cases.suites {
        let mut element = root.start_el("testsuite");
        element.write_attribute("name", &xml(&suite.name));
        for (key, value) in attributes(Counts::of(suite.cases.iter())) {
            element.write_attribute(key, &value);
        }
        let mut element = element.finish();
        for case in &suite.cases {
            write_case(&mut element, suite, case);
        }
    }
    drop(root);
    text.push('\n');
    text
}

fn write_case(suite: &mut ScopeWriter<'_, '_>, of: &Suite, case: &Case) {
    let mut element = suite.start_el("testcase");
    element.write_attribute("name", &xml(&case.name));
    element.write_attribute("classname", &xml(&of.name));
    element.write_attribute("file", &xml(&case.file));
    element.write_attribute("line", &case.line.to_string());
    let mut element = element.finish();
    match &case.result {
        CaseResult::Passed => {}
        CaseResult::Failed(complaints) => {
            for complaint in complaints {
                let mut failure = element.start_el("failure");
                failure.write_attribute("type", &xml(&complaint.kind));
                failure.write_attribute("message", &xml(&complaint.message));
                let mut failure = failure.finish();
                let place = format!("{}:{}: {}", case.file, case.line, complaint.message);
                failure.data(&xml(&place));
            }
        }
        CaseResult::Errored(why) => {
            let mut error = element.start_el("error");
            error.write_attribute("message", &xml(why));
            error.finish();
        }
        CaseResult::Skipped(why) => {
            let mut skipped = element.start_el("skipped");
            skipped.write_attribute("message", &xml(why));
            skipped.finish();
        }
    }
    if !case.remarks.is_empty() {
        let remarks: Vec<_> = case.remarks.iter().map(|remark| xml(remark)).collect();
        let mut out = element.start_el("system-out").finish();
        out.data(&remarks.join("\n"));
    }
}

/// Escapes a text to one line without characters that XML 1.0 does not support.
fn xml(text: &str) -> String {
    plain(text).replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}")
}

fn attributes(counts: Counts) -> [(&'static str, String); 4] {
    [
        ("tests", counts.all.to_string()),
        ("failures", counts.failed.to_string()),
        ("errors", counts.errored.to_string()),
        ("skipped", counts.skipped.to_string()),
    ]
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
