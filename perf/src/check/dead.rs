//! The check of a worker that dies without a word: nothing tells the gateway, it has to notice.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tidegate_api::message::WayState;
use tidegate_api::show::{Show, Shown};

use crate::check::nodes::{PROVEN_LIMIT, await_nodes, forget, keep, nodes_of, tell};
use crate::check::{Found, Row};
use crate::process::{self, in_namespace};
use crate::rig::{Rig, wait_until};
use crate::topology::{FABRIC, FAMILIES, VIP_KEEP, VIP_WEB, WEB_PORT};

/// The worker that dies, and its pods.
const WORKER: &str = "w2";
const PODS: [&str; 2] = ["p3", "p4"];
/// A period of two seconds and two silences of one (S-114), and the machine's own slack.
const NOTICED_WITHIN: Duration = Duration::from_secs(6);
/// How long is waited for it before the check gives up.
const NOTICE_LIMIT: Duration = Duration::from_secs(20);
/// How long nodes may take to answer at first: none is suspected that never did.
const FELT_LIMIT: Duration = Duration::from_secs(3);
/// New connections meanwhile, per family and Service.
const CONNECTIONS: u32 = 300;

/// Cuts the worker off, or plugs it in again: its own end only sees the carrier go.
fn plug(up: bool) -> Result<()> {
    let mut ip = in_namespace(FABRIC, "ip");
    ip.args(["link", "set", WORKER, if up { "up" } else { "down" }]);
    process::run(ip, "", Duration::from_secs(5))?.success("plugging a worker")?;
    Ok(())
}

/// Families in which endpoints of `shop/web` on the worker are suspected, and the states of all its other endpoints.
fn suspected(rig: &Rig) -> Result<(BTreeSet<bool>, BTreeSet<String>)> {
    let rows = rig.backends("shop/web")?;
    let (there, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.node == WORKER);
    let there = there.into_iter().filter(|row| row.state == "suspected");
    Ok((there.map(|row| row.address.is_ipv4()).collect(), others.into_iter().map(|row| row.state).collect()))
}

/// Whether `shop/keep` has the worker among its nodes that are suspected, in both families.
fn node_suspected(rig: &Rig) -> Result<bool> {
    let Shown::Services(rows) = rig.gateway.show(Show::Services)? else { bail!("asked for Services") };
    let rows = rows.into_iter().filter(|row| row.service == "shop/keep" && row.port == WEB_PORT);
    let nodes =
        rows.map(|row| row.nodes.into_iter().any(|node| node.node == WORKER && node.state == WayState::Suspected));
    let states: Vec<bool> = nodes.collect();
    Ok(states.len() == FAMILIES.len() && states.iter().all(|suspected| *suspected))
}

/// New connections of both Services and families.
fn asked(rig: &Rig, name: &str, expected_there: bool, rows: &mut Vec<Row>) -> Result<()> {
    for (vip, service) in [(VIP_WEB, "fullnat"), (VIP_KEEP, "node-dsr")] {
        for family in FAMILIES {
            let spread = rig.spread(vip.at(family, WEB_PORT), CONNECTIONS)?;
            let there: u32 = PODS.iter().filter_map(|pod| spread.by_pod.get(*pod)).sum();
            let measured = format!(
                "{} answered, {} failed {:?}, {there} at {WORKER}",
                spread.ok,
                spread.failed,
                spread.errors.first()
            );
            let pass = spread.ok == CONNECTIONS && (there > 0) == expected_there;
            let expected = if expected_there { "all answered, some there" } else { "all answered, none there (S-114)" };
            rows.push(Row::new(format!("{name} {service} {family}"), measured, expected, pass));
        }
    }
    Ok(())
}

/// S-114: a worker's link is cut; nobody says so, and its endpoints stay in their slices.
pub(super) fn worker(rig: &mut Rig) -> Found {
    let service = keep(&[1, 3, 5]);
    tell(rig, &service)?;
    await_nodes(rig, &FAMILIES, &nodes_of(&service), PROVEN_LIMIT)?;
    // Whoever has not answered once is not suspected later.
    std::thread::sleep(FELT_LIMIT);
    let mut rows = Vec::new();
    asked(rig, "before", true, &mut rows)?;
    plug(false)?;
    let began = Instant::now();
    let noticed = wait_until(NOTICE_LIMIT, || Ok(suspected(rig)?.0.len() == 2 && node_suspected(rig)?));
    let took = began.elapsed();
    let found = noticed.and_then(|noticed| noticed.context("nobody suspects it"));
    let meanwhile = found.and_then(|_| {
        let measured = format!("{} ms", took.as_millis());
        rows.push(Row::new("noticed, both families and modes", measured, "< 6 s (S-114)", took < NOTICED_WITHIN));
        let others = suspected(rig)?.1;
        let pass = others == BTreeSet::from(["active".to_owned()]);
        rows.push(Row::new("endpoints elsewhere", format!("{others:?}"), "active", pass));
        asked(rig, "meanwhile", false, &mut rows)
    });
    plug(true)?;
    meanwhile?;
    let back = wait_until(NOTICE_LIMIT, || Ok(suspected(rig)?.0.is_empty()))?.context("it stays suspected")?;
    rows.push(Row::new("back when it answers", format!("{} ms", back.as_millis()), "< 6 s", back < NOTICED_WITHIN));
    await_nodes(rig, &FAMILIES, &nodes_of(&service), NOTICE_LIMIT)?;
    asked(rig, "afterwards", true, &mut rows)?;
    forget(rig, &service)?;
    Ok(rows)
}
