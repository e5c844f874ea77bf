//! The decision core over live flows; see `tidegate_dataplane::fuzzing`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_dataplane::fuzzing::decide(bytes));
