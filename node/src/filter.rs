//! The table of nftables: what it does to whom, and how nft is told.
//!
//! One table, `inet tidegate-node`, replaced as a whole in one transaction. It owns five things:
//!
//! - *No masquerading.* A packet of a selected pod that leaves by a VXLAN device for outside is bound to its own address in a
//!   NAT chain that comes before everybody else's. The kernel gives a connection its binding once, so what flannel, Calico
//!   or kube-proxy say later is not asked any more. (An accept in an earlier chain would not do: it ends that chain only.)
//! - *No other way out.* What a selected pod begins is dropped when it would leave by another device, whatever routes and
//!   rules say in that moment (N-111).
//! - *Nobody unknown.* Where that is asked for, what comes from an address of this node's pods that nobody has told of yet
//!   leaves the cluster by no device.
//! - *Answers as before.* Answers of a selected pod to connections that did not come by a gateway get a mark that no rule of
//!   ours looks at, so that they go where they always went (node ports, `node-dsr`).
//! - *Answers through the gateway.* Connections that come from a gateway with their source kept, to a symmetric destination
//!   or to a selected pod, get the gateway's number as the mark of the connection, and their answers get it as the mark of
//!   the packet, for which there is a rule.
//!
//! Our bits of the packet mark live from prerouting to the routing decision only: the forward chain clears them. VXLAN would
//! route the outer packet by them, and flannel compares whole marks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::wanted::{FAMILIES, Family, Held, Mac, Marks, NUMBER_PLAIN};

/// Name of the table, in the family inet.
pub const TABLE: &str = "tidegate-node";
/// The chain whose name tells what was loaded.
const DIGEST_CHAIN: &str = "loaded-";
/// The map from link-layer addresses of gateways to chains.
const GATEWAYS: &str = "gateways";
/// Chains of that map: their number follows.
const FROM_GATEWAY: &str = "from-gateway-";

/// Before NAT of destinations (-100), after connection tracking (-200).
const PRIORITY_INCOMING: i32 = -150;
/// After NAT of destinations (-100).
const PRIORITY_ARRIVING: i32 = -90;
/// Before what others may do in forward.
const PRIORITY_LEAVING: i32 = -300;
/// NAT chains of one hook are asked by priority until one of them binds the connection. Calico's had 0 and have 100,
/// iptables', flannel's and kube-proxy's 100; the kernel refuses -200 and less.
const PRIORITY_UNTRANSLATED: i32 = -160;
/// After everybody's NAT.
const PRIORITY_LAST: i32 = 300;

/// What the table is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Bits of marks that are ours.
    pub marks: Marks,
    /// VXLAN devices.
    pub devices: BTreeSet<String>,
    /// Prefixes of the cluster.
    pub cluster: Vec<IpNet>,
    /// Addresses of selected pods, and of those that stop to be.
    pub pods: BTreeSet<IpAddr>,
    /// What must not leave by another device.
    pub captures: Vec<Capture>,
    /// Pods that nobody has told of yet.
    pub held: Held,
    /// Destinations whose answers return by the gateway they came from.
    pub symmetric: Vec<IpNet>,
    /// Gateways by number, each with its link-layer addresses.
    pub gateways: BTreeMap<u32, BTreeSet<Mac>>,
}

/// Pods with the same destinations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// Their addresses.
    pub pods: BTreeSet<IpAddr>,
    /// Where they go through a gateway; none: everywhere.
    pub destinations: Vec<IpNet>,
    /// Where they do not.
    pub except: Vec<IpNet>,
}

/// What is loaded, as far as it can be told from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The digest it was loaded under.
    pub digest: String,
    /// Rules of each chain, elements of each set and map.
    pub shape: BTreeMap<String, usize>,
    /// Numbers of gateways by link-layer address.
    pub numbers: BTreeMap<Mac, u32>,
}

impl Filter {
    /// The commands for `nft -j -f -`: replaces the table, or fails and changes nothing.
    pub fn commands(&self) -> Value {
        let objects = self.objects();
        let mut commands = vec![
            json!({ "add": table() }),
            json!({ "delete": table() }),
            json!({ "add": table() }),
            json!({ "add": chain(&format!("{DIGEST_CHAIN}{}", digest(&objects)), None) }),
        ];
        commands.extend(objects.into_iter().map(|object| json!({ "add": object })));
        json!({ "nftables": commands })
    }

    /// The commands that remove the table, whether it is there or not.
    pub fn removal() -> Value {
        json!({ "nftables": [{ "add": table() }, { "delete": table() }] })
    }

