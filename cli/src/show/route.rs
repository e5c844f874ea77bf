//! Where packets go: tunnels, routes, neighbours.

use tidegate_api::show::{NeighbourRow, RouteRow, TunnelRow};

use crate::columns::{Columns, number, text};

/// One line per node of the overlay and family.
pub fn tunnels(rows: &[TunnelRow]) -> String {
    if rows.is_empty() {
        return "no tunnels\n".into();
    }
    let mut columns = Columns::new([
        text("NODE"),
        text("UNDERLAY"),
        text("VTEP MAC"),
        number("VNI"),
        number("PORT"),
        number("INNER MTU"),
        text("STATE"),
        text("PREFIXES"),
    ]);
    let mut rows: Vec<&TunnelRow> = rows.iter().collect();
    rows.sort_by_key(|row| (&row.peer, row.underlay, row.vni));
    for row in rows {
        columns.row([
            row.peer.clone(),
            row.underlay.to_string(),
            row.mac.to_string(),
            row.vni.to_string(),
            row.port.to_string(),
            row.inner_mtu.to_string(),
            row.state.clone(),
            row.prefixes.join(", "),
        ]);
    }
    columns.render()
}

/// One line per route; several next hops share the traffic.
pub fn routes(rows: &[RouteRow]) -> String {
    if rows.is_empty() {
        return "no routes\n".into();
    }
    let mut columns = Columns::new([text("PREFIX"), text("ORIGIN"), number("MTU"), text("NEXT HOPS")]);
    for row in rows {
        columns.row([row.prefix.clone(), row.origin.clone(), row.mtu.to_string(), row.next_hops.join(", ")]);
    }
    columns.render()
}

/// One line per neighbour.
pub fn neighbours(rows: &[NeighbourRow]) -> String {
    if rows.is_empty() {
        return "no neighbours\n".into();
    }
    let mut columns = Columns::new([text("ADDRESS"), text("DEVICE"), text("MAC"), text("STATE")]);
    let mut rows: Vec<&NeighbourRow> = rows.iter().collect();
    rows.sort_by_key(|row| (&row.device, row.address));
    for row in rows {
        columns.row([
            row.address.to_string(),
            row.device.clone(),
            row.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            row.state.clone(),
        ]);
    }
    columns.render()
}
