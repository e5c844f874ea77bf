//! Services as people speak of them: by name, or by an address that they are reached at.
//!
//! A gateway does not look at selectors, and who asks about a folder of manifests often has no EndpointSlices: then the
//! pods that a Service selects are behind it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::Offline;
use super::question::{Meant, Question, has_ports, protocol};
use crate::model::Name;
use crate::model::pod::Pod;
use crate::model::service::Service;

/// Where Services are reached.
#[derive(Default)]
pub(super) struct Addresses {
    /// VIPs, external and cluster addresses, each of those that share it.
    single: BTreeMap<IpAddr, Vec<Name>>,
    prefixes: Vec<(IpNet, Name)>,
}

impl Addresses {
    /// Takes in where one Service is reached, be it given out already or asked for.
    pub(super) fn insert(&mut self, service: &Service) {
        let asked = &service.address_request.addresses;
        for address in [&service.addresses, asked, &service.external_ips, &service.cluster_ips].into_iter().flatten() {
            let names = self.single.entry(*address).or_default();
            if !names.contains(&service.name) {
                names.push(service.name.clone());
            }
        }
        let prefixes = service.wishes.prefixes.iter().chain(&service.wishes.prefixes_unassigned);
        self.prefixes.extend(prefixes.map(|prefix| (*prefix, service.name.clone())));
    }

    /// The Services that are reached at an address.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = &Name> {
        let of_prefix = self.prefixes.iter().filter(move |(prefix, _)| prefix.contains(&address)).map(|(_, name)| name);
        self.single.get(&address).into_iter().flatten().chain(of_prefix)
    }
}

impl Offline {
    /// The Service that is meant by whom a question is to, and the address if one was given. Of several that share an
    /// address it is the one with the port.
    ///
    /// # Errors
    /// When the address is one of Services alone, and none of them has the port.
    pub(super) fn service_meant(&self, question: &Question) -> Result<Option<(&Name, Option<IpAddr>)>, String> {
        let to = question.to.trim();
        if let Ok(address) = to.parse::<IpAddr>().map(|address| address.to_canonical()) {
            let mut names = self.service_addresses.at(address).filter(|_| self.model.pods().at(address).is_none());
            let Some(first) = names.next() else { return Ok(None) };
            if !has_ports(protocol(&question.protocol)?) {
                return Err(format!(
                    "{address} is an address of Service {first}, which leads TCP, UDP and SCTP alone to pods"
                ));
            }
            let has_port = |name: &&Name| question.port.is_some_and(|port| self.entry(name, port, question).is_some());
            let meant = std::iter::once(first).chain(names).find(has_port).unwrap_or(first);
            return Ok(Some((meant, Some(address))));
        }
        let forced = to.strip_prefix("service/");
        let Some((namespace, name)) = forced.unwrap_or(to).split_once('/') else { return Ok(None) };
        let name = Name { namespace: namespace.into(), name: name.into() };
        let is_pod = forced.is_none() && self.model.pods().get(&name).is_some();
        Ok(self.services.get_key_value(&name).filter(|_| !is_pod).map(|(name, _)| (name, None)))
    }

    /// The entry of a Service's ports that a question is about.
    fn entry(&self, name: &Name, port: u32, question: &Question) -> Option<&Value> {
        let mut listed = self.services.get(name)?.get("ports")?.as_array()?.iter();
        listed.find(|entry| {
            let of = entry.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
            entry.get("port").and_then(Value::as_u64) == Some(port.into())
                && of.eq_ignore_ascii_case(question.protocol.trim())
        })
    }

