//! Flows.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use tidegate_api::show::FlowRow;

use crate::columns::{Columns, number, text};

/// One line per flow, as the owning worker copied them. `limit`: how many were asked for.
pub fn flows(rows: &[FlowRow], limit: u32) -> String {
    if rows.is_empty() {
        return "no flows\n".into();
    }
    let mut columns = Columns::new([
        number("WORKER"),
        text("PROTOCOL"),
        text("CLIENT"),
        text("VIP"),
        text("SOURCE"),
        text("BACKEND"),
        text("STATE"),
        number("IDLE S"),
        number("PACKETS 4S"),
        number("REPLIES 4S"),
        number("BYTES 4S"),
        number("REPLY BYTES 4S"),
    ]);
    for row in rows {
        columns.row([
            row.worker.to_string(),
            protocol(row.protocol).into(),
            pair(row.client),
            pair(row.vip),
            pair(row.source),
            pair(row.backend),
            row.state.clone(),
            row.idle_s.to_string(),
            row.packets.0.to_string(),
            row.packets.1.to_string(),
            row.bytes.0.to_string(),
            row.bytes.1.to_string(),
        ]);
    }
    let mut out = columns.render();
    out.push_str("\npackets and bytes: of the last seconds, 4 at most, and none of a handshake; STATE has all of the flow's life\n");
    if rows.len() >= limit as usize {
        out.push_str(&format!("stopped at {limit} flows; --limit N asks for more\n"));
    }
    out
}

fn pair((address, port): (IpAddr, u16)) -> String {
    SocketAddr::new(address, port).to_string()
}

/// The rows for programs: protocols by name, as in all other rows.
///
/// # Errors
/// When a row cannot be written as JSON.
pub fn with_names(rows: &[FlowRow]) -> serde_json::Result<Vec<Value>> {
    let named = |row: &FlowRow| {
        let mut value = serde_json::to_value(row)?;
        if let Some(field) = value.get_mut("protocol") {
            *field = protocol(row.protocol).into();
        }
        Ok(value)
    };
    rows.iter().map(named).collect()
}

/// Name of an IANA protocol number, where a gateway meets one with flows; else the number.
fn protocol(number: u8) -> Cow<'static, str> {
    match number {
        1 => "ICMP".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        58 => "ICMPv6".into(),
        132 => "SCTP".into(),
        other => other.to_string().into(),
    }
}
