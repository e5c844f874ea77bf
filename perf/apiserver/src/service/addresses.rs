//! Cluster addresses and node ports that are given out.
//!
//! Owns who holds which. Given in order, from the first free one on; freed with the Service. Refuses to know defaults.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::{family, has_cluster_ip, has_health_check, has_node_ports, headless, is, text, words};
use crate::object::{Key, section};
use crate::problem::Cause;

/// First and last port of the node port range.
const NODE_PORTS: (u16, u16) = (30000, 32767);

/// What Services hold.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    ips: HashMap<IpAddr, Key>,
    ports: HashMap<u16, Key>,
    held: HashMap<Key, (Vec<IpAddr>, Vec<u16>)>,
    ip_next: [u16; 2],
    port_next: u16,
}

impl Addresses {
    /// Takes back what the Service at `key` holds.
    pub fn free(&mut self, key: &Key) {
        let (ips, ports) = self.held.remove(key).unwrap_or_default();
        ips.iter().for_each(|ip| drop(self.ips.remove(ip)));
        ports.iter().for_each(|port| drop(self.ports.remove(port)));
    }

    /// Notes what the Service at `key` holds now, whoever wrote it.
    pub fn hold(&mut self, key: &Key, value: &Value) {
        self.free(key);
        let ips: Vec<IpAddr> = words(value, "/spec/clusterIPs").iter().filter_map(|ip| ip.parse().ok()).collect();
        let ports = value.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
        let numbers = ports.iter().filter_map(|port| port.get("nodePort"));
        let numbers = numbers.chain(value.pointer("/spec/healthCheckNodePort"));
        let ports: Vec<u16> = numbers.filter_map(|number| u16::try_from(number.as_u64()?).ok()).collect();
        ips.iter().for_each(|ip| drop(self.ips.insert(*ip, key.clone())));
        ports.iter().for_each(|port| drop(self.ports.insert(*port, key.clone())));
        self.held.insert(key.clone(), (ips, ports));
    }

    /// Gives the Service `value` at `key` what it lacks.
    ///
    /// # Errors
    /// What it asked for and cannot have.
    pub fn give(&mut self, key: &Key, value: &mut Value, old: Option<&Value>) -> Result<(), Cause> {
        let given = self.give_ips(key, value, old).and_then(|()| self.give_ports(key, value));
        match &given {
            Ok(()) => self.hold(key, value),
            Err(_) => self.ports.retain(|_, holder| !holder.name.is_empty()),
        }
        given
    }

    fn give_ips(&mut self, key: &Key, value: &mut Value, old: Option<&Value>) -> Result<(), Cause> {
        if !has_cluster_ip(value) {
            return Ok(());
        }
        let mut wanted = words(value, "/spec/clusterIPs");
        let first = text(value, "/spec/clusterIP").to_owned();
        if wanted.is_empty() && !first.is_empty() {
            wanted.push(first);
        }
        let families = families(value, &wanted, old)?;
        section(value, "spec").insert("ipFamilies".to_owned(), json!(families));
        if headless(value) || wanted.first().is_some_and(|ip| ip == "None") {
            section(value, "spec").insert("clusterIP".to_owned(), json!("None"));
            section(value, "spec").insert("clusterIPs".to_owned(), json!(["None"]));
            return Ok(());
        }
        let mut ips = Vec::new();
        for (index, family) in families.iter().enumerate() {
            let ip = match wanted.get(index) {
                Some(ip) => self.asked(key, ip, &wanted)?,
                None => self.next_ip(family == "IPv4"),
            };
            ips.push(ip.to_string());
        }
        let spec = section(value, "spec");
        spec.insert("clusterIP".to_owned(), json!(ips[0]));
        spec.insert("clusterIPs".to_owned(), json!(ips));
        Ok(())
    }

    fn asked(&self, key: &Key, ip: &str, all: &[String]) -> Result<IpAddr, Cause> {
        let refused =
            |why: String| Cause::invalid("spec.clusterIPs", &json!(all), &format!("failed to allocate IP {ip}: {why}"));
        let parsed: IpAddr =
            ip.parse().map_err(|_| Cause::invalid("spec.clusterIPs", &json!(all), "must be a valid IP address"))?;
        let ours = match parsed {
            IpAddr::V4(ip) => ip.octets()[..2] == [10, 96],
            IpAddr::V6(ip) => ip.segments()[..7] == [0xfd00, 0x10, 0x96, 0, 0, 0, 0],
        };
        if !ours {
            return Err(refused("the provided IP is not in the valid range. The ranges of valid IPs are 10.96.0.0/16 and fd00:10:96::/112".to_owned()));
        }
        if self.ips.get(&parsed).is_some_and(|holder| holder != key) {
            return Err(refused("provided IP is already allocated".to_owned()));
        }
        Ok(parsed)
    }

