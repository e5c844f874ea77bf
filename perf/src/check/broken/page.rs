//! `docs/broken-setups.md`: the list as a page for people.

use super::faults;

/// The text of the page.
pub fn document() -> String {
    let mut text = String::from(
        "# Broken set-ups\n\nEach of these is broken for real in the [lab](lab.md), in both families where the fault has one; the \
         command then says what is in the third column, and says nothing of it before and afterwards. This page is generated \
         from the list that the checks `broken` and `broken-gateways` work through \
         (`perf/src/check/broken/faults.rs`); a test compares. Addresses are those of the lab.\n\nA line that begins \
         with `differs` has the object and both values: what the tables have, and what the packet carries; in one \
         that begins with `lacks` they are how something is and how it would have to be. [`tidegate explain \
         --pcap FILE`](explain.md) says so of every frame that [`tidegate capture`](capture.md) or tcpdump has recorded, \
         dropped or not.\n\n\
         | what is wrong, and what you see | ask | it says | do |\n|---|---|---|---|\n",
    );
    for fault in faults::all().into_iter().chain(faults::of_two_gateways()) {
        let Some(case) = fault.cases.first() else { continue };
        let families = if fault.is_of_one_family { " (IPv4)" } else { "" };
        let says: Vec<String> = case.says.iter().map(|part| format!("`{}`", part.trim())).collect();
        text += &format!(
            "| **{}**{families}: {} | `{}` | {} | {} |\n",
            fault.name,
            fault.symptom,
            case.command.replace('|', "\\|"),
            says.join(", "),
            fault.remedy
        );
    }
    text + "\nCommands with `--worker` are run on the node, all others on the gateway. What the gateway cannot know is not \
            here: [Something does not work](troubleshooting.md) begins with what you see.\n"
}
