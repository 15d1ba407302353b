//! neap-controllers
