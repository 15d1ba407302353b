//! neap-node