    /// What will be found once this is loaded.
    pub fn loaded(&self) -> Loaded {
        Loaded {
            digest: digest(&self.objects()),
            shape: shape(self.objects().iter()),
            numbers: self.gateways.iter().flat_map(|(number, macs)| macs.iter().map(|mac| (*mac, *number))).collect(),
        }
    }

    /// Sets, maps, chains and rules, in the order in which they may refer to each other.
    fn objects(&self) -> Vec<Value> {
        let mut objects = self.sets();
        let mut chains = Chains::default();
        self.incoming(&mut chains);
        self.arriving(&mut chains);
        self.leaving(&mut chains);
        self.outgoing(&mut chains);
        objects.extend(chains.chains);
        objects.extend(chains.maps);
        objects.extend(chains.rules);
        objects
    }

    fn sets(&self) -> Vec<Value> {
        let mut sets = Vec::new();
        for family in FAMILIES {
            let pods = self.pods.iter().filter(|pod| Family::of(**pod) == family);
            sets.push(set("pods", family, false, pods.map(|pod| json!(pod)).collect()));
            sets.push(set("cluster", family, true, elements(&self.cluster, family)));
            sets.push(set("symmetric", family, true, elements(&self.symmetric, family)));
            if self.holds() {
                let known = self.held.known.iter().filter(|pod| Family::of(**pod) == family);
                sets.push(set("held", family, true, elements(&self.held.prefixes, family)));
                sets.push(set("known", family, false, known.map(|pod| json!(pod)).collect()));
            }
            for (number, capture) in self.captures.iter().enumerate() {
                sets.push(set(&format!("except-{number}-"), family, true, elements(&capture.except, family)));
                sets.push(set(&format!("to-{number}-"), family, true, elements(&capture.destinations, family)));
            }
        }
        sets
    }

    fn holds(&self) -> bool {
        !self.held.prefixes.is_empty()
    }

    /// Before routing, destinations as they were sent to: marks of connections, marks of what selected pods send.
    fn incoming(&self, chains: &mut Chains) {
        chains.base("incoming", "filter", "prerouting", PRIORITY_INCOMING);
        for number in self.gateways.keys() {
            let (from, to) = (format!("{FROM_GATEWAY}{number}"), format!("to-gateway-{number}"));
            chains.plain(&from);
            chains.rule(&from, vec![self.set_connection_mark(*number)]);
            for family in FAMILIES {
                // By this the reverse path filter finds the tunnel, if the node asks marks for it (src_valid_mark). For
                // selected pods it goes by the rule of the pod.
                chains.rule(&from, vec![in_set(family, "daddr", "==", "symmetric"), self.set_mark(*number)]);
            }
            chains.plain(&to);
            chains.rule(&to, vec![self.set_mark(*number), json!({ "accept": null })]);
        }
        chains.plain("returning");
        let mut to_gateways = Vec::new();
        let mut from_gateways = Vec::new();
        for (number, macs) in &self.gateways {
            to_gateways
                .push(json!([self.marks.place(*number), { "goto": { "target": format!("to-gateway-{number}") } }]));
            let target = json!({ "goto": { "target": format!("{FROM_GATEWAY}{number}") } });
            from_gateways.extend(macs.iter().map(|mac| json!([mac.to_string(), target])));
        }
        chains.map(GATEWAYS, "ether_addr", from_gateways);
        chains.map("answers", "mark", to_gateways);
        let ours = json!({ "&": [ct("mark"), self.marks.mask] });
        chains.rule("returning", vec![vmap(&ours, "answers")]);
        // The gateway is not known any more, and every other way shows an address that the client never asked.
        chains.rule("returning", vec![json!({ "counter": null }), json!({ "drop": null })]);
        // What comes straight to a selected pod: a static translation, or a port that a gateway opens for everybody.
        for (family, destinations) in FAMILIES.into_iter().flat_map(|family| [(family, "symmetric"), (family, "pods")])
        {
            chains.rule(
                "incoming",
                vec![
                    self.device("iifname", "=="),
                    is(&ct("direction"), "==", &json!("original")),
                    in_set(family, "saddr", "!=", "cluster"),
                    in_set(family, "daddr", "==", destinations),
                    vmap(&payload("ether", "saddr"), GATEWAYS),
                ],
            );
        }
        for family in FAMILIES {
            // Whose bits these are besides ours is not known: only where they can be ours.
            let asked = json!({ "ct": { "key": format!("{} daddr", protocol(family)), "dir": "original" } });
            chains.rule(
                "incoming",
                vec![
                    self.device("iifname", "!="),
                    is(&ct("direction"), "==", &json!("reply")),
                    is(&ours, "!=", &json!(0)),
                    is(&asked, "==", &json!(format!("@symmetric{}", digit(family)))),
                    json!({ "goto": { "target": "returning" } }),
                ],
            );
            // A number that no gateway has goes on as an answer to anybody.
            chains.rule(
                "incoming",
                vec![
                    self.device("iifname", "!="),
                    is(&ct("direction"), "==", &json!("reply")),
                    is(&asked, "==", &json!(format!("@pods{}", digit(family)))),
                    vmap(&ours, "answers"),
                ],
            );
        }
        for family in FAMILIES {
            let answers = is(&ct("direction"), "==", &json!("reply"));
            chains.rule(
                "incoming",
                vec![
                    in_set(family, "saddr", "==", "pods"),
                    answers,
                    self.set_mark(NUMBER_PLAIN),
                    json!({ "accept": null }),
                ],
            );
            chains.rule("incoming", vec![in_set(family, "saddr", "==", "pods"), self.set_mark(0)]);
        }
    }

