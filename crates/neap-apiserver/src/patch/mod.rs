//! patch: owned by its own engineer; filled in as it grows.
