//! A page of the documentation as a list of steps.

use std::fs;
use std::ops::Range;

use anyhow::{Context, bail, ensure};
use pulldown_cmark::{CodeBlockKind, Event, OffsetIter, Parser, Tag};
use rolegate_testkit::repository;

use super::directive::{self, Directive, Node};

/// A page.
#[derive(Debug)]
pub(super) struct Page {
    /// Its path in the repository.
    pub(super) path: String,
    pub(super) start: Start,
    pub(super) steps: Vec<Step>,
}

/// The cluster on which a page starts.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// A new cluster without rolegate.
    Fresh,
    /// The cluster after this page.
    After(String),
    /// No cluster: the page has no commands to run.
    Nowhere,
}

/// A step of a reader.
#[derive(Debug)]
pub(super) struct Step {
    /// The line of its block in the page.
    pub(super) line: usize,
    pub(super) action: Action,
    /// The cases that lose their credentials.
    pub(super) stops: Vec<String>,
    /// The cases that gain credentials.
    pub(super) opens: Vec<String>,
}

#[derive(Debug)]
pub(super) enum Action {
    Run(Command),
    Skip {
        command: String,
        reason: String,
    },
    Write {
        file: String,
        text: String,
    },
    /// Replaces lines that are in the file.
    Edit {
        file: String,
        diff: String,
    },
}

/// A command with its directives.
#[derive(Debug, Clone, Default)]
pub(super) struct Command {
    pub(super) text: String,
    /// The output that the page shows.
    pub(super) shown: Option<String>,
    pub(super) on_node: Option<Node>,
    pub(super) refused: bool,
    pub(super) eventually: bool,
}

/// A block of a page.
struct Block {
    line: usize,
    language: String,
    text: String,
    directives: Vec<Directive>,
}

impl Page {
    pub(super) fn read(path: &str) -> anyhow::Result<Self> {
        let text = fs::read_to_string(repository().join(path))
            .with_context(|| format!("cannot read {path}"))?;
        Self::parse(path, &text).with_context(|| format!("in {path}"))
    }

    pub(super) fn parse(path: &str, text: &str) -> anyhow::Result<Self> {
        let mut page = Self {
            path: path.to_owned(),
            start: Start::Nowhere,
            steps: Vec::new(),
        };
        for block in page.blocks(text)? {
            let line = block.line;
            page.add(block).with_context(|| format!("line {line}"))?;
        }
        let runs = page
            .steps
            .iter()
            .any(|step| matches!(step.action, Action::Run(_)));
        ensure!(
            !runs || page.start != Start::Nowhere,
            "the page has commands and doesn't say what it begins on: add `walk: fresh` or `walk: after=PAGE`"
        );
        Ok(page)
    }

    /// Returns the blocks of a page, each with the directives right before it.
    fn blocks(&mut self, text: &str) -> anyhow::Result<Vec<Block>> {
        let line = |range: &Range<usize>| 1 + text.get(..range.start).map_or(0, newlines);
        let mut blocks = Vec::new();
        let mut pending: Vec<Directive> = Vec::new();
        let mut events = Parser::new(text).into_offset_iter();
        while let Some((event, range)) = events.next() {
            let at = line(&range);
            match event {
                Event::Html(html) => {
                    let parsed =
                        directive::parse(&html).with_context(|| format!("line {at}: {html}"))?;
                    for one in parsed {
                        match one {
                            Directive::Fresh => self.start = Start::Fresh,
                            Directive::After(page) => self.start = Start::After(page),
                            other => pending.push(other),
                        }
                    }
                }
                Event::InlineHtml(html) => {
                    ensure!(
                        !html.contains("walk:"),
                        "line {at}: a directive stands on a line of its own, after an empty line"
                    );
                }
                Event::Start(Tag::CodeBlock(CodeBlockKind::Indented)) => bail!(
                    "line {at}: a block without a language: write ```sh, ```console, ```text, …"
                ),
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => {
                    blocks.push(Block {
                        line: at,
                        language: language.into_string(),
                        text: code(&mut events),
                        directives: std::mem::take(&mut pending),
                    });
                }
                Event::Start(Tag::HtmlBlock) | Event::End(_) => {}
                _ => ensure!(
                    pending.is_empty(),
                    "line {at}: a directive stands right before its block: {pending:?}"
                ),
            }
        }
        ensure!(
            pending.is_empty(),
            "a directive without a block: {pending:?}"
        );
        Ok(blocks)
    }

