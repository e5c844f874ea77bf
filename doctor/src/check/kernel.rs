//! Kernel, clock, BPF file system, privileges.

use std::path::Path;

use tidegate_dataplane::config::NodeFile;

use super::fine;
use crate::{Finding, Machine, Verdict};

/// The oldest kernel that is tried: what the dataplane uses of AF_XDP and BPF is all there since then.
const KERNEL_MIN: (u32, u32) = (5, 15);

/// What the dataplane cannot do without, by bit in the masks of proc_pid_status(5) (uapi/linux/capability.h).
const CAPABILITIES: [(u32, &str); 4] =
    [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (14, "CAP_IPC_LOCK"), (39, "CAP_BPF")];

pub fn look(machine: &Machine, file: Option<&NodeFile>) -> Vec<Finding> {
    let mut findings = vec![kernel(machine)];
    if let Some(file) = file {
        findings.push(privilege(machine));
        findings.push(bpf_fs(machine, &file.dataplane.bpf_dir));
        findings.push(clocksource(machine));
    }
    findings.push(clock());
    findings
}

fn kernel(machine: &Machine) -> Finding {
    let Some(release) = machine.text("proc/sys/kernel/osrelease") else {
        return Finding::new("kernel", "", Verdict::Warn, "its version cannot be read");
    };
    let mut numbers = release.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < KERNEL_MIN {
        let (major, minor) = KERNEL_MIN;
        let found = format!("Linux {release}; {major}.{minor} or newer is needed");
        return Finding::new("kernel", "", Verdict::Fail, found).mended_by("boot a newer kernel");
    }
    fine("kernel", "", format!("Linux {release}"))
}

fn privilege(machine: &Machine) -> Finding {
    let status = machine.text("proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(mask) = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) else {
        return Finding::new("privilege", "", Verdict::Warn, "this process's capabilities cannot be read");
    };
    let missing: Vec<&str> =
        CAPABILITIES.iter().filter(|(bit, _)| mask >> bit & 1 == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return fine("privilege", "", "this process may do all that the dataplane does");
    }
    let found = format!("this process lacks {}; what follows may be incomplete", missing.join(", "));
    Finding::new("privilege", "", Verdict::Warn, found)
        .mended_by("run `tidegate doctor` as the dataplane runs, or as root")
}

fn bpf_fs(machine: &Machine, directory: &Path) -> Finding {
    let mounts = machine.text("proc/self/mounts").unwrap_or_default();
    let bpf = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?)).filter(|(_, kind)| *kind == "bpf")
    });
    let directory_text = directory.display().to_string();
    if let Some((point, _)) = bpf.into_iter().find(|(point, _)| directory.starts_with(point)) {
        return fine("bpf-fs", directory_text, format!("in the BPF file system at {point}"));
    }
    let found = "not in a BPF file system: a restart finds no earlier program and needs CAP_SYS_ADMIN to look";
    Finding::new("bpf-fs", directory_text, Verdict::Warn, found).mended_by("mount -t bpf bpf /sys/fs/bpf")
}

fn clocksource(machine: &Machine) -> Finding {
    let path = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    let Some(source) = machine.text(path) else {
        return Finding::new("clocksource", "", Verdict::Note, "cannot be read");
    };
    // Those that a process reads without a system call (vDSO).
    if ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"].contains(&source.as_str()) {
        return fine("clocksource", "", source);
    }
    let found = format!("{source}: every look at the clock is a system call");
    Finding::new("clocksource", "", Verdict::Warn, found).mended_by(format!("echo tsc > /{path}"))
}

fn clock() -> Finding {
    match tidegate_io::clock::is_synchronised() {
        Ok(true) => fine("clock", "", "follows another clock"),
        Ok(false) => Finding::new("clock", "", Verdict::Note, "nothing keeps it right, as far as the kernel knows")
            .mended_by("timedatectl set-ntp true"),
        Err(error) => Finding::new("clock", "", Verdict::Note, format!("cannot be asked: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{machine, told};
    use super::*;

    #[test]
    fn an_old_kernel_is_refused_and_a_new_one_is_not() {
        for (release, verdict) in [
            ("5.10.0-28-amd64", "Fail"),
            ("5.15.0", "Ok"),
            ("6.1.0-18-cloud-amd64", "Ok"),
            ("10.0.1", "Ok"),
            ("nonsense", "Fail"),
        ] {
            let (_root, machine) = machine(&[("proc/sys/kernel/osrelease", release)]);
            let text = told(&look(&machine, None), "kernel").join("\n");
            assert!(text.starts_with(verdict) && text.contains(release), "{text}");
        }
    }

    #[test]
    fn missing_capabilities_are_named() {
        let (_root, all) = machine(&[("proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n")]);
        assert_eq!(privilege(&all).verdict, Verdict::Ok);
        let (_root, some) = machine(&[("proc/self/status", "CapEff:\t0000000000003000\n")]);
        assert!(privilege(&some).found.starts_with("this process lacks CAP_IPC_LOCK, CAP_BPF;"));
    }

    #[test]
    fn pins_must_be_in_a_bpf_file_system() {
        let (_root, machine) = machine(&[("proc/self/mounts", "proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n")]);
        assert_eq!(bpf_fs(&machine, Path::new("/sys/fs/bpf/tidegate")).verdict, Verdict::Ok);
        let other = bpf_fs(&machine, Path::new("/run/tidegate"));
        assert_eq!((other.verdict, other.subject.as_str()), (Verdict::Warn, "/run/tidegate"));
    }

    #[test]
    fn a_slow_clocksource_is_told() {
        let path = "sys/devices/system/clocksource/clocksource0/current_clocksource";
        let (_root, slow) = machine(&[(path, "hpet\n")]);
        assert!(clocksource(&slow).fix.is_some_and(|fix| fix == format!("echo tsc > /{path}")));
        let (_root, quick) = machine(&[(path, "tsc\n")]);
        assert_eq!(clocksource(&quick).verdict, Verdict::Ok);
    }
}
