//! A stand-in for the Kubernetes API server, for tests and the lab.
#![forbid(unsafe_code)]
