//! Quotes of ICMP errors; see `tidegate_dataplane::fuzzing`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_dataplane::fuzzing::quoted(bytes));
