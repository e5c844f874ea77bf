//! Ports of external addresses, and the pods that hold most.

use tidegate_api::show::EgressShown;

use crate::columns::{Columns, number, text};

/// One line per address and protocol, then one per pod, then the policies without an address.
pub fn egress(shown: &EgressShown) -> String {
    let bare = match shown.bare.as_slice() {
        [] => String::new(),
        names => format!(
            "without an address here: {} (the policy's conditions and `tidegate doctor` say why)\n",
            names.join(", ")
        ),
    };
    if shown.addresses.is_empty() {
        return if bare.is_empty() { "no egress policy, and no static NAT\n".into() } else { bare };
    }
    let mut columns = Columns::new([
        text("ADDRESS"),
        text("PROTOCOL"),
        text("POLICIES"),
        text("CARRIER"),
        number("PORTS"),
        number("USED"),
        number("RESTING"),
        number("HELD"),
        number("REFUSED"),
    ]);
    for row in &shown.addresses {
        columns.row([
            row.address.to_string(),
            row.protocol.clone(),
            if row.policies.is_empty() { "-".into() } else { row.policies.join(",") },
            shown.carriers.get(&row.address).cloned().unwrap_or_else(|| "-".into()),
            row.ports.to_string(),
            row.used.to_string(),
            row.resting.to_string(),
            row.held.to_string(),
            row.refused.to_string(),
        ]);
    }
    let mut out = columns.render();
    if !shown.pods.is_empty() {
        let mut columns = Columns::new([text("POD"), text("ADDRESS"), number("HELD"), number("REFUSED")]);
        for row in &shown.pods {
            let pod = if row.pod.is_empty() { "-" } else { &row.pod };
            columns.row([pod.into(), row.address.to_string(), row.held.to_string(), row.refused.to_string()]);
        }
        out.push('\n');
        out.push_str(&columns.render());
    }
    if !bare.is_empty() {
        out.push('\n');
        out.push_str(&bare);
    }
    out
}
