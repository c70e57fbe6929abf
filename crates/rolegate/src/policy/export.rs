//! `rolegate policy export`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use rolegate_api::crds_yaml;
use rolegate_core::arn::resolve;
use rolegate_core::config::RuleConfig;
use rolegate_core::layer::Mode;
use rolegate_core::names;
use rolegate_core::service_account::WEB_IDENTITY_AUDIENCE;
use rolegate_inventory::load::Loaded;
use rolegate_policy::document;
use rolegate_policy::injection::{self, InjectionInput};
use rolegate_policy::vap::{VapInput, export};
use rolegate_review::mutation::InjectionSettings;
use rolegate_review::webhook_configuration::{Endpoint, Registration, webhook_configuration};

use super::current::Current;
use super::errors::refuse_idle;
use super::files;
use super::flags::{ReadFlags, RulesFrom};
use crate::flags::name;
use crate::output::{self, ObjectOutputFlags};

/// The kind of exported objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Exported {
    /// ValidatingAdmissionPolicies, which API servers from version 1.30 on enforce without the webhook
    Vap,
    /// The ValidatingWebhookConfiguration for these rules
    Webhook,
    /// A MutatingAdmissionPolicy that adds web identity (IRSA) to pods, which API servers from version 1.36 on apply without the webhook
    Injection,
    /// The custom resource definitions
    Crds,
}

/// The introduction of the help text.
pub(super) const LONG_ABOUT: &str = "Write the rules as objects that the API server enforces or requires.\n\n\
Rules that the format cannot express are listed in comments and on standard error. They are exported as a denial \
where possible, never as an allowance.";

/// Arguments of `rolegate policy export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate policy export --format vap --rules rules/ | kubectl apply --server-side -f -
  rolegate policy export --format crds | kubectl apply -f -
  rolegate policy export --format injection --inject-region eu-west-1 | kubectl apply --server-side -f -

Exit codes: 0 written, 1 failed, or more grants than the format can hold, 64 invalid usage.")]
pub(super) struct ExportArguments {
    /// Kind of objects to write
    #[arg(long, value_name = "FORMAT")]
    format: Exported,
    #[command(flatten)]
    output: ObjectOutputFlags,
    #[command(flatten)]
    from: RulesFrom,
    /// Namespace of rolegate, for the webhook's Service and the policies' parameters
    #[arg(short, long, value_name = "NAME", default_value = names::NAMESPACE, value_parser = name)]
    namespace: String,
    /// Service of the webhook
    #[arg(long, value_name = "NAME", default_value = names::ADMISSION, value_parser = name)]
    service: String,
    /// CA certificates (PEM) for the webhook's certificate. By default the controller or cert-manager adds them
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Audience of the tokens of format injection
    #[arg(long, value_name = "AUDIENCE", default_value = WEB_IDENTITY_AUDIENCE)]
    inject_audience: String,
    /// Region for AWS_REGION and AWS_DEFAULT_REGION in format injection. By default these variables are not added
    #[arg(long, value_name = "REGION")]
    inject_region: Option<String>,
    /// Add AWS_STS_REGIONAL_ENDPOINTS=regional in format injection
    #[arg(long)]
    inject_regional_sts: bool,
    #[command(flatten)]
    read: ReadFlags,
}

/// Runs the command.
pub(super) async fn run(arguments: ExportArguments) -> anyhow::Result<ExitCode> {
    arguments.read.own()?;
    files::validate(&arguments.from.rules)?;
    if arguments.format == Exported::Crds {
        let crds = crds_yaml().map_err(|error| anyhow!(error))?;
        let format = arguments.output.output;
        output::objects(format, &output::documents(&crds)?, &crds)?;
        return Ok(ExitCode::SUCCESS);
    }
    let current = Current::laid_over(&arguments.read, &arguments.from)
        .await?
        .guessing();
    let loaded = current.load()?;
    refuse_idle(&[&loaded.idle])?;
    output::note_rules(&loaded.basis);
    for note in &loaded.notes {
        output::note(note);
    }
    let text = match arguments.format {
        Exported::Vap => vap(&arguments, &loaded)?,
        Exported::Injection => injection(&arguments, &loaded)?,
        Exported::Webhook | Exported::Crds => webhook(&arguments, &loaded)?,
    };
    let format = arguments.output.output;
    output::objects(format, &output::documents(&text)?, &text)?;
    Ok(ExitCode::SUCCESS)
}

