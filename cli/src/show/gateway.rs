//! The gateways of the set.

use tidegate_api::show::{Gateways, WrongKey};

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
    if let Some(key) = &shown.key {
        out.push_str(&format!("\nthe key of this gateway has the fingerprint {key}\n"));
    }
    for (row, wrong) in shown.rows.iter().filter_map(|row| Some((row, row.wrong_key.as_ref()?))) {
        let (node, WrongKey { from, count }) = (&row.node, wrong);
        out.push_str(&format!(
            "{node}: {count} heartbeats from {from} were not of that key; compare the fingerprint that {node} shows\n"
        ));
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

#[cfg(test)]
mod tests {
    use tidegate_api::show::GatewayRow;

    use super::*;

    #[test]
    fn a_gateway_with_another_key_is_told_with_the_fingerprint_of_ours() {
        let row = |node: &str, wrong_key| GatewayRow {
            node: node.into(),
            is_own: false,
            state: "lost".into(),
            addresses: vec![],
            heard_ms: None,
            generation: 0,
            objects: String::new(),
            is_equal: None,
            announced: 0,
            dual_owner_ms: 0,
            wrong_key,
        };
        for from in ["198.51.100.2", "2001:db8:2::2"] {
            let wrong = WrongKey { from: from.parse().unwrap(), count: 3 };
            let rows = vec![row("gw-2", Some(wrong)), row("gw-3", None)];
            let told = gateways(&Gateways { rows, key: Some("0123abcd".into()), ..Gateways::default() });
            let expected = format!(
                "\nthe key of this gateway has the fingerprint 0123abcd\ngw-2: 3 heartbeats from {from} were not of \
                 that key; compare the fingerprint that gw-2 shows\n"
            );
            assert!(told.ends_with(&expected), "{told}");
        }
        assert!(!gateways(&Gateways { rows: vec![row("gw-3", None)], ..Gateways::default() }).contains("key"));
    }
}
