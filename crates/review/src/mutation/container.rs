//! The variables and the mount of one container.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::session::{POD_NAME, SESSION_NAME, SessionName};
use super::settings::{InjectionSettings, TokenSettings};
use super::source::{Identity, Method};
use super::windows::seen_path;
use crate::field_path::{FieldRef, Malformed};
use crate::pod_template::ROLE_VARIABLE;

const WEB_IDENTITY_FILE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
const FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const AUTHORIZATION_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
const STS_REGIONAL: &str = "AWS_STS_REGIONAL_ENDPOINTS";
/// Variables with the Region. SDKs read one or the other.
const REGIONS: [&str; 2] = ["AWS_DEFAULT_REGION", "AWS_REGION"];
/// Variables with a proxy for plain HTTP, such as the container credentials endpoint.
const PROXIES: [&str; 4] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
/// Variables with the hosts that are reached without a proxy.
const NO_PROXIES: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// The mount path if another volume is mounted at the configured one.
const OTHER_MOUNT_PATH: &str = "/var/run/secrets/rolegate.dev/serviceaccount";

/// The parts of a container that the injection depends on.
pub(super) struct Presence<'a> {
    /// The values of all variables by name. `None` for a value from elsewhere.
    variables: BTreeMap<&'a str, Option<&'a str>>,
    /// The prefixes of `envFrom`.
    sources: Vec<&'a str>,
    /// The path at which the token is mounted.
    token_at: Option<&'a str>,
    /// The paths of all mounts.
    mount_paths: Vec<&'a str>,
    /// True if `env` is a list.
    pub(super) has_env: bool,
    /// True if `volumeMounts` is a list.
    pub(super) has_mounts: bool,
}

impl<'a> Presence<'a> {
    pub(super) fn read(container: &FieldRef<'a>, volume: &str) -> Result<Self, Malformed> {
        let mut variables = BTreeMap::new();
        for variable in container.list("env")? {
            if let Some(name) = variable.text("name")? {
                let elsewhere = variable.field("valueFrom")?.is_some();
                let value = variable.text("value")?.unwrap_or_default();
                variables.insert(name, (!elsewhere).then_some(value));
            }
        }
        let mut sources = Vec::new();
        for source in container.list("envFrom")? {
            sources.push(source.text("prefix")?.unwrap_or_default());
        }
        let (mut token_at, mut mount_paths) = (None, Vec::new());
        for mount in container.list("volumeMounts")? {
            let path = mount.text("mountPath")?.unwrap_or_default();
            mount_paths.push(path);
            if mount.text("name")? == Some(volume) && mount.text("subPath")?.is_none() {
                token_at.get_or_insert(path);
            }
        }
        Ok(Self {
            variables,
            sources,
            token_at,
            mount_paths,
            has_env: container.field("env")?.is_some(),
            has_mounts: container.field("volumeMounts")?.is_some(),
        })
    }

    fn has(&self, name: &str) -> bool {
        self.variables.contains_key(name)
    }

    fn has_any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.has(name))
    }

    /// Returns true if a ConfigMap or Secret of `envFrom` may set the variable.
    fn may_take(&self, name: &str) -> bool {
        self.sources.iter().any(|prefix| name.starts_with(prefix))
    }
}

/// The additions to one container.
#[derive(Default)]
pub(super) struct Additions {
    pub(super) env: Vec<Value>,
    pub(super) mount: Option<Value>,
    /// True if the container mounts the token, now or before.
    pub(super) is_mounted: bool,
    /// Sentences without the container's name.
    pub(super) warnings: Vec<String>,
    /// True if the variables of the credentials are added.
    pub(super) gives_credentials: bool,
}

/// The identity and the settings to add to containers.
pub(super) struct ContainerPlan<'a> {
    pub(super) identity: &'a Identity,
    pub(super) settings: &'a InjectionSettings,
    pub(super) token: &'a TokenSettings,
    pub(super) is_windows: bool,
    pub(super) volume: &'a str,
    pub(super) session: &'a SessionName,
}

