//! The text formats of metrics and their negotiation.

/// A text format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus text format 0.0.4, the only format of older scrapers and many tools.
    Text,
}

const OPEN_METRICS: &str = "application/openmetrics-text";
const TEXT: &str = "text/plain";

impl Format {
    /// Selects the format by an `Accept` header: OpenMetrics, unless the text format is preferred.
    pub fn accepted(accept: Option<&str>) -> Self {
        let weight = |wanted: &str| {
            let entries = accept.unwrap_or_default().split(',');
            let weights = entries.filter_map(|entry| weight(entry, wanted));
            weights.fold(0.0, f64::max)
        };
        if weight(TEXT) > weight(OPEN_METRICS) {
            Self::Text
        } else {
            Self::OpenMetrics
        }
    }

    /// Returns the value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Converts OpenMetrics text to this format. Drops the full stops that the encoder appends to
    /// some help texts.
    pub(super) fn render(self, open_metrics: &str) -> String {
        let mut text = String::with_capacity(open_metrics.len());
        // In OpenMetrics the name of a counter family has no `_total`; in the text format it does.
        let mut help: Option<(&str, &str)> = None;
        for line in open_metrics.lines() {
            if let Some((name, sentence)) = family(line, "# HELP ") {
                help = Some((name, sentence.strip_suffix('.').unwrap_or(sentence)));
            } else if let Some((name, kind)) = family(line, "# TYPE ") {
                let (suffix, kind) = self.names(kind);
                if let Some((_, sentence)) = help.take() {
                    text.push_str(&format!("# HELP {name}{suffix} {sentence}\n"));
                }
                text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
            } else if self == Self::OpenMetrics || !line.starts_with('#') {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }

    /// Returns the name suffix and the type of a family, given its OpenMetrics type.
    fn names(self, kind: &str) -> (&'static str, &str) {
        match (self, kind) {
            (Self::Text, "counter") => ("_total", kind),
            (Self::Text, "info") => ("_info", "gauge"),
            (Self::Text, "unknown") => ("", "untyped"),
            _ => ("", kind),
        }
    }
}

/// Returns the weight of a media type in one entry of an `Accept` header.
fn weight(entry: &str, wanted: &str) -> Option<f64> {
    let mut parts = entry.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case(wanted) {
        return None;
    }
    let weight = parts.find_map(|parameter| parameter.strip_prefix("q="));
    weight.map_or(Some(1.0), |weight| weight.parse().ok())
}

/// Splits a line about a family into the family's name and the rest.
fn family<'a>(line: &'a str, kind: &str) -> Option<(&'a str, &'a str)> {
    line.strip_prefix(kind)?.split_once(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrapers_get_what_they_ask_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,\
            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let with_protobuf = "application/vnd.google.protobuf;encoding=delimited;q=0.7, \
            text/plain;version=0.0.4;q=0.3, */*;q=0.1";
        for (accept, format) in [
            (None, Format::OpenMetrics),
            (Some("*/*"), Format::OpenMetrics),
            (Some(prometheus), Format::OpenMetrics),
            (Some("text/html,*/*;q=0.8"), Format::OpenMetrics),
            (Some("text/plain;version=0.0.4"), Format::Text),
            (Some("TEXT/PLAIN; version=0.0.4"), Format::Text),
            (Some(with_protobuf), Format::Text),
            (Some("text/plain;q=0"), Format::OpenMetrics),
            (
                Some("text/plain;q=0.9,application/openmetrics-text;q=0.1"),
                Format::Text,
            ),
            (Some("text/plain;q=much"), Format::OpenMetrics),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept:?}");
        }
    }

    #[test]
    fn counters_have_their_suffix_in_the_text_format() {
        let open = "# HELP a_b Things.\n# TYPE a_b counter\na_b_total{x=\"# y\"} 1\n\
            # HELP c_seconds Time\n# TYPE c_seconds histogram\n# UNIT c_seconds seconds\n\
            c_seconds_sum 1\n# HELP d D.\n# TYPE d unknown\nd 1\n# EOF\n";
        assert_eq!(
            Format::Text.render(open),
            "# HELP a_b_total Things\n# TYPE a_b_total counter\na_b_total{x=\"# y\"} 1\n\
            # HELP c_seconds Time\n# TYPE c_seconds histogram\n\
            c_seconds_sum 1\n# HELP d D\n# TYPE d untyped\nd 1\n"
        );
        let expected = open.replace("Things.", "Things").replace("D.", "D");
        assert_eq!(Format::OpenMetrics.render(open), expected);
    }
}
