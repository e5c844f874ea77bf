//! Manifests of pods and policies, to tables and answers; the body is an ordinary test's too.

#![no_main]

#[path = "../../control/tests/policy/fuzzing.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::policies(bytes));
