//! Rules with the names of sets and ports replaced by numbers.
//!
//! One value is one policy of the contract, ready to be read one rule after the other or to be laid out. The numbers are
//! the [`Compiler`](crate::Compiler)'s; whoever links takes a share in each name, and lets it go with [`Linked::let_go`].

use ipnet::IpNet;
use tidegate_api::resource::{Action, Policy, PolicyPeer, PolicyRule, PortMatch, Tier};

use crate::names::Names;
use crate::query::{Direction, PolicyId};

/// One policy with numbers for names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Linked {
    pub(crate) id: PolicyId,
    pub(crate) name: String,
    pub(crate) tier: Tier,
    /// Number of the set of its subjects.
    pub(crate) subjects: u32,
    /// It decides nothing.
    pub(crate) audit: bool,
    pub(crate) isolates: [bool; 2],
    /// By [`Direction`].
    pub(crate) rules: [Vec<Rule>; 2],
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) action: Action,
    /// `None`: everybody.
    pub(crate) peers: Option<Vec<Peer>>,
    /// `None`: every port of every protocol.
    pub(crate) ports: Option<Vec<Port>>,
}

/// One other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Set(u32),
    Network { prefix: IpNet, except: Vec<IpNet> },
}

/// Ports of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// Protocol number, first, last.
    Range(u8, u16, u16),
    /// Protocol number, number of the name.
    Named(u8, u32),
}

/// A port that has a name, at the pods of an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) protocol: u8,
    pub(crate) port: u16,
    /// Number of the name.
    pub(crate) name: u32,
}

/// Where a packet is going: what a rule's ports are compared with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) protocol: u8,
    pub(crate) port: u16,
    /// Named ports of the pod it goes to.
    pub(crate) named: &'a [Named],
}

impl Linked {
    /// The policy under its number, with a share in every name it uses.
    pub(crate) fn new(id: PolicyId, name: &str, policy: &Policy, sets: &mut Names, ports: &mut Names) -> Self {
        let mut link = |rules: &[PolicyRule]| rules.iter().map(|rule| link(rule, sets, ports)).collect();
        let rules = [link(&policy.ingress), link(&policy.egress)];
        Linked {
            id,
            name: name.to_owned(),
            tier: policy.tier,
            subjects: sets.take(&policy.subjects),
            audit: policy.audit,
            isolates: [policy.isolates_ingress, policy.isolates_egress],
            rules,
        }
    }

    /// Lets every name go; `on_set_free` hears of sets that nobody names any more.
    pub(crate) fn let_go(&self, sets: &mut Names, ports: &mut Names, mut on_set_free: impl FnMut(u32)) {
        for set in self.peer_sets().chain([self.subjects]) {
            if sets.let_go(set) {
                on_set_free(set);
            }
        }
        for rule in self.rules.iter().flatten() {
            for port in rule.ports.iter().flatten() {
                if let Port::Named(_, name) = port {
                    ports.let_go(*name);
                }
            }
        }
    }

    /// Sets that its rules name, as often as they do.
    pub(crate) fn peer_sets(&self) -> impl Iterator<Item = u32> {
        let peers = self.rules.iter().flatten().flat_map(|rule| rule.peers.iter().flatten());
        peers.filter_map(|peer| if let Peer::Set(set) = peer { Some(*set) } else { None })
    }

    pub(crate) fn rules(&self, direction: Direction) -> &[Rule] {
        &self.rules[direction as usize]
    }

    pub(crate) fn isolates(&self, direction: Direction) -> bool {
        self.tier == Tier::Namespace && self.isolates[direction as usize]
    }

    /// Whether it says anything about a direction. Rules of a policy of a namespace that does not isolate have no effect
    /// (P-002): its subjects are open, or somebody else's rules count.
    pub(crate) fn concerns(&self, direction: Direction) -> bool {
        match self.tier {
            Tier::Namespace => self.isolates(direction),
            Tier::Admin(_) | Tier::Baseline(_) => !self.rules(direction).is_empty(),
        }
    }
}

/// The place of a tier in the order of evaluation.
pub(crate) fn place(tier: Tier) -> usize {
    match tier {
        Tier::Admin(_) => 0,
        Tier::Namespace => 1,
        Tier::Baseline(_) => 2,
    }
}

fn link(rule: &PolicyRule, sets: &mut Names, ports: &mut Names) -> Rule {
    let mut peer = |peer: &PolicyPeer| match peer {
        PolicyPeer::Set(name) => Peer::Set(sets.take(name)),
        PolicyPeer::Network { prefix, except } => Peer::Network { prefix: *prefix, except: except.clone() },
    };
    let peers = rule.peers.as_ref().map(|peers| peers.iter().map(&mut peer).collect());
    let mut port = |port: &tidegate_api::resource::PolicyPort| match &port.port {
        PortMatch::Range(first, last) => Port::Range(port.protocol.number(), *first, *last),
        PortMatch::Named(name) => Port::Named(port.protocol.number(), ports.take(name)),
    };
    Rule { action: rule.action, peers, ports: rule.ports.as_ref().map(|ports| ports.iter().map(&mut port).collect()) }
}
