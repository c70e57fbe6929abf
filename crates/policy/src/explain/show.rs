//! An explanation as text for people.

use std::fmt::{self, Display, Write};

use super::{Explained, Outcome, Refusal, Session};
use crate::document;
use crate::text::{BAD, FAINT, GOOD, TITLE, WARN, plain};

/// What STS gives to a role that is assumed by another's session, seconds.
const CHAINED: u32 = 3600;

impl Explained {
    /// The explanation for people, with ANSI colours.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // A String takes whatever is written.
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
        let wished = self.workload.wished_role.as_deref();
        if let Some(role) = self.role.as_deref().or(wished) {
            row(out, "role", plain(role))?;
        }
        match (self.decision, &self.denial) {
            (Outcome::Allowed, _) => row(out, "decision", format_args!("{GOOD}allowed{GOOD:#}"))?,
            (Outcome::NoRole, _) => row(out, "decision", "no role is named, so it gets none")?,
            (Outcome::UnknownNamespace, _) => {
                row(out, "decision", "nothing, for the namespace is not known")?;
            }
            (Outcome::Denied, Some(denial)) => {
                let (layer, reason) = (&denial.layer, plain(&denial.reason));
                let decision = format_args!("{BAD}refused{BAD:#} by {layer}: {reason}");
                row(out, "decision", decision)?;
            }
            (Outcome::Denied, None) => row(out, "decision", format_args!("{BAD}refused{BAD:#}"))?,
        }
        for would in &self.audited {
            let (layer, reason) = (&would.layer, plain(&would.reason));
            row(
                out,
                "audit",
                format_args!("{WARN}{layer} would refuse{WARN:#}: {reason}"),
            )?;
        }
        if let Some(gate) = &self.gate {
            let (layer, rule, reason) = (&gate.layer, plain(&gate.rule), plain(&gate.reason));
            let said = format_args!("{BAD}refuses a new pod{BAD:#} by {layer}, {rule}: {reason}");
            row(out, "gate", said)?;
        }
        if let Some(advice) = &self.advice {
            row(out, "to do", plain(advice))?;
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
                (false, "enforce") => (BAD, "refuses"),
                (false, _) => (WARN, "would refuse"),
            };
            let (rule, reason) = (plain(&layer.rule), layer.reason.as_deref().map(plain));
            let reason = reason
                .map(|reason| format!(": {reason}"))
                .unwrap_or_default();
            let mode = &layer.mode;
            let said = format_args!(
                "{FAINT}{mode:8}{FAINT:#} {style}{verdict}{style:#} by {rule}{reason}"
            );
            row(out, &layer.layer, said)?;
        }
        Ok(())
    }

    fn web_identity(&self, out: &mut String) -> fmt::Result {
        if self.web_identity.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n{TITLE}web identity{TITLE:#}, which the gate judges")?;
        for one in &self.web_identity {
            let role = one.role.as_deref().map_or("no role".into(), plain);
            match &one.refusal {
                None => row(out, &role, format_args!("{GOOD}allowed{GOOD:#}"))?,
                Some(Refusal { layer, reason, .. }) => {
                    let reason = plain(reason);
                    let said = format_args!("{BAD}refused{BAD:#} by {layer}: {reason}");
                    row(out, &role, said)?;
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
            let places = match (policy.gate, policy.door) {
                (true, true) => "asked at gate and doors",
                (true, false) => "asked at the gate",
                (false, true) => "asked at doors",
                (false, false) => "not asked",
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
        writeln!(out, "\n{TITLE}the smallest grant that is missing{TITLE:#}")?;
        if let Some(then) = &self.refused_with_grant {
            let (layer, reason) = (&then.layer, plain(&then.reason));
            writeln!(
                out,
                "  {WARN}even then refused by {layer}{WARN:#}: {reason}"
            )?;
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
        if self.duration_seconds > CHAINED {
            let why =
                "where rolegate's own credentials are a role's session, as with --assume-role";
            row(out, "", format_args!("{CHAINED} s {why}"))?;
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