    /// What GatewayPolicies say of a connection to a Service, and then what policies say of it to each pod behind.
    /// `at`: the address that it is reached at, whose family decides.
    ///
    /// # Errors
    /// Why there is nothing to say.
    pub(super) fn explain_service(
        &self,
        name: &Name,
        at: Option<IpAddr>,
        question: &Question,
    ) -> Result<String, String> {
        let port = question.port.ok_or("port is missing: that of the Service")?;
        let said = match at {
            Some(address) => format!("Service {name}, which {address} is an address of,"),
            None => format!("Service {name}"),
        };
        let entry =
            self.entry(name, port, question).ok_or(format!("{said} has no port {port}/{}", question.protocol))?;
        let mut text = match at {
            Some(address) => format!("Service {name} at {address} port {port}/{}:\n", question.protocol),
            None => format!("Service {name} port {port}/{}:\n", question.protocol),
        };
        // Before anything is translated: at the Service itself, by each address that the client may come with.
        let port = u16::try_from(port).map_err(|_| format!("{port} is not a port"))?;
        let gate = (protocol(&question.protocol)?, port);
        let fits = |address: &IpAddr| at.is_none_or(|at| at.is_ipv4() == address.is_ipv4());
        let all = self.addresses_of(&question.from)?;
        let clients: Vec<IpAddr> = all.iter().copied().filter(fits).collect();
        if let (Some(at), false, true) = (at, all.is_empty(), clients.is_empty()) {
            return Err(format!("{} has no address of the family of {at}", question.from));
        }
        let may_pass =
            clients.iter().map(|client| self.write_gate(&mut text, *client, name, gate)).fold(false, |a, b| a | b);
        if !may_pass && !clients.is_empty() {
            return Ok(text);
        }
        let mut ends = self.pods_behind(name, &self.services[name], entry);
        if let Some(at) = at {
            ends.retain_mut(|(end, _)| self.take_family(end, at.is_ipv4()));
        }
        if ends.is_empty() {
            text.push_str("  no pod is behind it\n");
        }
        // Those of another family than the client's have all the same to say.
        let mut unmet: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (end, port) in ends {
            let question = Question { to: end, port: Some(port.into()), ..question.clone() };
            match self.understand(&question) {
                Ok(meant) => {
                    let meant = Meant { through_service: true, ..meant };
                    // Writing into a String cannot fail.
                    let _ = self.write(&mut text, &question, &meant);
                }
                Err(error) => unmet.entry(error).or_default().push(format!("{} port {port}", question.to)),
            }
        }
        for (error, ends) in unmet {
            let more = match ends.len() - 1 {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let _ = writeln!(text, "{}{more}: {error}", ends[0]);
        }
        Ok(text)
    }

    /// Makes an end its address of one family; whether it has one.
    fn take_family(&self, end: &mut String, v4: bool) -> bool {
        let own = match end.parse::<IpAddr>() {
            Ok(address) => Some(address),
            Err(_) => {
                let pod = end.split_once('/').and_then(|(namespace, name)| {
                    self.model.pods().get(&Name { namespace: namespace.into(), name: name.into() })
                });
                pod.and_then(|pod| pod.addresses.iter().find(|address| address.is_ipv4() == v4)).copied()
            }
        };
        own.filter(|own| own.is_ipv4() == v4).map(|own| *end = own.to_string()).is_some()
    }

    /// Address or name, and port, of what is behind a port of a Service: its endpoints, or where manifests have none,
    /// the pods that it selects.
    fn pods_behind(&self, name: &Name, spec: &Value, entry: &Value) -> Vec<(String, u16)> {
        let port_name = entry.get("name").and_then(Value::as_str).unwrap_or_default();
        let mut ends: Vec<(String, u16)> = Vec::new();
        for slice in self.model.slices_of(name) {
            for port in slice.ports.iter().filter(|port| port.name == port_name) {
                let serving = slice.endpoints.iter().filter(|endpoint| endpoint.serving);
                ends.extend(serving.map(|endpoint| (endpoint.address.to_string(), port.port)));
            }
        }
        let selector = spec.get("selector").and_then(Value::as_object).filter(|selector| !selector.is_empty());
        if let (true, Some(selector)) = (ends.is_empty(), selector) {
            let number = |value: &Value| value.as_u64().and_then(|number| u16::try_from(number).ok());
            let selected = self.model.pods().iter().filter(|pod| pod.name.namespace == name.namespace);
            let has = |pod: &Pod| {
                selector.iter().all(|(key, value)| pod.labels.get(key).map(String::as_str) == value.as_str())
            };
            for pod in selected.filter(|pod| has(pod) && !pod.ended) {
                let target = entry.get("targetPort").or_else(|| entry.get("port")).unwrap_or(&Value::Null);
                let named = || pod.ports.iter().find(|port| Some(port.name.as_str()) == target.as_str());
                let port = number(target).or_else(|| named().map(|port| port.port));
                ends.extend(port.map(|port| (pod.name.to_string(), port)));
            }
        }
        ends.sort();
        ends.dedup();
        ends
    }
}
