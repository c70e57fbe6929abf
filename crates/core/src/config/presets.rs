//! Presets for well-known custom resources with pod templates, by project, so that users need not
//! look up field paths.

use super::TemplateKind;

/// A kind of a preset.
struct Known {
    group: &'static str,
    kind: &'static str,
    /// The plural name.
    resource: &'static str,
    /// Paths of pod templates.
    paths: &'static [&'static str],
    /// Paths of metadata alone, for templates that do not set the service account of their pods.
    metadata: &'static [&'static str],
}

/// Describes a kind with pod templates.
const fn templates(
    group: &'static str,
    kind: &'static str,
    resource: &'static str,
    paths: &'static [&'static str],
) -> Known {
    Known {
        group,
        kind,
        resource,
        paths,
        metadata: &[],
    }
}

/// Describes a kind with metadata that pods inherit.
const fn metadata(
    group: &'static str,
    kind: &'static str,
    resource: &'static str,
    metadata: &'static [&'static str],
) -> Known {
    Known {
        group,
        kind,
        resource,
        paths: &[],
        metadata,
    }
}

const USUAL: &[&str] = &["spec.template"];
const ARGO: &str = "argoproj.io";
const KNATIVE: &str = "serving.knative.dev";
const KRUISE: &str = "apps.kruise.io";
const KUBEFLOW: &str = "kubeflow.org";
const RAY: &str = "ray.io";
const SPARK: &str = "sparkoperator.k8s.io";
const TEKTON: &str = "tekton.dev";
const TRAINER: &str = "trainer.kubeflow.org";

/// The kinds of each preset, by its name.
const PRESETS: &[(&str, &[Known])] = &[
    (
        "argo-rollouts",
        &[templates(ARGO, "Rollout", "rollouts", USUAL)],
    ),
    (
        // A template sets its own service account or none, and its pods inherit no other metadata.
        "argo-workflows",
        &[
            metadata(ARGO, "Workflow", "workflows", WORKFLOW),
            metadata(ARGO, "WorkflowTemplate", "workflowtemplates", WORKFLOW),
            metadata(
                ARGO,
                "CronWorkflow",
                "cronworkflows",
                &[
                    "spec.workflowSpec.podMetadata",
                    "spec.workflowSpec.templateDefaults.metadata",
                    "spec.workflowSpec.templates.*.metadata",
                ],
            ),
        ],
    ),
    (
        "jobset",
        &[templates(
            "jobset.x-k8s.io",
            "JobSet",
            "jobsets",
            &["spec.replicatedJobs.*.template.spec.template"],
        )],
    ),
    (
        "knative",
        &[
            templates(KNATIVE, "Service", "services", USUAL),
            templates(KNATIVE, "Configuration", "configurations", USUAL),
        ],
    ),
    (
        "kruise",
        &[
            templates(KRUISE, "CloneSet", "clonesets", USUAL),
            templates(KRUISE, "StatefulSet", "statefulsets", USUAL),
            templates(KRUISE, "DaemonSet", "daemonsets", USUAL),
            templates(KRUISE, "BroadcastJob", "broadcastjobs", USUAL),
            templates(
                KRUISE,
                "AdvancedCronJob",
                "advancedcronjobs",
                &[
                    "spec.template.jobTemplate.spec.template",
                    "spec.template.broadcastJobTemplate.spec.template",
                ],
            ),
            templates(
                KRUISE,
                "UnitedDeployment",
                "uniteddeployments",
                &[
                    "spec.template.statefulSetTemplate.spec.template",
                    "spec.template.advancedStatefulSetTemplate.spec.template",
                    "spec.template.cloneSetTemplate.spec.template",
                    "spec.template.deploymentTemplate.spec.template",
                ],
            ),
        ],
    ),
    (
        "kubeflow",
        &[
            templates(
                KUBEFLOW,
                "TFJob",
                "tfjobs",
                &["spec.tfReplicaSpecs.*.template"],
            ),
            templates(
                KUBEFLOW,
                "PyTorchJob",
                "pytorchjobs",
                &["spec.pytorchReplicaSpecs.*.template"],
            ),
            templates(
                KUBEFLOW,
                "MPIJob",
                "mpijobs",
                &["spec.mpiReplicaSpecs.*.template"],
            ),
            templates(
                KUBEFLOW,
                "XGBoostJob",
                "xgboostjobs",
                &["spec.xgbReplicaSpecs.*.template"],
            ),
            templates(
                KUBEFLOW,
                "PaddleJob",
                "paddlejobs",
                &["spec.paddleReplicaSpecs.*.template"],
            ),
            templates(
                KUBEFLOW,
                "JAXJob",
                "jaxjobs",
                &["spec.jaxReplicaSpecs.*.template"],
            ),
            // Pods inherit the object's annotations; the template has none.
            templates(KUBEFLOW, "Notebook", "notebooks", &[".", "spec.template"]),
            // Overrides of the runtime's templates; the runtime sets the service account.
            metadata(
                TRAINER,
                "TrainJob",
                "trainjobs",
                &[
                    "spec.podTemplateOverrides.*.metadata",
                    "spec.runtimePatches.*.trainingRuntimeSpec.template.spec.replicatedJobs.*.template.spec.template.metadata",
                ],
            ),
            templates(
                TRAINER,
                "TrainingRuntime",
                "trainingruntimes",
                &["spec.template.spec.replicatedJobs.*.template.spec.template"],
            ),
        ],
    ),
    (
        "leaderworkerset",
        &[templates(
            "leaderworkerset.x-k8s.io",
            "LeaderWorkerSet",
            "leaderworkersets",
            &[
                "spec.leaderWorkerTemplate.leaderTemplate",
                "spec.leaderWorkerTemplate.workerTemplate",
            ],
        )],
    ),
    (
        "openshift",
        &[templates(
            "apps.openshift.io",
            "DeploymentConfig",
            "deploymentconfigs",
            USUAL,
        )],
    ),
    (
        "ray",
        &[
            templates(
                RAY,
                "RayCluster",
                "rayclusters",
                &[
                    "spec.headGroupSpec.template",
                    "spec.workerGroupSpecs.*.template",
                ],
            ),
            templates(
                RAY,
                "RayJob",
                "rayjobs",
                &[
                    "spec.rayClusterSpec.headGroupSpec.template",
                    "spec.rayClusterSpec.workerGroupSpecs.*.template",
                    "spec.submitterPodTemplate",
                ],
            ),
            templates(
                RAY,
                "RayService",
                "rayservices",
                &[
                    "spec.rayClusterConfig.headGroupSpec.template",
                    "spec.rayClusterConfig.workerGroupSpecs.*.template",
                ],
            ),
        ],
    ),
    (
        // The service account is set next to the template, not in it.
        "spark",
        &[
            metadata(
                SPARK,
                "SparkApplication",
                "sparkapplications",
                &[
                    "spec.driver",
                    "spec.driver.template.metadata",
                    "spec.executor",
                    "spec.executor.template.metadata",
                ],
            ),
            metadata(
                SPARK,
                "ScheduledSparkApplication",
                "scheduledsparkapplications",
                &[
                    "spec.template.driver",
                    "spec.template.driver.template.metadata",
                    "spec.template.executor",
                    "spec.template.executor.template.metadata",
                ],
            ),
        ],
    ),
    (
        // Pods inherit the annotations of all of these.
        "tekton",
        &[
            templates(TEKTON, "Task", "tasks", &["."]),
            templates(TEKTON, "TaskRun", "taskruns", &["."]),
            templates(TEKTON, "Pipeline", "pipelines", &["."]),
            templates(TEKTON, "PipelineRun", "pipelineruns", &["."]),
        ],
    ),
];

