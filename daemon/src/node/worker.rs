//! Serves images.
