//! Imports roles of service accounts: associations of EKS Pod Identity, as the AWS CLI prints them,
//! and the files of the EKS webhook. The result is `RoleGrant`s with associations.

use rolegate_api::manifest;
use rolegate_api::{Association, RoleGrant, RoleGrantSpec, Session, WorkloadTags};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::note::{Note, NoteKind};
use crate::read::{MigrateError, ValuesFile};

/// Maximum number of associations of a `RoleGrant`.
const MAX_ASSOCIATIONS: usize = rolegate_core::grant::MAX_LIST;
/// Path of the entries in the webhook's ConfigMap.
const CONFIG: &str = "/data/config";

/// Imported grants, and notes about everything that is not carried over.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ImportedAssociations {
    /// The grants, each with the associations that have the same session settings.
    pub grants: Vec<RoleGrant>,
    /// The notes, in the order of the input.
    pub notes: Vec<Note>,
}

/// An association of EKS Pod Identity.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EksAssociation {
    namespace: String,
    service_account: String,
    role_arn: Option<String>,
    target_role_arn: Option<String>,
    external_id: Option<String>,
    disable_session_tags: Option<bool>,
    policy: Option<String>,
    association_id: Option<String>,
    tags: Map<String, Value>,
}

/// An entry of the webhook's ConfigMap.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct WebhookEntry {
    #[serde(rename = "RoleARN")]
    role_arn: String,
    audience: Option<String>,
    #[serde(rename = "UseRegionalSTS")]
    use_regional_sts: Option<bool>,
    token_expiration: Option<i64>,
}

impl ImportedAssociations {
    /// Returns true if nothing needs a decision.
    pub fn is_complete(&self) -> bool {
        self.notes.iter().all(|note| note.kind != NoteKind::Action)
    }

    fn note(&mut self, kind: NoteKind, from: &str, message: &str) {
        self.notes.push(Note {
            kind,
            from: from.to_owned(),
            to: None,
            message: message.to_owned(),
            pods: Vec::new(),
        });
    }

    /// Adds an association to the grant with this session that has room for it, or to a new one.
    fn add(&mut self, origin: &str, session: Option<Session>, association: Association) {
        let fits = |grant: &&mut RoleGrant| {
            let name = grant.metadata.name.as_deref().unwrap_or_default();
            name.starts_with(origin)
                && grant.spec.session == session
                && grant.spec.associations.len() < MAX_ASSOCIATIONS
        };
        if let Some(grant) = self.grants.iter_mut().find(fits) {
            grant.spec.associations.push(association);
            return;
        }
        let name = |grant: &&RoleGrant| {
            let name = grant.metadata.name.as_deref().unwrap_or_default();
            name.starts_with(origin)
        };
        let name = match self.grants.iter().filter(name).count() {
            0 => origin.to_owned(),
            number => format!("{origin}-{}", number + 1),
        };
        let spec = RoleGrantSpec {
            associations: vec![association],
            session,
            ..RoleGrantSpec::default()
        };
        self.grants.push(RoleGrant::new(&name, spec));
    }

    fn eks(&mut self, association: EksAssociation) {
        let from = format!("{}/{}", association.namespace, association.service_account);
        let Some(role) = association.role_arn else {
            let id = association.association_id.unwrap_or_else(|| "ID".into());
            self.note(
                NoteKind::Action,
                &from,
                &format!(
                    "a list of associations has no roles: import the output of `aws eks \
                     describe-pod-identity-association --association-id {id} --cluster-name NAME`"
                ),
            );
            return;
        };
        if !association.tags.is_empty() {
            let message = "the tags of the association itself have no effect on sessions";
            self.note(NoteKind::Dropped, &from, message);
        }
        let has_tags = !association.disable_session_tags.unwrap_or_default();
        if has_tags {
            self.note(
                NoteKind::Changed,
                &from,
                "the session tags are those of EKS except for eks-cluster-arn; set clusterName of \
                 the RolegateConfig for eks-cluster-name, and allow sts:TagSession in the role's \
                 trust policy",
            );
        }
        let session = Session {
            workload_tags: Some(if has_tags {
                WorkloadTags::Pod
            } else {
                WorkloadTags::None
            }),
            transitive_tags: has_tags.then_some(true),
            policy: association.policy.unwrap_or_default(),
            ..Session::default()
        };
        let association = Association {
            namespace: association.namespace,
            service_account: association.service_account,
            role,
            audience: None,
            target_role: association.target_role_arn,
            external_id: association.external_id,
        };
        self.add("eks-pod-identity", Some(session), association);
    }

