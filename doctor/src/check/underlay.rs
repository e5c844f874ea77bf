//! The gateway's own ends of tunnels, and the rules by which its kernel routes.
//!
//! Which addresses these ends have is for control to say; the dataplane saves what it was told, and so it is known here also
//! where none runs. Before there has been any, nothing is known.

use std::io;
use std::net::IpAddr;

use tidegate_api::resource::{Body, Gateway, Peer};
use tidegate_dataplane::config::NodeFile;
use tidegate_dataplane::kernel::once::Rule;
use tidegate_dataplane::kernel::{KernelFacts, Layout};
use tidegate_dataplane::objects::saved;

use super::fine;
use crate::{Finding, Machine, Verdict};

/// Rules that are named; of more, how many there are.
const RULES_MAX: usize = 4;

/// What the dataplane was told of tunnels, and what the kernel has.
#[derive(Debug, Default)]
pub struct Underlay {
    gateway: Option<Gateway>,
    peers: Vec<Peer>,
    layout: Layout,
    /// Why something of it is not known.
    trouble: Option<String>,
}

impl Underlay {
    /// Reads both.
    pub fn read(machine: &Machine, file: &NodeFile) -> Underlay {
        let directory = machine.place(&file.state_dir);
        let (objects, trouble) = match saved::read(&directory) {
            Ok(objects) => (objects.unwrap_or_default(), None),
            Err(error) => {
                (Vec::new(), Some(format!("saved objects in {} cannot be read: {error}", file.state_dir.display())))
            }
        };
        let mut underlay = Underlay { trouble, ..Underlay::default() };
        for object in objects {
            match object.body {
                Body::Gateway(gateway) => underlay.gateway = Some(gateway),
                Body::Peer(peer) => underlay.peers.push(peer),
                _ => {}
            }
        }
        match machine.network() {
            Ok(KernelFacts { layout, .. }) => underlay.layout = layout,
            Err(error) => underlay.trouble = Some(format!("addresses of this machine cannot be read: {error}")),
        }
        underlay
    }

    /// Whether the ends are on this machine.
    pub fn look(&self) -> Vec<Finding> {
        if let Some(trouble) = &self.trouble {
            return vec![Finding::new("underlay", "", Verdict::Note, trouble)];
        }
        if self.gateway.is_none() {
            return vec![fine("underlay", "", "no dataplane has been told its addresses yet")];
        }
        let found = [true, false].into_iter().filter_map(|is_v4| Some((is_v4, self.own(is_v4)?)));
        found.map(|(is_v4, address)| self.end(is_v4, address)).collect()
    }

    fn end(&self, is_v4: bool, address: IpAddr) -> Finding {
        let family = if is_v4 { "IPv4" } else { "IPv6" };
        if let Some(device) = self.layout.owner(address) {
            return fine("underlay", family, format!("{address} on {device}"));
        }
        // Both families of an underlay are on one device, as a rule.
        let device = self.own(!is_v4).and_then(|other| self.layout.owner(other)).unwrap_or("DEVICE");
        let found = format!("{address}, at which tunnels of nodes end, is on no device of this machine");
        Finding::new("underlay", family, Verdict::Fail, found)
            .mended_by(format!("ip address add {address}/LENGTH dev {device}"))
    }

    /// The address at which tunnels over a family end.
    fn own(&self, is_v4: bool) -> Option<IpAddr> {
        let gateway = self.gateway.as_ref()?;
        let vtep = if is_v4 { &gateway.vtep_v4 } else { &gateway.vtep_v6 };
        vtep.as_ref().map(|vtep| vtep.underlay)
    }

    /// Name of the device by which tunnels over a family leave: the one that has their address, else the one that leads to a
    /// node. None where neither is known.
    pub fn device(&self, machine: &Machine, is_v4: bool) -> Option<String> {
        let own = self.own(is_v4).and_then(|address| self.layout.owner(address)).map(str::to_owned);
        own.or_else(|| {
            let ends = self.peers.iter().filter_map(|peer| if is_v4 { peer.v4.as_ref() } else { peer.v6.as_ref() });
            let mut ways = ends.filter_map(|end| machine.device_toward(end.underlay, &self.layout));
            ways.next()
        })
    }
}

