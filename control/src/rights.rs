//! What control asks of the Kubernetes API: the one list of resources and verbs (C-023).
//!
//! No more than C-023 allows, and of that only what is used. The roles in the chart say the same; a test holds the two
//! against each other, so that no right is granted that is not used, and none forgotten that is needed. Nothing here speaks
//! to the API. Secrets are not in it and never will be: what is secret reaches a gateway as a file.

/// Where a right is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// In every namespace, or for what is in none.
    Cluster,
    /// In the namespace that control runs in.
    OwnNamespace,
}

/// One resource and what is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// API group; empty: the core's.
    pub group: &'static str,
    /// Plural name, with `/status` for the subresource.
    pub resource: &'static str,
    /// Verbs, as RBAC names them.
    pub verbs: &'static [&'static str],
    /// Where.
    pub scope: Scope,
    /// Why.
    pub why: &'static str,
}

const FOLLOW: &[&str] = &["get", "list", "watch"];

const fn cluster(
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
    why: &'static str,
) -> Right {
    Right { group, resource, verbs, scope: Scope::Cluster, why }
}

/// Everything control asks.
pub const RIGHTS: &[Right] = &[
    cluster("", "services", FOLLOW, "what is to be served"),
    cluster("", "services", &["patch"], "the finalizer, and from which pool an address is"),
    cluster("", "services/status", &["patch"], "addresses and conditions"),
    cluster("discovery.k8s.io", "endpointslices", FOLLOW, "where it is served"),
    cluster("", "nodes", FOLLOW, "the overlay: this gateway and its peers"),
    cluster("", "namespaces", FOLLOW, "labels that pools choose by"),
    cluster("", "pods", FOLLOW, "whose an address is"),
    cluster("networking.k8s.io", "networkpolicies", FOLLOW, "who may reach whom"),
    cluster("policy.networking.k8s.io", "clusternetworkpolicies", FOLLOW, "who may reach whom, in all namespaces"),
    cluster("tidegate.io", "addresspools", FOLLOW, "addresses to hand out"),
    cluster("tidegate.io", "addresspools/status", &["patch"], "how many are left"),
    cluster("tidegate.io", "egresspolicies", FOLLOW, "which pods leave with which addresses"),
    cluster("tidegate.io", "egresspolicies/status", &["patch"], "whether they do"),
    cluster("tidegate.io", "gatewaypolicies", FOLLOW, "which clients may reach which Services"),
    cluster("tidegate.io", "gatewaypolicies/status", &["patch"], "whether that holds"),
    cluster("tidegate.io", "staticnats", FOLLOW, "which addresses lead to which pods"),
    cluster("tidegate.io", "staticnats/status", &["patch"], "whether they do"),
    cluster(
        "events.k8s.io",
        "events",
        &["create", "patch"],
        "what happened to a Service, and what is wrong with a policy",
    ),
    Right {
        group: "coordination.k8s.io",
        resource: "leases",
        verbs: &["get", "create", "update"],
        scope: Scope::OwnNamespace,
        why: "which gateway writes",
    },
];

/// Everything the agent on workers asks, of which it may change nothing.
pub const WORKER_RIGHTS: &[Right] = &[
    cluster("", "nodes", FOLLOW, "gateways, and what is inside the cluster"),
    cluster("", "namespaces", FOLLOW, "labels that policies choose by"),
    cluster("", "pods", FOLLOW, "those of its own Node: it asks for no others"),
    cluster("tidegate.io", "egresspolicies", FOLLOW, "which pods leave through gateways"),
    cluster("tidegate.io", "staticnats", FOLLOW, "which pods do, and which are reached through them"),
];
