//! CEL that finds an object's role requests: its pod templates, their previous state, and the roles
//! that they name. Requests, and changes of them, are defined as in the admission webhook.

use std::collections::BTreeSet;

use rolegate_core::annotation::{DEFAULT_ROLE, MIRROR, SESSION_NAME, WEB_IDENTITY_ROLE};
use rolegate_core::arn::resolve;
use rolegate_core::config::{Audience, TemplateKind};
use rolegate_review::{ACCOUNTS_OF_OWNERS, ROLE_VARIABLE, audience};
use serde_json::{Value, json};

use super::VapInput;
use super::cel::{base_text, is_arn, is_role, items, normalized, quote, relative, text};
use super::table::LABEL;

/// Returns a variable of a policy.
pub(super) fn variable(name: &str, expression: impl Into<String>) -> Value {
    json!({ "name": name, "expression": expression.into() })
}

/// Returns CEL for whether the request is about a kind.
fn is_kind(group: &str, kind: &str) -> String {
    format!(
        "request.kind.group == {} && request.kind.kind == {}",
        quote(group),
        quote(kind)
    )
}

/// Returns an annotation of `at`, an optional.
fn annotation(at: &str, key: &str) -> String {
    held(&format!("{at}.?metadata"), key)
}

/// Returns an annotation in `metadata`, an optional.
fn held(metadata: &str, key: &str) -> String {
    format!("{metadata}.?annotations[?{}]", quote(key))
}

/// Returns a normalized annotation in `metadata`; an optional that never contains an empty text.
fn given(metadata: &str, key: &str) -> String {
    format!(
        "optional.ofNonZeroValue(dyn({}))",
        normalized(&held(metadata, key))
    )
}

/// The parts of a template `t` that are read.
#[derive(Clone, Copy)]
enum Shape {
    /// A template: metadata and a spec.
    Template,
    /// An object whose metadata its pods inherit.
    Owner,
    /// Metadata alone.
    Metadata,
}

/// Generates the expressions for one export.
pub(super) struct RoleRequests<'a> {
    input: &'a VapInput<'a>,
    pod_labels: &'a [String],
    /// The administrator's default role as an ARN; empty without a default role.
    default: String,
}

impl<'a> RoleRequests<'a> {
    /// Creates a generator. Grants select by `pod_labels`, so that a change of one changes the
    /// request.
    pub(super) fn new(input: &'a VapInput<'a>, pod_labels: &'a [String]) -> Self {
        let default = input
            .config
            .default_role
            .as_deref()
            .and_then(|name| resolve(name, input.config.base.as_ref()).ok());
        Self {
            input,
            pod_labels,
            default: default.map(|role| role.to_string()).unwrap_or_default(),
        }
    }

