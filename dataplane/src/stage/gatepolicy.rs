//! # Gateway policy: may this client begin anything here?
//!
//! reads   `table::service`, `table::policy`; what sources have begun     writes  nothing; returns what decided
//! drops   `GatewayPolicyDenied`, `GatewayPolicyLimited`
//! cost    nothing while no gateway policy is about the Service; else one search among its clients' prefixes, and of a rule
//!         with limits the row of the source
//! spec    P-031, P-120; S-073, S-082
//! tests   `dataplane/tests/golden/gatepolicy.rs`
//!
//! Asked before anything is translated: the client's own address, the Service's own port. It stands after source ranges and
//! before endpoints are looked at, so that whoever may not come is not told whether anybody is there. Network policies are
//! asked besides.
//!
//! Limits are for what begins: the first segment of a connection, the first datagram of a flow. What goes on, and what is
//! passed to a node without a flow, is denied or not.

use crate::drops::DropReason;
use crate::family::Family;
use crate::stage::policy::{Blame, Denied};
use crate::state::ruling::Said;
use crate::state::sources::{Allowance, SourceKey, Standing};
use crate::state::{FlowId, State, Tuple};
use crate::table::gatepolicy::{Gate, GateAction, GateRule, NO_RULE, SourceLimits, source_of};
use crate::table::{ServiceId, Tables};
use crate::wire::protocol;

/// The rules that let a client pass, or would stop it. By numbers in the gate of `service`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    service: ServiceId,
    in_force: u32,
    /// The one in audit that would have decided instead.
    audited: u32,
}

/// Nobody was asked.
pub const UNASKED: Admitted = Admitted { service: ServiceId::NONE, in_force: NO_RULE, audited: NO_RULE };

impl Default for Admitted {
    fn default() -> Self {
        UNASKED
    }
}

/// Whether packets like `original` may come to the Service there now; if it `begins` a connection or flow, also whether its
/// source may begin another.
///
/// # Errors
/// Who denies it.
#[inline]
pub fn check<A: Family>(
    tables: &Tables,
    state: &State,
    original: &Tuple<A>,
    begins: bool,
    now_ns: u64,
) -> Result<Admitted, Denied> {
    if tables.services.any_gate() { judge(tables, state, original, begins, now_ns) } else { Ok(UNASKED) }
}

#[inline(never)]
fn judge<A: Family>(
    tables: &Tables,
    state: &State,
    original: &Tuple<A>,
    begins: bool,
    now_ns: u64,
) -> Result<Admitted, Denied> {
    let Some((service, gate)) = gate_at(tables, original) else { return Ok(UNASKED) };
    let admitted = standing(gate, service, &original.source.mapped(), port_of(tables, service, original))?;
    if !begins {
        return Ok(UNASKED);
    }
    if let Some((rule, limits)) = gate.rule(admitted.in_force).and_then(limited)
        && let (_, _, Standing::Spent) = look::<A>(state, original, rule, limits, now_ns)
    {
        return Err(Denied { reason: DropReason::GatewayPolicyLimited, by: Blame::Gate(rule.key) });
    }
    Ok(admitted)
}

/// Whether packets between the ends of `original` may go on: as [`check`] for what begins nothing.
///
/// # Errors
/// Who denies it.
#[inline]
pub fn check_again<A: Family>(tables: &Tables, original: &Tuple<A>) -> Result<(), Denied> {
    if tables.services.any_gate() { judge_again(tables, original) } else { Ok(()) }
}

/// What gateway policies say of the Service at the destination of `original`.
fn gate_at<'t, A: Family>(tables: &'t Tables, original: &Tuple<A>) -> Option<(ServiceId, &'t Gate)> {
    let served = original.destination.service(tables, original.protocol, original.destination_port)?;
    Some((served.service, tables.services.gate(served.service)?))
}

#[inline(never)]
fn judge_again<A: Family>(tables: &Tables, original: &Tuple<A>) -> Result<(), Denied> {
    let Some((service, gate)) = gate_at(tables, original) else { return Ok(()) };
    standing(gate, service, &original.source.mapped(), port_of(tables, service, original)).map(|_| ())
}

/// Whether whoever has this address (mapped form) may be answered an echo by a VIP.
///
/// # Errors
/// Who denies it.
pub fn check_echo(tables: &Tables, client: &[u8; 16]) -> Result<(), Denied> {
    let Some(gate) = &tables.policy.echo_gate else { return Ok(()) };
    standing(gate, ServiceId::NONE, client, 0).map(|_| ())
}

