//! `POST /mutate`: adds credentials to pods.

#[cfg(test)]
mod tests;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use rolegate_review::Violation;
use rolegate_review::admission_review::{Operation, Review};
use rolegate_review::mutation::{self, Mutation, Pod, PodChange};
use rolegate_review::outcome::refusal;
use serde_json::value::RawValue;
use tracing::warn;

use super::{json, text};
use crate::injection::{Injection, NotSynced, RequestedPod};
use crate::metrics::injection::MutationEnding;

/// The path of the mutating webhook, as in EKS's pod identity webhook.
pub const MUTATE_PATH: &str = "/mutate";
/// The subresource of the request that adds ephemeral containers.
const EPHEMERAL: &str = "ephemeralcontainers";

/// Returns the response to a review.
pub(super) async fn respond(
    injection: &Injection,
    review: &Review<'_>,
) -> (MutationEnding, Response<Full<Bytes>>) {
    let unchanged = || {
        let response = Mutation::default().answer(review);
        (MutationEnding::Unchanged, json(response))
    };
    let kind = review.kind();
    let (Some(object), true) = (review.object(), kind.group.is_empty() && kind.kind == "Pod")
    else {
        return unchanged();
    };
    let old = match (review.operation(), review.subresource()) {
        (Operation::Create, "") => None,
        (Operation::Update, EPHEMERAL) => review.old_object(),
        _ => return unchanged(),
    };
    let mutation = match mutate(injection, review, object, old).await {
        Ok(Some(mutation)) => Ok(mutation),
        Ok(None) => return unchanged(),
        Err(not_synced) => Err(not_synced),
    };
    match mutation {
        Ok(Ok(mutation)) => {
            let ending = if mutation.patch.is_empty() {
                MutationEnding::Unchanged
            } else {
                MutationEnding::Changed
            };
            (ending, json(mutation.answer(review)))
        }
        Ok(Err(sentence)) => {
            warn!(reason = sentence, "cannot read the pod of a review");
            let response = refusal((review.version(), review.uid()), &sentence);
            (MutationEnding::Malformed, json(response))
        }
        // The API server then applies the failure policy of its registration.
        Err(NotSynced) => {
            let sentence = "service accounts and rules are not loaded yet".to_owned();
            let response = text(StatusCode::SERVICE_UNAVAILABLE, sentence);
            (MutationEnding::NotReady, response)
        }
    }
}

/// Returns the additions, or a sentence if the pod cannot be read. `None`: the pod opts out.
async fn mutate(
    injection: &Injection,
    review: &Review<'_>,
    object: &RawValue,
    old: Option<&RawValue>,
) -> Result<Option<Result<Mutation, String>>, NotSynced> {
    let pods = Pod::parse(object).and_then(|pod| Ok((pod, old.map(Pod::parse).transpose()?)));
    let (pod, old) = match pods {
        Ok(pods) => pods,
        Err(sentence) => return Ok(Some(Err(sentence))),
    };
    if pod.is_skipped() {
        return Ok(None);
    }
    let account = match pod.service_account() {
        Ok(account) => account,
        Err(sentence) => return Ok(Some(Err(sentence))),
    };
    let requested = RequestedPod {
        namespace: review.namespace(),
        account,
        name: review.name(),
    };
    let change = PodChange {
        pod: &pod,
        old: old.as_ref(),
        namespace: review.namespace(),
        jitter: jitter(review.uid()),
    };
    injection.mutate(requested, &change).await.map(Some)
}

/// Returns the violation of a new pod that lacks the credentials of its service account.
pub(super) fn missing(injection: &Injection, review: &Review<'_>) -> Option<Violation> {
    let object = review.object()?;
    let kind = review.kind();
    let is_new_pod = kind.group.is_empty()
        && kind.kind == "Pod"
        && review.operation() == Operation::Create
        && review.subresource().is_empty();
    if !is_new_pod {
        return None;
    }
    let pod = Pod::parse(object).ok().filter(|pod| !pod.is_skipped())?;
    let account = pod.service_account().ok()?;
    let identity = injection.identity(review.namespace(), account)?;
    let change = PodChange {
        pod: &pod,
        old: None,
        namespace: review.namespace(),
        jitter: 0,
    };
    mutation::missing(&change, &identity, injection.settings())
}

/// Returns a number that differs between requests.
fn jitter(uid: &str) -> u32 {
    uid.bytes().fold(0, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u32::from(byte))
    })
}