    /// Before routing, destinations as they will be: what arrives at selected pods by other devices, so that the reverse path
    /// filter looks for its source where it is (with src_valid_mark).
    fn arriving(&self, chains: &mut Chains) {
        chains.base("arriving", "filter", "prerouting", PRIORITY_ARRIVING);
        for family in FAMILIES {
            chains.rule(
                "arriving",
                vec![self.device("iifname", "!="), in_set(family, "daddr", "==", "pods"), self.set_mark(NUMBER_PLAIN)],
            );
        }
    }

    /// After routing: the marks have done their work, and what selected pods begin leaves by the tunnel or not at all.
    fn leaving(&self, chains: &mut Chains) {
        chains.base("leaving", "filter", "forward", PRIORITY_LEAVING);
        let ours = json!({ "&": [meta("mark"), self.marks.mask] });
        chains.rule("leaving", vec![is(&ours, "!=", &json!(0)), self.set_mark(0)]);
        for family in FAMILIES.into_iter().filter(|_| self.holds()) {
            // Whose policy a packet is under is not known before its pod is: it stays (N-111).
            chains.rule(
                "leaving",
                vec![
                    in_set(family, "saddr", "==", "held"),
                    in_set(family, "saddr", "!=", "known"),
                    in_set(family, "daddr", "!=", "cluster"),
                    is(&ct("direction"), "==", &json!("original")),
                    json!({ "counter": null }),
                    json!({ "drop": null }),
                ],
            );
        }
        for family in FAMILIES {
            let mut captured = Vec::new();
            for (number, capture) in self.captures.iter().enumerate() {
                let name = format!("capture-{number}-{}", digit(family));
                chains.plain(&name);
                chains.rule(
                    &name,
                    vec![in_set(family, "daddr", "==", &format!("except-{number}-")), json!({ "return": null })],
                );
                if !capture.destinations.is_empty() {
                    let elsewhere = in_set(family, "daddr", "!=", &format!("to-{number}-"));
                    chains.rule(&name, vec![elsewhere, json!({ "return": null })]);
                }
                chains.rule(&name, vec![self.device("oifname", "=="), json!({ "return": null })]);
                chains.rule(&name, vec![is(&ct("direction"), "==", &json!("reply")), json!({ "return": null })]);
                chains.rule(&name, vec![json!({ "counter": null }), json!({ "drop": null })]);
                let target = json!({ "jump": { "target": name } });
                let pods = capture.pods.iter().filter(|pod| Family::of(**pod) == family);
                captured.extend(pods.map(|pod| json!([pod, target])));
            }
            let map = format!("captured{}", digit(family));
            chains.map(&map, address_type(family), captured);
            chains.rule("leaving", vec![vmap(&payload(protocol(family), "saddr"), &map)]);
        }
    }

    /// Behind routing: the binding, and what has one from before the pod was selected.
    fn outgoing(&self, chains: &mut Chains) {
        chains.base("untranslated", "nat", "postrouting", PRIORITY_UNTRANSLATED);
        chains.base("last", "filter", "postrouting", PRIORITY_LAST);
        for family in FAMILIES {
            let source = payload(protocol(family), "saddr");
            chains.rule(
                "untranslated",
                vec![
                    self.device("oifname", "=="),
                    in_set(family, "saddr", "==", "pods"),
                    in_set(family, "daddr", "!=", "cluster"),
                    json!({ "snat": { "family": protocol(family), "addr": source } }),
                ],
            );
            let key = json!({ "ct": { "key": format!("{} saddr", protocol(family)), "dir": "original" } });
            chains.rule(
                "last",
                vec![
                    self.device("oifname", "=="),
                    is(&ct("direction"), "==", &json!("original")),
                    is(&key, "==", &json!(format!("@pods{}", digit(family)))),
                    in_set(family, "daddr", "!=", "cluster"),
                    in_set(family, "saddr", "!=", "pods"),
                    json!({ "counter": null }),
                    json!({ "drop": null }),
                ],
            );
        }
    }

