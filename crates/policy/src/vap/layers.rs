//! CEL that evaluates each role request: the checks before all layers, and the enabled layers.
//!
//! Each policy has a variable `refusals` with one sentence per denied request, and one validation
//! that requires it to be empty.

use rolegate_core::annotation::PERMITTED;
use rolegate_core::decision::{DenialSource, ReservedRole};
use rolegate_core::layer::LayerId;
use rolegate_core::pattern::PatternFormat;
use serde_json::Value;

use super::VapInput;
use super::cel::{
    ROLE_CHARACTERS, base_text, is_arn, is_role, list, normalized, quote, relative, shortened,
};
use super::role_requests::{unnamed, variable};
use super::table::field;

/// A JSON list of strings without escapes.
const PLAIN_LIST: &str = r#"^[ \t\r\n]*\[[ \t\r\n]*(?:"[^"\\\x00-\x1f]*"[ \t\r\n]*(?:,[ \t\r\n]*"[^"\\\x00-\x1f]*"[ \t\r\n]*)*)?\][ \t\r\n]*$"#;
/// A glob with at most 32 literal pieces.
const FEW_STARS: &str = r"^[^*]*(?:(?:\*+[^*]+){0,30}\*+[^*]*)?$";
/// Regular expressions with the same meaning in Rust and in the API server (Go): literals, escaped
/// punctuation, `\d` and `\w`, plain classes, groups and counts of two digits.
const COMMON_REGEX: &str = r"^(?:[A-Za-z0-9_=,@/: .*+?|()^$-]|\\[.*+?|()\[\]{}^$/_=,@:\\-]|\\[dDwWAz]|\[\^?-?(?:[A-Za-z0-9_=,@/:.*+](?:-[A-Za-z0-9_=,@/:.*+])?|\\[dDwW.*+/_-])+-?\]|\{[0-9]{1,2}(?:,[0-9]{0,2})?\})*$";

/// The prefix of expressions that match ARNs, as a CEL literal.
const ARN_EXPRESSION: &str = r#""^\\^?[aA][rR][nN]:""#;

/// Returns the variable with sentences about denied requests. `sentence` is an expression that is
/// empty for an allowed request `a`.
fn refusals(asks: &str, denied_by: DenialSource, sentence: &str, more: &str) -> Value {
    variable(
        "refusals",
        format!(
            r#"variables.{asks}.map(g, g.map(a, [{sentence}].map(s, s == "" ? "" : "role " + {role} + " is refused by {denied_by}: " + s)[0]).filter(s, s != "")).filter(g, g.size() > 0).map(g, g[0]){more}"#,
            role = shortened("a.role"),
        ),
    )
}

/// Returns the checks before all layers: malformed roles, mirror pods, reserved roles, external IDs
/// that STS rejects, and session names that could pass for another namespace's.
pub(super) fn request(input: &VapInput<'_>) -> Vec<Value> {
    let own: Vec<_> = input.config.reserved_roles.iter().map(is_own).collect();
    let own = if own.is_empty() {
        "false".to_owned()
    } else {
        own.join(" || ")
    };
    let odd = r#"a.sessionName.size() > 64 || !a.sessionName.matches("^[A-Za-z0-9_+=,.@-]*$")"#;
    // A name that is too long is shortened to end in a hash of 20 digits.
    let forged = r#"a.sessionName.contains(".") && !a.sessionName.startsWith(request.namespace + ".") || (a.sessionName.size() == 64 && a.sessionName.matches("-[0-9a-fA-F]{20}$"))"#;
    let sentence = format!(
        r#"!{is_role} ? {malformed} : "mirror" in a ? "mirror pods of static pods get no role" : {own} ? "the role belongs to a node or to rolegate itself, so no pod may assume it" : "externalId" in a && !a.externalId.matches("^[A-Za-z0-9_+=,.@:/-]*$") || "externalId" in a && (a.externalId.size() < 2 || a.externalId.size() > 1224) ? "the external ID must be 2 to 1224 letters, digits and _+=,.@:/- characters" : "sessionName" in a && ({odd}) ? "a session name must have at most 64 letters, digits and _+=,.@- characters" : "sessionName" in a && ({forged}) ? "the session name could be that of another namespace: a name with a dot must start with the pod's own namespace" : """#,
        is_role = is_role("a.role"),
        malformed = quote(
            "it is not a role ARN (arn:PARTITION:iam::ACCOUNT:role/NAME) and not a role name \
             that a base ARN completes"
        ),
    );
    vec![refusals("asks", DenialSource::Request, &sentence, "")]
}

fn is_own(own: &ReservedRole) -> String {
    let name = format!("/{}", own.name.to_ascii_lowercase());
    let named = format!("a.role.lowerAscii().endsWith({})", quote(&name));
    match &own.account {
        Some(account) => {
            let account = quote(&format!("::{account}:role/"));
            format!("{named} && a.role.contains({account})")
        }
        None => named,
    }
}

