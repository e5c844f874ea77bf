//! What is wanted of a node: gateways, pods that leave by them, addresses whose answers return by them.
//!
//! Owns the format of the file and what must hold in it; refuses to know who wrote it. Every source (a file today) comes
//! down to one [`Wanted`], which holds addresses and no selectors.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tidegate_control::model::egresspolicy::Remembered;
use tidegate_control::model::staticnat::StaticNat;

/// Most pods of one node, times two families. kubelet's default is 110 pods.
pub const PODS_MAX: usize = 1024;
/// Most prefixes in any list.
pub const PREFIXES_MAX: usize = 16_384;
/// Longest name of a device (IFNAMSIZ less its zero, uapi/linux/if.h).
const DEVICE_BYTES_MAX: usize = 15;
/// Priority of the kernel's own rule for the table `main`; ours have to come before it.
const PRIORITY_OF_MAIN: u32 = 32766;
/// Bits of the packet mark that kube-proxy uses: masquerade and, in old releases, drop.
const KUBE_PROXY_MARKS: u32 = 0xc000;

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both families.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The family of a prefix.
    pub fn of_net(prefix: &IpNet) -> Family {
        Family::of(prefix.addr())
    }

    /// Every address.
    pub fn everything(self) -> IpNet {
        match self {
            Family::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
            Family::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
        }
    }
}

/// A link-layer address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Mac, String> {
        let complaint = || format!("{text:?} is no link-layer address like 0a:58:0a:f4:09:04");
        let bytes: Result<Vec<u8>, _> = text
            .split(':')
            .map(|part| if part.len() == 2 { u8::from_str_radix(part, 16).map_err(drop) } else { Err(()) })
            .collect();
        bytes.ok().and_then(|bytes| bytes.try_into().ok()).map(Mac).ok_or_else(complaint)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Everything one node has to do. Field names are those of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Wanted {
    /// The devices that lead to gateways.
    pub devices: Devices,
    /// Pod, Service and node prefixes of the cluster: traffic to them never goes through a gateway (N-110), and what comes
    /// from them is never taken for a client from outside.
    #[serde(deserialize_with = "prefixes")]
    pub cluster: Vec<IpNet>,
    /// Where gateways, pods and symmetric destinations come from, if not from this file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
    /// Gateways, alive or not.
    #[serde(default)]
    pub gateways: Vec<Gateway>,
    /// Pods of this node that leave by gateways.
    #[serde(default)]
    pub egress: Vec<Egress>,
    /// Destinations of traffic that comes from a gateway with its source kept: addresses or prefixes of pods of this node, or
    /// VIPs. Answers return by the gateway that the traffic came from.
    #[serde(default, deserialize_with = "prefixes")]
    pub symmetric: Vec<IpNet>,
    /// Pods that nobody has told of yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// What the API has told besides, for a start: the agent writes it into `stateFile` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard: Option<Heard>,
    /// Bits of packet and connection marks that are ours.
    #[serde(default)]
    pub marks: Marks,
    /// Numbers of tables and rules that are ours.
    #[serde(default)]
    pub numbers: Numbers,
}

/// The API of a cluster as the source of what is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Kubernetes {
    /// Name of this Node; left out: what the environment says in `NODE_NAME`.
    pub node: Option<String>,
    /// How to reach the API; left out: as a pod of the cluster.
    pub kubeconfig: Option<PathBuf>,
    /// Label of the Nodes that are gateways.
    pub gateway_label: String,
    /// UDP port at which gateways are asked which addresses they carry: that of their heartbeats.
    pub gateway_port: u16,
    /// Whether packets of a pod that the API has not told of yet are held back, while there is any EgressPolicy or any
    /// StaticNat without ports.
    pub hold_unknown: bool,
    /// File with what the API said last, for `status` and for a start without it.
    pub state_file: PathBuf,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Kubernetes {
            node: None,
            kubeconfig: None,
            gateway_label: "tidegate.io/gateway".into(),
            gateway_port: 7947,
            hold_unknown: true,
            state_file: "/run/tidegate-node/wanted.json".into(),
        }
    }
}

/// Packets that leave the cluster only once it is known whose they are (N-111).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Held {
    /// Sources that pods of this node have.
    #[serde(deserialize_with = "prefixes")]
    pub prefixes: Vec<IpNet>,
    /// Addresses of pods that are known, selected or not.
    #[serde(default)]
    pub known: BTreeSet<IpAddr>,
}

