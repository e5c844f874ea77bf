//! What GatewayPolicies say of a client and a Service's port, in words.
//!
//! Reads the rules one after the other, as [`super::explain`] does for the other kinds. They are asked before these, with the
//! client's own address and the Service's own port.

use std::fmt::Write;
use std::net::IpAddr;

use tidegate_api::resource::{ClientRange, FrontPort, GatewayAction};

use super::Offline;
use super::explain::prefix_words;
use crate::model::Name;
use crate::model::gatewaypolicy::{GatewayPolicy, Rule};

impl Offline {
    /// Writes every rule that is asked about a client at a Service's port, until one decides. Whether it may pass.
    pub(super) fn write_gate(&self, text: &mut String, client: IpAddr, service: &Name, port: (u8, u16)) -> bool {
        let mut policies: Vec<&GatewayPolicy> = self.model.gateway_policies().collect();
        if policies.is_empty() {
            return true;
        }
        policies.sort_by_key(|policy| (policy.order, &policy.name));
        let mut told = String::new();
        let said = self.read_gate(&mut told, &policies, client, service, port);
        let words = match said {
            None => "allowed",
            Some(GatewayAction::Allow) => "allowed",
            Some(GatewayAction::Deny) => "denied, before any pod is chosen",
            Some(GatewayAction::Limit(_)) => "allowed within limits",
        };
        // Writing into a String cannot fail.
        let _ = writeln!(text, "  client {client}: {words}\n{told}");
        text.truncate(text.trim_end().len());
        text.push('\n');
        said != Some(GatewayAction::Deny)
    }

    fn read_gate(
        &self,
        told: &mut String,
        policies: &[&GatewayPolicy],
        client: IpAddr,
        service: &Name,
        port: (u8, u16),
    ) -> Option<GatewayAction> {
        let mut audited = false;
        for policy in policies {
            for (number, rule) in policy.rules.iter().enumerate() {
                let label = if rule.name.is_empty() { String::new() } else { format!(" {:?}", rule.name) };
                let at = format!("    GatewayPolicy {} (order {}) rule {number}{label}", policy.name, policy.order);
                let mistake = policy.mistakes.get(&number).map(|(field, message)| format!("{field}: {message}"));
                let does = match (&rule.action, self.gate_lacks(rule, client, service, port)) {
                    (_, Some(why)) => match mistake {
                        Some(mistake) => format!("does not match: {why}; {mistake}"),
                        None => format!("does not match: {why}"),
                    },
                    (_, None) if policy.audit && audited => {
                        "matches; it is in audit, and another one before it too".into()
                    }
                    (GatewayAction::Deny, None) if policy.audit => {
                        "matches; it is in audit, in force it would deny".into()
                    }
                    (_, None) if policy.audit => "matches; it is in audit and decides nothing".into(),
                    (GatewayAction::Allow, None) => "matches and allows".into(),
                    // Closed: as it is written it may do something else.
                    (GatewayAction::Deny, None) => match mistake {
                        Some(mistake) => format!("denies what it may mean, since it cannot be read: {mistake}"),
                        None => "matches and denies".into(),
                    },
                    (GatewayAction::Limit(limits), None) => {
                        let rate = limits
                            .rate_per_s
                            .map(|rate| format!("{rate} new connections a second, {} at once", limits.burst));
                        let open = limits.half_open_max.map(|most| format!("{most} unfinished handshakes"));
                        let listed: Vec<String> = rate.into_iter().chain(open).collect();
                        format!("matches and allows each source {}", listed.join(", "))
                    }
                };
                let matches = !does.starts_with("does not");
                let _ = writeln!(told, "{at} {does}");
                match (matches, policy.audit) {
                    (true, false) => return Some(rule.action),
                    (true, true) => audited = true,
                    (false, _) => {}
                }
            }
        }
        let _ = writeln!(told, "    no GatewayPolicy decides: the client may pass");
        None
    }

    /// Why a rule does not match; `None`: it does.
    fn gate_lacks(&self, rule: &Rule, client: IpAddr, service: &Name, (protocol, port): (u8, u16)) -> Option<String> {
        let is_client = |range: &ClientRange| {
            range.prefix.contains(&client) && !range.except.iter().any(|except| except.contains(&client))
        };
        if let Some(clients) = rule.clients.as_ref().filter(|clients| !clients.iter().any(is_client)) {
            // There may be thousands: what comes near is named.
            let near = clients.iter().filter(|range| range.prefix.contains(&client));
            let near: Vec<String> = near.map(|it| prefix_words(&it.prefix, &it.except, client)).collect();
            let near = if near.is_empty() { String::new() } else { format!(": not of {}", near.join("; ")) };
            return Some(format!("{client} is none of its clients{near}"));
        }
        let labels = self.service_labels.get(service);
        let is_meant = |choice: &crate::model::gatewaypolicy::Choice| match labels {
            Some(labels) => choice.selects_one(service, labels),
            None => choice.selects_one(service, &Default::default()),
        };
        if rule.services.as_ref().is_some_and(|services| !services.iter().any(is_meant)) {
            return Some(format!("it is not about Service {service}"));
        }
        let is_port = |of: &FrontPort| of.protocol.number() == protocol && (of.first..=of.last).contains(&port);
        match &rule.ports {
            Some(ports) if !ports.iter().any(is_port) => Some("it is about other ports".into()),
            _ => None,
        }
    }
}