fn vap(arguments: &ExportArguments, loaded: &Loaded) -> anyhow::Result<String> {
    let rules = &loaded.snapshot.rules;
    let config = RuleConfig {
        base: rules.base.clone(),
        ..RuleConfig::clone(&loaded.snapshot.config)
    };
    let exported = export(&VapInput {
        config: &config,
        keys: &loaded.deciding.keys,
        grants: &loaded.grants,
        namespace: &arguments.namespace,
    })?;
    for unsaid in &exported.unsaid {
        output::note(unsaid);
    }
    Ok(exported.yaml()?)
}

/// Exports the roles of service accounts, by annotations and associations.
fn injection(arguments: &ExportArguments, loaded: &Loaded) -> anyhow::Result<String> {
    let mut settings = InjectionSettings {
        region: arguments.inject_region.clone(),
        regional_sts: arguments.inject_regional_sts,
        ..InjectionSettings::default()
    };
    settings.web_identity.audience = arguments.inject_audience.clone();
    let (mut roles, mut without) = (BTreeMap::new(), Vec::new());
    // Requests of pods have a name.
    let accounts = loaded.web_identity.iter().flat_map(|found| &found.asking);
    for account in accounts.filter(|account| account.name.is_empty()) {
        let (namespace, name) = (&account.namespace, &account.service_account);
        let asked = account.role_request.role.as_deref().unwrap_or_default();
        match resolve(asked, loaded.snapshot.rules.base.as_ref()) {
            Ok(role) => {
                let account = (namespace.to_string(), name.to_string());
                roles.insert(account, role.to_string());
            }
            Err(error) => without.push((format!("{namespace}/{name}"), error.to_string())),
        }
    }
    let associations = loaded.grants.iter().flat_map(|grant| &grant.associations);
    for association in associations {
        let (namespace, name) = (&association.namespace, &association.service_account);
        let account = format!("{namespace}/{name}");
        let needs_endpoint = association.target_role.is_some()
            || association.external_id.is_some()
            || association.audience.is_some();
        if account.contains('*') || needs_endpoint {
            let reason = "its association has stars, a target role, an external ID or an audience";
            without.push((account, reason.to_owned()));
            continue;
        }
        match resolve(&association.role, loaded.snapshot.rules.base.as_ref()) {
            // An annotation takes precedence.
            Ok(role) => {
                let account = (namespace.clone(), name.clone());
                roles.entry(account).or_insert_with(|| role.to_string());
            }
            Err(error) => without.push((account, error.to_string())),
        }
    }
    let exported = injection::export(&InjectionInput {
        roles,
        without,
        settings: &settings,
        namespace: &arguments.namespace,
    })?;
    for unsaid in &exported.unsaid {
        output::note(unsaid);
    }
    Ok(injection::yaml(&exported)?)
}

fn webhook(arguments: &ExportArguments, loaded: &Loaded) -> anyhow::Result<String> {
    let snapshot = &loaded.snapshot;
    let ca_bundle = match &arguments.ca_file {
        Some(path) => files::bytes(path)?,
        None => Vec::new(),
    };
    let has_default = loaded
        .namespaces
        .iter()
        .any(|namespace| namespace.default_role.is_some());
    let configuration = webhook_configuration(&Registration {
        config: &snapshot.config,
        keys: &loaded.deciding.keys,
        has_default_role: snapshot.rules.default_role.is_some() || has_default,
        has_rego: snapshot.asks_policies_at_admission(),
        endpoint: Endpoint::Service {
            namespace: &arguments.namespace,
            name: &arguments.service,
            path: "/validate",
            port: 443,
        },
        ca_bundle: &ca_bundle,
        own_namespace: &arguments.namespace,
        requires_injection: Mode::Off,
    });
    Ok(document::yaml(&configuration)?)
}
