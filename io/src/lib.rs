//! Frames in, frames out: rings, devices, memory. Knows no protocol.
