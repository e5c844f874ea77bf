//! VIPs that another gateway announces as we do: for how long, and whether now.

use super::{Council, Nanos};
use crate::gateways::liveness::Member;

impl Council {
    /// Counts the time since the last look for members that announced what we did, and looks who does now. Gateways of equal
    /// views do not; that is all there is to look at on nearly every day.
    pub(super) fn look_at_dual(&mut self, now_ns: Nanos) {
        let passed_ns = now_ns.saturating_sub(self.dual_looked_ns);
        self.dual_looked_ns = now_ns;
        let any = self.members.iter().any(|member| member.is_dual);
        self.dual_owner_ns += if any { passed_ns } else { 0 };
        let now: Vec<bool> = self.members.iter().map(|member| self.is_dual(member, now_ns)).collect();
        for (member, now) in self.members.iter_mut().zip(now) {
            member.dual_owner_ns += if member.is_dual { passed_ns } else { 0 };
            member.is_dual = now;
        }
    }

    pub(super) fn is_dual(&self, member: &Member, now_ns: Nanos) -> bool {
        let alive = !member.is_own && member.state(now_ns, self.settings.dead_after_ns).is_alive();
        alive && self.overlaps(member)
    }

    /// Whether a member says that it announces what we do. With a view equal to ours it does not.
    pub(super) fn overlaps(&self, member: &Member) -> bool {
        let view = member.last.as_ref().map(|last| &last.message.view);
        if view.is_none_or(|view| *view == self.acted || view.is_empty()) {
            return false;
        }
        let mut announced = self.vips.iter().filter(|(_, vip)| vip.announced);
        announced.any(|(prefix, vip)| self.reaches(member, prefix) && self.is_announced_by(member, prefix, vip))
    }

    /// A member that did not live is heard again. Until then both may have announced: since the younger view of the two. That
    /// is counted once it lives; until it has heard us too, what it says is only noted.
    pub(super) fn count_unheard_dual(&mut self, number: usize, is_alive: bool, now_ns: Nanos) {
        let Some(member) = self.members.get(number) else { return };
        let theirs_ms = member.last.as_ref().map_or(0, |last| last.message.view_age_ms);
        let ours_ns = now_ns.saturating_sub(self.acted_since_ns);
        let both_ns = if self.overlaps(member) { ours_ns.min(u64::from(theirs_ms) * 1_000_000) } else { 0 };
        let Some(member) = self.members.get_mut(number) else { return };
        if is_alive {
            let both_ns = both_ns.max(std::mem::take(&mut member.unproven_dual_ns));
            member.dual_owner_ns += both_ns;
            self.dual_owner_ns += both_ns;
        } else {
            member.unproven_dual_ns = both_ns;
        }
    }
}
