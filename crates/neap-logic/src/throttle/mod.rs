//! Which instance may take a request, and how many at once.
