//! The two backends, nftables and iptables, with the same five operations.

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;

use crate::rules::{
    Family, NFT_TABLE, Spec, iptables_chains, iptables_is_complete, iptables_owned,
    iptables_remove, iptables_restore, nft_is_complete, nft_remove_script, nft_script,
};

use crate::command::{Done, run};
use crate::{RedirectError, families};

const NFT: &str = "nft";
const NFT_HINT: &str = "install nftables or use --redirect=iptables";
const IPTABLES_HINT: &str = "install iptables or use --redirect=nftables";

/// The program that manages the redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Own nftables table.
    Nftables,
    /// Own chains in the tables of iptables and ip6tables.
    Iptables(Flavour),
    /// No redirect: another program manages it.
    None,
}

/// The variant of the iptables programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flavour {
    /// `iptables`, the system's default variant.
    #[default]
    Default,
    /// `iptables-nft`
    Nft,
    /// `iptables-legacy`
    Legacy,
}

/// A backend, or automatic selection: the values of `--redirect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// nftables if it works, else iptables.
    Auto,
    /// This backend.
    Fixed(Backend),
}

/// An unknown backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a redirect backend: use auto, nftables, iptables, iptables-nft, iptables-legacy or none"
)]
pub struct UnknownBackend(String);

impl FromStr for Choice {
    type Err = UnknownBackend;

    fn from_str(text: &str) -> Result<Self, UnknownBackend> {
        Ok(match text {
            "auto" => Self::Auto,
            "nftables" => Self::Fixed(Backend::Nftables),
            "iptables" => Self::Fixed(Backend::Iptables(Flavour::Default)),
            "iptables-nft" => Self::Fixed(Backend::Iptables(Flavour::Nft)),
            "iptables-legacy" => Self::Fixed(Backend::Iptables(Flavour::Legacy)),
            "none" => Self::Fixed(Backend::None),
            other => return Err(UnknownBackend(other.chars().take(64).collect())),
        })
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(backend) => backend.fmt(f),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables(Flavour::Default) => "iptables",
            Self::Iptables(Flavour::Nft) => "iptables-nft",
            Self::Iptables(Flavour::Legacy) => "iptables-legacy",
            Self::None => "none",
        })
    }
}

impl Choice {
    /// Returns the backend to use. `auto` lets the kernel check the real rules without keeping
    /// them.
    ///
    /// # Errors
    /// Returns an error if neither nftables nor iptables works here.
    pub async fn resolve(self, spec: &Spec) -> Result<Backend, RedirectError> {
        let nftables = match self {
            Self::Fixed(backend) => return Ok(backend),
            Self::Auto => nft(&["--check", "-f", "-"], &nft_script(spec)).await,
        };
        let nftables = match nftables.and_then(succeeded(NFT)) {
            Ok(_) => return Ok(Backend::Nftables),
            Err(error) => error,
        };
        let iptables = Backend::Iptables(Flavour::Default);
        match iptables.listing().await {
            Ok(_) => Ok(iptables),
            Err(error) => Err(RedirectError::NoBackend {
                nftables: Box::new(nftables),
                iptables: Box::new(error),
            }),
        }
    }
}

impl Backend {
    /// All backends that change the kernel.
    pub const ALL: [Self; 4] = [
        Self::Nftables,
        Self::Iptables(Flavour::Default),
        Self::Iptables(Flavour::Nft),
        Self::Iptables(Flavour::Legacy),
    ];

    /// Returns rolegate's rules in the kernel, as the program lists them, or `None`.
    ///
    /// # Errors
    /// Returns an error if the program is missing or fails.
    pub async fn show(self) -> Result<Option<String>, RedirectError> {
        self.listing().await
    }

    /// Removes rolegate's rules from this backend only, and returns whether there were any.
    pub(crate) async fn remove(self) -> Result<bool, RedirectError> {
        match self {
            Self::None => Ok(false),
            Self::Nftables => {
                let done = nft(&["-f", "-"], &nft_remove_script()).await?;
                Ok(present(NFT, done, nft_absent)?.is_some())
            }
            Self::Iptables(flavour) => {
                let mut some = false;
                for family in families() {
                    let programs = flavour.programs(family);
                    let rules = iptables_remove(&programs.list().await?);
                    if !rules.is_empty() {
                        programs.restore(&rules).await?;
                        some = true;
                    }
                }
                Ok(some)
            }
        }
    }

    pub(crate) async fn listing(self) -> Result<Option<String>, RedirectError> {
        match self {
            Self::None => Ok(None),
            Self::Nftables => {
                let done = nft(&["-s", "list", "table", "inet", NFT_TABLE], "").await?;
                present(NFT, done, nft_absent)
            }
            Self::Iptables(flavour) => {
                let mut parts = Vec::new();
                for family in families() {
                    let programs = flavour.programs(family);
                    let owned = iptables_owned(&programs.list().await?);
                    parts.push((programs.iptables, owned));
                }
                Ok(joined(&parts))
            }
        }
    }

