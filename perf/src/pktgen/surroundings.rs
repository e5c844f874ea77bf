//! Where a figure was measured: processor, cores, kernel. Names no machine.

use serde::{Deserialize, Serialize};

/// What a figure depends on and a reader cannot see.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    /// The processor, as it calls itself.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Release of the kernel.
    pub kernel: String,
    /// Version of Tidegate.
    pub tidegate: String,
    /// `release` or `debug`: figures of the latter mean nothing.
    pub build: String,
}

/// The surroundings of this process.
pub fn here() -> Surroundings {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let named = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Surroundings {
        processor: named.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().into()),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        // Without what a builder has added to it.
        kernel: read("/proc/sys/kernel/osrelease").trim().split('-').next().unwrap_or_default().into(),
        tidegate: env!("CARGO_PKG_VERSION").into(),
        build: if cfg!(debug_assertions) { "debug" } else { "release" }.into(),
    }
}
