//! The session of an allowed request: the parameters of the STS call.

use std::sync::Arc;

use super::{Denial, DenialSource, RequestField, RuleSet};
use crate::attribution::{self, Attribution};
use crate::grant::GrantSession;
use crate::layer::{AccessRequest, LayerId};
use crate::session::{SessionKey, SessionLimits};
use crate::session_name::session_name;
use crate::workload::Workload;

impl RuleSet {
    /// Returns the session of a request that the layers allow, with the settings of its grant. The
    /// error is a denial: STS or the grant would reject the session.
    pub(super) fn session_key(
        &self,
        request: &AccessRequest<'_>,
        granted: Option<&GrantSession>,
    ) -> Result<SessionKey, Denial> {
        let (workload, role) = (request.workload, request.role);
        let attribution = granted.map_or(self.attribution, |granted| {
            self.attribution.with(granted.attribution)
        });
        let limits = self
            .limits(workload, granted, attribution)
            .map_err(|reason| Denial::new(role, DenialSource::Request, "session tags", reason))?;
        Ok(SessionKey {
            role: role.clone(),
            name: self.session_name(request, granted, attribution)?,
            external_id: workload.wish.external_id.clone(),
            duration_seconds: granted
                .and_then(|session| session.duration_seconds)
                .unwrap_or(self.session_seconds)
                .min(self.longest_session.unwrap_or(u32::MAX)),
            limits,
        })
    }

    /// Returns the name of the session, which a grant can restrict if the pod requests it.
    fn session_name(
        &self,
        request: &AccessRequest<'_>,
        granted: Option<&GrantSession>,
        attribution: Attribution,
    ) -> Result<Arc<str>, Denial> {
        let deny = |denied_by: DenialSource, reason: String| Denial {
            field: RequestField::SessionName,
            ..Denial::new(request.role, denied_by, "session name annotation", reason)
        };
        let name = session_name(request.workload, attribution.scope(self.scope))
            .map_err(|error| deny(DenialSource::Request, error.to_string()))?;
        if let (Some(granted), Some(_)) = (granted, &request.workload.wish.session_name)
            && !granted.names.is_empty()
            && !granted.names.iter().any(|pattern| pattern.matches(&name))
        {
            let reason = format!("the grant does not allow the session name {name}");
            return Err(deny(LayerId::Grants.into(), reason));
        }
        Ok(name)
    }

    /// Merges the grant's session settings with the attribution. Fails with a reason if STS would
    /// reject the result.
    fn limits(
        &self,
        workload: &Workload,
        granted: Option<&GrantSession>,
        attribution: Attribution,
    ) -> Result<Option<Arc<SessionLimits>>, String> {
        let granted = granted.and_then(|session| session.limits.as_ref());
        let tags = attribution.session_tags(workload, self.cluster.as_ref());
        let source_identity = attribution.source_identity(workload);
        if tags.is_empty() && source_identity.is_none() && !attribution.transitive {
            return Ok(granted.cloned());
        }
        if let Some((key, _)) = tags
            .iter()
            .find(|(key, value)| !attribution::is_tag(key, value))
        {
            return Err(format!(
                "STS would reject the value of session tag {key}: it accepts up to 256 letters, \
                 digits, blanks and _.:/=+-@"
            ));
        }
        let added = tags.len();
        let granted = granted.map(|limits| &**limits);
        let all = granted
            .map(|limits| limits.tags.clone())
            .unwrap_or_default()
            .with(tags);
        if all.len() > attribution::MAX_TAGS {
            return Err(format!(
                "the grant has {} session tags and rolegate adds {added}, but STS accepts {} in \
                 total: ask your cluster's administrator to remove tags from the grant",
                all.len() - added,
                attribution::MAX_TAGS
            ));
        }
        let limits = SessionLimits {
            transitive: attribution.transitive && !all.is_empty(),
            tags: all,
            source_identity,
            ..granted.cloned().unwrap_or_default()
        };
        Ok((limits != SessionLimits::default()).then(|| Arc::new(limits)))
    }
}
