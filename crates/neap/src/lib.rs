//! neap
