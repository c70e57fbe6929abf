//! Notes about values that are not carried over as they are.

use serde::Serialize;

/// The kind of a note, in the order in which notes are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NoteKind {
    /// The value is not carried over completely, and the user has to act or decide.
    Action,
    /// The value is carried over with another name, form or meaning.
    Changed,
    /// The value is not carried over, because rolegate does without it.
    Dropped,
}

impl NoteKind {
    /// All kinds, in order.
    pub const ALL: [Self; 3] = [Self::Action, Self::Changed, Self::Dropped];

    /// Returns the heading above notes of this kind.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Action => "Not carried over, needs a decision:",
            Self::Changed => "Carried over with a change:",
            Self::Dropped => "Not carried over, not needed:",
        }
    }
}

/// A note about one value of the old chart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// The kind.
    pub kind: NoteKind,
    /// The path of the value, such as `extraArgs.debug`.
    pub from: String,
    /// The path of the new value, if the value is carried over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The reason, and what to do.
    pub message: String,
    /// The pods that are affected, as `NAMESPACE/NAME`, and other objects with their kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<String>,
}

impl Note {
    /// Returns the note as one line without its pods.
    pub fn line(&self) -> String {
        match &self.to {
            Some(to) if *to != self.from => format!("{} -> {to}: {}", self.from, self.message),
            _ => format!("{}: {}", self.from, self.message),
        }
    }
}
