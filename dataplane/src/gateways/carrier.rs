//! Who asks for the owner of an address, and what is said.
//!
//! Agents on workers send pods' packets to the gateway that carries their policy's address, and ask all gateways again and
//! again which one that is. Owns the answer of this one; refuses to speak for others, since whoever asks about a gateway that
//! has died wants its own silence.

use tidegate_api::carrier::{Answer, Question};

use super::Nanos;
use super::council::Council;

/// What this gateway says to a question.
pub fn answer(question: &Question, council: &Council, now_ns: Nanos) -> Answer {
    let carried = question.addresses.iter().map(|address| {
        let owned_ns = council.owned_for_ns(&(*address).into(), now_ns);
        (*address, owned_ns.map(|ns| u32::try_from(ns / 1_000_000).unwrap_or(u32::MAX - 1)))
    });
    Answer { number: question.number, carried: carried.collect() }
}
