//! neap-dataplane