/// What was understood of the API, so that a start that understands less does not let anybody out (N-111).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Heard {
    /// Each policy as it was when it could be read last.
    pub policies: Vec<Remembered>,
    /// Each StaticNat the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub static_nats: Vec<StaticNat>,
    /// Pods of this node of which it was known under which policies they are, by address.
    pub pods: BTreeMap<IpAddr, String>,
    /// Policies and StaticNats that cannot be read now, why, and what counts instead.
    pub unreadable: Vec<String>,
}

/// Names of the VXLAN devices, as the CNI made them; the agent makes none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Devices {
    /// For IPv4 packets: `flannel.1`, `vxlan.calico`.
    pub ipv4: Option<String>,
    /// For IPv6 packets: `flannel-v6.1`, `vxlan-v6.calico`.
    pub ipv6: Option<String>,
}

impl Devices {
    /// The device of a family.
    pub fn of(&self, family: Family) -> Option<&str> {
        match family {
            Family::V4 => self.ipv4.as_deref(),
            Family::V6 => self.ipv6.as_deref(),
        }
    }
}

/// A gateway, as seen from a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gateway {
    /// Name of its Node. Pods choose by it, so all nodes have to know it by the same one.
    pub name: String,
    /// False: nothing is sent there, and pods that used it go to another one.
    #[serde(default = "yes")]
    pub live: bool,
    /// Its end of the tunnel for IPv4 packets.
    pub ipv4: Option<Vtep>,
    /// Its end of the tunnel for IPv6 packets.
    pub ipv6: Option<Vtep>,
}

impl Gateway {
    /// Its end of the tunnel for packets of a family.
    pub fn vtep(&self, family: Family) -> Option<&Vtep> {
        match family {
            Family::V4 => self.ipv4.as_ref(),
            Family::V6 => self.ipv6.as_ref(),
        }
    }
}

/// The far end of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vtep {
    /// Its address in the overlay, of the family it is for; flannel's is the first of its pod prefix (V-022).
    pub overlay: IpAddr,
    /// Its link-layer address: destination of inner frames that go there, source of those that come from there.
    pub mac: Mac,
    /// Its address in the underlay, of either family.
    pub underlay: IpAddr,
    /// VXLAN network identifier; compared with the device's. Left out: not compared.
    pub vni: Option<u32>,
}

/// Pods that leave by the same gateways to the same destinations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Egress {
    /// Name of the policy, or of what else sends them there, for telling people.
    pub name: String,
    /// The pods of this node. One that is in several entries has different destinations in each.
    pub pods: Vec<Pod>,
    /// Names of the gateways to choose from; left out: all.
    pub gateways: Option<Vec<String>>,
    /// Names of the gateways that carry the policy's addresses, where that is known: no other will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carriers: Option<Carriers>,
    /// Where they go through the gateway; left out: everywhere.
    #[serde(default, deserialize_with = "prefixes")]
    pub destinations: Vec<IpNet>,
    /// Where they do not, besides the cluster's own prefixes.
    #[serde(default, deserialize_with = "prefixes")]
    pub except: Vec<IpNet>,
}

/// The gateways that carry addresses, by family; none: nobody does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Carriers {
    /// Of IPv4 addresses.
    pub ipv4: Option<String>,
    /// Of IPv6 addresses.
    pub ipv6: Option<String>,
}

impl Carriers {
    /// The gateway of a family.
    pub fn of(&self, family: Family) -> Option<&str> {
        match family {
            Family::V4 => self.ipv4.as_deref(),
            Family::V6 => self.ipv6.as_deref(),
        }
    }
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    /// Namespace and name with a slash between them. Its gateway is chosen by this.
    pub name: String,
    /// Its addresses, of both families.
    pub addresses: Vec<IpAddr>,
}

/// Bits of marks. One run of bits, in which 1 stands for "goes as if there were no gateway" and higher numbers for gateways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Marks {
    /// The bits: adjacent ones, at least two.
    pub mask: u32,
    /// Bits that somebody else on the node uses: kube-proxy, Calico and Cilium by default. Ours must be none of them.
    pub foreign: Vec<u32>,
}

impl Default for Marks {
    fn default() -> Self {
        Marks { mask: 0x3f, foreign: vec![KUBE_PROXY_MARKS, 0xffff_0000, 0x0f00] }
    }
}

impl Marks {
    /// `number` where the bits are.
    pub fn place(&self, number: u32) -> u32 {
        number << self.mask.trailing_zeros() & self.mask
    }

    /// The highest number that fits.
    pub fn number_max(&self) -> u32 {
        if self.mask == 0 { 0 } else { self.mask >> self.mask.trailing_zeros() }
    }
}

/// Number of the mark that means: as if there were no gateway.
pub const NUMBER_PLAIN: u32 = 1;
/// First number of a gateway.
pub const NUMBER_FIRST: u32 = 2;

