//! What one gateway knows, for people.

use std::collections::BTreeMap;

use tidegate_api::show::{GatewayRow, Gateways};

use super::{Council, Nanos};
use crate::gateways::liveness::{Member, State};

impl Council {
    /// Everything that `tidegate show gateways` prints.
    pub fn show(&mut self, now_ns: Nanos) -> Gateways {
        self.look_at_dual(now_ns);
        Gateways {
            alone: self
                .settings
                .alone
                .clone()
                .or_else(|| (self.members.len() == 1).then(|| "no other Node is a gateway of this set".to_owned())),
            rows: self.members.iter().map(|member| self.row(member, now_ns)).collect(),
            key: self.key.clone(),
            counters: self.counters(),
        }
    }

    pub(super) fn row(&self, member: &Member, now_ns: Nanos) -> GatewayRow {
        let last = member.last.as_ref();
        let said = last.map(|last| &last.message);
        let state = match member.is_own {
            true if !self.has_settled => "listening",
            true if !self.is_ready() => State::NotReady.name(),
            true if self.draining => State::Draining.name(),
            true => State::Live.name(),
            false => member.state(now_ns, self.settings.dead_after_ns).name(),
        };
        // What one that is not heard any more said last is no news of what it does.
        let is_heard = member.is_own || (state != State::Lost.name() && said.is_some());
        let dual_owner_ns = if member.is_own { self.dual_owner_ns } else { member.dual_owner_ns };
        GatewayRow {
            node: member.name.clone(),
            is_own: member.is_own,
            state: state.to_owned(),
            addresses: member.addresses.clone(),
            heard_ms: last.map(|last| now_ns.saturating_sub(last.heard_ns) / 1_000_000),
            generation: if member.is_own { self.generation } else { said.map_or(0, |said| said.generation) },
            objects: format!("{:016x}", if member.is_own { self.objects } else { said.map_or(0, |said| said.objects) }),
            is_equal: said
                .filter(|_| is_heard)
                .map(|said| (said.objects, said.vips) == (self.objects, self.vips_digest)),
            announced: match said.filter(|_| is_heard) {
                _ if member.is_own => self.announced(),
                said => said.map_or(0, |said| said.announced),
            },
            dual_owner_ms: dual_owner_ns / 1_000_000,
            wrong_key: member.wrong_key.clone(),
        }
    }

    pub(super) fn counters(&self) -> BTreeMap<String, u64> {
        let counts = &self.counts;
        let list = [
            ("heartbeats_sent", counts.sent),
            ("heartbeats_heard", counts.heard),
            ("heartbeats_repeated", counts.repeated),
            ("refused_malformed", counts.malformed),
            ("refused_version", counts.version),
            ("refused_wrong_key", counts.wrong_key),
            ("refused_replayed", counts.replayed),
            ("refused_stranger", counts.stranger),
            ("refused_namesake", counts.namesake),
            ("vips_taken_over", counts.taken_over),
            ("vips_yielded", counts.yielded),
            ("vips_withheld", u64::from(self.withheld)),
            ("dual_owner_ms", self.dual_owner_ns / 1_000_000),
        ];
        list.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
    }
}
