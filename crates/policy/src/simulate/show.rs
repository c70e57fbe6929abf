//! A simulation as text.

use std::fmt::{self, Write};

use anstyle::Style;

use super::{Affected, IfEnforced, Simulated, Simulation};
use rolegate_core::text::plain;
use rolegate_report::text::{BAD, FAINT, GOOD, TITLE, WARN, count};

/// Maximum number of named pods per entry.
const MAX_NAMES: usize = 3;

impl Simulated {
    /// Formats both simulations as text with ANSI colours.
    pub fn text(&self) -> String {
        let mut text = self.as_configured.text();
        if let Some(IfEnforced { layers, simulation }) = &self.if_enforced {
            let layers: Vec<_> = layers.iter().map(|layer| layer.as_str()).collect();
            let layers = layers.join(" and ");
            // Writing into a String cannot fail.
            let _ = writeln!(text, "\n{TITLE}if {layers} were enforced{TITLE:#}");
            text += &simulation.text();
        }
        text
    }
}

impl Simulation {
    /// Formats the simulation as text with ANSI colours.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let groups = [
            (BAD, "lose their role", &self.newly_denied),
            (
                BAD,
                "would be refused by the webhook when re-created",
                &self.denied_on_recreate,
            ),
            (WARN, "newly allowed", &self.newly_allowed),
            (WARN, "get another session", &self.session_changed),
            (
                WARN,
                "would be denied by layers in audit mode",
                &self.newly_audited,
            ),
        ];
        for (style, title, entries) in groups {
            group(out, style, title, entries)?;
        }
        let pods = count(self.pods, "running pod", "running pods");
        if self.unchanged == self.pods {
            return writeln!(out, "{GOOD}nothing changes{GOOD:#} for {pods}");
        }
        let unchanged = self.unchanged;
        writeln!(
            out,
            "{FAINT}{pods} in all, {unchanged} of them as before{FAINT:#}"
        )
    }
}

fn group(out: &mut String, style: Style, title: &str, entries: &[Affected]) -> fmt::Result {
    if entries.is_empty() {
        return Ok(());
    }
    let pods = entries.iter().map(|entry| entry.pods.len()).sum();
    let pods = count(pods, "pod", "pods");
    writeln!(out, "{style}{title}{style:#}: {pods}")?;
    for entry in entries {
        let (namespace, account) = (plain(&entry.namespace), plain(&entry.service_account));
        let role = plain(&entry.role);
        writeln!(out, "  {TITLE}{namespace}/{account}{TITLE:#}  {role}")?;
        writeln!(out, "    {}", plain(&entry.reason))?;
        for change in &entry.changes {
            let (before, after) = (shown(&change.before), shown(&change.after));
            writeln!(out, "    {}: {before} → {after}", change.field)?;
        }
        let mut names: Vec<_> = entry
            .pods
            .iter()
            .take(MAX_NAMES)
            .map(|pod| plain(pod))
            .collect();
        if entry.pods.len() > MAX_NAMES {
            names.push(format!("and {} more", entry.pods.len() - MAX_NAMES));
        }
        writeln!(out, "    {FAINT}{}{FAINT:#}", names.join(", "))?;
    }
    writeln!(out)
}

fn shown(value: &str) -> String {
    if value.is_empty() {
        "nothing".into()
    } else {
        plain(value)
    }
}