/// Numbers by which the kernel's rules and routes are told to be ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Numbers {
    /// Priority of the rules for marks; those for pods have the next one.
    pub priority: u32,
    /// First routing table.
    pub table_first: u32,
    /// How many routing tables there may be.
    pub tables: u32,
    /// Protocol number of rules, routes and neighbours.
    pub protocol: u8,
}

impl Default for Numbers {
    fn default() -> Self {
        Numbers { priority: 1500, table_first: 7300, tables: 256, protocol: 117 }
    }
}

fn yes() -> bool {
    true
}

/// Prefixes, of which single addresses are some.
fn prefixes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let read = |text: String| {
        let address = |text: &str| text.parse::<IpAddr>().map(IpNet::from).ok();
        let net = address(&text).or_else(|| text.parse().ok());
        net.ok_or_else(|| de::Error::custom(format!("{text:?} is neither an address nor a prefix")))
    };
    Vec::<String>::deserialize(deserializer)?.into_iter().map(read).collect()
}

impl Wanted {
    /// Reads YAML or JSON and checks it.
    ///
    /// # Errors
    /// Every complaint, each naming its field.
    pub fn parse(text: &str) -> Result<Wanted, Vec<String>> {
        let deserializer = serde_norway::Deserializer::from_str(text);
        let wanted: Wanted = serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let path = error.path().to_string();
            let told = error.inner().to_string();
            // The reader of YAML says a part of the path itself.
            let told = told
                .split_once(": ")
                .filter(|(part, _)| path.starts_with(part))
                .map_or(told.as_str(), |(_, rest)| rest);
            vec![if path == "." { told.to_owned() } else { format!("{path}: {told}") }]
        })?;
        let complaints = wanted.complaints();
        if complaints.is_empty() { Ok(wanted) } else { Err(complaints) }
    }

    /// Everything that cannot be.
    pub fn complaints(&self) -> Vec<String> {
        let mut told = Vec::new();
        self.check_devices(&mut told);
        self.check_kubernetes(&mut told);
        self.check_gateways(&mut told);
        self.check_pods(&mut told);
        self.check_prefixes(&mut told);
        self.check_marks(&mut told);
        self.check_numbers(&mut told);
        told
    }

    /// The gateway of this name.
    pub fn gateway(&self, name: &str) -> Option<&Gateway> {
        self.gateways.iter().find(|gateway| gateway.name == name)
    }

    /// Where a policy's pods do not go through gateways: its own exceptions and the cluster's prefixes.
    pub fn exceptions(&self, egress: &Egress) -> Vec<IpNet> {
        self.cluster.iter().chain(&egress.except).copied().collect()
    }

    fn check_devices(&self, told: &mut Vec<String>) {
        for family in FAMILIES {
            let Some(name) = self.devices.of(family) else { continue };
            let known = |c: char| c.is_ascii_alphanumeric() || ".-_@".contains(c);
            if name.is_empty() || name.len() > DEVICE_BYTES_MAX || !name.chars().all(known) {
                told.push(format!("devices: {name:?} is no name of a device"));
            }
        }
        match (&self.devices.ipv4, &self.devices.ipv6) {
            (None, None) => told.push("devices: none is named; flannel's are flannel.1 and flannel-v6.1".into()),
            _ if self.cluster.is_empty() => {
                told.push(
                    "cluster: name the pod, Service and node prefixes, or pods would look for each other outside"
                        .into(),
                );
            }
            _ => {}
        }
    }

    fn check_kubernetes(&self, told: &mut Vec<String>) {
        let from_file = !self.gateways.is_empty() || !self.egress.is_empty() || !self.symmetric.is_empty();
        if self.kubernetes.is_some() && from_file {
            told.push("kubernetes: gateways, egress and symmetric come from the API then, not from this file".into());
        }
    }

    fn check_gateways(&self, told: &mut Vec<String>) {
        let room = self.marks.number_max().saturating_sub(NUMBER_PLAIN) as usize;
        if self.gateways.len() > room {
            told.push(format!(
                "gateways: {} are more than the {room} that marks.mask has room for",
                self.gateways.len()
            ));
        }
        let mut names = BTreeSet::new();
        let mut macs: BTreeMap<Mac, &str> = BTreeMap::new();
        let mut overlays = BTreeSet::new();
        for gateway in &self.gateways {
            let name = &gateway.name;
            if name.is_empty() || !names.insert(name) {
                told.push(format!("gateways: {name:?} is no name, or of two"));
            }
            if gateway.ipv4.is_none() && gateway.ipv6.is_none() {
                told.push(format!("gateways: {name} has neither ipv4 nor ipv6"));
            }
            for (family, vtep) in FAMILIES.iter().filter_map(|family| Some((family, gateway.vtep(*family)?))) {
                if Family::of(vtep.overlay) != *family {
                    told.push(format!("gateways: {name}: {} is of the other family", vtep.overlay));
                }
                let [first, ..] = vtep.mac.0;
                if first & 1 == 1 || vtep.mac.0 == [0; 6] {
                    told.push(format!("gateways: {name}: {} is no single device's", vtep.mac));
                }
                if macs.insert(vtep.mac, name).is_some_and(|other| other != name) || !overlays.insert(vtep.overlay) {
                    told.push(format!("gateways: {name}: {} or {} is another gateway's", vtep.mac, vtep.overlay));
                }
            }
        }
    }

    fn check_pods(&self, told: &mut Vec<String>) {
        let mut owners: BTreeMap<IpAddr, (&str, usize)> = BTreeMap::new();
        for (number, egress) in self.egress.iter().enumerate() {
            for name in egress.gateways.iter().flatten() {
                if self.gateway(name).is_none() {
                    told.push(format!("egress {}: there is no gateway {name}", egress.name));
                }
            }
            for pod in &egress.pods {
                if pod.name.is_empty() || pod.addresses.is_empty() {
                    told.push(format!("egress {}: a pod without name or address", egress.name));
                }
                for address in &pod.addresses {
                    let may_share = |other: &(&str, usize)| {
                        let anywhere =
                            |number: usize| self.egress.get(number).is_none_or(|it| it.destinations.is_empty());
                        other.0 == pod.name && other.1 != number && !anywhere(number) && !anywhere(other.1)
                    };
                    let other = owners.insert(*address, (&pod.name, number));
                    if let Some((other, _)) = other.filter(|other| !may_share(other)) {
                        told.push(format!("egress {}: {address} of {} is also {other}'s", egress.name, pod.name));
                    }
                }
            }
        }
        if owners.len() > PODS_MAX {
            told.push(format!("egress: {} addresses of pods, more than {PODS_MAX}", owners.len()));
        }
    }

    fn check_prefixes(&self, told: &mut Vec<String>) {
        let lists = [("cluster".to_owned(), &self.cluster), ("symmetric".to_owned(), &self.symmetric)];
        let of_policies = self.egress.iter().flat_map(|egress| {
            let named = |field| format!("egress {}: {field}", egress.name);
            [(named("destinations"), &egress.destinations), (named("except"), &egress.except)]
        });
        for (name, list) in lists.into_iter().chain(of_policies) {
            if list.len() > PREFIXES_MAX {
                told.push(format!("{name}: {} prefixes, more than {PREFIXES_MAX}", list.len()));
            }
        }
        // A gateway must be reached by the ordinary routes, or its own tunnel would be sent through it.
        if let Some(all) = self.cluster.iter().find(|prefix| prefix.prefix_len() == 0) {
            told.push(format!("cluster: {all} is everything"));
        }
    }

    fn check_marks(&self, told: &mut Vec<String>) {
        let mask = self.marks.mask;
        if mask == 0 || self.marks.number_max().wrapping_add(1) & self.marks.number_max() != 0 || mask.count_ones() < 2
        {
            told.push(format!("marks.mask: {mask:#x} is not one run of two bits or more"));
        }
        for foreign in self.marks.foreign.iter().chain([&KUBE_PROXY_MARKS]).filter(|foreign| **foreign & mask != 0) {
            told.push(format!("marks.mask: {mask:#x} has bits of {foreign:#x}, which somebody else uses"));
        }
    }

    fn check_numbers(&self, told: &mut Vec<String>) {
        let numbers = &self.numbers;
        if numbers.priority == 0 || numbers.priority >= PRIORITY_OF_MAIN - 1 {
            told.push(format!("numbers.priority: {} is not between the kernel's 0 and 32766", numbers.priority));
        }
        // 0, and 253 to 255: tables the kernel has a use for (uapi/linux/rtnetlink.h).
        let last = numbers.table_first.saturating_add(numbers.tables.saturating_sub(1));
        if numbers.table_first <= 255 && last >= 253
            || numbers.table_first == 0
            || numbers.tables == 0
            || last == u32::MAX
        {
            told.push(format!("numbers: tables {} to {last} are not all free to use", numbers.table_first));
        }
        // Below 5 the kernel's own (RTPROT_STATIC is 4).
        if numbers.protocol < 5 {
            told.push(format!("numbers.protocol: {} is a number of the kernel's", numbers.protocol));
        }
    }
}

#[cfg(test)]
#[path = "wanted/tests.rs"]
pub(crate) mod tests;