    fn add(&mut self, block: Block) -> anyhow::Result<()> {
        let (language, text) = (block.language, block.text);
        let BlockDirectives {
            kind,
            stops,
            opens,
            like,
        } = BlockDirectives::of(block.directives)?;
        let mut push = |action, stops: &[String], opens: &[String]| {
            self.steps.push(Step {
                line: block.line,
                action,
                stops: stops.to_vec(),
                opens: opens.to_vec(),
            });
        };
        let mut commands = commands(&language, &text)?;
        match (kind, commands.pop()) {
            (None, Some(last)) => {
                let run = |(text, shown)| {
                    Action::Run(Command {
                        text,
                        shown,
                        ..like.clone()
                    })
                };
                for command in commands {
                    push(run(command), &[], &[]);
                }
                // The announced changes of the block have happened once its last command has run.
                push(run(last), &stops, &opens);
            }
            (Some(Directive::Skip { reason }), Some(last)) => {
                for (command, _) in commands.into_iter().chain([last]) {
                    let reason = reason.clone();
                    push(Action::Skip { command, reason }, &[], &[]);
                }
            }
            (Some(Directive::File(file)), _) => push(Action::Write { file, text }, &stops, &opens),
            (Some(Directive::Edit(file)), None) if language == "diff" => {
                push(Action::Edit { file, diff: text }, &stops, &opens);
            }
            (Some(Directive::Example), _) => well_formed(&language, &text)?,
            (Some(Directive::PartOf(file)), None) => {
                let whole = fs::read_to_string(repository().join(&file))
                    .with_context(|| format!("cannot read {file}"))?;
                ensure!(whole.contains(&text), "{file} has no such part:\n{text}");
            }
            (Some(Directive::Output), None) => self.show(text)?,
            (kind, _) => bail!(
                "a block of {language} that is {kind:?}: say `walk: output`, `file=`, `edit=` or `example`"
            ),
        }
        Ok(())
    }

    /// Uses a block as the output of the previous command.
    fn show(&mut self, text: String) -> anyhow::Result<()> {
        match self.steps.last_mut().map(|step| &mut step.action) {
            Some(Action::Run(command)) if command.shown.is_none() => command.shown = Some(text),
            Some(Action::Skip { .. }) => {}
            _ => bail!("there is no command before this output, or it has one"),
        }
        Ok(())
    }
}

/// The directives of a block.
#[derive(Default)]
struct BlockDirectives {
    /// The kind of the block; `None` for commands to run.
    kind: Option<Directive>,
    stops: Vec<String>,
    opens: Vec<String>,
    /// The template of its commands.
    like: Command,
}

impl BlockDirectives {
    fn of(directives: Vec<Directive>) -> anyhow::Result<Self> {
        let mut marks = Self::default();
        for directive in directives {
            match directive {
                Directive::Stops(cases) => marks.stops = cases,
                Directive::Opens(cases) => marks.opens = cases,
                Directive::Node(node) => marks.like.on_node = Some(node),
                Directive::Refused => marks.like.refused = true,
                Directive::Eventually => marks.like.eventually = true,
                kind => ensure!(
                    marks.kind.replace(kind).is_none(),
                    "a block is of one kind only"
                ),
            }
        }
        Ok(marks)
    }
}

/// Returns the commands of a block with their outputs; an empty list for a block of another kind.
fn commands(language: &str, text: &str) -> anyhow::Result<Vec<(String, Option<String>)>> {
    match language {
        "console" => console(text),
        "sh" => Ok(vec![(text.to_owned(), None)]),
        "text" | "yaml" | "json" | "diff" | "dockerfile" | "rego" => Ok(Vec::new()),
        other => bail!("the language {other:?} of a block is not known here"),
    }
}

fn newlines(text: &str) -> usize {
    text.matches('\n').count()
}

/// Returns the text of the code block that has started.
fn code(events: &mut OffsetIter<'_>) -> String {
    let mut text = String::new();
    for (event, _) in events {
        match event {
            Event::Text(part) => text.push_str(&part),
            _ => break,
        }
    }
    text
}

