//! Wire formats against an independent reader and writer (etherparse), against naive recomputation, and against nonsense.

#[path = "wire/sample.rs"]
mod sample;
#[path = "wire/oracle.rs"]
mod oracle;
#[path = "wire/parse.rs"]
mod parse;
#[path = "wire/edit.rs"]
mod edit;
#[path = "wire/answer.rs"]
mod answer;
#[path = "wire/tunnel.rs"]
mod tunnel;
