//! Who does the work: workers and ports.

use tidegate_api::show::{ClientsByRss, PortRow, WorkerRow};

use crate::columns::{Columns, number, text};

/// One line per worker, and under it how long packets are at each stage, if that was measured.
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
        text("CLIENTS BY"),
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
            row.clients.as_ref().map_or_else(|| "hash".into(), clients),
            row.ports.join(", "),
        ]);
    }
    columns.render() + &stages(rows)
}

/// Which part of a device's RSS is the worker's.
fn clients(rss: &ClientsByRss) -> String {
    format!("{} rss {}/{}", rss.device, rss.entries, rss.of)
}

fn stages(rows: &[WorkerRow]) -> String {
    let mut columns = Columns::new([number("WORKER"), text("STAGE"), number("NS/PACKET"), number("PACKETS MEASURED")]);
    let mut any = false;
    for (row, stage) in rows.iter().flat_map(|row| row.stages.iter().map(move |stage| (row, stage))) {
        let Some(each_ns) = stage.each_ns() else { continue };
        let packets: u64 = stage.packets.iter().sum();
        columns.row([row.worker.to_string(), stage.stage.clone(), format!("{each_ns:.1}"), packets.to_string()]);
        any = true;
    }
    if any { format!("\n{}", columns.render()) } else { String::new() }
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