/// Returns the commands of a session, each with its output.
fn console(text: &str) -> anyhow::Result<Vec<(String, Option<String>)>> {
    let mut commands: Vec<(String, Option<String>)> = Vec::new();
    // The delimiter of the open here-document, if any.
    let mut heredoc: Option<String> = None;
    for line in text.lines() {
        if let (Some(end), Some((command, _))) = (&heredoc, commands.last_mut()) {
            command.push('\n');
            command.push_str(line);
            if line == end {
                heredoc = None;
            }
            continue;
        }
        let continued = commands
            .last()
            .is_some_and(|(command, shown)| shown.is_none() && command.ends_with('\\'));
        if let Some(command) = line.strip_prefix("$ ") {
            heredoc = ends_with_word(command);
            commands.push((command.to_owned(), None));
        } else if continued && let Some((command, _)) = commands.last_mut() {
            command.push('\n');
            command.push_str(line);
        } else {
            let (_, shown) = commands
                .last_mut()
                .context("a ```console block begins with `$ COMMAND`")?;
            let shown = shown.get_or_insert_default();
            shown.push_str(line);
            shown.push('\n');
        }
    }
    ensure!(heredoc.is_none(), "a here-document has no end");
    Ok(commands)
}

/// Returns the delimiter in `<<'DELIMITER'`.
fn ends_with_word(command: &str) -> Option<String> {
    let (_, word) = command.split_once("<<")?;
    let word = word.split_whitespace().next()?;
    Some(word.trim_matches(['\'', '"']).to_owned())
}

fn well_formed(language: &str, text: &str) -> anyhow::Result<()> {
    match language {
        "json" => {
            serde_json::from_str::<serde_json::Value>(text)?;
        }
        "yaml" => {
            serde_saphyr::from_str::<serde_json::Value>(text)?;
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        match Page::parse("page.md", text) {
            Ok(page) => format!("{page:?}"),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn a_session_is_commands_with_their_outputs() {
        let text = "<!-- walk: fresh -->\n\n1. In a list:\n\n   <!-- walk: node -->\n\n   ```console\n   \
            $ cat > x <<'END'\n   $ not a command\n   END\n   $ one \\\n     two\n   shown\n   $ last\n   ```\n";
        let page = Page::parse("page.md", text).unwrap();
        let commands: Vec<_> = page
            .steps
            .iter()
            .filter_map(|step| match &step.action {
                Action::Run(command) => Some((command.text.as_str(), command.shown.as_deref())),
                _ => None,
            })
            .collect();
        let expected = [
            ("cat > x <<'END'\n$ not a command\nEND", None),
            ("one \\\n  two", Some("shown\n")),
            ("last", None),
        ];
        assert_eq!(commands, expected);
        assert!(page.steps.iter().all(|step| step.line == 7), "{page:?}");
    }

    #[test]
    fn a_block_that_does_not_say_what_it_is_is_a_fault() {
        for (text, expected) in [
            ("    kubectl get pods\n", "without a language"),
            ("```\nx\n```\n", "is not known here"),
            ("```python\nx\n```\n", "is not known here"),
            ("```yaml\na: b\n```\n", "say `walk: output`"),
            ("```sh\nls\n```\n", "doesn't say what it begins on"),
            (
                "<!-- walk: skip -->\n\n```sh\nls\n```\n",
                "there is no directive",
            ),
            (
                "<!-- walk: later -->\n\n```sh\nls\n```\n",
                "there is no directive",
            ),
            ("<!-- walk: example -->\n\ntext\n", "right before its block"),
            ("<!-- walk: example -->\n", "without a block"),
            ("<!-- walk: example -->\n\n```json\n{\n```\n", "EOF"),
            (
                "<!-- walk: output -->\n\n```text\nx\n```\n",
                "no command before",
            ),
            (
                "<!-- walk: part-of=README.md -->\n\n```text\nnowhere\n```\n",
                "no such part",
            ),
            ("text <!-- walk: example -->\n", "on a line of its own"),
        ] {
            let fault = fault(text);
            assert!(fault.contains(expected), "{text:?}: {fault}");
        }
    }
}