    fn next_ip(&mut self, v4: bool) -> IpAddr {
        let next = &mut self.ip_next[usize::from(!v4)];
        loop {
            *next = next.wrapping_add(1);
            let [high, low] = next.to_be_bytes();
            let ip = if v4 {
                IpAddr::V4(Ipv4Addr::new(10, 96, high, low))
            } else {
                IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, *next))
            };
            // All 65,536 taken: two Services share one, rather than a test that hangs.
            if low != 0 && !self.ips.contains_key(&ip) || self.ips.len() > 65_000 {
                return ip;
            }
        }
    }

    fn give_ports(&mut self, key: &Key, value: &mut Value) -> Result<(), Cause> {
        let allocate = value.pointer("/spec/allocateLoadBalancerNodePorts").and_then(Value::as_bool);
        let allocate = has_node_ports(value) && !(is(value, "LoadBalancer") && allocate == Some(false));
        let mut by_port: HashMap<u64, u64> = HashMap::new();
        let mut ports = value.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
        for (index, port) in ports.iter_mut().enumerate() {
            let asked = port.get("nodePort").and_then(Value::as_u64).unwrap_or(0);
            let number = port.get("port").and_then(Value::as_u64).unwrap_or(0);
            if asked != 0 {
                self.check_port(key, asked, &format!("spec.ports[{index}].nodePort"))?;
                by_port.insert(number, asked);
            } else if allocate {
                let given = match by_port.get(&number) {
                    Some(same) => *same,
                    None => u64::from(self.next_port()),
                };
                by_port.insert(number, given);
                port["nodePort"] = json!(given);
            }
        }
        if !ports.is_empty() {
            section(value, "spec").insert("ports".to_owned(), Value::Array(ports));
        }
        if has_health_check(value) {
            let asked = value.pointer("/spec/healthCheckNodePort").and_then(Value::as_u64).unwrap_or(0);
            if asked != 0 {
                self.check_port(key, asked, "spec.healthCheckNodePort")?;
            } else {
                let given = self.next_port();
                section(value, "spec").insert("healthCheckNodePort".to_owned(), json!(given));
            }
        }
        Ok(())
    }

    fn check_port(&self, key: &Key, asked: u64, field: &str) -> Result<(), Cause> {
        let number = u16::try_from(asked).unwrap_or(0);
        if !(NODE_PORTS.0..=NODE_PORTS.1).contains(&number) {
            let why = "provided port is not in the valid range. The range of valid ports is 30000-32767";
            return Err(Cause::invalid(field, &json!(asked), why));
        }
        if self.ports.get(&number).is_some_and(|holder| holder != key) {
            return Err(Cause::invalid(field, &json!(asked), "provided port is already allocated"));
        }
        Ok(())
    }

    fn next_port(&mut self) -> u16 {
        for _ in NODE_PORTS.0..=NODE_PORTS.1 {
            let number = NODE_PORTS.0 + self.port_next % (NODE_PORTS.1 - NODE_PORTS.0 + 1);
            self.port_next = self.port_next.wrapping_add(1) % (NODE_PORTS.1 - NODE_PORTS.0 + 1);
            if let Entry::Vacant(free) = self.ports.entry(number) {
                // Held until `hold` says what the Service really has: two ports of one Service must differ.
                free.insert(Key::new("", ""));
                return number;
            }
        }
        NODE_PORTS.0
    }
}

/// The families a Service ends up with, and its policy written down.
fn families(value: &mut Value, wanted: &[String], old: Option<&Value>) -> Result<Vec<String>, Cause> {
    let mut families = words(value, "/spec/ipFamilies");
    let given: Vec<IpAddr> = wanted.iter().filter_map(|ip| ip.parse().ok()).collect();
    for (index, ip) in given.iter().enumerate() {
        match families.get(index) {
            Some(said) if said != family(ip) => {
                let why = format!("expected an {said} value as indicated by `ipFamilies[{index}]`");
                return Err(Cause::invalid(&format!("spec.clusterIPs[{index}]"), &json!(wanted[index]), &why));
            }
            Some(_) => {}
            None => families.push(family(ip).to_owned()),
        }
    }
    let said = text(value, "/spec/ipFamilyPolicy").to_owned();
    let policy = match said.as_str() {
        "" if families.len() > 1 => "RequireDualStack",
        "" => "SingleStack",
        said => said,
    };
    if families.is_empty() {
        families.push("IPv4".to_owned());
    }
    if policy != "SingleStack" && families.len() == 1 {
        families.push(if families[0] == "IPv4" { "IPv6" } else { "IPv4" }.to_owned());
    }
    if policy == "SingleStack" && families.len() > 1 {
        let unchanged = old.is_some_and(|old| words(old, "/spec/ipFamilies") == families);
        if !unchanged {
            let why = "may only hold one value when `ipFamilyPolicy` is SingleStack";
            return Err(Cause::invalid("spec.ipFamilies", &json!(families), why));
        }
        families.truncate(1);
    }
    let policy = policy.to_owned();
    section(value, "spec").insert("ipFamilyPolicy".to_owned(), json!(policy));
    Ok(families)
}
