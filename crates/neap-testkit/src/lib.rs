//! neap-testkit
