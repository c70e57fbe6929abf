//! The targets of API paths, and the discovery of resources.

/// The API version of the core group, which paths and tables omit.
pub(super) const CORE: &str = "v1";

/// The target of an API path.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Target<'a> {
    /// `GROUP/VERSION`; empty for the core group.
    group: &'a str,
    pub(super) resource: &'a str,
    pub(super) namespace: Option<&'a str>,
    pub(super) name: Option<&'a str>,
    pub(super) subresource: Option<&'a str>,
}

impl<'a> Target<'a> {
    pub(super) fn parse(path: &'a str) -> Option<Self> {
        let path = path.trim_matches('/');
        let (group, rest) = match path.strip_prefix("api/v1/") {
            Some(rest) => ("", rest),
            None => {
                let path = path.strip_prefix("apis/")?;
                let (slash, _) = path.match_indices('/').nth(1)?;
                (path.get(..slash)?, path.get(slash + 1..)?)
            }
        };
        let segments: Vec<_> = rest.split('/').collect();
        let (namespace, segments) = match &segments[..] {
            ["namespaces", namespace, resource @ ..] if !resource.is_empty() => {
                (Some(*namespace), resource)
            }
            all => (None, all),
        };
        let (resource, name, subresource) = match *segments {
            [resource] => (resource, None, None),
            [resource, name] => (resource, Some(name), None),
            [resource, name, subresource] => (resource, Some(name), Some(subresource)),
            _ => return None,
        };
        Some(Self {
            group,
            resource,
            namespace,
            name,
            subresource,
        })
    }

    /// Creates the target of a path outside the API.
    pub(super) fn other(path: &'a str) -> Self {
        Self {
            resource: path,
            ..Self::default()
        }
    }

    /// Returns the group, empty for the core group, and the version.
    pub(super) fn group_version(&self) -> (&'a str, &'a str) {
        self.group.split_once('/').unwrap_or(("", CORE))
    }

    /// Returns the name of the table.
    pub(super) fn table(&self) -> String {
        match self.group {
            "" => self.resource.to_owned(),
            group => format!("{group}/{}", self.resource),
        }
    }
}

/// Returns the table and API version of a resource, by its path `[GROUP/]VERSION/RESOURCE`.
pub(super) fn table_of(path: &str) -> (String, String) {
    match path.rsplit_once('/') {
        Some((CORE, resource)) => (resource.to_owned(), CORE.to_owned()),
        Some((version, _)) => (path.to_owned(), version.to_owned()),
        None => (path.to_owned(), CORE.to_owned()),
    }
}
