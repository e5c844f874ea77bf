//! Which addresses a Service gets besides those it has.
//!
//! Owns the order of wishes (M-002): addresses asked for, then the pool asked for, then pools that are for this Service,
//! then pools for all; and what families a Service must, should and may have (S-120). Changes nothing: what is chosen is
//! written into the ledger by the caller.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::ledger::Ledger;
use super::pools::{Namespaces, Pool, Pools};
use super::request::Request;
use super::{Reason, Refusal};
use crate::model::addresspool::{after, is_buggy};
use crate::model::service::FamilyPolicy;

/// Where the search for a free address goes on, by pool and "is IPv4". Everything before it is occupied.
#[derive(Debug, Default)]
pub(super) struct Cursors(HashMap<(Arc<str>, bool), Cursor>);

/// A place in the usable ranges of a pool.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    /// Index of the range; one beyond the last when all are full.
    range: usize,
    /// Where in it; absent: at its start.
    at: Option<IpAddr>,
}

/// What is chosen.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// Addresses besides those it has.
    pub(super) addresses: Vec<IpAddr>,
    /// Why an address that it should have besides these is not there.
    pub(super) lacks: Option<Refusal>,
}

/// All that a choice looks at.
pub(super) struct Chooser<'a> {
    pub(super) pools: &'a Pools,
    pub(super) namespaces: &'a Namespaces,
    pub(super) ledger: &'a Ledger,
    pub(super) cursors: &'a mut Cursors,
}

impl Cursors {
    /// Forgets all places: ranges have changed.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Forgets the place in one pool: something became free there.
    pub(super) fn rewind(&mut self, pool: &Pool, v4: bool) {
        self.0.remove(&(pool.name.clone(), v4));
    }
}

impl<'a> Chooser<'a> {
    /// What the Service that has `held` gets besides.
    ///
    /// # Errors
    /// When it cannot have what it must have; it may then keep nothing of what it has.
    pub(super) fn choose(&mut self, request: &Request, held: &[IpAddr]) -> Result<Choice, Refusal> {
        let pools = self.pools;
        if pools.is_empty() {
            return Err(refusal(Reason::NoPool, "there is no AddressPool in force"));
        }
        if request.family_policy == FamilyPolicy::RequireDualStack && request.families.len() < 2 {
            let message = "ipFamilyPolicy is RequireDualStack, but ipFamilies has one family";
            return Err(refusal(Reason::FamilyMismatch, message));
        }
        let asked = request.pool.as_deref().map(|name| self.asked(name, request)).transpose()?;
        if !request.addresses.is_empty() {
            return self.requested(request, held, asked);
        }
        let missing = request.families.iter().copied().filter(|v4| !held.iter().any(|ip| ip.is_ipv4() == *v4));
        let missing: Vec<bool> = missing.collect();
        if missing.is_empty() {
            return Ok(Choice::default());
        }
        let tiers = match asked {
            Some(pool) => vec![vec![pool]],
            None => pools.tiers(request, self.namespaces),
        };
        self.of_tiers(request, held, missing, tiers)
    }

