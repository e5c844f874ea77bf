//! The operator's command: tidegate.
