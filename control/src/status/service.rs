//! Conditions of one Service, in the form Kubernetes gives conditions.
//!
//! Owns the words. The rule of when they may be said is the caller's: `Programmed` is true only after all workers have
//! reached a generation that contains the Service (C-001).

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::Name;
use crate::model::service::Service;
use crate::resolve::claim::Frontend;
use crate::resolve::note::{CLIENT_ADDRESS_KEPT, Note};
use crate::status::conflict::ADDRESSES_OURS;
use crate::status::delivery::Words;
use crate::status::suspect::NODES_ANSWER;

/// Type of the condition that says whether the dataplane does what the Service asks.
pub const PROGRAMMED: &str = "Programmed";

/// The status of one Service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// `namespace/name`.
    pub service: String,
    /// Object identity (S-005).
    pub uid: String,
    /// Addresses served, one entry each (C-007).
    pub load_balancer: LoadBalancer,
    /// Version of the resource that was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Conditions, sorted by type; all but `Programmed` are there only when something is to be told.
    pub conditions: Vec<Condition>,
}

/// The part that has the form of `status.loadBalancer`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LoadBalancer {
    /// Addresses that work now.
    pub ingress: Vec<Ingress>,
}

/// One address.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ingress {
    /// The address; `ipMode` stays unset, which means VIP (S-064).
    pub ip: IpAddr,
}

/// How far a Service has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All workers have it.
    Programmed,
    /// There is nothing to send; the notes say why.
    NothingToServe,
    /// The dataplane refused this version. `earlier`: an earlier version stays in force.
    Refused {
        /// Its reason.
        reason: String,
        /// Whether it goes on with an earlier version.
        earlier: bool,
    },
}

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    /// The good case.
    True,
    /// Not the good case.
    False,
    /// Nobody knows yet.
    Unknown,
}

/// What is to be told besides the progress.
#[derive(Debug)]
pub struct Findings<'a> {
    /// What resolving found.
    pub notes: &'a [Note],
    /// Frontends that another Service owns.
    pub lost: &'a [(Frontend, Name)],
    /// Why a newer version of the object is not used.
    pub invalid: Option<&'a str>,
    /// Whether clients' addresses are kept, of a Service that is to be delivered by `node-dsr`.
    pub delivery: Option<Words>,
    /// Strangers that answer for its addresses.
    pub conflict: Option<Words>,
    /// Nodes with its endpoints that do not answer.
    pub suspect: Option<Words>,
}

impl ServiceStatus {
    /// The status of `service`; `version` is that of the resource that was sent.
    pub fn new(service: &Service, version: Option<String>, progress: &Progress, findings: Findings<'_>) -> Self {
        let mut words = vec![programmed(progress, findings.lost)];
        words.extend(findings.notes.iter().map(|note| (note.kind, Holds::False, note.reason, note.message.clone())));
        words.extend(findings.delivery.map(|(holds, reason, message)| (CLIENT_ADDRESS_KEPT, holds, reason, message)));
        words.extend(findings.conflict.map(|(holds, reason, message)| (ADDRESSES_OURS, holds, reason, message)));
        words.extend(findings.suspect.map(|(holds, reason, message)| (NODES_ANSWER, holds, reason, message)));
        if !findings.lost.is_empty() {
            words.push((FRONTENDS_OWNED, Holds::False, CLAIMED_TWICE, claimed_twice(findings.lost)));
        }
        if let Some(reason) = findings.invalid {
            words.push(("Valid", Holds::False, "Invalid", format!("the last good version is used: {reason}")));
        }
        words.sort();
        words.dedup_by(|second, first| {
            let same = first.0 == second.0;
            if same {
                first.3 = format!("{}; {}", first.3, second.3);
            }
            same
        });
        let now = Timestamp::now();
        let conditions = words.into_iter().map(|(kind, holds, reason, message)| Condition {
            last_transition_time: Time(now),
            message,
            observed_generation: service.generation,
            reason: reason.into(),
            status: format!("{holds:?}"),
            type_: kind.into(),
        });
        let ingress = match progress {
            // An address of which every port is another's does not work for this Service.
            Progress::Programmed => {
                let served = |ip: &&IpAddr| {
                    let lost = findings.lost.iter().filter(|(frontend, _)| frontend.at == IpNet::from(**ip)).count();
                    lost < service.ports.len()
                };
                service.addresses.iter().filter(served).map(|ip| Ingress { ip: *ip }).collect()
            }
            _ => Vec::new(),
        };
        ServiceStatus {
            service: service.name.to_string(),
            uid: service.uid.clone(),
            load_balancer: LoadBalancer { ingress },
            version,
            conditions: conditions.collect(),
        }
    }

    /// Whether nothing is to be told but that all is as it was asked for.
    pub fn is_well(&self) -> bool {
        self.conditions.iter().all(|condition| condition.status == "True")
    }

    /// Takes over the times of conditions that have not changed since `before`, a status as written earlier.
    pub fn keep_times(&mut self, before: &[u8]) {
        let Ok(before) = serde_json::from_slice::<ServiceStatus>(before) else { return };
        for condition in &mut self.conditions {
            let same = |old: &&Condition| old.type_ == condition.type_ && old.status == condition.status;
            if let Some(old) = before.conditions.iter().find(same) {
                condition.last_transition_time = old.last_transition_time.clone();
            }
        }
    }
}

/// Type of the condition of a Service whose frontends are another's.
pub const FRONTENDS_OWNED: &str = "FrontendsOwned";
/// Its reason.
pub const CLAIMED_TWICE: &str = "ClaimedTwice";

/// Its message: whose each frontend is (S-067).
pub fn claimed_twice(lost: &[(Frontend, Name)]) -> String {
    let belongs = |(frontend, owner): &(Frontend, Name)| format!("{frontend} belongs to {owner}");
    let list: Vec<String> = lost.iter().map(belongs).collect();
    format!("older or first by name (S-067): {}", list.join("; "))
}

fn programmed(progress: &Progress, lost: &[(Frontend, Name)]) -> (&'static str, Holds, &'static str, String) {
    match progress {
        // What another Service has does not lead to this one, whatever workers forward by.
        Progress::Programmed if !lost.is_empty() => (
            PROGRAMMED,
            Holds::False,
            FRONTENDS_OWNED,
            "all workers forward by this version, but not where its frontends are another Service's; see FrontendsOwned"
                .into(),
        ),
        Progress::Programmed => (PROGRAMMED, Holds::True, "Programmed", "all workers forward by this version".into()),
        Progress::NothingToServe => (
            PROGRAMMED,
            Holds::False,
            "NothingToServe",
            "no address and port are left to serve; see the other conditions".into(),
        ),
        Progress::Refused { reason, earlier } => {
            let earlier = if *earlier { "; the version before it stays in force" } else { "" };
            (PROGRAMMED, Holds::False, "Refused", format!("the dataplane refused it: {reason}{earlier}"))
        }
    }
}
