//! Why an answer is what it is, in words.
//!
//! Reads the objects as the API describes them, policy by policy and rule by rule, and says of each why it did or did not
//! count. The verdict comes from the tables; this is the telling of it.

use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_api::resource::{Action, PolicyPort, PortMatch, Tier};
use tidegate_policy::{Decided, Direction, Verdict};

use super::Offline;
use super::question::{End, Meant, Question, Rests, has_ports};
use crate::model::pod::Pod;
use crate::model::policy::{Namespaces, Peer, Pods, Policy, PolicyKey, PolicyKind, Rule};

impl Offline {
    /// Says in words whether and why a connection may pass. `question.to` may also be a Service, as `namespace/name`,
    /// `service/namespace/name` or an address that it is reached at, with its port: then each pod behind it is told.
    ///
    /// # Errors
    /// Why there is nothing to say.
    pub fn explain(&self, question: &Question) -> Result<String, String> {
        if let Some((name, at)) = self.service_meant(question)? {
            return self.explain_service(name, at, question);
        }
        let meant = self.understand(question)?;
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = self.write(&mut text, question, &meant);
        Ok(text)
    }

    pub(super) fn write(&self, text: &mut String, question: &Question, meant: &Meant<'_>) -> std::fmt::Result {
        let [ingress, egress] = self.decide(meant);
        let allows = |rests: Rests| !matches!(rests, Rests::On(Verdict { allow: false, .. }));
        let combined = if allows(ingress) && allows(egress) { "ALLOWED" } else { "DENIED" };
        write!(text, "{} -> {} {}", who(&meant.from), who(&meant.to), question.protocol)?;
        match has_ports(meant.protocol) {
            true => writeln!(text, " port {}: {combined}", meant.port)?,
            false => writeln!(text, ": {combined}")?,
        }
        self.write_side(text, Direction::Egress, egress, meant)?;
        self.write_side(text, Direction::Ingress, ingress, meant)
    }

    fn write_side(&self, text: &mut String, direction: Direction, rests: Rests, meant: &Meant<'_>) -> std::fmt::Result {
        let (subject, title) = match direction {
            Direction::Ingress => (&meant.to, "ingress"),
            Direction::Egress => (&meant.from, "egress"),
        };
        let said = match rests {
            Rests::Same => "allowed: a pod always reaches itself by its own address",
            Rests::Node => "allowed: a pod is always reached from its own node",
            Rests::On(Verdict { allow: true, .. }) => "allowed",
            Rests::On(Verdict { allow: false, .. }) => "denied",
        };
        writeln!(text, "  {title} of {}: {said}", who(subject))?;
        if !matches!(rests, Rests::On(_)) {
            return Ok(());
        }
        let Some(pod) = subject.pod.filter(|pod| pod.owns_addresses()) else {
            let why = match subject.pod {
                Some(pod) if pod.host_network => "the pod has its node's addresses",
                Some(_) => "the pod has ended",
                None => "it is no pod",
            };
            return writeln!(text, "    no policy is about it: {why}");
        };
        self.write_policies(text, direction, pod, meant)?;
        let Some(by) = self.audit(direction, rests, meant) else { return Ok(()) };
        let (policy, rule) = match by {
            Decided::Default | Decided::Itself(_) => return Ok(()),
            Decided::Isolation(policy) => (policy, "its isolation".into()),
            Decided::Rule(policy, rule) => (policy, format!("its rule {rule}")),
        };
        let name = self.table().policy(policy).and_then(PolicyKey::of_resource).map(|key| key.to_string());
        writeln!(text, "    in force, {} would deny it by {rule}", name.unwrap_or_default())
    }

