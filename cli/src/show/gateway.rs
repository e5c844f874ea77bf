//! The gateways of the set.

use tidegate_api::show::Gateways;

use crate::columns::{Columns, number, text};

/// One line per gateway, and under them what was counted.
pub fn gateways(shown: &Gateways) -> String {
    if shown.rows.is_empty() {
        return "no gateways\n".into();
    }
    let mut columns = Columns::new([
        text("NODE"),
        text("STATE"),
        number("HEARD MS"),
        number("ANNOUNCED"),
        number("GENERATION"),
        text("OBJECTS"),
        text("EQUAL"),
        number("DUAL OWNER MS"),
        text("ADDRESSES"),
    ]);
    for row in &shown.rows {
        let addresses: Vec<String> = row.addresses.iter().map(ToString::to_string).collect();
        columns.row([
            if row.is_own { format!("{} (this one)", row.node) } else { row.node.clone() },
            row.state.clone(),
            row.heard_ms.map(|ms| ms.to_string()).unwrap_or_default(),
            if row.state == "lost" { "-".into() } else { row.announced.to_string() },
            row.generation.to_string(),
            row.objects.clone(),
            row.is_equal.map_or("-", |equal| if equal { "yes" } else { "no" }).to_owned(),
            row.dual_owner_ms.to_string(),
            addresses.join(", "),
        ]);
    }
    let mut out = columns.render();
    if let Some(reason) = &shown.alone {
        out.push_str(&format!("\nalone, so everything is announced here: {reason}\n"));
    }
    let mut counted = Columns::new([text("COUNTER"), number("COUNT")]);
    let counters: Vec<_> = shown.counters.iter().filter(|(_, count)| **count > 0).collect();
    counters.iter().for_each(|(name, count)| counted.row([(*name).clone(), count.to_string()]));
    if !counters.is_empty() {
        out.push('\n');
        out.push_str(&counted.render());
    }
    out
}
