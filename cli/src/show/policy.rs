//! Network and gateway policies and what their rules have done.

use tidegate_api::show::Policies;

use crate::columns::{Columns, number, text};

/// One line per rule that something has met, or for all of them, and under them what the rules amount to.
pub fn policies(shown: &Policies, all: bool) -> String {
    if shown.rules.is_empty() {
        return "no policies\n".into();
    }
    let mut columns = Columns::new([
        text("POLICY"),
        text("DIRECTION"),
        text("RULE"),
        number("FLOWS"),
        number("DENIED"),
        number("WOULD DENY"),
    ]);
    let used: Vec<_> = shown.rules.iter().filter(|row| all || row.allowed + row.denied + row.would_deny > 0).collect();
    for row in &used {
        let rule = row.rule.map_or("none matched".to_owned(), |rule| rule.to_string());
        let [flows, denied, would_deny] = [row.allowed, row.denied, row.would_deny].map(|count| count.to_string());
        let direction = if row.audit { format!("{} (audit)", row.direction) } else { row.direction.clone() };
        columns.row([row.policy.clone(), direction, rule, flows, denied, would_deny]);
    }
    let mut out = if used.is_empty() { String::new() } else { columns.render() + "\n" };
    let hidden = shown.rules.len() - used.len();
    if hidden > 0 {
        out.push_str(&format!("{hidden} more that nothing has met (--all)\n"));
    }
    let Policies { digest, identities, programs, programs_walked, bytes, .. } = shown;
    let walked = if *programs_walked > 0 { format!(", {programs_walked} read rule by rule") } else { String::new() };
    out.push_str(&format!("{identities} identities, {programs} programs{walked}, {bytes} bytes, digest {digest}\n"));
    out
}

#[cfg(test)]
mod tests {
    use tidegate_api::show::RulingRow;

    use super::*;

    #[test]
    fn what_nothing_has_met_is_shown_when_asked_for() {
        assert_eq!(policies(&Policies::default(), false), "no policies\n");
        let row = |rule, [allowed, denied, would_deny]: [u64; 3]| RulingRow {
            policy: "networkpolicy/shop/clients".into(),
            direction: "ingress".into(),
            rule,
            allowed,
            denied,
            would_deny,
            audit: rule == Some(1),
        };
        let rules = vec![row(Some(0), [0; 3]), row(Some(1), [0, 0, 7]), row(None, [0, 9, 0])];
        let shown = Policies { digest: "00ff".into(), identities: 3, programs: 1, rules, ..Policies::default() };
        let told = policies(&shown, false);
        assert!(
            told.contains("ingress (audit)")
                && told.contains("none matched")
                && told.contains("1 more that nothing has met"),
            "{told}"
        );
        assert!(told.ends_with("3 identities, 1 programs, 0 bytes, digest 00ff\n"), "{told}");
        assert_eq!(policies(&shown, true).lines().count(), 6);
    }
}