    fn webhook(&mut self, name: &str, entry: Value) {
        let Some((namespace, service_account)) = name.split_once('/') else {
            let message = "the key is not NAMESPACE/SERVICEACCOUNT";
            self.note(NoteKind::Action, name, message);
            return;
        };
        let entry = match serde_json::from_value::<WebhookEntry>(entry) {
            Ok(entry) if !entry.role_arn.is_empty() => entry,
            Ok(_) | Err(_) => {
                self.note(NoteKind::Action, name, "the entry has no RoleARN");
                return;
            }
        };
        let annotated = [
            (
                "audience",
                entry.audience.is_some_and(|text| !text.is_empty()),
            ),
            ("sts-regional-endpoints", entry.use_regional_sts.is_some()),
            (
                "token-expiration",
                entry.token_expiration.is_some_and(|seconds| seconds != 0),
            ),
        ];
        for (annotation, _) in annotated.into_iter().filter(|(_, is_set)| *is_set) {
            self.note(
                NoteKind::Action,
                name,
                &format!(
                    "an association has no such setting of web identity tokens: annotate the \
                     service account with eks.amazonaws.com/{annotation}"
                ),
            );
        }
        let association = Association {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            role: entry.role_arn,
            ..Association::default()
        };
        self.add("pod-identity-webhook", None, association);
    }

    fn document(&mut self, document: &Value) -> Result<(), MigrateError> {
        let unknown = || MigrateError::UnknownAssociations;
        if let Some(one) = document.get("association") {
            self.eks(EksAssociation::deserialize(one).map_err(|_| unknown())?);
        } else if let Some(Value::Array(all)) = document.get("associations") {
            for one in all {
                self.eks(EksAssociation::deserialize(one).map_err(|_| unknown())?);
            }
        } else if let Some(Value::Array(all)) = document.get("identities") {
            for one in all {
                let name = |key: &str| one.get(key).and_then(Value::as_str).unwrap_or_default();
                let from = format!("{}/{}", name("namespace"), name("serviceAccount"));
                self.note(
                    NoteKind::Dropped,
                    &from,
                    "the file of container credentials has no roles, and an association alone \
                     selects the service account: import the association of EKS",
                );
            }
        } else if let Some(text) = document.pointer(CONFIG).and_then(Value::as_str) {
            let entries: Map<String, Value> = serde_json::from_str(text).map_err(|_| unknown())?;
            for (name, entry) in entries {
                self.webhook(&name, entry);
            }
        } else {
            return Err(unknown());
        }
        Ok(())
    }
}

