//! What was counted: totals, books, drop reasons.
//!
//! Counters stand in groups: first the terms of the books, then groups by the first word of the name. The last line
//! says whether every packet is accounted for.

use std::collections::BTreeMap;

use tidegate_api::show::{Counters, DropRow};

use crate::columns::{Columns, number, text};

/// Names of the terms of the books, in the order of the equation:
/// `received + generated = tx completed + tx rejected + dropped + consumed + to kernel + held`.
const BOOKS: [&str; 8] =
    ["received", "generated", "tx_completed", "tx_rejected", "dropped", "consumed", "to_kernel", "held"];

/// All totals in groups, then the books line.
pub fn counters(counters: &Counters) -> String {
    let mut out = String::new();
    if counters.totals.is_empty() {
        out.push_str("no counters\n");
    } else {
        let mut columns = Columns::new([text("GROUP"), text("COUNTER"), number("COUNT")]);
        for (group, names) in groups(&counters.totals) {
            for (name, count) in names {
                columns.row([group.into(), name.into(), count.to_string()]);
            }
        }
        out.push_str(&columns.render());
    }
    out.push('\n');
    out.push_str(&books(counters.imbalance));
    out
}

/// Whether every packet that came in or was made is accounted for exactly once.
fn books(imbalance: i64) -> String {
    let packets = |n: u64| if n == 1 { "1 packet".into() } else { format!("{n} packets") };
    match imbalance {
        0 => "books balance\n".into(),
        missing if missing > 0 => format!(
            "BOOKS DO NOT BALANCE: {} received or generated, but not accounted for\n",
            packets(missing.unsigned_abs())
        ),
        surplus => format!(
            "BOOKS DO NOT BALANCE: {} accounted for, but neither received nor generated\n",
            packets(surplus.unsigned_abs())
        ),
    }
}

/// Counters by group: `books` first, then one group per first word (`rx_ring_full` → `rx`) that several counters
/// share, and `other` for those that stand alone.
fn groups(totals: &BTreeMap<String, u64>) -> Vec<(&str, Vec<(&str, u64)>)> {
    let term = |name: &str| BOOKS.iter().position(|term| *term == name);
    let mut books: Vec<(&str, u64)> = Vec::new();
    let mut words: BTreeMap<&str, Vec<(&str, u64)>> = BTreeMap::new();
    for (name, count) in totals {
        match term(name) {
            Some(_) => books.push((name, *count)),
            None => words.entry(first_word(name)).or_default().push((name, *count)),
        }
    }
    books.sort_by_key(|(name, _)| term(name));
    let (shared, alone): (Vec<_>, Vec<_>) = words.into_iter().partition(|(_, names)| names.len() > 1);
    let other: Vec<(&str, u64)> = alone.into_iter().flat_map(|(_, names)| names).collect();
    let mut all = vec![("books", books)];
    all.extend(shared);
    all.push(("other", other));
    all
}

fn first_word(name: &str) -> &str {
    name.split(['_', '.', '/', '-']).next().unwrap_or(name)
}

/// Drop reasons, most frequent first; those that never happened only if `all`.
pub fn drops(rows: &[DropRow], all: bool) -> String {
    let mut shown: Vec<&DropRow> = rows.iter().filter(|row| all || row.packets > 0).collect();
    shown.sort_by(|a, b| b.packets.cmp(&a.packets).then_with(|| a.reason.cmp(&b.reason)));
    let hidden = rows.len() - shown.len();
    let mut out = String::new();
    if shown.is_empty() {
        out.push_str("no drops\n");
    } else {
        let mut columns =
            Columns::new([text("REASON"), text("STAGE"), text("SEVERITY"), number("PACKETS"), text("MEANING")]);
        for row in shown {
            columns.row([
                row.reason.clone(),
                row.stage.clone(),
                row.severity.clone(),
                row.packets.to_string(),
                row.help.clone(),
            ]);
        }
        out.push_str(&columns.render());
    }
    match hidden {
        0 => {}
        1 => out.push_str("1 other reason never happened; --all lists it\n"),
        more => out.push_str(&format!("{more} other reasons never happened; --all lists them\n")),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_books_line_tells_which_side_is_short() {
        assert_eq!(books(0), "books balance\n");
        assert!(books(1).contains("1 packet received or generated, but not accounted for"));
        assert!(books(-7).contains("7 packets accounted for, but neither"));
        assert!(books(i64::MIN).contains("9223372036854775808 packets"));
    }

    #[test]
    fn every_counter_stands_in_exactly_one_group() {
        let names = ["received", "held", "generated", "flow_hit", "flow_miss", "parse", "rx_ring_full", "", "_odd"];
        let totals: BTreeMap<String, u64> = names.iter().map(|name| ((*name).into(), 1)).collect();
        let grouped = groups(&totals);
        let mut seen: Vec<&str> = grouped.iter().flat_map(|(_, names)| names.iter().map(|(name, _)| *name)).collect();
        seen.sort_unstable();
        assert_eq!(seen, totals.keys().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(
            grouped[0],
            ("books", vec![("received", 1), ("generated", 1), ("held", 1)]),
            "order of the equation"
        );
        assert!(grouped.contains(&("flow", vec![("flow_hit", 1), ("flow_miss", 1)])));
    }
}
