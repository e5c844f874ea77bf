//! Settings of the node that decide whether any of this can work; read and told, never written.
//!
//! A sysctl belongs to the whole node and to whoever set it. What has to change stands in a [`Remark`] with the very command.

use std::fs;
use std::path::{Path, PathBuf};

use crate::wanted::{Family, Wanted};

/// Something a person should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remark {
    /// Packets that are wanted will not come through.
    Problem(String),
    /// It works, with a condition.
    Note(String),
}

/// Where the settings are read.
#[derive(Debug)]
pub struct Settings {
    root: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { root: "/proc/sys/net".into() }
    }
}

impl Settings {
    /// From another directory than `/proc/sys/net`.
    pub fn below(root: &Path) -> Settings {
        Settings { root: root.to_owned() }
    }

    /// What stands in the way of `wanted`.
    pub fn remarks(&self, wanted: &Wanted) -> Vec<Remark> {
        let mut remarks = Vec::new();
        if wanted.devices.of(Family::V4).is_some() && self.number("ipv4/ip_forward") == Some(0) {
            remarks.push(Remark::Problem("this node forwards no IPv4: sysctl -w net.ipv4.ip_forward=1".into()));
        }
        if wanted.devices.of(Family::V6).is_some() && self.number("ipv6/conf/all/forwarding") == Some(0) {
            remarks
                .push(Remark::Problem("this node forwards no IPv6: sysctl -w net.ipv6.conf.all.forwarding=1".into()));
        }
        if let Some(device) = wanted.devices.of(Family::V4) {
            self.reverse_path(wanted, device, &mut remarks);
        }
        remarks
    }

    /// The reverse path filter of IPv4 (IPv6 has none): strict is 1, and the stricter of `all` and the device holds
    /// (Documentation/networking/ip-sysctl.rst). It looks the way back up without the packet's mark unless src_valid_mark
    /// is set, and the way back of these packets depends on marks.
    fn reverse_path(&self, wanted: &Wanted, tunnel: &str, remarks: &mut Vec<Remark>) {
        let of = |device: &str, name: &str| self.number(&format!("ipv4/conf/{device}/{name}")).unwrap_or(0);
        let strict = |device: &str| {
            let marks_count = of("all", "src_valid_mark") == 1 || of(device, "src_valid_mark") == 1;
            // 2 (loose) is the larger number and wins over 1.
            of("all", "rp_filter").max(of(device, "rp_filter")) == 1 && !marks_count
        };
        // sysctl(8) takes dots for slashes unless the name has slashes where the path has.
        let cure = |device: &str| format!("sysctl -w net/ipv4/conf/{device}/rp_filter=2, or …/src_valid_mark=1");
        if !wanted.symmetric.is_empty() && strict(tunnel) {
            let text = format!("clients from outside are dropped on {tunnel} by a strict rp_filter: {}", cure(tunnel));
            remarks.push(Remark::Problem(text));
        }
        if wanted.egress.iter().all(|egress| egress.pods.is_empty()) {
            return;
        }
        for device in self.devices().into_iter().filter(|device| device != tunnel && device != "lo" && strict(device)) {
            let text = format!(
                "a strict rp_filter on {device} drops connections from outside that come there for selected pods (node ports, \
                 node-dsr): {}",
                cure(&device)
            );
            remarks.push(Remark::Note(text));
        }
    }

    /// Devices with settings of their own, but those of pods: what comes from pods is from the pod's address and passes.
    fn devices(&self) -> Vec<String> {
        let Ok(directory) = fs::read_dir(self.root.join("ipv4/conf")) else { return Vec::new() };
        let mut names: Vec<String> = directory.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        let of_pods = ["veth", "cali", "cni", "lxc", "docker", "br-"];
        names.retain(|name| name != "all" && name != "default" && !of_pods.iter().any(|start| name.starts_with(start)));
        names.sort();
        names
    }

    fn number(&self, path: &str) -> Option<u32> {
        fs::read_to_string(self.root.join(path)).ok()?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node(settings: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, value) in settings {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        root
    }

    #[test]
    fn what_a_node_lacks_is_told_with_its_cure() {
        let wanted = Wanted::parse(&crate::wanted::tests::FULL.replace("vni: 1", "vni: 7")).unwrap();
        let told = |settings: &[(&str, &str)]| {
            let root = node(settings);
            Settings::below(root.path()).remarks(&wanted)
        };
        let good = [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/flannel.1/rp_filter", "2"),
            ("ipv4/conf/eth0/rp_filter", "0"),
        ];
        assert_eq!(told(&good), []);
        let mut bad = good;
        (bad[0].1, bad[1].1) = ("0", "0");
        assert_eq!(told(&bad).len(), 2);
        let mut strict = good;
        (strict[2].1, strict[3].1) = ("1", "0");
        let remarks = told(&strict);
        assert!(
            matches!(&remarks[0], Remark::Problem(text) if text.contains("net/ipv4/conf/flannel.1/rp_filter=2")),
            "{remarks:?}"
        );
        assert!(matches!(&remarks[1], Remark::Note(text) if text.contains("on eth0")), "{remarks:?}");
        let mut marked = strict.to_vec();
        marked.push(("ipv4/conf/all/src_valid_mark", "1"));
        assert_eq!(told(&marked), []);
        // Loose wins over strict.
        let mut loose = strict;
        (loose[3].1, loose[4].1) = ("2", "2");
        assert_eq!(told(&loose), []);
    }
}
