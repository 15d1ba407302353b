//! How many instances a revision should have.