/// Imports associations. Each file is JSON or YAML: the output of `aws eks
/// describe-pod-identity-association` or `list-pod-identity-associations`, the webhook's ConfigMap
/// `pod-identity-webhook`, or its file of container credentials. Of several JSON documents in a file,
/// as a loop of the AWS CLI prints them, all are read.
///
/// # Errors
/// [`MigrateError`] if a file cannot be parsed, or has another format.
pub fn import_associations(files: &[ValuesFile<'_>]) -> Result<ImportedAssociations, MigrateError> {
    let mut imported = ImportedAssociations::default();
    for file in files {
        let text = std::str::from_utf8(file.content)
            .map_err(|_| MigrateError::NotText(file.name.to_owned()))?;
        let syntax = |error| MigrateError::Syntax {
            name: file.name.to_owned(),
            error,
        };
        let documents: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(text)
            .into_iter()
            .collect();
        let documents = match documents {
            Ok(documents) => documents,
            Err(_) => manifest::value(text).map_err(syntax)?.into_iter().collect(),
        };
        for document in documents {
            imported.document(&document)?;
        }
    }
    Ok(imported)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn import(documents: &[Value]) -> ImportedAssociations {
        let text: String = documents.iter().map(Value::to_string).collect();
        let file = ValuesFile {
            name: "input",
            content: text.as_bytes(),
        };
        import_associations(&[file]).unwrap()
    }

    fn described(service_account: &str, more: Value) -> Value {
        let mut one = json!({
            "clusterName": "c", "namespace": "shop", "serviceAccount": service_account,
            "roleArn": "arn:aws:iam::123456789012:role/reader",
            "associationArn": "arn:aws:eks:eu-west-1:123456789012:podidentityassociation/c/a-1",
            "associationId": "a-1", "tags": {}, "createdAt": 1.5, "disableSessionTags": true,
        });
        for (key, value) in more.as_object().unwrap() {
            one[key] = value.clone();
        }
        json!({ "association": one })
    }

    #[test]
    fn associations_of_eks_become_grants_by_session() {
        let policy = json!({"policy": "{}", "targetRoleArn": "arn:aws:iam::1:role/t",
            "externalId": "c/shop/api/1"});
        let imported = import(&[
            described("api", json!({})),
            described("web", json!({})),
            described("limited", policy),
            described(
                "tagged",
                json!({"disableSessionTags": false, "tags": {"a": "b"}}),
            ),
        ]);
        let grants: Vec<_> = imported
            .grants
            .iter()
            .map(|grant| json!(grant)["spec"].clone())
            .collect();
        let role = "arn:aws:iam::123456789012:role/reader";
        assert_eq!(
            grants,
            [
                json!({"associations": [
                    {"namespace": "shop", "serviceAccount": "api", "role": role},
                    {"namespace": "shop", "serviceAccount": "web", "role": role},
                ], "session": {"workloadTags": "none"}}),
                json!({"associations": [
                    {"namespace": "shop", "serviceAccount": "limited", "role": role,
                        "targetRole": "arn:aws:iam::1:role/t", "externalId": "c/shop/api/1"},
                ], "session": {"workloadTags": "none", "policy": "{}"}}),
                json!({"associations": [
                    {"namespace": "shop", "serviceAccount": "tagged", "role": role},
                ], "session": {"workloadTags": "pod", "transitiveTags": true}}),
            ]
        );
        let names = imported
            .grants
            .iter()
            .map(|grant| grant.metadata.name.as_deref().unwrap());
        let names: Vec<_> = names.collect();
        assert_eq!(
            names,
            [
                "eks-pod-identity",
                "eks-pod-identity-2",
                "eks-pod-identity-3"
            ]
        );
        let kinds: Vec<_> = imported.notes.iter().map(|note| note.kind).collect();
        assert_eq!(kinds, [NoteKind::Dropped, NoteKind::Changed]);
        assert!(imported.is_complete());
    }

    #[test]
    fn a_list_has_no_roles() {
        let imported = import(&[json!({"associations": [{"namespace": "shop",
            "serviceAccount": "api", "associationId": "a-7"}]})]);
        assert!(imported.grants.is_empty() && !imported.is_complete());
        let line = imported.notes[0].line();
        assert!(
            line.starts_with("shop/api: ") && line.contains("--association-id a-7"),
            "{line}"
        );
    }

    #[test]
    fn the_webhooks_entries_become_associations() {
        let config = json!({
            "shop/api": {"RoleARN": "arn:aws:iam::123456789012:role/a"},
            "*/backup": {"RoleARN": "arn:aws:iam::123456789012:role/b",
                "Audience": "sts.example", "TokenExpiration": 600},
            "broken": {"RoleARN": "arn:aws:iam::123456789012:role/c"},
            "shop/null": null,
        });
        let imported = import(&[json!({"kind": "ConfigMap",
            "data": {"config": config.to_string()}})]);
        let associations = &imported.grants[0].spec.associations;
        let names = associations
            .iter()
            .map(|it| format!("{}/{}", it.namespace, it.service_account));
        assert_eq!(names.collect::<Vec<_>>(), ["*/backup", "shop/api"]);
        assert_eq!(imported.grants[0].spec.session, None);
        let notes: Vec<_> = imported.notes.iter().map(Note::line).collect();
        assert_eq!(notes.len(), 4, "{notes:?}");
        for (note, part) in notes.iter().zip([
            "*/backup: an association has no such setting of web identity tokens: annotate the \
             service account with eks.amazonaws.com/audience",
            "eks.amazonaws.com/token-expiration",
            "broken: the key is not",
            "shop/null: the entry has no RoleARN",
        ]) {
            assert!(note.contains(part), "{part} not in {note}");
        }
    }

    #[test]
    fn grants_have_room_for_64_associations() {
        let all: Vec<_> = (0..65)
            .map(|n| described(&format!("a{n}"), json!({})))
            .collect();
        let imported = import(&all);
        let counts = imported
            .grants
            .iter()
            .map(|grant| grant.spec.associations.len());
        assert_eq!(counts.collect::<Vec<_>>(), [64, 1]);
    }

    #[test]
    fn other_files_are_errors_and_a_file_without_roles_is_noted() {
        let identities = json!({"identities": [{"namespace": "shop", "serviceAccount": "api"}]});
        assert_eq!(import(&[identities]).notes[0].kind, NoteKind::Dropped);
        for text in ["[]", "a: 1", "{\"association\": 7}"] {
            let file = ValuesFile {
                name: "input",
                content: text.as_bytes(),
            };
            assert!(import_associations(&[file]).is_err(), "{text}");
        }
    }
}
