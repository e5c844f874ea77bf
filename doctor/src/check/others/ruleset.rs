//! Rules of nf_tables, read from what nft(8) prints.
//!
//! Owns which line begins a table or a chain, which says where a chain is hooked, and which is a rule. Refuses to know what
//! a rule means: it is told as it stands there.

/// One chain. Names and rules are parts of the text.
#[derive(Debug, PartialEq, Eq)]
pub struct Chain<'t> {
    /// Family and name of its table: `inet filter`.
    pub table: &'t str,
    /// Its name.
    pub name: &'t str,
    /// Its type (`filter`, `nat`, `route`); empty: it is hooked nowhere.
    pub kind: &'t str,
    /// Where it is hooked: `input`.
    pub hook: &'t str,
    /// What becomes of packets that no rule decides about: `accept`, `drop`.
    pub policy: &'t str,
    /// Rules, in order.
    pub rules: Vec<&'t str>,
}

impl Chain<'_> {
    /// Its table's name without the family.
    pub fn table_name(&self) -> &str {
        self.table.split_once(' ').map_or(self.table, |(_, name)| name)
    }

    /// Which chain it is, for people.
    pub fn place(&self) -> String {
        format!("chain {} of table {}", self.name, self.table)
    }
}

/// All chains of `nft list ruleset`.
pub fn chains(text: &str) -> Vec<Chain<'_>> {
    let (mut chains, mut table): (Vec<Chain<'_>>, &str) = (Vec::new(), "");
    let mut is_chain = false;
    for line in text.lines() {
        let depth = line.len() - line.trim_start_matches('\t').len();
        let line = line.trim();
        match (depth, line.strip_suffix(" {")) {
            (0, Some(opened)) => table = opened.strip_prefix("table ").unwrap_or(opened),
            (1, opened) => {
                let name = opened.and_then(|opened| opened.strip_prefix("chain "));
                is_chain = name.is_some();
                let chain = |name| Chain { table, name, kind: "", hook: "", policy: "accept", rules: Vec::new() };
                chains.extend(name.map(chain));
            }
            (2, _) if is_chain => {
                let Some(chain) = chains.last_mut() else { continue };
                match line.strip_prefix("type ") {
                    Some(hooked) => hook(chain, hooked),
                    None if line.starts_with("comment ") => {}
                    None => chain.rules.push(line),
                }
            }
            // Elements of sets and maps, or the rest of a rule.
            _ => {}
        }
    }
    chains
}

/// `filter hook input priority filter; policy accept;`
fn hook<'t>(chain: &mut Chain<'t>, line: &'t str) {
    let word_after = |name: &str| {
        let words = line.split([' ', ';']);
        words.skip_while(|word| *word != name).nth(1)
    };
    chain.kind = line.split(' ').next().unwrap_or_default();
    chain.hook = word_after("hook").unwrap_or_default();
    chain.policy = word_after("policy").unwrap_or("accept");
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "table inet filter {\n\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1,\n\t\t\t     \
                        10.0.0.2 }\n\t}\n\n\tchain input {\n\t\tcomment \"what\"\n\t\ttype filter hook input priority \
                        filter - 1; policy drop;\n\t\tct state vmap { invalid : drop,\n\t\t\t\t established : accept \
                        }\n\t\ttcp dport 22 accept\n\t}\n\n\tchain own {\n\t}\n}\n";

    #[test]
    fn chains_have_their_place_hook_and_rules() {
        let found = chains(TEXT);
        assert_eq!(found.len(), 2, "a set is no chain");
        let input = &found[0];
        assert_eq!((input.table, input.table_name(), input.name), ("inet filter", "filter", "input"));
        assert_eq!((input.kind, input.hook, input.policy), ("filter", "input", "drop"));
        assert_eq!(input.rules, ["ct state vmap { invalid : drop,", "tcp dport 22 accept"]);
        assert_eq!(found[1].place(), "chain own of table inet filter");
        assert_eq!((found[1].kind, found[1].rules.len()), ("", 0));
    }

    #[test]
    fn text_that_is_no_ruleset_is_no_panic() {
        for end in 0..TEXT.len() {
            chains(&TEXT[..end]);
            chains(&TEXT[end..]);
        }
        assert_eq!(
            chains("Error: syntax error\n\tchain x {\n"),
            [Chain { table: "", name: "x", kind: "", hook: "", policy: "accept", rules: vec![] }]
        );
    }
}
