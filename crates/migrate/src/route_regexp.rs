//! kiam's expression for metadata paths, translated to rolegate's.
//!
//! kiam matches a part of the whole path (`/latest/meta-data/ami-id`) and forwards what matches.
//! rolegate matches the whole path below the version (`meta-data/ami-id`).

use rolegate_core::metadata::AllowList;

/// The result of a translation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// The expression allows no path, as kiam's default.
    Nothing,
    /// The expression for `--metadata-allow`.
    Allow(String),
    /// The expression has no equivalent, with the reason.
    Untranslatable(&'static str),
}

/// Translates one expression.
pub(crate) fn translate(expression: &str) -> Route {
    if matches!(expression, "" | "^$") {
        return Route::Nothing;
    }
    if matches!(
        expression,
        ".*" | "^.*" | ".*$" | "^.*$" | ".+" | "^.+$" | "/" | "^/" | "^/.*" | "^/.*$"
    ) {
        return Route::Untranslatable(
            "the expression opens all paths, and with them user data and the node's credentials: list the paths \
             that your pods read, one --metadata-allow in agent.extraArgs for each",
        );
    }
    let anchored = expression.strip_prefix('^').unwrap_or(expression);
    let Some(below) = anchored.strip_prefix("/latest/") else {
        return Route::Untranslatable(
            "the expression does not begin with /latest/: write it for the path below the version, such as \
             meta-data/ami-id, and add it to agent.extraArgs as --metadata-allow",
        );
    };
    if has_alternatives(below) {
        return Route::Untranslatable(
            "the expression has alternatives, whose anchors differ: write one --metadata-allow in agent.extraArgs \
             for each, on the path below the version",
        );
    }
    let whole = match below.strip_suffix('$') {
        Some(whole) if !whole.ends_with('\\') => whole.to_owned(),
        _ if below.ends_with(".*") => below.to_owned(),
        _ => format!("{below}.*"),
    };
    match AllowList::new(std::slice::from_ref(&whole)) {
        Ok(_) => Route::Allow(whole),
        Err(_) => Route::Untranslatable(
            "the expression matches no path that rolegate can allow: iam, identity-credentials and api are never \
             forwarded, and user-data only by an expression with that word",
        ),
    }
}

/// Returns whether an expression has alternatives outside groups and classes.
fn has_alternatives(expression: &str) -> bool {
    let (mut depth, mut in_class) = (0_usize, false);
    let mut characters = expression.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => {
                characters.next();
            }
            '[' => in_class = true,
            ']' => in_class = false,
            '(' if !in_class => depth += 1,
            ')' if !in_class => depth = depth.saturating_sub(1),
            '|' if !in_class && depth == 0 => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_below_the_version_is_matched_whole() {
        for (expression, expected) in [
            ("^/latest/meta-data/ami-id$", "meta-data/ami-id"),
            (
                "^/latest/dynamic/instance-identity",
                "dynamic/instance-identity.*",
            ),
            (
                "/latest/meta-data/(ami-id|tags/.*)",
                "meta-data/(ami-id|tags/.*).*",
            ),
            ("^/latest/meta-data/tags/.*", "meta-data/tags/.*"),
        ] {
            assert_eq!(
                translate(expression),
                Route::Allow(expected.into()),
                "{expression}"
            );
        }
    }

    #[test]
    fn what_opens_everything_is_never_carried_over() {
        assert_eq!(translate("^$"), Route::Nothing);
        for expression in [
            ".*",
            "^/.*$",
            "^/latest/meta-data/iam/.*",
            "ami-id",
            "^/latest/a$|^/latest/user-data",
            "^/latest/(",
        ] {
            let Route::Untranslatable(_) = translate(expression) else {
                panic!("{expression}");
            };
        }
    }
}