    fn device(&self, key: &str, op: &str) -> Value {
        let names: Vec<&String> = self.devices.iter().collect();
        let set = match names.as_slice() {
            [only] => json!(only),
            several => json!({ "set": several }),
        };
        is(&meta(key), op, &set)
    }

    /// Our bits become `number`, the others stay.
    fn set_mark(&self, number: u32) -> Value {
        json!({ "mangle": { "key": meta("mark"), "value": self.with_number(&meta("mark"), number) } })
    }

    fn set_connection_mark(&self, number: u32) -> Value {
        json!({ "mangle": { "key": ct("mark"), "value": self.with_number(&ct("mark"), number) } })
    }

    fn with_number(&self, mark: &Value, number: u32) -> Value {
        let others = json!({ "&": [mark, !self.marks.mask] });
        if number == 0 { others } else { json!({ "|": [others, self.marks.place(number)] }) }
    }
}

/// Chains and maps before the rules that name them.
#[derive(Default)]
struct Chains {
    chains: Vec<Value>,
    maps: Vec<Value>,
    rules: Vec<Value>,
}

impl Chains {
    fn base(&mut self, name: &str, kind: &str, hook: &str, priority: i32) {
        self.chains.push(chain(name, Some((kind, hook, priority))));
    }

    fn plain(&mut self, name: &str) {
        self.chains.push(chain(name, None));
    }

    fn map(&mut self, name: &str, kind: &str, elements: Vec<Value>) {
        let map = json!({ "family": "inet", "table": TABLE, "name": name, "type": kind, "map": "verdict" });
        self.maps.push(json!({ "map": with_elements(map, elements) }));
    }

    fn rule(&mut self, chain: &str, expressions: Vec<Value>) {
        self.rules.push(json!({ "rule": { "family": "inet", "table": TABLE, "chain": chain, "expr": expressions } }));
    }
}

fn table() -> Value {
    json!({ "table": { "family": "inet", "name": TABLE } })
}

fn chain(name: &str, base: Option<(&str, &str, i32)>) -> Value {
    let mut chain = json!({ "family": "inet", "table": TABLE, "name": name });
    if let (Some((kind, hook, priority)), Some(fields)) = (base, chain.as_object_mut()) {
        fields.insert("type".into(), json!(kind));
        fields.insert("hook".into(), json!(hook));
        fields.insert("prio".into(), json!(priority));
        fields.insert("policy".into(), json!("accept"));
    }
    json!({ "chain": chain })
}

fn set(name: &str, family: Family, of_prefixes: bool, elements: Vec<Value>) -> Value {
    let name = format!("{name}{}", digit(family));
    let mut set = json!({ "family": "inet", "table": TABLE, "name": name, "type": address_type(family) });
    if let (true, Some(fields)) = (of_prefixes, set.as_object_mut()) {
        fields.insert("flags".into(), json!(["interval"]));
    }
    json!({ "set": with_elements(set, elements) })
}

/// nft refuses a list of no elements.
fn with_elements(mut object: Value, elements: Vec<Value>) -> Value {
    if let (false, Some(fields)) = (elements.is_empty(), object.as_object_mut()) {
        fields.insert("elem".into(), Value::Array(elements));
    }
    object
}

/// Prefixes of a family without overlaps and neighbours, which the kernel's sets refuse or merge.
fn elements(prefixes: &[IpNet], family: Family) -> Vec<Value> {
    let of_family: Vec<IpNet> = prefixes.iter().filter(|prefix| Family::of_net(prefix) == family).copied().collect();
    IpNet::aggregate(&of_family)
        .into_iter()
        .map(|prefix| match prefix.prefix_len() == prefix.max_prefix_len() {
            true => json!(prefix.addr()),
            false => json!({ "prefix": { "addr": prefix.network(), "len": prefix.prefix_len() } }),
        })
        .collect()
}

fn is(left: &Value, op: &str, right: &Value) -> Value {
    json!({ "match": { "op": op, "left": left, "right": right } })
}

