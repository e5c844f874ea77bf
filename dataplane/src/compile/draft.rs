//! A draft: rows of Services that have been told and are not in force yet.
//!
//! Owns tables of its own, which nobody is shown, and the ids in them. A compiler that knows no Service takes them over as
//! they are when the update comes that brings those Services in force, and writes only what the draft lacks; any other
//! compiler drops it and writes all rows itself. So whatever becomes of the client, there is no way back to go. Refuses to
//! judge whether a Service may be in force, to write one twice, and to write one where another is reached: these are the
//! compiler's.
//!
//! Ids are given in the order of telling. They say nothing beyond one dataplane: gateways with the same Services may have
//! different ones.

use hashbrown::HashMap;
use tidegate_api::message::Update;
use tidegate_api::resource::{Body, Kind, Resource, ResourceKey};

use super::Compiler;
use super::forge::Forged;
use super::service::Services;
use crate::objects;
use crate::table::Tables;

/// Nothing of a draft was ever in force, so what leaves it has left long ago.
const NEVER: super::Nanos = 0;

/// Rows of Services, written ahead.
#[derive(Debug, Default)]
pub struct Draft {
    services: Services,
    tables: Tables,
    /// Services that were told, and whether their rows are here.
    told: HashMap<String, bool>,
}

/// Names of the Services whose rows a compiler has taken over.
#[derive(Debug, Default)]
pub(super) struct Adopted(HashMap<String, bool>);

/// An update with what was done for it ahead.
#[derive(Debug, Default)]
pub struct Told {
    /// The update.
    pub update: Update,
    /// Rings that it may need.
    pub forged: Forged,
    /// Rows of its Services.
    pub draft: Option<Draft>,
}

impl From<Update> for Told {
    fn from(update: Update) -> Told {
        Told { update, ..Told::default() }
    }
}

impl Draft {
    /// Writes the rows of a Service; nothing for any other object. It has been judged by itself
    /// ([`objects::validate::resource`]).
    pub fn write(&mut self, resource: &Resource) {
        let Body::Service(service) = &resource.body else { return };
        if self.told.contains_key(&resource.name) || !Services::has_room(service, &self.tables) {
            // Who of two may be at one place is judged when both are known.
            return self.strike(&resource.key());
        }
        self.services.write(&resource.name, Some(service), &mut self.tables, NEVER);
        self.told.insert(resource.name.clone(), true);
    }

    /// Takes the rows of the Service `key` out, for good: another Service of that name comes with the update, or none.
    /// Nothing for the key of any other object.
    pub fn strike(&mut self, key: &ResourceKey) {
        if key.kind == Kind::Service && self.told.insert(key.name.clone(), false) == Some(true) {
            self.services.write(&key.name, None, &mut self.tables, NEVER);
        }
    }

