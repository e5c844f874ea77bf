//! Who does the work: workers and ports.

use tidegate_api::show::{PortRow, WorkerRow};

use crate::columns::{Columns, number, text};

/// One line per worker.
pub fn workers(rows: &[WorkerRow]) -> String {
    if rows.is_empty() {
        return "no workers\n".into();
    }
    let mut columns = Columns::new([
        number("WORKER"),
        text("CORE"),
        number("GENERATION"),
        number("TURNS"),
        number("IDLE TURNS"),
        number("SLEEPS"),
        number("FLOWS"),
        number("FLOWS MAX"),
        number("HALF OPEN"),
        number("HALF OPEN MAX"),
        number("HELD"),
        text("PORTS"),
    ]);
    for row in rows {
        columns.row([
            row.worker.to_string(),
            row.core.map_or_else(|| "any".into(), |core| core.to_string()),
            row.generation.to_string(),
            row.turns.to_string(),
            row.idle_turns.to_string(),
            row.sleeps.to_string(),
            row.flows.to_string(),
            row.flows_max.to_string(),
            row.half_open.to_string(),
            row.half_open_max.to_string(),
            row.held.to_string(),
            row.ports.join(", "),
        ]);
    }
    columns.render()
}

/// One line per port, and under it what was counted there.
pub fn ports(rows: &[PortRow]) -> String {
    if rows.is_empty() {
        return "no ports\n".into();
    }
    let mut columns = Columns::new([text("PORT"), text("MODE"), text("MAC"), number("MTU")]);
    let mut counted = Columns::new([text("PORT"), text("COUNTER"), number("COUNT")]);
    let mut any = false;
    let mut rows: Vec<&PortRow> = rows.iter().collect();
    rows.sort_by_key(|row| (&row.device, row.queue));
    for row in rows {
        let port = format!("{}/{}", row.device, row.queue);
        columns.row([port.clone(), row.mode.clone(), row.mac.to_string(), row.mtu.to_string()]);
        for (name, count) in &row.counters {
            counted.row([port.clone(), name.clone(), count.to_string()]);
            any = true;
        }
    }
    let mut out = columns.render();
    if any {
        out.push('\n');
        out.push_str(&counted.render());
    }
    out
}
