//! Golden features: frames in, frames out, and exactly the counters that move.

mod service;
