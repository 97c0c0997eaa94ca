//! What turns something outside into events: each source watches its part of the world and publishes.

pub mod files;