    /// The pool asked for, if the Service may have it.
    fn asked(&self, name: &str, request: &Request) -> Result<&'a Pool, Refusal> {
        let pools = self.pools;
        let Some(pool) = pools.get(name) else {
            return Err(refusal(Reason::PoolUnknown, format!("there is no AddressPool {name} in force")));
        };
        if !pool.permits(request, self.namespaces) {
            let message = format!("AddressPool {name} is not for this Service (its serviceAllocation)");
            return Err(refusal(Reason::PoolNotPermitted, message));
        }
        Ok(pool)
    }

    /// The addresses asked for, all of them or none (M-004).
    fn requested(&self, request: &Request, held: &[IpAddr], asked: Option<&Pool>) -> Result<Choice, Refusal> {
        let has = |v4: bool| request.addresses.iter().any(|address| address.is_ipv4() == v4);
        if let Some(other) = request.addresses.iter().find(|address| !request.wants(address.is_ipv4())) {
            let message = format!("{other} is asked for, but its family is not in ipFamilies");
            return Err(refusal(Reason::FamilyMismatch, message));
        }
        if request.family_policy == FamilyPolicy::RequireDualStack && !(has(true) && has(false)) {
            let message = "ipFamilyPolicy is RequireDualStack, but addresses of one family are asked for";
            return Err(refusal(Reason::FamilyMismatch, message));
        }
        let mut addresses = Vec::new();
        for address in request.addresses.iter().copied().filter(|address| !held.contains(address)) {
            let Some(pool) = self.pools.of(address) else {
                let message = format!("{address} is asked for, but in no AddressPool in force");
                return Err(refusal(Reason::NotInPool, message));
            };
            if let Some(asked) = asked.filter(|asked| asked.name != pool.name) {
                let message = format!("{address} is asked for, but in AddressPool {}, not {}", pool.name, asked.name);
                return Err(refusal(Reason::OtherPool, message));
            }
            if !pool.permits(request, self.namespaces) {
                let message = format!("{address} is in AddressPool {}, which is not for this Service", pool.name);
                return Err(refusal(Reason::PoolNotPermitted, message));
            }
            if let Some(reserved) = self.pools.reserved(address) {
                return Err(refusal(Reason::Reserved, format!("{address} is {}", reserved.whose)));
            }
            if let Some(other) = self.ledger.foreign(address) {
                return Err(refusal(Reason::InUse, format!("{address} belongs to {other}, which is not served by us")));
            }
            self.ledger.may_hold(address, request).map_err(|message| refusal(Reason::InUse, message))?;
            addresses.push(address);
        }
        Ok(Choice { addresses, lacks: None })
    }

    /// One address of each missing family, tier by tier; within a tier rather from one pool than from two.
    fn of_tiers(
        &mut self,
        request: &Request,
        held: &[IpAddr],
        mut missing: Vec<bool>,
        mut tiers: Vec<Vec<&Pool>>,
    ) -> Result<Choice, Refusal> {
        let pools = self.pools;
        let familiar = |pool: &&Pool| held.iter().any(|ip| pools.of(*ip).is_some_and(|of| of.name == pool.name));
        let mut addresses = Vec::new();
        for tier in &mut tiers {
            tier.sort_by_key(|pool| !familiar(pool));
            if missing.len() > 1 {
                let both = tier.iter().find_map(|pool| {
                    missing.iter().map(|v4| self.of_pool(pool, *v4, request)).collect::<Option<Vec<IpAddr>>>()
                });
                if let Some(both) = both {
                    return Ok(Choice { addresses: both, lacks: None });
                }
            }
            missing.retain(|v4| {
                let found = tier.iter().find_map(|pool| self.of_pool(pool, *v4, request));
                addresses.extend(found);
                found.is_none()
            });
        }
        if missing.is_empty() {
            return Ok(Choice { addresses, lacks: None });
        }
        let lacks = nothing_left(&missing, &tiers);
        let must = request.family_policy == FamilyPolicy::RequireDualStack;
        match must || (addresses.is_empty() && held.is_empty()) {
            true => Err(lacks),
            false => Ok(Choice { addresses, lacks: Some(lacks) }),
        }
    }

    /// An address of one pool and family.
    fn of_pool(&mut self, pool: &Pool, v4: bool, request: &Request) -> Option<IpAddr> {
        let ledger = self.ledger;
        let shared = |all| {
            let joins = !request.sharing.is_empty();
            let usable = |address| pool.config.contains(address);
            joins.then(|| ledger.shareable(request, pool.usable(v4), all, usable)).flatten()
        };
        shared(false).or_else(|| self.lowest_free(pool, v4)).or_else(|| shared(true))
    }

    /// The first free address of a pool in the order of its ranges.
    fn lowest_free(&mut self, pool: &Pool, v4: bool) -> Option<IpAddr> {
        let cursor = self.cursors.0.entry((pool.name.clone(), v4)).or_default();
        while let Some(range) = pool.usable(v4).get(cursor.range) {
            let mut at = Some(cursor.at.unwrap_or(range.first()));
            while let Some(address) = at.filter(|address| range.contains(*address)) {
                at = match self.ledger.occupied_until(address) {
                    Some(end) => after(end),
                    None if pool.config.avoid_buggy && is_buggy(address) => after(address),
                    None => {
                        cursor.at = Some(address);
                        return Some(address);
                    }
                };
            }
            *cursor = Cursor { range: cursor.range + 1, at: None };
        }
        None
    }
}

/// Why there is no address of the `missing` families in the pools that were tried.
fn nothing_left(missing: &[bool], tiers: &[Vec<&Pool>]) -> Refusal {
    let tried: Vec<&&Pool> = tiers.iter().flatten().collect();
    if tried.is_empty() {
        let message = "no AddressPool gives addresses to this Service: all have autoAssign false, or are for others";
        return refusal(Reason::NoPoolPermits, message);
    }
    let of_family = |v4: &bool| {
        let pools = tried.iter().map(|pool| format!("{} ({})", pool.name, count(pool.size(*v4))));
        let pools: Vec<String> = pools.collect();
        format!("no {} address is free in AddressPool {}", if *v4 { "IPv4" } else { "IPv6" }, pools.join(", "))
    };
    let families: Vec<String> = missing.iter().map(of_family).collect();
    let message = families.join(", and ");
    refusal(Reason::Exhausted, message)
}

/// How many addresses a pool has, for people.
fn count(addresses: u128) -> String {
    match addresses {
        0 => "has none of that family".to_owned(),
        1 => "has 1".to_owned(),
        many => format!("has {many}"),
    }
}

fn refusal(reason: Reason, message: impl Into<String>) -> Refusal {
    Refusal { reason, message: message.into() }
}
