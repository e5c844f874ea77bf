//! Memory, and the cores of workers.

use tidegate_dataplane::config::{Dataplane, HugePages, Idle};

use super::fine;
use crate::{Finding, Machine, Verdict};

pub fn look(machine: &Machine, dataplane: &Dataplane) -> Vec<Finding> {
    let mut findings = vec![huge_pages(machine, dataplane)];
    if dataplane.cores.is_empty() {
        let found = format!("{} not pinned to cores", workers(dataplane.worker_count()));
        findings.push(
            Finding::new("core", "", Verdict::Note, found).mended_by("name a core for each worker in dataplane.cores"),
        );
    }
    let cores = dataplane.cores.iter();
    findings.extend(cores.flat_map(|core| [one(machine, dataplane, *core), governor(machine, *core)]).flatten());
    findings.extend(irqbalance(machine));
    findings
}

fn workers(count: u16) -> String {
    if count == 1 { "1 worker,".into() } else { format!("{count} workers,") }
}

/// Frames must fit; what flows take is allocated as it is needed.
fn huge_pages(machine: &Machine, dataplane: &Dataplane) -> Finding {
    let page_kib = machine.field("proc/meminfo", "Hugepagesize").unwrap_or(2048);
    let free = machine.field("proc/meminfo", "HugePages_Free").unwrap_or(0);
    let wanted = (u64::from(dataplane.frames) * u64::from(dataplane.frame_bytes)).div_ceil(page_kib.max(1) * 1024);
    let transparent = machine.text("sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let fix = format!("sysctl -w vm.nr_hugepages={wanted}");
    let found = format!("{free} free of {wanted} wanted for frames ({page_kib} KiB each)");
    match dataplane.huge_pages {
        HugePages::Off => Finding::new("huge-pages", "", Verdict::Note, "switched off (dataplane.hugePages)"),
        _ if free >= wanted => fine("huge-pages", "", found),
        HugePages::On => Finding::new("huge-pages", "", Verdict::Fail, found).mended_by(fix),
        HugePages::Auto if transparent.is_empty() => {
            let found = format!("{found}; whether the kernel joins others by itself cannot be read");
            Finding::new("huge-pages", "", Verdict::Warn, found).mended_by(fix)
        }
        HugePages::Auto if transparent.contains("[never]") => {
            Finding::new("huge-pages", "", Verdict::Warn, format!("{found}, and the kernel joins none by itself"))
                .mended_by(fix)
        }
        HugePages::Auto => {
            let found = format!("{found}; the kernel may join others by itself, a running dataplane may hold some");
            Finding::new("huge-pages", "", Verdict::Note, found).mended_by(fix)
        }
    }
}

/// A worker's core: there, its own, and not a half of another worker's.
fn one(machine: &Machine, dataplane: &Dataplane, core: usize) -> Option<Finding> {
    let subject = format!("core {core}");
    let online = list(&machine.text("sys/devices/system/cpu/online")?);
    if !online.contains(&core) {
        let found = format!("not online; there are {}", ranges(&online));
        return Some(
            Finding::new("core", subject, Verdict::Fail, found).mended_by("choose another core in dataplane.cores"),
        );
    }
    let siblings = machine.text(&format!("sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"));
    let siblings = list(&siblings.unwrap_or_default());
    let shared = siblings.iter().find(|other| **other != core && dataplane.cores.contains(other));
    if let Some(other) = shared {
        let found = format!("shares its execution units with core {other}, which another worker has");
        return Some(
            Finding::new("core", subject, Verdict::Warn, found)
                .mended_by("give each worker a physical core of its own"),
        );
    }
    let isolated = list(&machine.text("sys/devices/system/cpu/isolated").unwrap_or_default());
    if dataplane.idle == Idle::Poll && !isolated.contains(&core) {
        let found = "not isolated: the scheduler may put other threads beside a worker that polls";
        return Some(Finding::new("core", subject, Verdict::Warn, found).mended_by(format!(
            "boot with isolcpus={core} nohz_full={core}, or keep others off with systemd's CPUAffinity"
        )));
    }
    Some(fine("core", subject, if isolated.contains(&core) { "online, isolated" } else { "online" }))
}

fn governor(machine: &Machine, core: usize) -> Option<Finding> {
    let path = format!("sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor");
    let governor = machine.text(&path)?;
    Some(match governor.as_str() {
        "performance" => fine("governor", format!("core {core}"), governor),
        _ => Finding::new("governor", format!("core {core}"), Verdict::Warn, governor)
            .mended_by(format!("echo performance > /{path}")),
    })
}

fn irqbalance(machine: &Machine) -> Option<Finding> {
    let processes = machine.names("proc").into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let mut names = processes.filter_map(|process| machine.text(&format!("proc/{process}/comm")));
    names.any(|name| name == "irqbalance").then(|| {
        Finding::new("irqbalance", "", Verdict::Warn, "runs")
            .mended_by("systemctl disable --now irqbalance, or set IRQBALANCE_BANNED_CPULIST to the workers' cores")
    })
}

/// A list of the kernel's, such as `0-3,8`. What cannot be read is left out.
fn list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    // No machine has more cores than this; a nonsense range must not be walked.
    text.split(',').filter_map(range).flatten().take(8192).collect()
}

