//! The processes of rolegate, as workloads of a cluster.

/// The processes of rolegate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Process {
    /// The agents' DaemonSet.
    Agent,
    /// The brokers' Deployment.
    Broker,
    /// The webhook's Deployment.
    Admission,
    /// The controller's Deployment.
    Controller,
}

impl Process {
    /// All of them.
    pub(crate) const ALL: [Self; 4] =
        [Self::Agent, Self::Broker, Self::Admission, Self::Controller];

    /// Returns the name of the workload and the value of its pods' label.
    pub(crate) fn name(self) -> &'static str {
        use rolegate_core::names;
        match self {
            Self::Agent => names::AGENT,
            Self::Broker => names::BROKER,
            Self::Admission => names::ADMISSION,
            Self::Controller => names::CONTROLLER,
        }
    }

    /// Returns the process with this value of [`LABEL`].
    pub(crate) fn labelled(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|process| process.name() == name)
    }
}

/// The label that names the process of a pod or workload.
pub(crate) const LABEL: &str = "app.kubernetes.io/name";