    /// Returns the variables that every layer starts with:
    ///
    /// - `pods`: the new or changed pods, templates and objects whose metadata pods inherit, in the
    ///   form of [`Self::shape`];
    /// - `asks`: the role requests of `pods` and of all other objects that name a role, as maps with
    ///   `role` (the whole ARN, if the name can be completed), `default` (`yes` for the
    ///   administrator's default role), `account`, `known` and, if present, `externalId`,
    ///   `sessionName`, `mirror` and labels;
    /// - `judged`: the requests of `asks` with a valid role. Invalid ones are denied before all
    ///   layers.
    pub(super) fn variables(&self) -> Vec<Value> {
        let account = format!(
            r#"[{}, {}, dyn("default")].filter(a, a != "")[0]"#,
            text("t.?spec.?serviceAccountName"),
            text("t.?spec.?serviceAccount")
        );
        let shape = self.shape(Shape::Template, &account, r#""yes""#);
        let mut variables = self.templates();
        variables.extend([
            variable(
                "namespaceDefault",
                normalized(&annotation("namespaceObject", DEFAULT_ROLE)),
            ),
            variable("shapes", format!("variables.changed.map(t, {shape})")),
            variable(
                "shapesBefore",
                format!("variables.isPod ? variables.before.map(t, {shape}) : []"),
            ),
        ]);
        // Mirrors of static pods without a role are allowed: a kubelet creates them anyway.
        let shapes = r#"(variables.isPod ? variables.shapes.filter(p, !(p in variables.shapesBefore) && !("mirror" in p && p[?"role"].orValue("") == "" && p.variables.size() == 0 && p.unreadable == "no")) : variables.shapes)"#;
        // Without owners nothing is added: an empty list would take the type from the items, and
        // API servers (such as 1.36) fail on maps with optional entries of unknown type.
        let pods = match self.owners() {
            None => shapes.to_owned(),
            Some(owners) => {
                variables.push(variable("owners", owners));
                format!("{shapes} + variables.owners")
            }
        };
        variables.extend([
            variable("pods", pods),
            variable("asks", self.asks()),
            variable(
                "judged",
                format!("variables.asks.map(g, g.filter(a, {}))", is_role("a.role")),
            ),
        ]);
        variables
    }

    /// Returns the variables that find templates: `changed` contains those that are new or changed,
    /// `before` the previous ones. A pod counts as one. Objects that are being deleted are allowed,
    /// so that no finalizer is blocked.
    pub(super) fn templates(&self) -> Vec<Value> {
        let kinds = &self.input.config.templates;
        vec![
            variable("isPod", is_kind("", "Pod")),
            variable(
                "isGoing",
                "oldObject != null && has(oldObject.metadata.deletionTimestamp)",
            ),
            variable(
                "before",
                format!("oldObject == null ? [] : {}", templates("oldObject", kinds)),
            ),
            variable(
                "changed",
                format!(
                    "[{}].map(l, variables.isPod ? l : variables.isGoing ? [] : l.filter(t, !(t in variables.before)))[0]",
                    templates("object", kinds)
                ),
            ),
        ]
    }

    /// Returns the relevant fields of a template `t`: `account` and whether it is `known`, `role`
    /// as written, `variables` (the roles in environment variables), whether such a role is
    /// `unreadable` and whether there is a `token` for AWS, `externalId`, `sessionName`, `mirror`,
    /// labels.
    fn shape(&self, shape: Shape, account: &str, known: &str) -> String {
        let (variables, unreadable, token) = match shape {
            Shape::Template => {
                let audiences = &self.input.config.web_identity_audiences;
                (
                    variables_of("t"),
                    has_unreadable("t"),
                    has_token("t", audiences),
                )
            }
            Shape::Owner | Shape::Metadata => {
                ("[]".to_owned(), "false".to_owned(), "false".to_owned())
            }
        };
        let metadata = match shape {
            Shape::Template | Shape::Owner => "t.?metadata",
            Shape::Metadata => "optional.of(t)",
        };
        // Controllers that create pods from it treat a null as an empty text.
        let labels = self.pod_labels.iter().map(|key| {
            let name = quote(&format!("{LABEL}{key}"));
            let label = format!("{metadata}.?labels[?{}]", quote(key));
            format!(r#", ?{name}: {label}.optMap(v, dyn(v) == null ? dyn("") : dyn(v))"#)
        });
        format!(
            r#"{{"account": dyn({account}), "known": dyn({known}), ?"role": {role}.optMap(r, dyn(r) == null ? dyn("") : dyn(r.trim())), "variables": dyn({variables}), "unreadable": dyn({unreadable} ? "yes" : "no"), "token": dyn({token} ? "yes" : "no"), ?"externalId": {external_id}, ?"sessionName": {session_name}, ?"mirror": {mirror}{labels}}}"#,
            role = held(metadata, &self.input.keys.role),
            external_id = given(metadata, &self.input.keys.external_id),
            session_name = given(metadata, SESSION_NAME),
            mirror = held(metadata, MIRROR),
            labels = labels.collect::<String>(),
        )
    }

    /// Returns objects whose metadata their pods inherit, and metadata alone, as shapes, if new or
    /// changed.
    fn owners(&self) -> Option<String> {
        let kinds = self.input.config.templates.iter();
        let found: Vec<_> = kinds
            .flat_map(|kind| {
                let is_kind = is_kind(&kind.group, &kind.kind);
                let is_owner = kind.paths.iter().any(|path| **path == *".");
                let owner = is_owner.then(|| self.owner());
                let metadata = kind.metadata.iter().filter_map(|path| self.metadata(path));
                owner
                    .into_iter()
                    .chain(metadata)
                    .map(move |shapes| format!("({is_kind} && !variables.isGoing ? {shapes} : [])"))
            })
            .collect();
        (!found.is_empty()).then(|| found.join(" + "))
    }

    fn owner(&self) -> String {
        // The account of its pods may be defined elsewhere: rules that depend on it are evaluated
        // when the pods are created.
        let accounts = ACCOUNTS_OF_OWNERS.map(|fields| {
            let fields = fields.iter().map(|field| format!(".?{field}"));
            text(&format!(
                "t{}.?serviceAccountName",
                fields.collect::<String>()
            ))
        });
        let account = format!(
            r#"([{}].filter(a, a != "") + [dyn("")])[0]"#,
            accounts.join(", ")
        );
        let known = format!(r#"{account} == "" ? "no" : "yes""#);
        let shape = self.shape(Shape::Owner, &account, &known);
        format!(
            "[object].map(t, {shape}).filter(p, oldObject == null || [oldObject].map(t, {shape})[0] != p)"
        )
    }

    /// Returns the metadata at a path; `None` for a path that CEL cannot follow.
    fn metadata(&self, path: &str) -> Option<String> {
        let shape = self.shape(Shape::Metadata, r#""""#, r#""no""#);
        let shapes = |root: &str| {
            let found = at(root, path)?;
            Some(format!("{found}.filter(t, dyn(t) != null).map(t, {shape})"))
        };
        Some(format!(
            "{new}.filter(p, oldObject == null || !(p in {old}))",
            new = shapes("object")?,
            old = shapes("oldObject")?,
        ))
    }

    fn asks(&self) -> String {
        let role = format!(
            r#""role" in p ? p.role : variables.namespaceDefault != "" ? variables.namespaceDefault : {}"#,
            quote(&self.default)
        );
        // The namespace's default is not the administrator's, even if it is the same role.
        let is_default = format!(
            r#""role" in p ? r == {} : variables.namespaceDefault == """#,
            quote(&self.default)
        );
        let mut taken = vec!["mirror".to_owned()];
        taken.extend(self.pod_labels.iter().map(|key| format!("{LABEL}{key}")));
        let copied = |keys: &[String]| -> String {
            let keys = keys.iter().map(|key| quote(key));
            keys.map(|key| format!(", ?{key}: p[?{key}]")).collect()
        };
        let of_variable = self.ask(
            "v",
            &self.is_default("r"),
            "p.account",
            "p.known",
            &copied(&taken),
        );
        taken.extend(["externalId", "sessionName"].map(str::to_owned));
        let of_annotation = self.ask(&role, &is_default, "p.account", "p.known", &copied(&taken));
        format!(
            "(variables.pods.map(p, [{of_annotation}] + p.variables.map(v, {of_variable})) + {} + {}).map(g, g.filter(a, a.role != \"\"))",
            self.of_account(
                &is_kind("", "ServiceAccount"),
                &|at| normalized(&annotation(at, WEB_IDENTITY_ROLE)),
                "object.metadata.name",
            ),
            // Every account that the namespace permits may read a Secret, and no account has an
            // empty name.
            self.of_account(
                &is_kind("zalando.org", "AWSIAMRole"),
                &|at| normalized(&format!("{at}.?spec.?roleReference")),
                r#""(any)""#,
            ),
        )
    }

    /// Returns the request of a kind without a template, from one field.
    fn of_account(&self, is_kind: &str, field: &dyn Fn(&str) -> String, account: &str) -> String {
        format!(
            r#"({is_kind} ? [[{new}].filter(n, n != "" && (oldObject == null || n != {old})).map(n, {ask})] : [])"#,
            new = field("object"),
            old = field("oldObject"),
            ask = self.ask("n", &self.is_default("r"), account, r#""yes""#, ""),
        )
    }

    fn is_default(&self, role: &str) -> String {
        format!("{role} == {}", quote(&self.default))
    }

    /// Returns one request. A name is completed even if the result is not a role: that is denied
    /// later.
    fn ask(&self, role: &str, is_default: &str, account: &str, known: &str, more: &str) -> String {
        format!(
            r#"[{role}].map(r, r == "" || {is_arn} ? r : {base} + {relative}).map(r, {{"role": dyn(r), "default": dyn(({is_default}) ? "yes" : "no"), "account": dyn({account}), "known": dyn({known}){more}}})[0]"#,
            is_arn = is_arn("r"),
            base = quote(base_text(self.input.config.base.as_ref())),
            relative = relative("r"),
        )
    }
}

/// Returns the additional denials that apply with grants: unreadable roles, and tokens for AWS
/// without a role. One sentence for each of `pods`, empty if there is no error.
pub(super) fn unnamed() -> Value {
    let unreadable = quote(&format!(
        "{ROLE_VARIABLE} comes from another object, so the role cannot be validated: write its ARN as the \
         variable's value"
    ));
    let token = quote(&format!(
        "a token that AWS accepts requires the role to be named, so that it can be validated: \
         set {ROLE_VARIABLE} to a role that a RoleGrant covers, or ask your cluster's administrator"
    ));
    variable(
        "unnamed",
        format!(
            r#"variables.pods.map(p, p.unreadable == "yes" ? {unreadable} : p.token == "yes" && p[?"role"].orValue("") == "" && p.variables.size() == 0 ? {token} : "")"#,
        ),
    )
}

fn containers(at: &str) -> String {
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let lists = lists.map(|list| items(&format!("{at}.?spec.?{list}")));
    format!("({})", lists.join(" + "))
}

/// Returns CEL for whether an entry `e` of a container's environment is about the role, and
/// contains it directly.
fn is_role_variable(names_it: bool) -> String {
    let operator = if names_it { "==" } else { "!=" };
    format!(
        r#"{} == "{ROLE_VARIABLE}" && dyn(e.?valueFrom.orValue(null)) {operator} null"#,
        text("e.?name")
    )
}

/// Returns CEL for the roles in a pod's environment variables. The first appears once even if
/// several containers have it, since the EKS webhook adds it to every container. Older versions of
/// CEL cannot flatten lists, so they are joined into a text. A line break within a role makes it
/// malformed anyway.
fn variables_of(at: &str) -> String {
    format!(
        r#"[{containers}.map(c, {env}.filter(e, {is_named}).map(e, {value}.replace("\n", " ")).join("\n")).join("\n").split("\n").filter(n, n != "")].map(l, l.filter(n, n == l[0]).size() > 1 ? [l[0]] + l.filter(n, n != l[0]) : l)[0]"#,
        containers = containers(at),
        env = items("c.?env"),
        is_named = is_role_variable(true),
        value = normalized("e.?value"),
    )
}

/// Returns CEL for whether a role is from an unreadable source.
fn has_unreadable(at: &str) -> String {
    format!(
        "{}.exists(c, {}.exists(e, {}))",
        containers(at),
        items("c.?env"),
        is_role_variable(false)
    )
}

/// Returns CEL for whether there is a token for AWS.
fn has_token(at: &str, audiences: &BTreeSet<Audience>) -> String {
    format!(
        "{volumes}.exists(o, {sources}.exists(s, dyn(s.?serviceAccountToken.orValue(null)) != null && {is_for_aws}))",
        volumes = items(&format!("{at}.?spec.?volumes")),
        sources = items("o.?projected.?sources"),
        is_for_aws = audience::cel(&text("s.?serviceAccountToken.?audience"), audiences),
    )
}

/// Returns CEL for the pod templates in `root`, which is `object` or `oldObject` and not null.
pub(super) fn templates(root: &str, kinds: &[TemplateKind]) -> String {
    let mut text = format!(
        "(({} ? [{root}] : {} ? [?{root}.?spec.?jobTemplate.?spec.?template] : {} ? [?{root}.?template] : ",
        is_kind("", "Pod"),
        is_kind("batch", "CronJob"),
        is_kind("", "PodTemplate"),
    );
    for kind in kinds {
        let paths = kind.paths.iter().filter(|path| &***path != ".");
        let found: Vec<_> = paths.filter_map(|path| at(root, path)).collect();
        let found = if found.is_empty() {
            "[]".to_owned()
        } else {
            found.join(" + ")
        };
        text.push_str(&format!(
            "{} ? {found} : ",
            is_kind(&kind.group, &kind.kind)
        ));
    }
    let usual = [
        ("", "ReplicationController"),
        ("apps", ""),
        ("batch", "Job"),
    ];
    let usual = usual.map(|(group, kind)| match kind {
        "" => format!("request.kind.group == {}", quote(group)),
        kind => format!("({})", is_kind(group, kind)),
    });
    text.push_str(&format!(
        "{} ? [?{root}.?spec.?template] : []).filter(t, dyn(t) != null))",
        usual.join(" || ")
    ));
    text
}

/// Returns CEL for the values at a path of a custom resource, as a list; `None` for a path that CEL
/// cannot follow.
pub(super) fn at(root: &str, path: &str) -> Option<String> {
    let names: Vec<_> = path.split('.').filter(|name| !name.is_empty()).collect();
    let stars = names.iter().filter(|name| **name == "*").count();
    let walk = |names: &[&str]| -> String {
        names
            .iter()
            .map(|name| format!("[?{}]", quote(name)))
            .collect()
    };
    match names.iter().position(|name| *name == "*") {
        _ if stars > 1 => None,
        None => Some(format!("[?optional.of({root}){}]", walk(&names))),
        Some(star) => {
            let (before, after) = names.split_at(star);
            let after = walk(after.get(1..).unwrap_or_default());
            // A map is traversed by its keys and a list by its items.
            let list = items(&format!("optional.of({root}){}", walk(before)));
            Some(format!(
                "[{list}].map(c, c.map(k, type(c) == map ? optional.of(dyn(c))[?k]{after} : optional.of(dyn(k)){after}).filter(o, o.hasValue()).map(o, o.value()))[0]",
            ))
        }
    }
}
