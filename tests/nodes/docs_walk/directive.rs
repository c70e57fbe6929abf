//! The directives of a page: HTML comments, which are not rendered, right before the block to which
//! they apply. The vocabulary is closed: an unknown directive is an error.

use anyhow::{Context, bail, ensure};

/// The prefix of a directive.
const PREFIX: &str = "walk:";

/// One directive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Directive {
    /// The page begins on a cluster without rolegate.
    Fresh,
    /// The page continues on the cluster of this page.
    After(String),
    /// The commands of the block are not run.
    Skip {
        /// The reason.
        reason: String,
    },
    /// The block is neither run nor compared. YAML and JSON must still be well-formed.
    Example,
    /// The block is a part of this file of the repository.
    PartOf(String),
    /// The block is the output of the previous command.
    Output,
    /// The block is the content of a file.
    File(String),
    /// The block is a change of a file.
    Edit(String),
    /// The commands run on a node.
    Node(Node),
    /// The commands fail.
    Refused,
    /// The commands are repeated until their output is the page's.
    Eventually,
    /// These cases lose their credentials at this step, temporarily or permanently.
    Stops(Vec<String>),
    /// These cases gain credentials that they should not have had before.
    Opens(Vec<String>),
}

/// One of the two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    First,
    Second,
}

/// Parses the directives of an HTML comment; an empty list for other comments.
pub(super) fn parse(comment: &str) -> anyhow::Result<Vec<Directive>> {
    let text = comment.trim();
    let Some(text) = text.strip_prefix("<!--") else {
        return Ok(Vec::new());
    };
    let Some(text) = text.trim_start().strip_prefix(PREFIX) else {
        return Ok(Vec::new());
    };
    let text = text
        .strip_suffix("-->")
        .context("a directive is one comment on one line")?;
    let directives: Vec<Directive> = words(text)?
        .iter()
        .map(|(name, value)| directive(name, value.as_deref()))
        .collect::<anyhow::Result<_>>()?;
    ensure!(!directives.is_empty(), "the directive says nothing");
    Ok(directives)
}

fn directive(name: &str, value: Option<&str>) -> anyhow::Result<Directive> {
    let list = |value: &str| value.split(',').map(str::to_owned).collect();
    Ok(match (name, value) {
        ("fresh", None) => Directive::Fresh,
        ("after", Some(page)) => Directive::After(page.to_owned()),
        ("skip", Some(reason)) => Directive::Skip {
            reason: reason.to_owned(),
        },
        ("example", None) => Directive::Example,
        ("part-of", Some(file)) => Directive::PartOf(file.to_owned()),
        ("output", None) => Directive::Output,
        ("file", Some(file)) => Directive::File(file.to_owned()),
        ("edit", Some(file)) => Directive::Edit(file.to_owned()),
        ("node", None) => Directive::Node(Node::First),
        ("node", Some("second")) => Directive::Node(Node::Second),
        ("refused", None) => Directive::Refused,
        ("eventually", None) => Directive::Eventually,
        ("stops", Some(cases)) => Directive::Stops(list(cases)),
        ("opens", Some(cases)) => Directive::Opens(list(cases)),
        _ => bail!("there is no directive {name:?} with the value {value:?}"),
    })
}

/// Splits words, and `NAME=VALUE` or `NAME="VALUE WITH SPACES"`.
fn words(text: &str) -> anyhow::Result<Vec<(String, Option<String>)>> {
    let mut rest = text.trim();
    let mut words = Vec::new();
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| c.is_whitespace() || c == '=')
            .unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let (value, after) = match after.strip_prefix('=') {
            None => (None, after),
            Some(after) => match after.strip_prefix('"') {
                Some(quoted) => {
                    let (value, after) = quoted.split_once('"').context("a quote is not closed")?;
                    (Some(value), after)
                }
                None => {
                    let end = after.find(char::is_whitespace).unwrap_or(after.len());
                    let (value, after) = after.split_at(end);
                    (Some(value), after)
                }
            },
        };
        words.push((name.to_owned(), value.map(str::to_owned)));
        rest = after.trim_start();
    }
    Ok(words)
}
