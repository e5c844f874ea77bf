//! The status: what a node does for each pod and each gateway, for people.

use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::found::{Found, Rule, Way};
use crate::plan::{choices, conflicts, filter, numbers, plan, usable};
use crate::settings::Remark;
use crate::wanted::{FAMILIES, Family, Wanted};

/// What is told.
#[derive(Debug)]
pub struct Status {
    /// The tables and remarks.
    pub text: String,
    /// Everything is as it is wanted, and every selected pod has a gateway.
    pub good: bool,
}

/// Tells how what was found serves what is wanted.
pub fn status(wanted: &Wanted, found: &Found, mut remarks: Vec<Remark>) -> Status {
    let changes = plan(wanted, found);
    remarks.extend(conflicts(wanted, found).into_iter().map(Remark::Problem));
    let unreadable = wanted.heard.iter().flat_map(|heard| &heard.unreadable);
    remarks.extend(unreadable.cloned().map(Remark::Problem));
    let mut good = changes.is_empty() && !remarks.iter().any(|remark| matches!(remark, Remark::Problem(_)));
    let mut rows = vec![["POD", "ADDRESS", "POLICY", "GATEWAY", "RULE", "ROUTE", "STATE"].map(str::to_owned)];
    for choice in choices(wanted, found) {
        let rule = found.rules.iter().find(|rule| rule.source.is_some_and(|source| source.addr() == choice.address));
        let (state, fine) = match (rule, choice.gateway) {
            (None, _) => ("no rule", false),
            (Some(rule), gateway) => match way(found, rule) {
                Some(Way::Through { gateway: address, .. }) => {
                    let family = Family::of(choice.address);
                    let right =
                        gateway.and_then(|gateway| gateway.vtep(family)).is_some_and(|vtep| vtep.overlay == address);
                    if right { ("ok", true) } else { ("changing", false) }
                }
                Some(Way::Blackhole) => ("no gateway: dropped", false),
                Some(Way::Throw) | None => ("no route", false),
            },
        };
        good &= fine;
        rows.push([
            choice.pod.name.clone(),
            choice.address.to_string(),
            choice.egress.name.clone(),
            choice.gateway.map_or("-".into(), |gateway| gateway.name.clone()),
            rule.map_or("-".into(), |rule| rule.priority.to_string()),
            rule.map_or("-".into(), |rule| told_route(found, rule)),
            state.to_owned(),
        ]);
    }
    let mut text = table(&rows);
    text += &gateways(wanted, found);
    let state = match &found.filter {
        None => "missing",
        Some(loaded) if *loaded == filter(wanted, found).loaded() => "loaded",
        Some(_) => "not as wanted",
    };
    let _ = writeln!(text, "\nnftables table inet {}: {state}", crate::filter::TABLE);
    for change in &changes {
        let _ = writeln!(text, "to do: {change}");
    }
    for remark in &remarks {
        let _ = match remark {
            Remark::Problem(told) => writeln!(text, "problem: {told}"),
            Remark::Note(told) => writeln!(text, "note: {told}"),
        };
    }
    Status { text, good }
}

fn gateways(wanted: &Wanted, found: &Found) -> String {
    let numbers = numbers(wanted, found);
    let mut rows = vec![["GATEWAY", "FAMILY", "OVERLAY", "UNDERLAY", "MARK", "STATE"].map(str::to_owned)];
    for gateway in &wanted.gateways {
        for family in FAMILIES {
            let Some(vtep) = gateway.vtep(family) else { continue };
            let state = match (gateway.live, usable(wanted, found, gateway, family)) {
                (_, true) => "usable",
                (false, _) => "not live",
                (true, false) => "no device",
            };
            rows.push([
                gateway.name.clone(),
                if family == Family::V4 { "IPv4".into() } else { "IPv6".into() },
                vtep.overlay.to_string(),
                vtep.underlay.to_string(),
                numbers.get(&gateway.name).map_or("-".into(), |number| format!("{:#x}", wanted.marks.place(*number))),
                state.to_owned(),
            ]);
        }
    }
    format!("\n{}", table(&rows))
}

/// What the rule's table does with a packet to everywhere else.
fn way(found: &Found, rule: &Rule) -> Option<Way> {
    let wide = |prefix: &IpNet| Family::of_net(prefix) == rule.family;
    let of_table = found.routes.iter().filter(|route| route.table == rule.table && wide(&route.entry.prefix));
    let ways = of_table.filter(|route| route.entry.way != Way::Throw);
    ways.min_by_key(|route| (route.entry.metric, route.entry.prefix.prefix_len())).map(|route| route.entry.way.clone())
}

fn told_route(found: &Found, rule: &Rule) -> String {
    let told = match way(found, rule) {
        Some(Way::Through { gateway, device }) => format!("via {} dev {device}", told_address(gateway)),
        Some(Way::Blackhole) => "blackhole".into(),
        Some(Way::Throw) | None => "-".into(),
    };
    format!("table {} {told}", rule.table)
}

fn told_address(address: IpAddr) -> String {
    address.to_string()
}

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}