    /// Every policy about the pod in the order of evaluation, until one decides.
    fn write_policies(
        &self,
        text: &mut String,
        direction: Direction,
        pod: &Pod,
        meant: &Meant<'_>,
    ) -> std::fmt::Result {
        let about = |policy: &&Policy| self.selects(&policy.subjects, pod);
        let mut policies: Vec<&Policy> = self.model.policies().values().filter(about).collect();
        policies.sort_by_key(|policy| (policy.tier, policy.key.resource()));
        let isolating: Vec<&Policy> =
            policies.iter().filter(|policy| policy.isolates[direction as usize] && !policy.audit).copied().collect();
        let mut skipped = None;
        for policy in &policies {
            let (rules, tier) = (rules(policy, direction), tier_name(policy.tier));
            if policy.audit {
                writeln!(text, "    {} ({tier}) is in audit: it decides nothing", policy.key)?;
                continue;
            }
            if policy.tier == Tier::Namespace && !policy.isolates[direction as usize] {
                writeln!(text, "    {} says nothing about this direction", policy.key)?;
                continue;
            }
            if matches!(policy.tier, Tier::Baseline(_)) && !isolating.is_empty() {
                writeln!(text, "    {} ({tier}) is not asked: a NetworkPolicy isolates the pod", policy.key)?;
                continue;
            }
            if skipped == Some(tier) {
                writeln!(text, "    {} ({tier}) is not asked: a rule before it passed", policy.key)?;
                continue;
            }
            for (number, rule) in rules.iter().enumerate() {
                let label = if rule.name.is_empty() { String::new() } else { format!(" {:?}", rule.name) };
                let at = format!("    {} ({tier}) rule {number}{label}", policy.key);
                match (self.lacks(rule, direction, meant), rule.action, mistake(policy, direction, number)) {
                    (Some(why), _, Some(mistake)) => writeln!(text, "{at} does not match: {why}; {mistake}")?,
                    (Some(why), ..) => writeln!(text, "{at} does not match: {why}")?,
                    // Closed: as it is written it may do something else.
                    (None, Action::Deny, Some(mistake)) if rule.peers.is_none() => {
                        return writeln!(text, "{at} denies everything, since it cannot be read: {mistake}");
                    }
                    (None, Action::Accept, _) => return writeln!(text, "{at} matches and accepts"),
                    (None, Action::Deny, _) => return writeln!(text, "{at} matches and denies"),
                    (None, Action::Pass, _) => {
                        writeln!(text, "{at} matches and passes to the next tier")?;
                        skipped = Some(tier);
                        break;
                    }
                }
            }
            if rules.is_empty() {
                writeln!(text, "    {} ({tier}) has no rule for this direction", policy.key)?;
            }
        }
        match isolating.first() {
            Some(policy) if meant.is_itself() => {
                writeln!(text, "    the pod is isolated by {}, which keeps no pod from itself", policy.key)
            }
            Some(policy) => writeln!(text, "    the pod is isolated by {}, and nothing accepted", policy.key),
            None if policies.is_empty() => writeln!(text, "    no policy is about the pod: the default allows"),
            None => writeln!(text, "    nothing decided: the default allows"),
        }
    }

    /// Why a rule does not match; `None`: it does.
    fn lacks(&self, rule: &Rule, direction: Direction, meant: &Meant<'_>) -> Option<String> {
        let (peer, target) = match direction {
            Direction::Ingress => (&meant.from, meant.to.pod),
            Direction::Egress => (&meant.to, meant.to.pod),
        };
        if let Some(peers) = &rule.peers
            && !peers.iter().any(|it| self.is_peer(it, peer))
        {
            let listed: Vec<String> = peers.iter().map(|it| words(it, peer.address)).collect();
            let listed = if listed.is_empty() { "nobody".into() } else { listed.join("; ") };
            return Some(format!("{} is none of: {listed}", who(peer)));
        }
        let ports = rule.ports.as_ref()?;
        if ports.iter().any(|port| is_port(port, target.filter(|pod| pod.owns_addresses()), meant)) {
            return None;
        }
        let listed: Vec<String> = ports.iter().map(port_words).collect();
        Some(format!("its ports are {}", if listed.is_empty() { "none".into() } else { listed.join(", ") }))
    }

    fn is_peer(&self, peer: &Peer, end: &End<'_>) -> bool {
        match peer {
            Peer::Pods(pods) => end.pod.is_some_and(|pod| pod.owns_addresses() && self.selects(pods, pod)),
            Peer::Network(prefix, except) => {
                prefix.contains(&end.address) && !except.iter().any(|except| except.contains(&end.address))
            }
            Peer::Nodes(selector) => {
                let mut nodes = self.model.nodes().filter(|node| selector.matches(&node.label_values));
                nodes.any(|node| node.all_addresses.contains(&end.address))
            }
        }
    }

