//! Naive models that the flow table and its index are compared with.