impl ContainerPlan<'_> {
    /// Returns the additions. If the container has one variable of a pair, it chose its own
    /// credentials or Region, and gets neither.
    pub(super) fn additions(&self, presence: &Presence<'_>) -> Additions {
        let pair = match self.identity.method {
            Method::WebIdentity { .. } => [ROLE_VARIABLE, WEB_IDENTITY_FILE],
            Method::ContainerCredentials => [FULL_URI, AUTHORIZATION_FILE],
        };
        let has_pair = presence.has_any(&pair);
        let has_region = presence.has_any(&REGIONS);
        let has_sts = presence.has(STS_REGIONAL);
        let mut additions = Additions {
            is_mounted: presence.token_at.is_some(),
            ..Additions::default()
        };
        if has_pair && has_region && has_sts {
            return additions;
        }
        let mount_path = self.mount(presence, &mut additions);
        let env = &mut additions.env;
        if !has_sts && self.identity.regional.unwrap_or(self.settings.regional_sts) {
            env.push(literal(STS_REGIONAL, "regional"));
        }
        if let (false, Some(region)) = (has_region, &self.settings.region) {
            env.extend(REGIONS.map(|name| literal(name, region)));
        }
        if !has_pair {
            let file = format!("{}/{}", mount_path.trim_end_matches('/'), self.token.file);
            let file = seen_path(&file, self.is_windows);
            let [first, second] = pair;
            additions.gives_credentials = true;
            let value = match &self.identity.method {
                Method::WebIdentity { role } => role,
                Method::ContainerCredentials => &self.settings.full_uri,
            };
            env.extend([literal(first, value), literal(second, &file)]);
            self.session_name(presence, env);
            self.proxies(presence, &mut additions);
        }
        self.warn_of_sources(presence, &mut additions);
        additions
    }

    /// Mounts the token, unless it is mounted already. Returns the path.
    fn mount(&self, presence: &Presence<'_>, additions: &mut Additions) -> String {
        if let Some(path) = presence.token_at {
            return path.to_owned();
        }
        let plain = |path: &str| path.trim_end_matches('/').to_owned();
        let wanted = plain(&self.token.mount_path);
        let is_taken = |path: &&str| plain(path) == wanted;
        let path = if presence.mount_paths.iter().any(is_taken) {
            additions.warnings.push(format!(
                "another volume is mounted at {wanted}, so the token is mounted at {OTHER_MOUNT_PATH}"
            ));
            OTHER_MOUNT_PATH.to_owned()
        } else {
            self.token.mount_path.clone()
        };
        additions.mount = Some(json!({"name": self.volume, "mountPath": path, "readOnly": true}));
        additions.is_mounted = true;
        path
    }

    fn session_name(&self, presence: &Presence<'_>, env: &mut Vec<Value>) {
        let is_web_identity = matches!(self.identity.method, Method::WebIdentity { .. });
        // Its own name may come from `envFrom`, which is a better one.
        let is_free = !presence.has(SESSION_NAME) && !presence.may_take(SESSION_NAME);
        if is_web_identity && self.settings.session_name && is_free {
            env.extend(self.session.variables(presence.has(POD_NAME)));
        }
    }

    /// Excludes the endpoint from proxies, or warns: Go's SDK sends such requests to a proxy too.
    fn proxies(&self, presence: &Presence<'_>, additions: &mut Additions) {
        if self.identity.method != Method::ContainerCredentials {
            return;
        }
        let host = self.settings.endpoint_host();
        if self.settings.no_proxy
            && !presence.has_any(&NO_PROXIES)
            && !NO_PROXIES.iter().any(|name| presence.may_take(name))
        {
            let variables = NO_PROXIES.map(|name| literal(name, host));
            additions.env.extend(variables);
            return;
        }
        let excludes = |name: &&str| match presence.variables.get(*name) {
            Some(Some(hosts)) => hosts.split(',').any(|entry| {
                let entry = entry.trim();
                entry == "*" || entry.trim_matches(['[', ']']) == host
            }),
            // Its value comes from elsewhere.
            Some(None) => true,
            None => false,
        };
        if presence.has_any(&PROXIES) && !NO_PROXIES.iter().any(excludes) {
            additions.warnings.push(format!(
                "some SDKs send requests for credentials to the proxy; add {host} to NO_PROXY"
            ));
        }
    }

    /// Warns about variables that `envFrom` may set too. The injected ones win.
    fn warn_of_sources(&self, presence: &Presence<'_>, additions: &mut Additions) {
        let names = additions.env.iter();
        let names = names.filter_map(|variable| variable.get("name")?.as_str());
        let taken: Vec<_> = names.filter(|name| presence.may_take(name)).collect();
        if !taken.is_empty() {
            additions.warnings.push(format!(
                "its envFrom may set variables that the injected ones override: {}",
                taken.join(", ")
            ));
        }
    }
}

fn literal(name: &str, value: &str) -> Value {
    json!({"name": name, "value": value})
}
