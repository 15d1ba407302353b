//! neap-cli
