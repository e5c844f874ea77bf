//! Time and allocations per packet, per stage and per turn.
