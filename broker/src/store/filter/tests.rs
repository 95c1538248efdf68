//! What filters mean, by example.
