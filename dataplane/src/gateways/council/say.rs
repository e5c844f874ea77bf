//! What is said to the others, and when.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Council, GAP_NS, Nanos};
use crate::gateways::liveness::Member;
use crate::gateways::message::{Echo, MACS_MAX, Message, PREFIXES_MAX, Part};

impl Council {
    /// Whether a message is due.
    pub fn is_due(&self, now_ns: Nanos) -> bool {
        now_ns >= self.due_ns()
    }

    pub(super) fn due_ns(&self) -> Nanos {
        let after = if self.hurry { GAP_NS } else { self.settings.interval_ns };
        self.last_sent_ns.map_or(0, |sent| sent.saturating_add(after))
    }

    /// When to look again, if nothing comes before.
    pub fn next_ns(&self, now_ns: Nanos) -> Nanos {
        let dead_after_ns = self.settings.dead_after_ns;
        let expiries = self.members.iter().filter_map(|member| member.expires_ns(now_ns, dead_after_ns));
        let listening = self.listens_until_ns.filter(|until| *until > now_ns);
        expiries.chain(listening).fold(self.due_ns(), Nanos::min)
    }

    /// The next message to all others.
    pub fn message(&mut self, now_ns: Nanos) -> Message {
        self.sequence += 1;
        self.hurry = false;
        self.last_sent_ns = Some(now_ns);
        let low = low_half(self.sequence);
        let horizon_ns = now_ns.saturating_sub(2 * self.settings.dead_after_ns);
        self.sent.push_back((low, now_ns));
        while self.sent.front().is_some_and(|(_, at)| *at < horizon_ns) {
            self.sent.pop_front();
        }
        let links = &self.site.links;
        let mut prefixes: Vec<IpNet> = links.iter().flat_map(|link| &link.prefixes).map(IpNet::trunc).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        prefixes.truncate(PREFIXES_MAX);
        let echo = |member: &Member| {
            let said = &member.last.as_ref()?.message;
            Some(Echo { id: member.id, epoch: said.epoch, sequence: low_half(said.sequence) })
        };
        let mut message = Message {
            node: self.settings.node.clone(),
            epoch: self.settings.epoch,
            sequence: self.sequence,
            ready: self.is_ready(),
            draining: self.draining,
            generation: self.generation,
            objects: self.objects,
            vips: self.told_digest,
            announced: self.announced(),
            view_age_ms: u32::try_from(now_ns.saturating_sub(self.acted_since_ns) / 1_000_000).unwrap_or(u32::MAX),
            macs: links.iter().map(|link| link.mac).take(MACS_MAX).collect(),
            prefixes,
            view: self.acted.clone(),
            echoes: self.members.iter().filter_map(echo).collect(),
            part: None,
        };
        let differs = |member: &Member| member.vips().is_some_and(|vips| vips != self.told_digest);
        if self.members.iter().any(differs) {
            message.part = Some(self.next_part(message.room()));
        }
        message
    }

    /// The next hashes of the VIPs that the others are told of, round and round.
    pub(super) fn next_part(&mut self, room: usize) -> Part {
        let first = self.part_from;
        let untold: BTreeSet<u32> =
            self.untold.keys().filter_map(|prefix| self.vips.get(prefix)).map(|vip| vip.mark).collect();
        let told = |from: u32| self.marks.range(from..).map(|(mark, _)| *mark).filter(|mark| !untold.contains(mark));
        let hashes: Vec<u32> = told(first).take(room.max(1)).collect();
        let more = hashes.last().and_then(|last| told(last.checked_add(1)?).next().map(|_| *last));
        let last = more.unwrap_or(u32::MAX);
        self.part_from = last.checked_add(1).unwrap_or(0);
        Part { first, last, hashes }
    }
}

fn low_half(sequence: u64) -> u32 {
    u32::try_from(sequence & u64::from(u32::MAX)).unwrap_or_default()
}
