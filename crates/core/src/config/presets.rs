//! Custom resources with pod templates that are well known, by the name of their project, so that
//! nobody has to look up their paths.

use super::TemplateKind;

/// A kind: group, kind, plural, paths.
type Known = (
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
);

/// Each preset's name, and its kinds. All of these copy the metadata at these paths to pods.
const PRESETS: &[(&str, &[Known])] = &[
    (
        "argo-rollouts",
        &[("argoproj.io", "Rollout", "rollouts", &["spec.template"])],
    ),
    (
        "knative",
        &[
            (
                "serving.knative.dev",
                "Service",
                "services",
                &["spec.template"],
            ),
            (
                "serving.knative.dev",
                "Configuration",
                "configurations",
                &["spec.template"],
            ),
        ],
    ),
    (
        // Annotations of all of these come down to pods.
        "tekton",
        &[
            ("tekton.dev", "Task", "tasks", &["."]),
            ("tekton.dev", "TaskRun", "taskruns", &["."]),
            ("tekton.dev", "Pipeline", "pipelines", &["."]),
            ("tekton.dev", "PipelineRun", "pipelineruns", &["."]),
        ],
    ),
    (
        "kubeflow",
        &[
            (
                "kubeflow.org",
                "TFJob",
                "tfjobs",
                &["spec.tfReplicaSpecs.*.template"],
            ),
            (
                "kubeflow.org",
                "PyTorchJob",
                "pytorchjobs",
                &["spec.pytorchReplicaSpecs.*.template"],
            ),
            (
                "kubeflow.org",
                "MPIJob",
                "mpijobs",
                &["spec.mpiReplicaSpecs.*.template"],
            ),
            (
                "kubeflow.org",
                "XGBoostJob",
                "xgboostjobs",
                &["spec.xgbReplicaSpecs.*.template"],
            ),
            (
                "kubeflow.org",
                "PaddleJob",
                "paddlejobs",
                &["spec.paddleReplicaSpecs.*.template"],
            ),
            (
                "kubeflow.org",
                "JAXJob",
                "jaxjobs",
                &["spec.jaxReplicaSpecs.*.template"],
            ),
        ],
    ),
];

/// The names of all presets.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// The kinds of the preset `name`; `None` where there is no such preset.
pub fn preset(name: &str) -> Option<Vec<TemplateKind>> {
    let (_, kinds) = PRESETS.iter().find(|(known, _)| *known == name)?;
    let kinds = kinds
        .iter()
        .map(|(group, kind, resource, paths)| TemplateKind {
            group: (*group).into(),
            kind: (*kind).into(),
            resource: (*resource).into(),
            paths: paths.iter().map(|path| (*path).into()).collect(),
        });
    Some(kinds.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_found_by_name() {
        let all: Vec<_> = names().collect();
        assert_eq!(all, ["argo-rollouts", "knative", "tekton", "kubeflow"]);
        for name in all {
            let kinds = preset(name).unwrap();
            assert!(kinds.iter().all(|kind| !kind.paths.is_empty()), "{name}");
        }
        assert_eq!(preset("argo"), None);
        let rollouts = preset("argo-rollouts").unwrap();
        assert_eq!(
            (&*rollouts[0].kind, &*rollouts[0].paths[0]),
            ("Rollout", "spec.template")
        );
    }
}