    /// How many Services have rows here.
    pub fn len(&self) -> usize {
        self.told.values().filter(|written| **written).count()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Adopted {
    /// Whether the rows of the Service `name` are written already; once.
    pub(super) fn take(&mut self, name: &str) -> bool {
        self.0.remove(name).unwrap_or(false)
    }

    /// Services that did not come in force after all.
    pub(super) fn rest(self) -> impl Iterator<Item = String> {
        self.0.into_iter().filter_map(|(name, written)| written.then_some(name))
    }
}

impl Compiler {
    /// Makes the rows of `draft` those of `tables`, if there are no others.
    pub(super) fn adopt(&mut self, draft: Option<Draft>, tables: &mut Tables) -> Adopted {
        let Some(draft) = draft.filter(|_| self.services.is_untouched()) else { return Adopted::default() };
        self.services.take_over(draft.services);
        (tables.services, tables.backends) = (draft.tables.services, draft.tables.backends);
        Adopted(draft.told)
    }

    /// Takes rows out again whose Services did not come in force.
    pub(super) fn disown(&mut self, adopted: Adopted, tables: &mut Tables, now: super::Nanos) {
        for name in adopted.rest() {
            if self.objects.get(&objects::key(Kind::Service, &name)).is_none() {
                self.services.write(&name, None, tables, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use tidegate_api::resource::{DeliveryMode, Protocol, ServicePort};

    use super::*;
    use crate::compile::Arrived;
    use crate::compile::tests::on_machine;
    use crate::objects::key;
    use crate::objects::tests::{backend, gateway, incremental, named, peer, service};
    use crate::objects::validate;

    const SECOND: u64 = 1_000_000_000;

    /// Service `name` of shape `shape`: other shapes have other places, endpoints and modes, and some want places that
    /// another name has, or may not be at all.
    fn shaped(name: u8, shape: u8) -> Resource {
        let at = |n: u8| [format!("192.0.2.{}", 10 + n), format!("2001:db8:1::{:x}", 10 + n)];
        let places = match shape % 4 {
            0 => at(name),
            1 => at(name / 2),
            2 => at(100 + shape),
            _ => at(0),
        };
        let endpoints: Vec<_> = (0..shape % 3)
            .flat_map(|n| [format!("10.244.1.{}", 5 + n + name), format!("fd00:10:244:1::{:x}", 5 + n + name)])
            .map(|address| backend(&address, 8080, 1 + u16::from(shape % 2)))
            .collect();
        let mut body = service(&places.each_ref().map(String::as_str), 80, &endpoints);
        body.uid = format!("uid-{name}-{}", shape / 6);
        body.created_at_s = i64::from(name);
        if shape % 5 == 4 {
            body.ports.push(ServicePort { protocol: Protocol::Udp, ..body.ports[0].clone() });
        }
        for port in &mut body.ports {
            port.mode = if shape % 7 == 3 { DeliveryMode::NodeDsr } else { port.mode };
            port.slow_start_s = if shape % 2 == 1 { 30 } else { 0 };
        }
        if shape == 11 {
            body.addresses = vec!["127.0.0.1".parse().unwrap()];
        }
        named(&format!("shop/{name}"), &shape.to_string(), body)
    }

    /// What workers see, whatever the ids: at each place the row, its endpoints, its rings and its nodes.
    fn seen(tables: &Tables) -> BTreeMap<String, String> {
        let row = |id| {
            let row = tables.services.row(id)?;
            let members = |set: &crate::table::service::EndpointSet| {
                let of = |id: &crate::table::BackendId| {
                    let row = tables.backends.row(*id).unwrap();
                    format!("{:?} {} {:?} {:?}", row.address, row.port, row.state, row.family)
                };
                let members: Vec<String> = set.members.iter().map(of).collect();
                format!("{members:?} {:?}", set.ring.as_ref().map(|ring| ring.digest()))
            };
            let terms = row.terms.as_ref().map(|terms| format!("{:?} {:?}", terms.weights, terms.scheduler));
            let nodes = tables.services.nodes(id).map(members);
            let of_row = (&row.name, row.mode, row.family, row.protocol, row.port, row.serving);
            Some(format!("{of_row:?} {} {terms:?} {nodes:?}", members(&row.cluster)))
        };
        let served = tables.services.frontends();
        let exact = served.iter().map(|(at, served)| (format!("{at:?} {:?}", served.kind), row(served.service)));
        exact.map(|(at, row)| (at, row.expect("a place leads to a row"))).collect()
    }

    /// How many rows there are, beside those places lead to.
    fn rows(tables: &Tables) -> usize {
        tables.services.rows().count()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// A dataplane that was told ahead, in any order, again, wrongly and of what never comes, is the same as one that
        /// was told at once; also after what happens next.
        #[test]
        fn rows_written_ahead_are_those_written_at_once(
            ahead in prop::collection::vec((0..6u8, 0..12u8), 0..14),
            with in prop::collection::vec((0..7u8, 0..12u8), 0..3),
            removed in prop::collection::btree_set(0..6u8, 0..2),
            next in prop::collection::vec((0..7u8, prop::option::of(0..12u8)), 0..8),
        ) {
            let with: BTreeMap<u8, u8> = with.into_iter().collect();
            let removed: BTreeSet<u8> = removed.into_iter().filter(|name| !with.contains_key(name)).collect();
            let mut draft = Draft::default();
            let mut wanted: BTreeMap<u8, Resource> = BTreeMap::new();
            for (name, shape) in ahead {
                let resource = shaped(name, shape);
                match validate::resource(&resource) {
                    Ok(()) => draft.write(&resource),
                    Err(_) => draft.strike(&resource.key()),
                }
                wanted.insert(name, resource);
            }
            for name in with.keys().chain(&removed) {
                draft.strike(&key(Kind::Service, &format!("shop/{name}")));
                wanted.remove(name);
            }
            wanted.extend(with.iter().map(|(name, shape)| (*name, shaped(*name, *shape))));
            let drafted = draft.len();
            prop_assert!(drafted <= wanted.len());
            let mut resources = vec![named("gw", "1", gateway()), named("w1", "1", peer(1))];
            resources.extend(wanted.into_values());
            let removed = removed.iter().map(|name| key(Kind::Service, &format!("shop/{name}"))).collect();
            let update = Update { removed, ..incremental(resources) };
            let (mut ahead, _) = on_machine();
            let (mut at_once, _) = on_machine();
            let mut turn = |told: Told, plain: Update, now: u64| {
                let left = ahead.turn(Arrived { updates: vec![told], ..Arrived::default() }, now);
                let right = at_once.turn(Arrived { updates: vec![plain.into()], ..Arrived::default() }, now);
                prop_assert_eq!(&left.accepted[0].rejected, &right.accepted[0].rejected);
                prop_assert_eq!(seen(ahead.tables()), seen(at_once.tables()));
                prop_assert_eq!(rows(ahead.tables()), rows(at_once.tables()));
                Ok(())
            };
            turn(Told { update: update.clone(), draft: Some(draft), ..Told::default() }, update, SECOND)?;
            for (second, (name, shape)) in (2..).zip(next) {
                let update = match shape {
                    Some(shape) => incremental(vec![shaped(name, shape)]),
                    None => Update { removed: vec![key(Kind::Service, &format!("shop/{name}"))], ..incremental(vec![]) },
                };
                turn(update.clone().into(), update, second * SECOND)?;
            }
        }
    }

    #[test]
    fn a_draft_is_taken_over_where_no_service_was_and_dropped_elsewhere() {
        let draft = |shape: u8| {
            let mut draft = Draft::default();
            (0..6).for_each(|name| draft.write(&shaped(name, shape)));
            draft
        };
        let told = |draft| Told { update: incremental(vec![shaped(0, 2)]), draft: Some(draft), ..Told::default() };
        let (mut compiler, _) = on_machine();
        assert_eq!((draft(2).len(), draft(3).len()), (1, 1), "all six are at one place");
        assert_eq!((draft(0).len(), draft(0).is_empty()), (6, false));
        let one = draft(2);
        let ring = |tables: &Tables| {
            let row = tables.services.rows().next().unwrap().1;
            std::sync::Arc::as_ptr(row.cluster.ring.as_ref().unwrap())
        };
        let before = ring(&one.tables);
        compiler.turn(Arrived { updates: vec![told(one)], ..Arrived::default() }, SECOND);
        assert_eq!(ring(compiler.tables()), before, "its rows are those that were written ahead");
        let seen_before = seen(compiler.tables());
        compiler.turn(Arrived { updates: vec![told(draft(0))], ..Arrived::default() }, SECOND);
        assert_eq!(seen(compiler.tables()), seen_before, "nothing of a draft that comes too late");
    }
}
