//! Routes to VIPs in the kernel.

use tidegate_api::show::Announcements;

use crate::columns::{Columns, number, text};

/// One line per route, and under them what was counted.
pub fn announcements(shown: &Announcements) -> String {
    let Some(device) = &shown.device else {
        return "no announcements by route: dataplane.routes is not enabled in the node file\n".into();
    };
    let mut columns = Columns::new([text("PREFIX"), number("VIPS"), text("STATE")]);
    for row in &shown.rows {
        columns.row([row.prefix.clone(), row.vips.to_string(), row.state.clone()]);
    }
    let mut out = columns.render();
    out.push('\n');
    out.push_str(&match &shown.withdrawn {
        None => format!("announced over {device}\n"),
        Some(reason) => format!("withdrawn: {reason}\n"),
    });
    let mut counted = Columns::new([text("COUNTER"), number("COUNT")]);
    let counters: Vec<_> = shown.counters.iter().filter(|(_, count)| **count > 0).collect();
    counters.iter().for_each(|(name, count)| counted.row([(*name).clone(), count.to_string()]));
    if !counters.is_empty() {
        out.push('\n');
        out.push_str(&counted.render());
    }
    out
}
