//! What the cluster wants: watch, model, resolve, status.
