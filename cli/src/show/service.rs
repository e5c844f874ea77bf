//! Services and their backends.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use tidegate_api::message::WayState;
use tidegate_api::show::{BackendRow, ServiceRow};

use crate::columns::{Columns, number, text};

/// One line per frontend.
pub fn services(rows: &[ServiceRow]) -> String {
    if rows.is_empty() {
        return "no Services\n".into();
    }
    let mut columns = Columns::new([
        text("SERVICE"),
        text("FRONTEND"),
        text("PROTOCOL"),
        text("MODE"),
        text("SCHEDULER"),
        text("AFFINITY"),
        number("BACKENDS"),
        number("SLOTS"),
        number("NEW FLOWS"),
        number("PACKETS"),
        number("BYTES"),
    ]);
    let mut rows: Vec<&ServiceRow> = rows.iter().collect();
    rows.sort_by_key(|row| (&row.service, row.address, row.port, row.protocol));
    let mut counted = BTreeSet::new();
    let mut shared = false;
    for row in &rows {
        // Of frontends that lead to one port of a Service, the first line has what was counted there.
        let first = counted.insert((&row.service, row.protocol, row.service_port, row.address.is_ipv4()));
        shared |= !first;
        let count = |count: u64| if first { count.to_string() } else { "-".into() };
        columns.row([
            row.service.clone(),
            frontend(row),
            row.protocol.to_string(),
            mode(row),
            row.scheduler.to_string(),
            row.affinity_timeout_s.map_or_else(|| "none".into(), |timeout| format!("{timeout} s")),
            row.backends.to_string(),
            row.maglev_slots.to_string(),
            count(row.new_flows),
            count(row.packets),
            count(row.bytes),
        ]);
    }
    let mut told = columns.render();
    if shared {
        told += "-: counted with the first line of the same Service, port and family\n";
    }
    for row in &rows {
        for way in row.nodes.iter().filter(|way| way.state != WayState::Proven) {
            let (service, at) = (&row.service, frontend(row));
            let state = match way.state {
                WayState::Failed => "failed",
                WayState::Suspected => "suspected",
                WayState::Proven | WayState::Unproven => "not proven",
            };
            told += &format!("{service} {at}/{}: node {} {state}: {}\n", row.protocol, way.node, way.reason);
        }
    }
    told
}

/// The address, or the prefix, with the port.
fn frontend(row: &ServiceRow) -> String {
    let port = if row.port == 0 { "*".into() } else { row.port.to_string() };
    match (row.address, row.prefix_len) {
        (address, Some(length)) => format!("{address}/{length} port {port}"),
        (IpAddr::V6(address), None) => format!("[{address}]:{port}"),
        (address, None) => format!("{address}:{port}"),
    }
}

/// The mode in force, and to how many of its nodes the way is proven where nodes were asked for.
fn mode(row: &ServiceRow) -> String {
    if row.nodes.is_empty() {
        return row.mode.clone();
    }
    let proven = row.nodes.iter().filter(|way| way.state == WayState::Proven).count();
    format!("{} ({proven} of {} nodes)", row.mode, row.nodes.len())
}

/// One line per backend and frontend port. `service`: the only Service asked for.
pub fn backends(rows: &[BackendRow], service: Option<&str>) -> String {
    if rows.is_empty() {
        return match service {
            Some(name) => {
                format!("no backends of Service {name}\n")
            }
            None => "no backends\n".into(),
        };
    }
    let mut columns = Columns::new([
        text("SERVICE"),
        text("PORT"),
        text("BACKEND"),
        text("STATE"),
        number("WEIGHT"),
        text("NODE"),
        text("POD"),
        number("FLOWS"),
        number("NEW FLOWS"),
        number("PACKETS"),
        number("BYTES"),
    ]);
    let mut rows: Vec<&BackendRow> = rows.iter().collect();
    rows.sort_by_key(|row| (&row.service, row.port, row.protocol, row.address, row.backend_port));
    for row in &rows {
        columns.row([
            row.service.clone(),
            format!("{}/{}", row.port, row.protocol),
            SocketAddr::new(row.address, row.backend_port).to_string(),
            row.state.clone(),
            row.weight.to_string(),
            row.node.clone(),
            row.pod.clone(),
            row.flows.to_string(),
            row.new_flows.to_string(),
            row.packets.to_string(),
            row.bytes.to_string(),
        ]);
    }
    let reasons: BTreeSet<&str> =
        rows.iter().map(|row| row.reason.as_str()).filter(|reason| !reason.is_empty()).collect();
    reasons.into_iter().fold(columns.render(), |told, reason| told + reason + "\n")
}