fn ranges(cores: &[usize]) -> String {
    match cores {
        [first, .., last] if last - first + 1 == cores.len() => format!("{first} to {last}"),
        _ => cores.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tidegate_dataplane::config::NodeFile;

    use super::super::tests::{machine, told};
    use super::*;

    fn dataplane(more: &str) -> Dataplane {
        let text = format!("node: n\ndataplane: {{ interfaces: [{{ name: wan0 }}], {more} }}");
        NodeFile::parse(&text, Path::new("node.yaml")).unwrap().dataplane
    }

    const CPU: &str = "sys/devices/system/cpu";

    #[test]
    fn cores_are_online_apart_and_isolated() {
        let files = [
            (format!("{CPU}/online"), "0-3\n"),
            (format!("{CPU}/isolated"), "2\n"),
            (format!("{CPU}/cpu1/topology/thread_siblings_list"), "1,3\n"),
            (format!("{CPU}/cpu3/topology/thread_siblings_list"), "1,3\n"),
            (format!("{CPU}/cpu2/topology/thread_siblings_list"), "0,2\n"),
            (format!("{CPU}/cpu2/cpufreq/scaling_governor"), "powersave\n"),
        ];
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let (_root, machine) = machine(&files);
        let findings = look(&machine, &dataplane("cores: [1, 2, 3, 9], idle: poll"));
        let cores = told(&findings, "core");
        assert!(cores[0].starts_with("Warn core 1 | shares its execution units with core 3"), "{cores:?}");
        assert!(cores[1].starts_with("Ok core 2 | online, isolated"), "{cores:?}");
        assert!(cores[2].starts_with("Warn core 3 | shares"), "{cores:?}");
        assert!(cores[3].starts_with("Fail core 9 | not online; there are 0 to 3"), "{cores:?}");
        let governors = told(&findings, "governor");
        assert_eq!(
            governors,
            [format!("Warn core 2 | powersave | echo performance > /{CPU}/cpu2/cpufreq/scaling_governor")]
        );
        let alone = told(&look(&machine, &dataplane("cores: [0], idle: poll")), "core");
        assert!(alone[0].starts_with("Warn core 0 | not isolated"), "{alone:?}");
        let asleep = told(&look(&machine, &dataplane("cores: [0]")), "core");
        assert!(asleep[0].starts_with("Ok core 0"), "{asleep:?}");
    }

    #[test]
    fn huge_pages_are_counted_against_frames() {
        let meminfo = |free: u32| format!("HugePages_Total: 64\nHugePages_Free: {free}\nHugepagesize: 2048 kB\n");
        for (free, thp, more, expected) in [
            (
                64,
                "always [madvise] never",
                "frames: 16384",
                "Ok  | 64 free of 16 wanted for frames (2048 KiB each) | -",
            ),
            (3, "always [madvise] never", "frames: 16384, hugePages: on", "Fail  | 3 free of 16"),
            (3, "always [madvise] never", "frames: 16384", "Note  | 3 free of 16"),
            (3, "always madvise [never]", "frames: 16384", "Warn  | 3 free of 16"),
            (0, "always madvise [never]", "hugePages: off", "Note  | switched off"),
            (
                3,
                "",
                "frames: 16384",
                "Warn  | 3 free of 16 wanted for frames (2048 KiB each); whether the kernel joins others by itself cannot",
            ),
        ] {
            let text = meminfo(free);
            let files = [("proc/meminfo", text.as_str()), ("sys/kernel/mm/transparent_hugepage/enabled", thp)];
            let (_root, machine) = machine(&files);
            let found = told(&look(&machine, &dataplane(more)), "huge-pages").join("");
            assert!(found.starts_with(expected), "{found}");
        }
    }

    #[test]
    fn irqbalance_is_seen() {
        let (_root, machine) = machine(&[("proc/17/comm", "irqbalance\n"), ("proc/self/comm", "irqbalance\n")]);
        assert_eq!(irqbalance(&machine).map(|finding| finding.verdict), Some(Verdict::Warn));
        let (_root, machine) = super::super::tests::machine(&[("proc/17/comm", "bash\n")]);
        assert_eq!(irqbalance(&machine), None);
    }

    #[test]
    fn lists_of_cores_are_read_and_nonsense_ends() {
        assert_eq!(list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(list(""), [0usize; 0]);
        assert_eq!(list("x-3,,7-"), [0usize; 0]);
        assert_eq!(list("0-18446744073709551615").len(), 8192);
    }
}
