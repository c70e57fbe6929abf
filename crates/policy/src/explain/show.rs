//! An explanation as text.

use std::fmt::{self, Display, Write};

use super::{Explained, Outcome, Refusal, Session};
use crate::document;
use rolegate_core::text::plain;
use rolegate_report::text::{BAD, FAINT, GOOD, TITLE, WARN};

/// STS's maximum duration of a session of a chained role, in seconds.
const MAX_CHAINED_SECONDS: u32 = 3600;

impl Explained {
    /// Formats the explanation as text with ANSI colours.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let who = &self.workload;
        let account = format!(
            "service account {} of namespace {}",
            plain(&who.service_account),
            plain(&who.namespace)
        );
        if who.name.is_empty() {
            writeln!(out, "{TITLE}{account}{TITLE:#}")?;
        } else {
            writeln!(out, "{TITLE}pod {}{TITLE:#}, {account}", plain(&who.name))?;
        }
        self.decision(out)?;
        self.layers(out)?;
        self.web_identity(out)?;
        if let Some(session) = &self.session {
            writeln!(out, "\n{TITLE}session{TITLE:#}")?;
            session.write(out)?;
        }
        self.policies(out)?;
        self.grant(out)
    }

    fn decision(&self, out: &mut String) -> fmt::Result {
        let requested = self.workload.requested_role.as_deref();
        if let Some(role) = self.role.as_deref().or(requested) {
            row(out, "role", plain(role))?;
        }
        match (self.decision, &self.denial) {
            (Outcome::Allowed, _) => row(out, "decision", format_args!("{GOOD}allowed{GOOD:#}"))?,
            (Outcome::NoRole, _) => row(out, "decision", "no role is requested")?,
            (Outcome::HostNetwork, _) => row(
                out,
                "decision",
                "the rules allow the role, but pods on the host's network get no credentials; they \
                 reach the node's own role",
            )?,
            (Outcome::UnknownNamespace, _) => {
                row(out, "decision", "none, since the namespace is unknown")?;
            }
            (Outcome::Denied, Some(denial)) => {
                let (layer, reason) = (&denial.denied_by, plain(&denial.reason));
                let decision = format_args!("{BAD}denied{BAD:#} by {layer}: {reason}");
                row(out, "decision", decision)?;
            }
            (Outcome::Denied, None) => row(out, "decision", format_args!("{BAD}denied{BAD:#}"))?,
        }
        for would in &self.audited {
            let (layer, reason) = (&would.denied_by, plain(&would.reason));
            row(
                out,
                "audit",
                format_args!("{WARN}{layer} would deny{WARN:#}: {reason}"),
            )?;
        }
        if let Some(admission) = &self.admission {
            let (layer, rule, reason) = (
                &admission.denied_by,
                plain(&admission.rule),
                plain(&admission.reason),
            );
            let verdict_text =
                format_args!("{BAD}denies a new pod{BAD:#} by {layer}, {rule}: {reason}");
            row(out, "admission", verdict_text)?;
        }
        if let Some(advice) = &self.advice {
            row(out, "fix", plain(advice))?;
        }
        Ok(())
    }

    fn layers(&self, out: &mut String) -> fmt::Result {
        if self.layers.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n{TITLE}layers{TITLE:#}")?;
        for layer in &self.layers {
            let (style, verdict) = match (layer.allows, layer.mode.as_str()) {
                (true, _) => (GOOD, "allows"),
                (false, "enforce") => (BAD, "denies"),
                (false, _) => (WARN, "would deny"),
            };
            let (rule, reason) = (plain(&layer.rule), layer.reason.as_deref().map(plain));
            let reason = reason
                .map(|reason| format!(": {reason}"))
                .unwrap_or_default();
            let mode = &layer.mode;
            let verdict_text = format_args!(
                "{FAINT}{mode:8}{FAINT:#} {style}{verdict}{style:#} by {rule}{reason}"
            );
            row(out, layer.layer.as_str(), verdict_text)?;
        }
        Ok(())
    }

    fn web_identity(&self, out: &mut String) -> fmt::Result {
        if self.web_identity.is_empty() {
            return Ok(());
        }
        writeln!(
            out,
            "\n{TITLE}web identity{TITLE:#}, validated at admission only"
        )?;
        for one in &self.web_identity {
            let role = one.role.as_deref().map_or("no role".into(), plain);
            match &one.refusal {
                None => row(out, &role, format_args!("{GOOD}allowed{GOOD:#}"))?,
                Some(Refusal {
                    denied_by: layer,
                    reason,
                    ..
                }) => {
                    let reason = plain(reason);
                    let verdict_text = format_args!("{BAD}denied{BAD:#} by {layer}: {reason}");
                    row(out, &role, verdict_text)?;
                }
            }
        }
        Ok(())
    }

    fn policies(&self, out: &mut String) -> fmt::Result {
        if self.policies.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n{TITLE}Rego policies{TITLE:#}")?;
        for policy in &self.policies {
            let places = match (policy.admission, policy.agent) {
                (true, true) => "evaluated at admission and by agents",
                (true, false) => "evaluated at admission",
                (false, true) => "evaluated by agents",
                (false, false) => "not evaluated",
            };
            let name = plain(&policy.name);
            writeln!(out, "  {name}  {FAINT}{places}{FAINT:#}")?;
            for denial in &policy.denials {
                writeln!(out, "    {BAD}denies{BAD:#}: {}", plain(denial))?;
            }
        }
        Ok(())
    }

    fn grant(&self, out: &mut String) -> fmt::Result {
        let of_tokens = self
            .web_identity
            .iter()
            .filter_map(|one| one.grant.as_ref());
        let grants: Vec<_> = self.grant.iter().chain(of_tokens).collect();
        if grants.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n{TITLE}minimal missing grant{TITLE:#}")?;
        if let Some(then) = &self.refused_with_grant {
            let (layer, reason) = (&then.denied_by, plain(&then.reason));
            writeln!(out, "  {WARN}even then denied by {layer}{WARN:#}: {reason}")?;
        }
        for grant in grants {
            let yaml = document::yaml(grant).map_err(|_| fmt::Error)?;
            writeln!(out, "---\n{}", yaml.trim_end())?;
        }
        Ok(())
    }
}

impl Session {
    fn write(&self, out: &mut String) -> fmt::Result {
        row(out, "role ARN", plain(&self.role_arn))?;
        row(out, "name", plain(&self.session_name))?;
        row(out, "duration", format_args!("{} s", self.duration_seconds))?;
        if self.duration_seconds > MAX_CHAINED_SECONDS {
            let why =
                "if rolegate's own credentials are a session of a role, as with --assume-role";
            row(out, "", format_args!("{MAX_CHAINED_SECONDS} s {why}"))?;
        }
        if let Some(id) = &self.external_id {
            row(out, "external ID", plain(id))?;
        }
        for (key, value) in &self.tags {
            row(out, "tag", format_args!("{}={}", plain(key), plain(value)))?;
        }
        if self.transitive_tags {
            row(out, "transitive", "all tags")?;
        }
        if let Some(source) = &self.source_identity {
            row(out, "source", plain(source))?;
        }
        for arn in &self.policy_arns {
            row(out, "policy ARN", plain(arn))?;
        }
        if let Some(policy) = &self.policy {
            row(out, "policy", plain(policy))?;
        }
        Ok(())
    }
}

fn row(out: &mut String, name: &str, value: impl Display) -> fmt::Result {
    writeln!(out, "  {name:11} {value}")
}
