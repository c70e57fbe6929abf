//! The two ways into the kernel, nftables and iptables, behind the same five verbs.

use std::fmt;
use std::str::FromStr;

use rolegate_core::redirect::{
    Family, NFT_TABLE, Spec, iptables_chains, iptables_is_whole, iptables_owned, iptables_remove,
    iptables_restore, nft_is_whole, nft_remove_script, nft_script,
};

use super::command::{Done, run};
use super::{RedirectError, families};

const NFT: &str = "nft";
const NFT_HINT: &str = "install nftables or use --redirect=iptables";
const IPTABLES_HINT: &str = "install iptables or use --redirect=nftables";

/// How the redirect gets into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// One nftables table of our own.
    Nftables,
    /// Chains of our own in the tables of iptables and ip6tables.
    Iptables(Flavour),
    /// Not at all: somebody else sees to it.
    None,
}

/// Which of the iptables programs is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flavour {
    /// `iptables`, whichever the system made it.
    #[default]
    Default,
    /// `iptables-nft`
    Nft,
    /// `iptables-legacy`
    Legacy,
}

/// A backend, or the one that works here: the values of `--redirect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// nftables where it works, else iptables.
    Auto,
    /// This one.
    Fixed(Backend),
}

/// A word that is no backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no way to redirect: use auto, nftables, iptables, iptables-nft, iptables-legacy or none"
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
    /// The backend to use. `auto` asks the kernel to check the real rules without keeping them.
    ///
    /// # Errors
    /// When neither nftables nor iptables works here.
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
    /// All that change something.
    pub const ALL: [Self; 4] = [
        Self::Nftables,
        Self::Iptables(Flavour::Default),
        Self::Iptables(Flavour::Nft),
        Self::Iptables(Flavour::Legacy),
    ];

    /// What the kernel has of ours, in the program's own words; nothing where there is nothing.
    ///
    /// # Errors
    /// When the program is missing or refuses.
    pub async fn show(self) -> Result<Option<String>, RedirectError> {
        self.listing().await
    }

    /// Removes our rules from this backend only, and returns whether there were any.
    pub(super) async fn remove(self) -> Result<bool, RedirectError> {
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

    pub(super) async fn listing(self) -> Result<Option<String>, RedirectError> {
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

    /// Returns our rules as the kernel lists them, if all of `spec` is there.
    pub(super) async fn whole(self, spec: &Spec) -> Result<Option<String>, RedirectError> {
        match self {
            Self::None => Ok(None),
            Self::Nftables => {
                let listing = self.listing().await?;
                Ok(listing.filter(|listing| nft_is_whole(spec, listing)))
            }
            Self::Iptables(flavour) => {
                let mut parts = Vec::new();
                for family in families() {
                    let programs = flavour.programs(family);
                    let listing = programs.list().await?;
                    if !iptables_is_whole(spec, family, &listing) {
                        return Ok(None);
                    }
                    parts.push((programs.iptables, iptables_owned(&listing)));
                }
                Ok(joined(&parts))
            }
        }
    }

    pub(super) async fn apply(self, spec: &Spec) -> Result<(), RedirectError> {
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
                // Where there is no nft program there was no such run.
                match Self::Nftables.remove().await {
                    Err(error @ RedirectError::Failed { .. }) => Err(error),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// The programs of one flavour and family.
struct Programs {
    iptables: &'static str,
    restore: &'static str,
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
        Programs { iptables, restore }
    }
}

impl Programs {
    /// The chains that the redirect touches, as [`rolegate_core::redirect`] reads them.
    async fn list(&self) -> Result<String, RedirectError> {
        let mut listing = String::new();
        for (table, chain) in iptables_chains() {
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

/// Joins each program's listing of our rules into one text; `None` if there are no rules. A program
/// without rules is named if others have some: a kernel that gained a family later differs from one
/// that has rules for all.
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

/// The output of a program that did what it was told.
fn succeeded(program: &'static str) -> impl Fn(Done) -> Result<String, RedirectError> {
    move |done| match done.complaint {
        None => Ok(done.stdout),
        Some(why) => Err(RedirectError::Failed { program, why }),
    }
}

/// The output of a program, or nothing where it says that what it was asked for isn't there.
fn present(
    program: &'static str,
    done: Done,
    absent: impl Fn(&str) -> bool,
) -> Result<Option<String>, RedirectError> {
    match &done.complaint {
        Some(why) if absent(why) => Ok(None),
        _ => succeeded(program)(done).map(Some),
    }
}

fn nft_absent(complaint: &str) -> bool {
    complaint.contains("No such file or directory")
}

/// iptables-nft calls a chain that isn't there incompatible.
fn iptables_absent(complaint: &str) -> bool {
    complaint.contains("No chain/target/match by that name")
        || (complaint.contains("chain `ROLEGATE-") && complaint.contains("is incompatible"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_family_that_came_later_and_has_no_rules_is_a_difference() {
        let v4 = ("iptables", "filter: -A ROLEGATE-FORWARD".to_owned());
        let none = ("ip6tables", String::new());
        let before = joined(std::slice::from_ref(&v4));
        assert!(before.is_some());
        assert_ne!(joined(&[v4, none.clone()]), before);
        assert_eq!(joined(&[("iptables", String::new()), none]), None);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named_with_what_to_do() {
        let done = run("rolegate-no-such-program", NFT_HINT, &[], "").await;
        let error = done.err().unwrap().to_string();
        assert_eq!(
            error,
            "rolegate-no-such-program is not installed: install nftables or use --redirect=iptables"
        );
    }

    #[tokio::test]
    async fn what_a_program_complains_of_is_told_on_one_line() {
        let done = run("ls", "", &["/nonexistent/folder"], "").await.unwrap();
        let why = done.complaint.unwrap();
        assert!(why.contains("No such file") && !why.contains('\n'), "{why}");
    }
}
