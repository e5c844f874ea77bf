//! Whole-system experiments: the lab, its clients and pods, the packet generator, and the checks of the demo.
//!
//! Reading order: the map, how a lab hangs on one process, how it is built, what runs in it, what is asked of it.

#![forbid(unsafe_code)]

/// Names, addresses and link-layer addresses of everything in the lab.
pub mod topology;
/// Private namespaces with which a lab lives and ends.
pub mod enclosure;
/// Other programs, run with a limit.
pub mod process;
/// Namespaces, links, VXLAN devices and pods.
pub mod lab;
/// Bytes that can be checked on arrival.
pub mod content;
/// The pods' HTTP and UDP servers.
pub mod pod;
/// HTTP, UDP and echo clients with a chosen source.
pub mod client;
/// A STUN client and server.
pub mod stun;
/// The first exchange of SCTP, over raw sockets.
pub mod sctp;
/// The YAML that control watches.
pub mod manifest;
/// The API server that control may follow instead of the YAML.
pub mod cluster;
/// kube-proxy's rules on the workers.
pub mod kube_proxy;
/// The gateway's two programs, started, watched and hurt.
pub mod gateway;
/// Routing daemons of the lab: BIRD 2 and FRR, on a gateway and on the router it speaks with.
pub mod router;
/// What went over a link, seen from outside.
pub mod capture;
/// What every check is given.
pub mod rig;
/// A terminal's text as a picture.
pub mod picture;
/// What is asked of the lab, and the table of answers.
pub mod check;
/// One run of the checks.
pub mod demo;
/// Floods of small frames through a port, counted exactly.
pub mod generator;
/// A flood through an AF_XDP socket, as a command.
pub mod flood;
/// `tidegate-pktgen`: a generator and sink of one's own choice, and the searches that use it.
pub mod pktgen;
pub mod plot;
/// The same packets through a plain forwarder, through Tidegate and through the kernel.
pub mod ladder;
/// The same lab with its gateway in a virtual machine, where AF_XDP is zero-copy.
pub mod guest;
