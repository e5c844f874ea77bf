//! What the cluster wants: objects come in, resolved resources go out to the dataplane, conditions come back.
//!
//! Owns the knowledge of Kubernetes objects, of flannel's annotations and of status. Refuses to know packets, devices
//! and tables, and needs no network privilege. The story, in the order of the modules: a [`source`] delivers raw
//! objects; [`watch`] reads one object into a type that cannot be invalid; the [`model`] keeps the last good version
//! of each and knows which Service an EndpointSlice belongs to; [`allocate`] gives Services addresses; [`resolve`] is a pure function from the model to the
//! resources of the contract; the [`session`] keeps the dataplane equal to them; [`status`] tells people what became
//! of it. The [`reconcile`] loop is the one place where these meet, on one thread.
#![forbid(unsafe_code)]

/// The node file: this process's section of the one configuration file.
pub mod config;
/// The lock in the state directory: one control at a time.
pub mod alone;
/// Kinds of our own: types and schemas.
pub mod crd;
/// Something that is wrong, said once, with file, object and field.
pub mod problem;
/// How long to wait before something that failed is tried again.
pub mod backoff;
/// Lines of the log that say the same of many objects.
pub mod chorus;
/// Where objects come from: a trait, the watched directory, the Kubernetes API.
pub mod source;
/// One raw object read into a typed, validated one.
pub mod watch;
/// The last good version of every object, and the indexes between them.
pub mod model;
/// Last good versions of policies on disk.
pub mod saved;
/// Policies and pods → identities, sets of identities, resolved policies.
pub mod policies;
/// Addresses for Services, out of pools.
pub mod allocate;
/// Model → resources of the contract, as pure functions.
pub mod resolve;
/// The conversation with the dataplane.
pub mod session;
/// Conditions per Service and the list of problems, written for people.
pub mod status;
/// What this node tells load balancers of others about its own endpoints.
pub mod health;
/// What this process counts, for Prometheus.
pub mod metrics;
/// Which one of several control processes may write.
pub mod lease;
/// The loop that joins all of the above.
pub mod reconcile;
/// A cluster read once from files, and what its policies say.
pub mod offline;
/// What `--check` prints.
pub mod check;
/// What is asked of the Kubernetes API: the one list of resources and verbs.
pub mod rights;
