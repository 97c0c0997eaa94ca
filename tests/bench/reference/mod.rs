//! What aman is measured against, each in a process of its own.

pub mod disk;
pub mod http;
pub mod nats;
pub mod nchan;
pub mod redis;
pub mod sqlite;

use std::path::PathBuf;

/// A program of `scripts/bench`'s own folder of peers, else of the search path.
pub fn program(inside: &str, name: &str) -> Option<PathBuf> {
    let own = std::env::var_os("AMAN_BENCH_PEERS").map(|folder| PathBuf::from(folder).join(inside));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).chain(["/usr/sbin".into()]).map(|folder| folder.join(name));
    own.into_iter().chain(installed).find(|candidate| candidate.is_file())
}
