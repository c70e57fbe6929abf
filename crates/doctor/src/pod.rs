//! The examination of a pod: the role that it requests, the decision about it, and what happened
//! when it asked.

mod checks;
mod facts;
mod gather;
mod table;

use rolegate_kube::client::ClientOptions;
use rolegate_policy::explain::Explained;

use crate::Limits;
use crate::check::run;
use crate::objects::ServerVersion;
use crate::reader::{DoctorError, Reader};
use crate::report::Report;

/// The pod to examine.
#[derive(Debug, Clone)]
pub struct PodOptions {
    /// The pod's namespace; `None`: that of the kubeconfig's context.
    pub namespace: Option<String>,
    /// The pod's name.
    pub name: String,
    /// The namespace of the agents.
    pub agent_namespace: String,
    /// The limits.
    pub limits: Limits,
}

/// Examines a pod. `explain` returns the decision about a pod of a namespace, by its name, as
/// `rolegate policy explain` computes it, or the reason why it is unknown.
///
/// # Errors
/// Returns [`DoctorError`] if no cluster is configured, or it does not respond.
pub async fn examine<E>(
    client: &ClientOptions,
    options: &PodOptions,
    explain: impl FnOnce(String, String) -> E,
) -> Result<Report, DoctorError>
where
    E: Future<Output = Result<Explained, String>>,
{
    let (reader, _) = Reader::connect::<ServerVersion>(client, options.limits).await?;
    let namespace = options.namespace.clone();
    let namespace = namespace.unwrap_or_else(|| reader.namespace().to_owned());
    let place = gather::Place {
        namespace: &namespace,
        name: &options.name,
        agent_namespace: &options.agent_namespace,
    };
    let limit = options.limits.total;
    let explain = tokio::time::timeout(limit, explain(namespace.clone(), options.name.clone()));
    let (mut facts, explained) = tokio::join!(gather::gather(&reader, place), explain);
    facts.decide(explained.unwrap_or_else(|_| Err("no response in time".into())));
    let subject = format!("pod {namespace}/{} of {}", options.name, reader.subject());
    Ok(Report::new(subject, run(table::CHECKS, &facts)))
}
