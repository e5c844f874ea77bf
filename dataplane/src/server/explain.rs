//! What would become of a packet: the question is put to the worker that owns it, and names that only objects have are put in.

use std::net::IpAddr;
use std::sync::Arc;

use tidegate_api::explain::{Explanation, Question, Step};
use tidegate_api::resource::{Backend, Body, Kind, Resource, StaticNat};

use super::query::{QueryError, WorkerQuery};
use crate::compile::thread::{Handle, View};
use crate::explain::{self, envelope};
use crate::table::policy::gate_ruling_key;

/// What a packet lacks to get through.
mod lacks;
/// What the kernel has: packets that never come to a worker, and addresses of ours.
mod taken;

/// The answer to `question`.
///
/// # Errors
/// Why there is none, for people.
pub fn answer(question: &Question, compiler: &Handle, workers: &dyn WorkerQuery) -> Result<Explanation, String> {
    let view = compiler.view(Some(Kind::Service)).map_err(|error| error.to_string())?;
    let (device, frame) = match envelope::frame(&view.tables, question) {
        Ok(found) => found,
        Err(none) => return Err(lacks::without_frame(&view, compiler, none)?),
    };
    if let Some(explanation) = taken::by_kernel(&view, compiler, device, &frame)? {
        return Ok(explanation);
    }
    let told = explain::whole(0, device, &frame, |worker, asked| workers.explain(worker, asked));
    let mut explanation = told
        .map_err(|error: QueryError| error.to_string())?
        .ok_or("workers do not agree whose packet it is: tables are changing, ask again")?;
    name(&view, &mut explanation);
    name_gates(compiler, &mut explanation)?;
    name_static_nat(compiler, &mut explanation)?;
    name_egress(compiler, &mut explanation)?;
    // A packet that was taken back lacks what it lacks in its second half.
    let is_back = |step: &Step| *step == Step::TakenBack;
    let second = explanation.steps.iter().rposition(is_back).unwrap_or(0);
    let first: Vec<Step> = explanation.steps.drain(..second).collect();
    lacks::tell(&view, compiler, workers, &mut explanation)?;
    explanation.steps.splice(0..0, first);
    Ok(explanation)
}

/// So have gateway policies: by what their rules are counted under.
fn name_gates(compiler: &Handle, explanation: &mut Explanation) -> Result<(), String> {
    if !explanation.steps.iter().any(|step| matches!(step, Step::Policy { key, .. } if *key != 0)) {
        return Ok(());
    }
    let view = compiler.view(Some(Kind::GatewayPolicy)).map_err(|error| error.to_string())?;
    for step in &mut explanation.steps {
        let Step::Policy { policy, key, rule, .. } = step else { continue };
        for resource in &view.objects {
            let Body::GatewayPolicy(body) = &resource.body else { continue };
            let numbers = 0..u16::try_from(body.rules.len()).unwrap_or(u16::MAX);
            if let Some(number) = numbers.into_iter().find(|number| gate_ruling_key(&resource.name, *number) == *key) {
                (*policy, *rule) = (format!("GatewayPolicy/{}", resource.name), Some(number));
            }
        }
    }
    Ok(())
}

/// And static NAT: by its address and what it leads to.
fn name_static_nat(compiler: &Handle, explanation: &mut Explanation) -> Result<(), String> {
    let is_static = |step: &Step| matches!(step, Step::Binding { sort, .. } if is_by_static_nat(sort));
    if !explanation.steps.iter().any(is_static) {
        return Ok(());
    }
    let view = compiler.view(Some(Kind::StaticNat)).map_err(|error| error.to_string())?;
    for step in explanation.steps.iter_mut().filter(|step| is_static(step)) {
        let Step::Binding { static_nat, internal, external, .. } = step else { continue };
        let leads_there = |nat: &StaticNat| {
            let has_port =
                nat.ports.iter().any(|port| (port.external, port.internal) == (external.port(), internal.port()));
            (nat.external, nat.internal) == (external.ip(), internal.ip()) && (nat.ports.is_empty() || has_port)
        };
        let mut those =
            view.objects.iter().filter(|resource| matches!(&resource.body, Body::StaticNat(nat) if leads_there(nat)));
        static_nat.extend(those.next().map(|resource| resource.name.as_str()));
    }
    Ok(())
}

/// And an EgressPolicy that selects a pod and is not in force: its pod names it.
fn name_egress(compiler: &Handle, explanation: &mut Explanation) -> Result<(), String> {
    let is_unnamed = |step: &Step| matches!(step, Step::Egress { policy: Some(name), .. } if name.is_empty());
    if !explanation.steps.iter().any(is_unnamed) {
        return Ok(());
    }
    let view = compiler.view(Some(Kind::Pod)).map_err(|error| error.to_string())?;
    for step in &mut explanation.steps {
        let Step::Egress { pod, policies, policy: Some(policy), .. } = step else { continue };
        if policy.is_empty() {
            policy.extend(not_in_force(&view.objects, *pod, policies));
        }
    }
    Ok(())
}

/// The first EgressPolicy that selects the pod of an address and is not among those in force.
fn not_in_force<'a>(objects: &'a [Arc<Resource>], pod: IpAddr, in_force: &[String]) -> Option<&'a str> {
    let its = objects.iter().find_map(|resource| match &resource.body {
        Body::Pod(body) if body.addresses.contains(&pod) => Some(body),
        _ => None,
    })?;
    its.egress.iter().find(|name| !in_force.contains(name)).map(String::as_str)
}

fn is_by_static_nat(sort: &str) -> bool {
    matches!(sort, "one-to-one" | "forwarded-port")
}

/// Pods and nodes have names among objects alone.
fn name(view: &View, explanation: &mut Explanation) {
    for step in &mut explanation.steps {
        let Step::Backend { address, port, node, pod } = step else { continue };
        let services = view.objects.iter().filter_map(|resource| match &resource.body {
            Body::Service(service) => Some(service),
            _ => None,
        });
        let backends = services.flat_map(|service| &service.ports).flat_map(|port| &port.backends);
        // A backend without a port has every one.
        let has_it = |backend: &&Backend| *port == 0 || [0, *port].contains(&backend.port);
        let mut same = backends.filter(|backend| backend.address == *address && has_it(backend));
        if let Some(backend) = same.next() {
            (*node, *pod) = (backend.node.clone(), backend.pod.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_is_not_in_force_has_the_name_that_its_pod_has() {
        let addresses = ["10.244.1.5", "fd00:10:244:1::5"];
        let pod = serde_json::json!({ "addresses": addresses, "node": "w1", "identity": 0, "egress": ["good", "bad"] });
        let body = serde_json::from_value(serde_json::json!({ "pod": pod })).unwrap();
        let objects = [Arc::new(Resource { name: "shop/a".into(), version: "1".into(), body })];
        for address in addresses {
            let says = |address: &str, known: &[String]| not_in_force(&objects, address.parse().unwrap(), known);
            assert_eq!(says(address, &["good".into()]), Some("bad"));
            assert_eq!(says(address, &["good".into(), "bad".into()]), None);
            assert_eq!(says("192.0.2.1", &[]), None);
        }
    }
}