fn in_set(family: Family, field: &str, op: &str, set: &str) -> Value {
    is(&payload(protocol(family), field), op, &json!(format!("@{set}{}", digit(family))))
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

fn ct(key: &str) -> Value {
    json!({ "ct": { "key": key } })
}

fn vmap(key: &Value, map: &str) -> Value {
    json!({ "vmap": { "key": key, "data": format!("@{map}") } })
}

fn protocol(family: Family) -> &'static str {
    if family == Family::V4 { "ip" } else { "ip6" }
}

fn address_type(family: Family) -> &'static str {
    if family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" }
}

fn digit(family: Family) -> char {
    if family == Family::V4 { '4' } else { '6' }
}

fn digest(objects: &[Value]) -> String {
    let mut hash = Sha256::new();
    for object in objects {
        hash.update(object.to_string().as_bytes());
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Counts what can be counted whatever words a release of nft has for it.
fn shape<'a>(objects: impl Iterator<Item = &'a Value>) -> BTreeMap<String, usize> {
    let mut shape = BTreeMap::new();
    for object in objects {
        if let Some(chain) = object["rule"]["chain"].as_str() {
            *shape.entry(format!("chain {chain}")).or_default() += 1;
        } else if let Some(chain) = object["chain"]["name"].as_str() {
            shape.entry(format!("chain {chain}")).or_default();
        }
        for kind in ["set", "map"] {
            if let Some(name) = object[kind]["name"].as_str() {
                let count = object[kind]["elem"].as_array().map_or(0, Vec::len);
                shape.insert(format!("set {name}"), count);
            }
        }
    }
    shape
}

/// Reads what `nft -j list table inet tidegate-node` prints.
pub fn read(listing: &Value) -> Loaded {
    let none = Vec::new();
    let objects = listing["nftables"].as_array().unwrap_or(&none);
    let mut loaded = Loaded { shape: shape(objects.iter()), ..Loaded::default() };
    let digest = loaded.shape.keys().find_map(|name| name.strip_prefix("chain ")?.strip_prefix(DIGEST_CHAIN));
    loaded.digest = digest.unwrap_or_default().to_owned();
    loaded.shape.retain(|name, _| !name.contains(DIGEST_CHAIN));
    let maps = objects.iter().map(|object| &object["map"]).filter(|map| map["name"] == GATEWAYS);
    for element in maps.flat_map(|map| map["elem"].as_array().unwrap_or(&none)) {
        let mac = element[0].as_str().and_then(|mac| mac.parse().ok());
        let target = element[1]["goto"]["target"].as_str().and_then(|target| target.strip_prefix(FROM_GATEWAY));
        if let (Some(mac), Some(number)) = (mac, target.and_then(|number| number.parse().ok())) {
            loaded.numbers.insert(mac, number);
        }
    }
    loaded
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn filter() -> Filter {
        Filter {
            marks: Marks::default(),
            devices: ["flannel.1".to_owned(), "flannel-v6.1".to_owned()].into(),
            cluster: vec!["10.244.0.0/16".parse().unwrap(), "10.244.3.0/24".parse().unwrap()],
            pods: ["10.244.1.11".parse().unwrap(), "fd00::11".parse().unwrap()].into(),
            captures: vec![Capture { pods: ["10.244.1.11".parse().unwrap()].into(), ..Capture::default() }],
            symmetric: vec!["10.244.1.0/24".parse().unwrap()],
            gateways: [(2, [Mac([10, 88, 10, 244, 9, 4])].into())].into(),
            held: Held { prefixes: vec!["10.244.1.0/24".parse().unwrap()], known: BTreeSet::new() },
        }
    }

    #[test]
    fn what_will_be_loaded_is_what_is_read_back() {
        let filter = filter();
        let commands = filter.commands();
        let added = commands["nftables"].as_array().unwrap().iter().filter_map(|command| command.get("add"));
        let listing = json!({ "nftables": added.collect::<Vec<_>>() });
        assert_eq!(read(&listing), filter.loaded());
        assert_eq!(read(&listing).numbers, [(Mac([10, 88, 10, 244, 9, 4]), 2)].into());
        // One prefix inside another is one element.
        assert_eq!(filter.loaded().shape["set cluster4"], 1);
    }

    #[test]
    fn any_difference_is_another_digest() {
        let mut other = filter();
        other.captures[0].except = vec!["192.0.2.1/32".parse().unwrap()];
        assert_ne!(other.loaded().digest, filter().loaded().digest);
        assert_eq!(read(&json!({})), Loaded::default());
    }
}
