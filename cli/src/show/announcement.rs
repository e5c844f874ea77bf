//! Routes to VIPs in the kernel.

use tidegate_api::show::Announcements;

use crate::columns::{Columns, number, text};

/// One line per route, and under them what was counted.
pub fn announcements(shown: &Announcements) -> String {
    let Some(device) = &shown.device else {
        return "VIPs are not announced by route: dataplane.routes is not enabled in the node file\n".into();
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

#[cfg(test)]
mod tests {
    use tidegate_api::show::AnnouncementRow;

    use super::*;

    #[test]
    fn routes_their_state_and_what_was_counted_are_told() {
        let row = |prefix: &str, vips, state: &str| AnnouncementRow { prefix: prefix.into(), vips, state: state.into() };
        let mut shown = Announcements {
            device: Some("tidegate-vip".into()),
            withdrawn: None,
            rows: vec![row("203.0.113.0/24", 12, "announced"), row("2001:db8:f::10/128", 1, "withdrawn")],
            counters: [("discarded_packets".into(), 0), ("restored_routes".into(), 3)].into(),
        };
        assert_eq!(
            announcements(&shown),
            "PREFIX              VIPS  STATE\n\
             203.0.113.0/24        12  announced\n\
             2001:db8:f::10/128     1  withdrawn\n\n\
             announced over tidegate-vip\n\n\
             COUNTER          COUNT\n\
             restored_routes      3\n"
        );
        shown.withdrawn = Some("draining".into());
        assert!(announcements(&shown).contains("\nwithdrawn: draining\n"));
        assert!(announcements(&Announcements::default()).contains("not enabled"));
    }
}
