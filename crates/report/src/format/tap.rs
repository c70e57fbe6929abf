//! TAP version 13.

use std::fmt::Write;

use rolegate_core::text::plain;

use super::{Format, Renderer};
use crate::cases::{CaseResult, Cases};

/// The format.
pub(super) const FORMAT: Format = Format {
    name: "tap",
    help: "TAP version 13",
    renderer: Renderer::Cases(render),
};

fn render(cases: &Cases) -> String {
    let mut text = format!("TAP version 13\n1..{}\n", cases.count());
    for (number, case) in (1..).zip(cases.all()) {
        // A `#` would start a directive.
        let name = plain(&case.name).replace('\\', "\\\\").replace('#', "\\#");
        let (word, directive) = match &case.result {
            CaseResult::Passed => ("ok", String::new()),
            CaseResult::Skipped(why) => ("ok", format!(" # SKIP {}", plain(why))),
            CaseResult::Failed(_) | CaseResult::Errored(_) => ("not ok", String::new()),
        };
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{word} {number} - {name}{directive}");
        let place = plain(&case.place());
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
    use crate::cases::tests::cases;

    #[test]
    fn threat_25_tap_has_one_line_a_case_and_no_directive_of_a_name() {
        assert_eq!(
            render(&cases()),
            "TAP version 13\n1..4\n\
             ok 1 - fine \\# todo\n# a.yaml:3: worth\\u{1}knowing\n\
             not ok 2 - bad\\\\u{a}ok 2\n\
             # a.yaml:3: no <grant> & \"none\"\\u{a}]]>\n# a.yaml:3: b\n\
             not ok 3 - odd\n# a.yaml:3: it failed\n\
             ok 4 - late # SKIP to do\n"
        );
    }
}