/// Returns layer `namespace`.
pub(super) fn namespace(input: &VapInput<'_>) -> Vec<Value> {
    let base = base_text(input.config.base.as_ref());
    let annotation = |key: &str| format!("namespaceObject.?metadata.?annotations[?{}]", quote(key));
    let (allowed, permitted) = (annotation(&input.keys.allowed_roles), annotation(PERMITTED));
    let mut variables = vec![
        variable("hasAllowed", format!("{allowed}.hasValue()")),
        variable("allowed", normalized(&allowed)),
        variable("hasPermitted", format!("{permitted}.hasValue()")),
        variable("permitted", normalized(&permitted)),
        variable(
            "isList",
            format!(
                "bytes(variables.allowed).size() <= 8192 && variables.allowed.matches({})",
                quote(PLAIN_LIST)
            ),
        ),
        variable(
            "patterns",
            r#"variables.isList ? variables.allowed.findAll("\"[^\"]*\"").map(p, p.substring(1, p.size() - 1).trim()) : []"#,
        ),
    ];
    variables.extend(match input.config.restriction_format {
        PatternFormat::Glob => globs(input),
        PatternFormat::Regexp => expressions(),
    });
    // As in kiam and, for bare names, as a suffix of the base ARN.
    let is_usable = usable_regex("variables.permitted");
    variables.push(variable("permittedUsable", is_usable));
    variables.push(variable(
        "permittedExpressions",
        format!(
            r#"variables.permittedUsable ? [{}] + (variables.permitted.matches({ARN_EXPRESSION}) ? [{}] : []) : []"#,
            anchored("variables.permitted"),
            anchored(&bare_relative("variables.permitted")),
        ),
    ));
    variables.push(variable(
        "permittedNames",
        names_of("[variables.permitted]", "permittedUsable"),
    ));
    let refused = |key: &str, kind: &str| {
        let start = format!("annotation {key} of the namespace ");
        format!(
            r#"!variables.{kind}Usable ? {unusable} : !variables.{kind}Expressions.exists(x, a.role.matches(x)) && !({is_based} && variables.{kind}Names.exists(x, {name}.matches(x))) ? {not_allowed} : """#,
            unusable = quote(&format!("{start}cannot be read here")),
            not_allowed = quote(&format!("{start}does not allow the role")),
            is_based = format_args!("a.role.startsWith({})", quote(base)),
            name = format_args!("a.role.substring({})", base.len()),
        )
    };
    let by_list = refused(&input.keys.allowed_roles, "allowed");
    let by_expression = refused(PERMITTED, "permitted");
    let none = if input.config.allow_unannotated {
        String::new()
    } else {
        format!(
            "the namespace allows no role: it has neither {} nor {PERMITTED}; ask your cluster's \
             administrator",
            input.keys.allowed_roles
        )
    };
    let sentence = format!(
        r#"a["default"] == "yes" ? "" : !variables.hasAllowed && !variables.hasPermitted ? {none} : [variables.hasAllowed ? ({by_list}) : ""].map(l, l != "" ? l : variables.hasPermitted ? ({by_expression}) : "")[0]"#,
        none = quote(&none),
    );
    variables.push(refusals("judged", LayerId::Namespace.into(), &sentence, ""));
    variables
}

fn globs(input: &VapInput<'_>) -> Vec<Value> {
    let base = quote(base_text(input.config.base.as_ref()));
    let possible = quote(&format!("^[*{ROLE_CHARACTERS}]*$"));
    vec![
        variable(
            "allowedUsable",
            format!(
                "variables.isList && variables.patterns.size() <= 256 && variables.patterns.all(p, bytes(p).size() <= 2048 && p.matches({}))",
                quote(FEW_STARS)
            ),
        ),
        // A pattern with a character that no role contains matches none and is omitted. In the
        // others only dots and pluses have a meaning in an expression.
        variable(
            "allowedExpressions",
            format!(
                r#"variables.allowedUsable ? variables.patterns.filter(p, p.matches({possible})).map(p, {is_arn} ? p : {base} + {relative}).map(p, "^" + p.replace(".", "[.]").replace("+", "[+]").replace("*", ".*") + "$") : []"#,
                is_arn = is_arn("p"),
                relative = relative("p"),
            ),
        ),
        variable("allowedNames", list::<&str>([])),
    ]
}

fn expressions() -> Vec<Value> {
    vec![
        variable(
            "allowedUsable",
            format!(
                "variables.isList && variables.patterns.size() <= 256 && variables.patterns.map(p, {}).all(u, u)",
                usable_regex("p")
            ),
        ),
        variable(
            "allowedExpressions",
            format!(
                "variables.allowedUsable ? variables.patterns.filter(p, p.matches({ARN_EXPRESSION})).map(p, {}) : []",
                anchored(&bare_relative("p"))
            ),
        ),
        variable(
            "allowedNames",
            names_of("variables.patterns", "allowedUsable"),
        ),
    ]
}

/// Selects the expressions for names below the base ARN, which do not start like an ARN, and
/// anchors them. They are matched against the whole name, so their own anchors are at its ends.
fn names_of(expressions: &str, usable: &str) -> String {
    format!(
        "variables.{usable} ? {expressions}.filter(p, !p.matches({ARN_EXPRESSION})).map(p, {}) : []",
        anchored(&bare_relative("p"))
    )
}