/// Fields of a Workflow that hold its pods' metadata.
const WORKFLOW: &[&str] = &[
    "spec.podMetadata",
    "spec.templateDefaults.metadata",
    "spec.templates.*.metadata",
];

/// Returns the names of all presets.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// Returns the kinds of the preset `name`; `None` if it does not exist.
pub fn preset(name: &str) -> Option<Vec<TemplateKind>> {
    let (_, kinds) = PRESETS.iter().find(|(known, _)| *known == name)?;
    let kinds = kinds.iter().map(|known| TemplateKind {
        group: known.group.into(),
        kind: known.kind.into(),
        resource: known.resource.into(),
        paths: known.paths.iter().map(|path| (*path).into()).collect(),
        metadata: known.metadata.iter().map(|path| (*path).into()).collect(),
    });
    Some(kinds.collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn presets_are_found_by_name() {
        let all: Vec<_> = names().collect();
        assert!(all.is_sorted(), "{all:?}");
        let mut kinds = BTreeSet::new();
        for name in all {
            for kind in preset(name).unwrap() {
                assert!(
                    !kind.paths.is_empty() || !kind.metadata.is_empty(),
                    "{name}"
                );
                assert_eq!(*kind.resource, *kind.resource.to_lowercase(), "{name}");
                let new = kinds.insert((kind.group.clone(), kind.kind.clone()));
                assert!(new, "{} is there twice", kind.kind);
            }
        }
        assert_eq!(preset("argo"), None);
        let rollouts = preset("argo-rollouts").unwrap();
        assert_eq!(
            (&*rollouts[0].kind, &*rollouts[0].paths[0]),
            ("Rollout", "spec.template")
        );
    }
}