#[cfg(test)]
mod tests {
    use tidegate_api::message::NodeDelivery;
    use tidegate_api::resource::{Protocol, Scheduler};

    use super::*;

    #[test]
    fn what_is_counted_per_port_stands_in_one_line() {
        let row = |address: &str, port: u16, count: u64| ServiceRow {
            service: "shop/web".into(),
            address: address.parse().unwrap(),
            prefix_len: None,
            protocol: Protocol::Tcp,
            port,
            mode: "fullnat".into(),
            service_port: 80,
            scheduler: Scheduler::Wlc,
            affinity_timeout_s: Some(10_800),
            nodes: vec![],
            backends: 2,
            maglev_slots: 0,
            packets: count,
            bytes: count,
            new_flows: count,
        };
        let rows = [row("203.0.113.5", 80, 77), row("198.51.100.1", 30_080, 77), row("2001:db8::1", 80, 99)];
        let told = services(&rows);
        assert_eq!(
            (told.matches("77").count(), told.matches("99").count()),
            (3, 3),
            "once each, three figures: {told}"
        );
        assert!(told.contains("wlc") && told.contains("10800 s"), "{told}");
        assert!(told.ends_with("-: counted with the first line of the same Service, port and family\n"), "{told}");
    }

    #[test]
    fn why_a_node_is_suspected_is_told_once() {
        let row = |pod: &str, reason: &str| BackendRow {
            service: "shop/web".into(),
            port: 80,
            protocol: Protocol::Tcp,
            address: pod.parse().unwrap(),
            backend_port: 8080,
            weight: 1,
            state: if reason.is_empty() { "active" } else { "suspected" }.into(),
            reason: reason.into(),
            node: "w2".into(),
            pod: String::new(),
            flows: 0,
            packets: 0,
            bytes: 0,
            new_flows: 0,
        };
        let why = "node w2: no answer";
        let told = backends(&[row("10.244.2.5", why), row("10.244.2.6", why), row("fd00:10:244:2::5", "")], None);
        assert_eq!((told.matches(why).count(), told.matches("suspected").count()), (1, 2), "{told}");
        assert!(told.ends_with("\nnode w2: no answer\n"), "{told}");
    }

    #[test]
    fn a_node_that_is_not_proven_is_told_with_its_reason() {
        let way = |node: &str, state, reason: &str| NodeDelivery {
            node: node.into(),
            weight: 1,
            state,
            reason: reason.into(),
        };
        let row = ServiceRow {
            service: "shop/web".into(),
            address: "2001:db8::1".parse().unwrap(),
            prefix_len: None,
            protocol: Protocol::Tcp,
            port: 80,
            mode: "node-dsr".into(),
            service_port: 80,
            scheduler: Scheduler::Mh,
            affinity_timeout_s: None,
            nodes: vec![way("w1", WayState::Proven, ""), way("w2", WayState::Failed, "no answer")],
            backends: 2,
            maglev_slots: 211,
            packets: 0,
            bytes: 0,
            new_flows: 0,
        };
        let told = services(std::slice::from_ref(&row));
        assert!(told.contains("node-dsr (1 of 2 nodes)"), "{told}");
        assert!(told.ends_with("\nshop/web [2001:db8::1]:80/TCP: node w2 failed: no answer\n"), "{told}");
        let wide = ServiceRow { prefix_len: Some(64), port: 0, address: "2001:db8::".parse().unwrap(), ..row };
        assert_eq!(frontend(&wide), "2001:db8::/64 port *");
        let v4 = ServiceRow { prefix_len: None, address: "203.0.113.5".parse().unwrap(), ..wide };
        assert_eq!(frontend(&v4), "203.0.113.5:*");
    }
}
