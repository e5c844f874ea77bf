//! Whole-system experiments: lab topologies, packet generator, recorded runs.