    /// Whether a selection holds a pod, by its labels.
    fn selects(&self, pods: &Pods, pod: &Pod) -> bool {
        let namespace = &pod.name.namespace;
        let in_namespace = match &pods.namespaces {
            Namespaces::One(name) => name == namespace,
            Namespaces::Matching(selector) => selector.matches(self.model.namespace(namespace).labels()),
        };
        in_namespace && pods.pods.matches(&pod.labels)
    }
}

/// What is wrong with a rule, by number: a complaint about it, or about what all rules stand in if it is closed.
fn mistake(policy: &Policy, direction: Direction, number: usize) -> Option<String> {
    let side = match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let rule = rules(policy, direction).get(number)?;
    let at = format!("spec.{side}[{number}]");
    let is_of_rule =
        |field: &str| field.strip_prefix(&at).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    let is_of_rules = |field: &str| !field.starts_with("spec.ingress[") && !field.starts_with("spec.egress[");
    let is_closed = match (rule.action, &rule.peers) {
        (Action::Accept, Some(peers)) => peers.is_empty(),
        (Action::Deny, peers) => policy.key.kind == PolicyKind::ClusterNetworkPolicy && peers.is_none(),
        _ => false,
    };
    let mut complaints = policy.complaints.iter();
    let own = complaints.clone().find(|(field, _)| is_of_rule(field));
    let found = own.or_else(|| complaints.find(|(field, _)| is_closed && is_of_rules(field)));
    found.map(|(field, message)| format!("{field}: {message}"))
}

fn rules(policy: &Policy, direction: Direction) -> &[Rule] {
    match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    }
}

fn who(end: &End<'_>) -> String {
    match end.pod {
        Some(pod) => format!("pod {}", pod.name),
        None => end.address.to_string(),
    }
}

fn is_port(port: &PolicyPort, target: Option<&Pod>, meant: &Meant<'_>) -> bool {
    if port.protocol.number() != meant.protocol {
        return false;
    }
    match &port.port {
        PortMatch::Range(first, last) => (*first..=*last).contains(&meant.port),
        PortMatch::Named(name) => target.is_some_and(|pod| {
            let here = pod.ports.iter().filter(|it| it.protocol == port.protocol && it.port == meant.port);
            here.into_iter().any(|it| it.name == *name)
        }),
    }
}

/// What a peer is that does not match `address`.
fn words(peer: &Peer, address: IpAddr) -> String {
    match peer {
        Peer::Pods(pods) => pods.to_string(),
        Peer::Network(prefix, except) => prefix_words(prefix, except, address),
        Peer::Nodes(selector) => format!("nodes ({selector})"),
    }
}

/// A prefix with its exceptions: the one that holds `address`, if that is why it does not match; else how many there
/// are.
pub(super) fn prefix_words(prefix: &IpNet, except: &[IpNet], address: IpAddr) -> String {
    // Of several the narrowest says best who was meant.
    let holding = except.iter().filter(|except| except.contains(&address)).max_by_key(|except| except.prefix_len());
    match (holding, except.len()) {
        (Some(holding), _) => format!("{prefix} (except: {holding}, which holds it)"),
        (None, 0) => prefix.to_string(),
        (None, 1) => format!("{prefix} but for 1 prefix"),
        (None, count) => format!("{prefix} but for {count} prefixes"),
    }
}

fn port_words(port: &PolicyPort) -> String {
    let protocol = port.protocol;
    match &port.port {
        all if *all == PortMatch::ALL => format!("all of {protocol}"),
        PortMatch::Range(first, last) if first == last => format!("{first}/{protocol}"),
        PortMatch::Range(first, last) => format!("{first} to {last}/{protocol}"),
        PortMatch::Named(name) => format!("{name:?}/{protocol}"),
    }
}

fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Admin(_) => "admin tier",
        Tier::Namespace => "namespace's tier",
        Tier::Baseline(_) => "baseline tier",
    }
}