/// Whether the kernel routes by other tables than those that are followed.
pub fn rules(rules: io::Result<Vec<Rule>>) -> Vec<Finding> {
    let rules = match rules {
        Ok(rules) => rules,
        Err(error) => {
            let found = format!("rules of policy routing cannot be read: {error}");
            return vec![Finding::new("routing", "", Verdict::Note, found)];
        }
    };
    let of_family = |is_v4: bool| {
        let (family, flag) = if is_v4 { ("IPv4", "-4") } else { ("IPv6", "-6") };
        let rules: Vec<&Rule> = rules.iter().filter(|rule| rule.is_v4 == is_v4).collect();
        let Some(first) = rules.first() else {
            return fine("routing", family, "no rules but those of every kernel");
        };
        let named = rules.iter().take(RULES_MAX).map(|rule| format!("{}: {}", rule.priority, rule.text));
        let mut named = named.collect::<Vec<_>>().join("; ");
        if let Some(more) = rules.len().checked_sub(RULES_MAX).filter(|more| *more > 0) {
            named += &format!("; and {more} more");
        }
        let found = format!("rules that Tidegate does not follow: {named}");
        Finding::new("routing", family, Verdict::Warn, found).mended_by(format!(
            "put the routes that gateway traffic needs into table main; ip {flag} rule del priority {} if nothing else needs it",
            first.priority
        ))
    };
    [true, false].map(of_family).into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tidegate_dataplane::kernel::{Address, Link};

    use super::super::tests::{machine, told};
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A gateway whose saved objects say where its tunnels end.
    fn known(held: &[(&str, u32)]) -> Underlay {
        let objects = r#"{"format": 2, "resources": [
            {"name": "gw-1", "version": "1", "body": {"gateway": {
                "vtep_v4": {"underlay": "198.51.100.1", "mac": "0a:58:0a:f4:09:04", "overlay": "10.244.9.0", "vni": 1,
                            "port": 8472},
                "vtep_v6": {"underlay": "2001:db8:2::1", "mac": "0a:58:0a:f4:09:06", "overlay": "fd00:10:244:9::",
                            "vni": 1, "port": 8472},
                "fullnat_sources": [], "hash_key": "00112233445566778899aabbccddeeff"}}},
            {"name": "w1", "version": "1", "body": {"peer": {
                "v4": {"underlay": "127.0.0.9", "mac": "0a:58:0a:f4:01:04", "vni": 1, "port": 8472, "pod_cidrs": []},
                "v6": null}}}]}"#;
        let (_root, machine) = machine(&[("var/lib/tidegate/objects.json", objects)]);
        let text = "node: n\nstateDir: /var/lib/tidegate\ndataplane: { interfaces: [{ name: wan0 }] }";
        let mut underlay = Underlay::read(&machine, &NodeFile::parse(text, Path::new("node.yaml")).unwrap());
        assert_eq!((underlay.trouble.take(), underlay.peers.len()), (None, 1));
        underlay.layout = Layout::default();
        for (number, name) in [(1, "lo"), (2, "wan0"), (3, "lan0")] {
            underlay.layout.links.insert(number, Link { name: name.into(), mac: None, mtu: 1500, up: true });
        }
        underlay.layout.addresses = held
            .iter()
            .map(|(address, ifindex)| Address { ifindex: *ifindex, address: ip(address), prefix: ip(address).into() })
            .collect();
        underlay
    }

    #[test]
    fn an_end_that_is_gone_is_named_with_the_device_of_the_other() {
        let both = [("198.51.100.1", 3), ("2001:db8:2::1", 3)];
        assert_eq!(
            told(&known(&both).look(), "underlay"),
            ["Ok IPv4 | 198.51.100.1 on lan0 | -", "Ok IPv6 | 2001:db8:2::1 on lan0 | -"]
        );
        for (at, family) in [(0, "IPv4"), (1, "IPv6")] {
            let (gone, left) = (both[at].0, both[1 - at]);
            assert_eq!(
                told(&known(&[left]).look(), "underlay")[at],
                format!(
                    "Fail {family} | {gone}, at which tunnels of nodes end, is on no device of this machine | ip address \
                     add {gone}/LENGTH dev lan0"
                )
            );
        }
        assert!(told(&known(&[]).look(), "underlay")[0].ends_with("LENGTH dev DEVICE"));
        let unknown = told(&Underlay::default().look(), "underlay");
        assert_eq!(unknown, ["Ok  | no dataplane has been told its addresses yet | -"]);
        let trouble = Underlay { trouble: Some("why".into()), ..Underlay::default() };
        assert_eq!(told(&trouble.look(), "underlay"), ["Note  | why | -"]);
    }

    #[test]
    fn tunnels_leave_by_the_device_with_their_address_else_by_the_way_to_a_node() {
        let machine = Machine::default();
        let device = |held: &[(&str, u32)], is_v4| known(held).device(&machine, is_v4);
        assert_eq!(device(&[("198.51.100.1", 3), ("2001:db8:2::1", 2)], true).as_deref(), Some("lan0"));
        assert_eq!(device(&[("198.51.100.1", 3), ("2001:db8:2::1", 2)], false).as_deref(), Some("wan0"));
        // The node of this test is at an address of loopback.
        assert_eq!(device(&[("127.0.0.1", 1)], true).as_deref(), Some("lo"));
        assert_eq!(device(&[("127.0.0.1", 1)], false), None);
    }

    #[test]
    fn rules_that_are_not_followed_are_told_by_family() {
        let rule = |is_v4, priority| Rule { is_v4, priority, text: "from all lookup 100".into() };
        let found = rules(Ok(vec![rule(true, 100), rule(false, 7), rule(false, 8), rule(false, 9)]));
        let fix = "put the routes that gateway traffic needs into table main; ip";
        assert_eq!(
            told(&found, "routing"),
            [
                format!(
                    "Warn IPv4 | rules that Tidegate does not follow: 100: from all lookup 100 | {fix} -4 rule del priority \
                     100 if nothing else needs it"
                ),
                format!(
                    "Warn IPv6 | rules that Tidegate does not follow: 7: from all lookup 100; 8: from all lookup 100; 9: \
                     from all lookup 100 | {fix} -6 rule del priority 7 if nothing else needs it"
                ),
            ]
        );
        let many = rules(Ok((0..6).map(|priority| rule(true, priority)).collect()));
        assert!(many[0].found.ends_with("; and 2 more"), "{many:?}");
        let well = rules(Ok(Vec::new()));
        assert!(well.iter().all(|finding| finding.verdict == Verdict::Ok) && well.len() == 2);
        assert_eq!(rules(Err(io::ErrorKind::PermissionDenied.into()))[0].verdict, Verdict::Note);
    }
}
