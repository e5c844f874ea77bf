//! # Standing: does a pod's flow still stand?
//!
//! reads   `table::egress`, `pod`, `policy`, two epochs     writes  nothing, or the epoch of an entry that was judged
//! drops   none; says what becomes of the flow
//! cost    cold: once for each change that a flow depends on
//! spec    N-101, P-031, T-090     tests   `dataplane/tests/golden/egress.rs`
//!
//! A flow of a pod stands as long as its pod, its policy and its address say what they said when it began. Its next packet
//! asks, or the sweep does.

use tidegate_api::resource::MappingClass;

use crate::family::Family;
use crate::pipeline::Refresh;
use crate::stage::flow::Standing;
use crate::stage::{egress, policy, portless};
use crate::state::{Direction, Entry, IsVoid, Tuple, mark};
use crate::table::egress::PortClass;
use crate::table::pod::NO_SERVICE;
use crate::table::{BackendId, Tables};

/// Whether the flow of `entry` depends on a pod rather than a Service.
#[cold]
pub fn is_pods<A: Family>(tables: &Tables, entry: &Entry<A>) -> bool {
    entry.is_egress() || tables.backends.row(BackendId(entry.backend)).is_some_and(|row| row.service == NO_SERVICE)
}

/// Whether policies and addresses still say what they said when the flow of `entry` began.
fn stands<A: Family>(tables: &Tables, entry: &Entry<A>) -> bool {
    let (original, translated) = (entry.original_tuple(), entry.translated_tuple());
    if !entry.is_egress() {
        return still_leads_in(tables, entry.backend, &original, &translated);
    }
    let Some(pod) = original.source.pod(tables).filter(|pod| pod.backend.0 == entry.backend) else { return false };
    if let Some(own) = tables.egress.whole_of(&original.source.mapped()) {
        return own == translated.source.mapped();
    }
    let row = egress::deciding(tables, pod, original.destination).and_then(|(_, row)| row);
    let Some(row) = row else { return false };
    let Some(class) = PortClass::of(original.protocol) else {
        return portless::is_bare(original.protocol)
            && row.other_protocols
            && A::external_of(row).contains(&translated.source);
    };
    let is_mapped = row.mapping(class).class == MappingClass::EndpointIndependent;
    let as_it_was = is_mapped == (entry.mark & mark::MAPPED != 0);
    as_it_was && A::external_of(row).contains(&translated.source)
}

/// The same of a flow that somebody outside began: its port is still the pod's, or mappings may still let him in.
fn still_leads_in<A: Family>(tables: &Tables, backend: u32, original: &Tuple<A>, translated: &Tuple<A>) -> bool {
    let row = original.destination.external(tables).and_then(|id| tables.egress.external(id));
    let pod = translated.destination.pod(tables).filter(|pod| pod.backend.0 == backend);
    let Some((row, pod)) = row.zip(pod) else { return false };
    let to = (translated.destination.mapped(), translated.destination_port);
    let forwarded = row.forwards.get(&(original.protocol, original.destination_port)).copied();
    if let Some(at) = forwarded.or_else(|| row.whole.map(|pod| (pod, original.destination_port))) {
        return at == to;
    }
    let policy = egress::deciding(tables, pod, original.source).and_then(|(_, row)| row);
    policy.is_some_and(|row| {
        let is_mapped = row.mapping(PortClass::Tcp).class == MappingClass::EndpointIndependent;
        is_mapped && A::external_of(row).contains(&original.destination)
    })
}

/// Whether the flow of a pod goes on after something it depends on has changed, and where it leaves then (N-101).
pub fn revalidate<A: Family>(tables: &Tables, entry: &Entry<A>, direction: Direction, hash: u64) -> Standing {
    if !stands(tables, entry) {
        return Standing::End;
    }
    let (original, translated) = (entry.original_tuple(), entry.translated_tuple());
    if let Err(denied) = policy::check_again(tables, &original, (translated.destination, translated.destination_port)) {
        return Standing::Deny(denied);
    }
    let (forward, reply) = if entry.is_egress() {
        (egress::way(tables, original.destination, hash), egress::toward_pod(tables, original.source, hash))
    } else {
        (egress::toward_pod(tables, translated.destination, hash), egress::way(tables, original.source, hash))
    };
    let needed = match direction {
        Direction::Original => forward,
        Direction::Reply => reply,
    };
    if let Err(reason) = needed {
        return Standing::Refuse(reason);
    }
    Standing::Keep(Refresh {
        backend_epoch: tables.backends.epoch(BackendId(entry.backend)),
        routes_epoch: tables.settings.routes_epoch,
        forward: forward.ok(),
        reply: reply.ok(),
    })
}

fn is_allowed<A: Family>(tables: &Tables, entry: &Entry<A>) -> bool {
    let translated = entry.translated_tuple();
    policy::check_again(tables, &entry.original_tuple(), (translated.destination, translated.destination_port)).is_ok()
}

/// Judges, for the sweep, flows whose pod or policy has changed since they were looked at (N-101).
#[derive(Clone, Copy, Debug)]
pub struct Judge<'t>(pub &'t Tables);

impl Judge<'_> {
    #[inline]
    fn is_void<A: Family>(self, entry: &mut Entry<A>) -> bool {
        let epoch = self.0.backends.epoch(BackendId(entry.backend));
        if entry.backend_epoch == epoch {
            return false;
        }
        let stands = stands(self.0, entry);
        // One that network policies stop now is left as it is: its next packet has to ask them (P-031).
        if stands && is_allowed(self.0, entry) {
            entry.backend_epoch = epoch;
        }
        !stands
    }
}

impl IsVoid for Judge<'_> {
    fn v4(&self, entry: &mut Entry<[u8; 4]>) -> bool {
        self.is_void(entry)
    }

    fn v6(&self, entry: &mut Entry<[u8; 16]>) -> bool {
        self.is_void(entry)
    }
}
