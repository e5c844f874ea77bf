//! Tests that are seen to notice: each requirement here is broken on purpose, and its test must fail.
//!
//! `docs/rfc-compliance.md` names these mutations. Those about errors, fragments and sizes stand in `tests/matrix.rs`.

use tidegate_dataplane::mutation::{Mutation, is_noticed_by};

#[test]
fn tests_notice_what_they_are_for() {
    let table: [(Mutation, fn()); 9] = [
        (Mutation::AnyResetBelieved, crate::tcp::only_the_exact_reset_ends_an_established_connection),
        (Mutation::AnySynAckBelieved, crate::tcp::a_stale_syn_ack_moves_nothing),
        (Mutation::AnswersUnlimited, crate::encap::too_big_is_not_answered_without_limit),
        (Mutation::InnerEcnHidden, crate::encap::ecn_goes_outside_as_the_kernel_does_it_and_dscp_stays_inside),
        (Mutation::OuterEcnLost, crate::parse::ecn_comes_out_of_the_overlay_as_the_kernel_lets_it),
        (
            Mutation::IdentificationAsItCame,
            crate::identification::all_pieces_of_a_datagram_have_one_number_and_no_other_datagram_has_it,
        ),
        (
            Mutation::IdentificationAsItCame,
            crate::identification::datagrams_of_clients_that_share_a_source_have_numbers_of_their_own,
        ),
        (Mutation::AnyVni, crate::parse::a_vxlan_header_needs_its_flag_and_may_have_others),
        (Mutation::CrcAsItCame, crate::sctp::an_association_is_translated_from_init_to_shutdown_complete),
    ];
    for (mutation, test) in table {
        test();
        assert!(is_noticed_by(mutation, test), "{mutation:?} goes unnoticed");
        test();
    }
}
