//! What the kernel knows of a process: the metrics that every process has, by the names that readers expect.
//!
//! Owns the reading of `/proc/self`. What cannot be read is left out.

use crate::{Kind, Metric, number};

/// Ticks of a second in `/proc/PID/stat` (USER_HZ, the same on all of Linux' architectures of today).
const TICKS_PER_S: f64 = 100.0;
/// Bytes of what `/proc/PID/status` calls kB.
const KIB: f64 = 1024.0;

/// The version of `program`, which is this process, and what it uses of the machine.
pub fn process(program: &str, version: &str) -> Vec<Metric> {
    let mut build = Metric::new(Kind::Gauge, "build_info", "Version of the program.");
    build.add([("program", program), ("version", version)], 1.0);
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{file}")).unwrap_or_default();
    let cpu = cpu_and_start(&read("self/stat"));
    let started = cpu.zip(boot_s(&read("stat"))).map(|((_, after_boot), boot)| boot + after_boot);
    let told = [
        (Kind::Counter, "process_cpu_seconds", "Processor time that the process has used.", cpu.map(|(cpu, _)| cpu)),
        (
            Kind::Gauge,
            "process_resident_memory_bytes",
            "Memory of the process that is in RAM.",
            resident_bytes(&read("self/status")),
        ),
        (Kind::Gauge, "process_start_time_seconds", "When the process began, since 1970.", started),
    ];
    let told = told.into_iter().filter_map(|(kind, name, help, value)| {
        let mut metric = Metric::new(kind, name, help);
        metric.add([("program", program)], value?);
        Some(metric)
    });
    [build].into_iter().chain(told).collect()
}

/// Processor time and the time from boot to its start, seconds, from the line of `/proc/PID/stat` (proc(5)). The name in
/// parentheses may hold anything.
fn cpu_and_start(stat: &str) -> Option<(f64, f64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    // The field after the name has the number 3.
    let field = |number: usize| rest.split_ascii_whitespace().nth(number - 3)?.parse::<u64>().ok();
    Some((number(field(14)? + field(15)?) / TICKS_PER_S, number(field(22)?) / TICKS_PER_S))
}

/// When the machine began, seconds since 1970, from `/proc/stat`.
fn boot_s(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

fn resident_bytes(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<f64>().ok()? * KIB)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Value;

    #[test]
    fn a_process_is_told_by_what_proc_says() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 12345 1 1";
        assert_eq!(cpu_and_start(stat), Some((2.0, 123.45)));
        assert_eq!(cpu_and_start("7 (a"), None);
        assert_eq!(boot_s("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000.0));
        assert_eq!(resident_bytes("Name: x\nVmRSS:\t  12 kB\n"), Some(12_288.0));
        let told = process("x", "1");
        let of = |name: &str| match told.iter().find(|metric| metric.name == name).unwrap().samples[0].value {
            Value::Number(value) => value,
            Value::Distribution(_) => panic!("{name} is a number"),
        };
        assert!(of("process_resident_memory_bytes") > 100_000.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - of("process_start_time_seconds");
        assert!((-5.0..3600.0).contains(&age), "{age}");
    }
}
