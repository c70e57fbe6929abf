//! A simulation as text for people.

use std::fmt::{self, Write};

use anstyle::Style;

use super::{Affected, IfEnforced, Simulated, Simulation};
use crate::text::{BAD, FAINT, GOOD, TITLE, WARN, count, plain};

/// How many pods of one entry are named.
const NAMED: usize = 3;

impl Simulated {
    /// Both simulations for people, with ANSI colours.
    pub fn text(&self) -> String {
        let mut text = self.as_configured.text();
        if let Some(IfEnforced { layers, simulation }) = &self.if_enforced {
            let layers = layers.join(" and ");
            // A String takes whatever is written.
            let _ = writeln!(text, "\n{TITLE}if {layers} were enforced{TITLE:#}");
            text += &simulation.text();
        }
        text
    }
}

impl Simulation {
    /// The simulation for people, with ANSI colours.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // A String takes whatever is written.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let groups = [
            (BAD, "cut off", &self.cut_off),
            (
                BAD,
                "would be refused at the gate when made again",
                &self.refused_when_made_again,
            ),
            (WARN, "let in", &self.let_in),
            (WARN, "get another session", &self.session_changed),
            (
                WARN,
                "would be refused by layers in audit mode",
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
            .take(NAMED)
            .map(|pod| plain(pod))
            .collect();
        if entry.pods.len() > NAMED {
            names.push(format!("and {} more", entry.pods.len() - NAMED));
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
