//! The object that the arguments of `rolegate policy explain` select.

use rolegate_inventory::kinds::Kind;

use super::ExplainArguments;
use crate::flags::{invalid, name as valid_name};

/// The object that the command explains.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    /// All pods of a namespace or of the cluster.
    Pods,
    /// One object.
    One(Object<'a>),
    /// A hypothetical pod that flags describe.
    Hypothetical,
}

/// The named object.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Object<'a> {
    /// The kind.
    pub(super) kind: &'static Kind,
    /// The name.
    pub(super) name: &'a str,
}

impl<'a> Target<'a> {
    /// Returns the object that the arguments select.
    ///
    /// # Errors
    /// Returns a usage error for arguments that select none, or contradict each other.
    pub(super) fn of(arguments: &'a ExplainArguments) -> anyhow::Result<Self> {
        let lists = arguments.all_namespaces || arguments.denied;
        let texts: Vec<_> = arguments.object.iter().map(String::as_str).collect();
        let asked = match Self::parse(&texts)? {
            Some(asked) => asked,
            None if arguments.role.is_some() => Self::Hypothetical,
            None if lists => Self::Pods,
            None => {
                return Err(invalid(
                    "an object is required, such as pod/NAME or deploy/NAME; or --role for a hypothetical pod\
                     , -A for all pods, --denied for denied pods",
                ));
            }
        };
        match &asked {
            Self::One(object) if lists => {
                let object = object.shown();
                Err(invalid(format!(
                    "-A and --denied select all pods: omit them or {object}"
                )))
            }
            _ => Ok(asked),
        }
    }

    /// Parses the words. Returns `None` without words.
    fn parse(words: &[&'a str]) -> anyhow::Result<Option<Self>> {
        let (kind, name) = match words {
            [] => return Ok(None),
            [word] => match (word.split_once('/'), Kind::named(word)) {
                (Some(parts), _) => parts,
                (None, Some(kind)) if kind.is_pod() => return Ok(Some(Self::Pods)),
                (None, Some(kind)) => {
                    let kind = kind.kind.to_lowercase();
                    let why =
                        format!("{word} is a kind: write {kind}/NAME, or pod/{word} for a pod");
                    return Err(invalid(why));
                }
                (None, None) => ("pod", *word),
            },
            [kind, name, ..] => (*kind, *name),
        };
        let kind = Kind::named(kind).ok_or_else(|| {
            let names = Kind::names();
            invalid(format!("{kind} does not create pods: use one of {names}"))
        })?;
        valid_name(name).map_err(|error| invalid(format!("NAME: {error}")))?;
        Ok(Some(Self::One(Object { kind, name })))
    }
}

impl Object<'_> {
    /// Formats the object in kubectl's syntax.
    pub(super) fn shown(&self) -> String {
        let kind = self.kind.kind.to_lowercase();
        match self.kind.group {
            "" => format!("{kind}/{}", self.name),
            group => format!("{kind}.{group}/{}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_named_as_for_kubectl() {
        for (words, expected) in [
            (&["x"][..], "pod/x"),
            (&["pod/x"], "pod/x"),
            (&["po", "x"], "pod/x"),
            (&["deploy/x"], "deployment.apps/x"),
            (&["deployments", "x"], "deployment.apps/x"),
            (&["sts/x"], "statefulset.apps/x"),
            (&["ds/x"], "daemonset.apps/x"),
            (&["job/x"], "job.batch/x"),
            (&["cronjob/x"], "cronjob.batch/x"),
        ] {
            match Target::parse(words).unwrap() {
                Some(Target::One(object)) => assert_eq!(object.shown(), expected),
                other => panic!("{words:?}: {other:?}"),
            }
        }
        assert_eq!(Target::parse(&["pods"]).unwrap(), Some(Target::Pods));
        assert_eq!(Target::parse(&[]).unwrap(), None);
        for wrong in [&["deploy"][..], &["service/x"], &["pod", "a/b"], &["pod/"]] {
            assert!(Target::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