fn standing(gate: &Gate, service: ServiceId, client: &[u8; 16], port: u16) -> Result<Admitted, Denied> {
    let deciding = gate.ask(client, port);
    if let Some(GateRule { key, action: GateAction::Deny, .. }) = gate.rule(deciding.in_force) {
        return Err(Denied { reason: DropReason::GatewayPolicyDenied, by: Blame::Gate(*key) });
    }
    let audited = if deciding.of_all == deciding.in_force { NO_RULE } else { deciding.of_all };
    Ok(Admitted { service, in_force: deciding.in_force, audited })
}

/// The Service's own port, however it was reached; of one that is served at every port the one that was asked for.
fn port_of<A: Family>(tables: &Tables, service: ServiceId, original: &Tuple<A>) -> u16 {
    match tables.services.row(service) {
        Some(row) if row.port != 0 => row.port,
        _ => original.destination_port,
    }
}

/// What the rules that let a flow begin have to be charged with and are counted as, when it does: of each its key and
/// what it said, and whether there was no row for the source. The first is the one in force, the second in audit.
pub struct Charged {
    /// Keys and verdicts.
    pub verdicts: [Option<(u64, Said)>; 2],
    /// The source's place under the rule in force, if that limits handshakes.
    pub place: Option<u32>,
    /// A rule in force limits the source, and there is no room to know it.
    pub is_untold: bool,
}

/// Charges the source of a flow that begins.
#[cold]
pub fn charge<A: Family>(
    tables: &Tables,
    state: &mut State,
    original: &Tuple<A>,
    admitted: &Admitted,
    now_ns: u64,
) -> Charged {
    let mut charged = Charged { verdicts: [None; 2], place: None, is_untold: false };
    let Some(gate) = tables.services.gate(admitted.service) else { return charged };
    for (at, number) in [admitted.in_force, admitted.audited].into_iter().enumerate() {
        let Some(rule) = gate.rule(number) else { continue };
        let mut may = rule.action != GateAction::Deny;
        if let Some((rule, limits)) = limited(rule) {
            let (key, allowance, standing) = look::<A>(state, original, rule, limits, now_ns);
            may = standing != Standing::Spent;
            if let Standing::May(place) = standing {
                A::flows_mut(state).sources_mut().take(key, place, &allowance, now_ns);
                charged.place = charged.place.or((at == 0 && limits.half_open_max > 0).then_some(place));
            }
            charged.is_untold |= at == 0 && standing == Standing::Untold;
        }
        let said = match (may, at) {
            (true, _) => Said::Allowed,
            (false, 0) => Said::Denied,
            (false, _) => Said::WouldDeny,
        };
        charged.verdicts[at] = Some((rule.key, said));
    }
    charged
}

/// Counts the handshake of a flow that has begun for its source, where that is limited.
#[cold]
pub fn count_opening<A: Family>(state: &mut State, flow: FlowId, charged: &Charged) {
    if let Some(place) = charged.place {
        A::flows_mut(state).count_opening(flow, place);
    }
}

/// What the rule that let a client pass is counted under; `None`: no rule was asked, or none matched.
pub fn key_of(tables: &Tables, admitted: &Admitted) -> Option<u64> {
    tables.services.gate(admitted.service)?.rule(admitted.in_force).map(|rule| rule.key)
}

fn limited(rule: &GateRule) -> Option<(&GateRule, &SourceLimits)> {
    if let GateAction::Limit(limits) = &rule.action { Some((rule, limits)) } else { None }
}

fn look<A: Family>(
    state: &State,
    original: &Tuple<A>,
    rule: &GateRule,
    limits: &SourceLimits,
    now_ns: u64,
) -> (SourceKey, Allowance, Standing) {
    let sources = A::flows(state).sources();
    let key = sources.key(rule.key, &source_of(&original.source.mapped(), limits));
    let SourceLimits { interval_ns, burst, .. } = *limits;
    // Datagrams shake no hands.
    let half_open_max = if original.protocol == protocol::UDP { 0 } else { limits.half_open_max };
    let allowance = Allowance { interval_ns, burst, half_open_max };
    (key, allowance, sources.standing(key, &allowance, now_ns))
}