    /// Returns rolegate's rules as the kernel lists them, if `spec` is complete.
    pub(crate) async fn whole(self, spec: &Spec) -> Result<Option<String>, RedirectError> {
        match self {
            Self::None => Ok(None),
            Self::Nftables => {
                let listing = self.listing().await?;
                Ok(listing.filter(|listing| nft_is_complete(spec, listing)))
            }
            Self::Iptables(flavour) => {
                let mut parts = Vec::new();
                for family in families() {
                    let programs = flavour.programs(family);
                    let listing = programs.list().await?;
                    if !iptables_is_complete(spec, family, &listing) {
                        return Ok(None);
                    }
                    parts.push((programs.iptables, iptables_owned(&listing)));
                }
                Ok(joined(&parts))
            }
        }
    }

    pub(crate) async fn apply(self, spec: &Spec) -> Result<(), RedirectError> {
        match self {
            Self::None => Ok(()),
            Self::Nftables => nft(&["-f", "-"], &nft_script(spec))
                .await
                .and_then(succeeded(NFT))
                .map(|_| ()),
            Self::Iptables(flavour) => {
                for family in families() {
                    let programs = flavour.programs(family);
                    let listing = programs.list().await?;
                    let rules = iptables_restore(spec, family, &listing);
                    programs.restore(&rules).await?;
                }
                // A table that an earlier nftables run left would redirect before these rules.
                // Without an nft program there was no such run.
                match Self::Nftables.remove().await {
                    Err(error @ RedirectError::Failed { .. }) => Err(error),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// The programs of one variant and address family.
struct Programs {
    iptables: &'static str,
    restore: &'static str,
    /// The kernel's list of tables, if it has one for this variant.
    tables: Option<&'static Path>,
}

impl Flavour {
    fn programs(self, family: Family) -> Programs {
        let (iptables, restore) = match (self, family) {
            (Self::Default, Family::V4) => ("iptables", "iptables-restore"),
            (Self::Default, Family::V6) => ("ip6tables", "ip6tables-restore"),
            (Self::Nft, Family::V4) => ("iptables-nft", "iptables-nft-restore"),
            (Self::Nft, Family::V6) => ("ip6tables-nft", "ip6tables-nft-restore"),
            (Self::Legacy, Family::V4) => ("iptables-legacy", "iptables-legacy-restore"),
            (Self::Legacy, Family::V6) => ("ip6tables-legacy", "ip6tables-legacy-restore"),
        };
        let tables = match (self, family) {
            (Self::Legacy, Family::V4) => Some("/proc/thread-self/net/ip_tables_names"),
            (Self::Legacy, Family::V6) => Some("/proc/thread-self/net/ip6_tables_names"),
            (Self::Default | Self::Nft, _) => None,
        };
        Programs {
            iptables,
            restore,
            tables: tables.map(Path::new),
        }
    }
}

impl Programs {
    /// Returns the chains of the redirect, in the format that [`crate::rules`] reads.
    async fn list(&self) -> Result<String, RedirectError> {
        let mut listing = String::new();
        for (table, chain) in iptables_chains() {
            // iptables-legacy would create the table, and needs CAP_NET_RAW even to list it.
            if self.tables.is_some_and(|tables| !may_have(tables, table)) {
                continue;
            }
            let args = ["-w", "5", "-t", table, "-S", chain];
            let done = run(self.iptables, IPTABLES_HINT, &args, "").await?;
            if let Some(lines) = present(self.iptables, done, iptables_absent)? {
                listing.push_str(&format!("*{table}\n{lines}"));
            }
        }
        Ok(listing)
    }

    async fn restore(&self, rules: &str) -> Result<(), RedirectError> {
        run(
            self.restore,
            IPTABLES_HINT,
            &["-w", "5", "--noflush"],
            rules,
        )
        .await
        .and_then(succeeded(self.restore))
        .map(|_| ())
    }
}

/// Returns false if the kernel's list of tables exists and lacks this one, or if there is no list.
fn may_have(tables: &Path, table: &str) -> bool {
    match std::fs::read_to_string(tables) {
        Ok(names) => names.lines().any(|name| name == table),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Joins the listings of all programs into one text. Returns `None` if no program lists a rule. The
/// text names every program, with or without rules: so it changes when a kernel gains support for
/// an address family that has no rules yet.
fn joined(parts: &[(&str, String)]) -> Option<String> {
    parts.iter().any(|(_, owned)| !owned.is_empty()).then(|| {
        parts
            .iter()
            .map(|(program, owned)| format!("# {program}\n{owned}"))
            .collect()
    })
}

async fn nft(args: &[&str], input: &str) -> Result<Done, RedirectError> {
    run(NFT, NFT_HINT, args, input).await
}

/// Returns the output of a program that succeeded.
fn succeeded(program: &'static str) -> impl Fn(Done) -> Result<String, RedirectError> {
    move |done| match done.error_output {
        None => Ok(done.stdout),
        Some(why) => Err(RedirectError::Failed { program, why }),
    }
}

/// Returns the output of a program, or `None` if it reports that the object does not exist.
fn present(
    program: &'static str,
    done: Done,
    absent: impl Fn(&str) -> bool,
) -> Result<Option<String>, RedirectError> {
    match &done.error_output {
        Some(why) if absent(why) => Ok(None),
        _ => succeeded(program)(done).map(Some),
    }
}

fn nft_absent(error_output: &str) -> bool {
    error_output.contains("No such file or directory")
}

/// iptables-nft reports a missing chain as incompatible.
fn iptables_absent(error_output: &str) -> bool {
    error_output.contains("No chain/target/match by that name")
        || (error_output.contains("chain `ROLEGATE-") && error_output.contains("is incompatible"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tables_that_exist_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ip_tables_names");
        // The module is not loaded.
        assert!(!may_have(&file, "nat"));
        std::fs::write(&file, "nat\nfilter\n").unwrap();
        assert!(may_have(&file, "nat") && !may_have(&file, "raw"));
        // Not readable: the program itself reports why.
        assert!(may_have(folder.path(), "nat"));
    }

    #[test]
    fn the_words_of_the_flag_go_both_ways() {
        for word in [
            "auto",
            "nftables",
            "iptables",
            "iptables-nft",
            "iptables-legacy",
            "none",
        ] {
            assert_eq!(word.parse::<Choice>().unwrap().to_string(), word);
        }
        let error = "ebpf".parse::<Choice>().unwrap_err().to_string();
        assert!(error.contains("use auto, nftables"), "{error}");
    }

    #[test]
    fn families_that_were_added_later_are_a_difference() {
        let v4 = ("iptables", "filter: -A ROLEGATE-FORWARD".to_owned());
        let none = ("ip6tables", String::new());
        let before = joined(std::slice::from_ref(&v4));
        assert!(before.is_some());
        assert_ne!(joined(&[v4, none.clone()]), before);
        assert_eq!(joined(&[("iptables", String::new()), none]), None);
    }

    #[tokio::test]
    async fn missing_programs_are_named_with_a_hint() {
        let done = run("rolegate-no-such-program", NFT_HINT, &[], "").await;
        let error = done.err().unwrap().to_string();
        assert_eq!(
            error,
            "rolegate-no-such-program is not installed: install nftables or use --redirect=iptables"
        );
    }

    #[tokio::test]
    async fn error_output_is_reported_on_one_line() {
        let done = run("ls", "", &["/nonexistent/folder"], "").await.unwrap();
        let why = done.error_output.unwrap();
        assert!(why.contains("No such file") && !why.contains('\n'), "{why}");
    }

    #[test]
    fn a_choice_is_written_as_it_is_read() {
        for text in [
            "auto",
            "nftables",
            "iptables",
            "iptables-nft",
            "iptables-legacy",
            "none",
        ] {
            assert_eq!(text.parse::<Choice>().unwrap().to_string(), text);
        }
        assert!("nft".parse::<Choice>().is_err());
    }

    #[test]
    fn only_a_missing_object_is_no_error() {
        let failed = |why: &str, absent: fn(&str) -> bool| {
            let done = Done {
                stdout: "partial".into(),
                error_output: Some(why.into()),
            };
            present(NFT, done, absent)
        };
        let no_table = "Error: No such file or directory; list table inet rolegate";
        assert_eq!(failed(no_table, nft_absent).unwrap(), None);
        for no_chain in [
            "iptables: No chain/target/match by that name.",
            "iptables-nft: chain `ROLEGATE-RAW' in table `raw' is incompatible, use 'nft' tool.",
        ] {
            assert_eq!(failed(no_chain, iptables_absent).unwrap(), None);
            assert!(failed(no_chain, nft_absent).is_err());
        }
        for other in [
            "iptables-nft: chain `FORWARD' in table `filter' is incompatible, use 'nft' tool.",
            "iptables-nft: chain `ROLEGATE-RAW' is locked",
            "Permission denied (you must be root)",
        ] {
            let error = failed(other, iptables_absent).unwrap_err().to_string();
            assert_eq!(error, format!("nft failed: {other}"));
        }
        let done = Done {
            stdout: "rules".into(),
            error_output: None,
        };
        assert_eq!(present(NFT, done, |_| true).unwrap().unwrap(), "rules");
    }

    #[test]
    fn each_variant_and_family_has_its_own_programs() {
        let mut names = std::collections::BTreeSet::new();
        for flavour in [Flavour::Default, Flavour::Nft, Flavour::Legacy] {
            for family in Family::ALL {
                let programs = flavour.programs(family);
                assert_eq!(programs.restore, format!("{}-restore", programs.iptables));
                let is_v6 = programs.iptables.starts_with("ip6tables");
                assert_eq!(is_v6, family == Family::V6);
                names.insert(programs.iptables);
            }
        }
        assert_eq!(names.len(), 6);
    }
}
