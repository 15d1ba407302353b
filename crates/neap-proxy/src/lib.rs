//! neap-proxy
