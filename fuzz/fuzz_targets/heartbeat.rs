//! The messages of gateways to each other; see `tidegate_dataplane::fuzzing`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_dataplane::fuzzing::heartbeat(bytes));