/// Anchors an expression to the whole text.
fn anchored(expression: &str) -> String {
    format!(r#""\\A(?:" + {expression} + ")\\z""#)
}

/// Returns CEL for whether a regular expression has the same meaning here as in rolegate. One that
/// does not compile alone is an error, and so a denial: `a)|(b` must not escape the anchors.
fn usable_regex(expression: &str) -> String {
    format!(
        r#"bytes({expression}).size() <= 2048 && {expression}.split("{{").size() <= 9 && {expression}.matches({common}) && !{expression}.replace("(?:", "(").replace("(?i:", "(").replace("(?i)", "").contains("(?") && [{expression}, {relative}].map(x, "".matches(x)).size() == 2"#,
        common = quote(COMMON_REGEX),
        relative = bare_relative(expression),
    )
}

/// Strips a text as [`rolegate_core::pattern::RoleExpression`] does: a leading `^`, then a leading
/// `/`, unless a quantifier follows.
fn bare_relative(expression: &str) -> String {
    format!(
        r#"[{expression}].map(x, x.matches("^\\^?/[?*+{{]") ? x : [x.startsWith("^") ? x.substring(1) : x].map(y, {})[0])[0]"#,
        relative("y")
    )
}

/// Returns layer `grants`, from the rows of the parameter object.
pub(super) fn grants() -> Vec<Value> {
    use field::{
        ACCOUNTS, CLOSENESS, EXTERNAL_IDS, GRANT, NAMES, NAMESPACE_LABELS, NAMESPACES, PART,
        POD_LABELS, ROLES, SESSION, START,
    };
    let requirements = |place: usize, labels: &str| {
        let among = format!(r#"(p[1] in {labels} && {labels}[p[1]] in p[2].split(","))"#);
        format!(
            r#"(f[{place}] == "" || f[{place}].split(";").map(q, q.split(" ")).all(p, p[0] == "In" ? {among} : p[0] == "NotIn" ? !{among} : (p[1] in {labels}) == (p[0] == "Exists")))"#
        )
    };
    let covers = format!(
        r#"a.role.startsWith(f[{START}]) && a.role.contains(f[{PART}]) && (f[{CLOSENESS}] == "1" ? a.role.matches(f[{ROLES}]) : a.role in f[{ROLES}].split(" ")) && (f[{NAMESPACES}] == "" || request.namespace.matches(f[{NAMESPACES}])) && (f[{ACCOUNTS}] == "" || a.account.matches(f[{ACCOUNTS}])) && {} && {}"#,
        requirements(NAMESPACE_LABELS, "variables.namespaceLabels"),
        requirements(POD_LABELS, "a"),
    );
    let closest = format!(
        r#"[["3", "2", "1"].filter(n, c.exists(f, f[{CLOSENESS}] == n))[0]].map(n, c.filter(f, f[{CLOSENESS}] == n))"#
    );
    // Any grant that makes the same session may list the ID.
    let id_listed = format!(
        r#"!("externalId" in a) || c.exists(f, f[{SESSION}] == b[0][{SESSION}] && a.externalId in f[{EXTERNAL_IDS}].split(" "))"#
    );
    let name_allowed = format!(
        r#"b[0][{NAMES}] == "" || !("sessionName" in a) || (a.sessionName + (a.sessionName.size() == 0 ? "--" : a.sessionName.size() == 1 ? "-" : "")).matches(b[0][{NAMES}])"#
    );
    let among_closest = format!(
        r#"[b.filter(f, f[{SESSION}] != b[0][{SESSION}])].map(o, o.size() > 0 ? "grants " + b[0][{GRANT}] + " and " + o[0][{GRANT}] + " match the role with equal specificity but differ in session settings, so the session is ambiguous; ask your cluster's administrator to align them" : !({id_listed}) ? "grant " + b[0][{GRANT}] + " covers the role but does not allow this external ID" : {name_allowed} ? "" : "grant " + b[0][{GRANT}] + " does not allow the session name")[0]"#
    );
    let sentence = format!(
        r#"a.known == "no" ? "" : [variables.rows.filter(f, {covers})].map(c, c.size() == 0 ? (a["default"] == "yes" ? ("externalId" in a ? "no RoleGrant covers the default role, so it cannot be used with an external ID" : "") : "no RoleGrant covers the role for service account " + a.account + " in namespace " + request.namespace + "; ask your cluster's administrator for a grant") : {closest}.map(b, {among_closest})[0])[0]"#
    );
    vec![
        variable(
            "namespaceLabels",
            "namespaceObject.?metadata.?labels.orValue({})",
        ),
        variable(
            "rows",
            r#"(params.data["any"].split(" ") + params.data[?("ns." + request.namespace)].orValue("").split(" ")).filter(n, n != "").map(n, params.data["row." + n].split("\n"))"#,
        ),
        unnamed(),
        refusals(
            "judged",
            LayerId::Grants.into(),
            &sentence,
            r#" + variables.unnamed.filter(s, s != "")"#,
        ),
    ]
}
