//! Services and their backends.

use std::net::SocketAddr;

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
        number("BACKENDS"),
        number("SLOTS"),
        number("NEW FLOWS"),
        number("PACKETS"),
        number("BYTES"),
    ]);
    let mut rows: Vec<&ServiceRow> = rows.iter().collect();
    rows.sort_by_key(|row| (&row.service, row.address, row.port, row.protocol));
    for row in rows {
        columns.row([
            row.service.clone(),
            SocketAddr::new(row.address, row.port).to_string(),
            row.protocol.to_string(),
            row.mode.clone(),
            row.backends.to_string(),
            row.maglev_slots.to_string(),
            row.new_flows.to_string(),
            row.packets.to_string(),
            row.bytes.to_string(),
        ]);
    }
    columns.render()
}

/// One line per backend and frontend port. `service`: the only Service asked for.
pub fn backends(rows: &[BackendRow], service: Option<&str>) -> String {
    if rows.is_empty() {
        return match service {
            Some(name) => {
                format!("no backends of Service {name}; `tidegate show services` lists the Services there are\n")
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
    for row in rows {
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
    columns.render()
}
