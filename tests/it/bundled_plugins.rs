//! The plugins of this repository, built from source, installed into the real daemon and used as their users would.

mod feeds;
mod home;
mod languages;
mod summary;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::{Daemon, say};

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the daemon's folder lies in the repository")
}

/// Where toolchains are does not depend on whose home a test uses.
pub fn toolchains() -> Vec<(&'static str, PathBuf)> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let of = |name, below: &str| (name, std::env::var_os(name).map_or_else(|| home.join(below), PathBuf::from));
    vec![of("CARGO_HOME", ".cargo"), of("RUSTUP_HOME", ".rustup"), ("HOME", home.clone())]
}

/// The package of a bundled plugin, built if its sources changed; what is missing to build it is the test's failure.
pub fn package(name: &str) -> PathBuf {
    let mut build = Command::new(root().join("scripts/build-plugins"));
    build.arg(name).env_clear().envs(toolchains()).env("AMAN", env!("CARGO_BIN_EXE_aman"));
    build.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let output = build.output().expect("the script starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "scripts/build-plugins {name}: {said}");
    say(&said);
    root().join("target/plugins").join(format!("{name}.tar.gz"))
}

/// Installs a bundled plugin by the command line, as its operator would, and shows what was said.
pub fn install(daemon: &Daemon, name: &str) -> String {
    let file = package(name);
    let file = file.to_str().expect("UTF-8");
    let (code, out, err) = daemon.cli(&["plugin", "install", file, "--allow-unsigned", "--yes"]);
    assert_eq!(code, 0, "{out}{err}; log: {}", daemon.log());
    assert!(out.contains("is installed (active)"), "{out}");
    out
}

/// Calls a tool and gives its output.
fn tool(daemon: &Daemon, name: &str, input: &Value) -> Value {
    let answer = daemon.post(&format!("/tools/{name}/execute"), &serde_json::json!({ "input": input }));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json["output"].clone()
}

/// Writes another configuration and has the daemon take it.
fn configure(daemon: &Daemon, toml: &str) {
    std::fs::write(daemon.home().join("aman.toml"), toml).expect("written");
    let answer = daemon.post_confirmed("/config/reload", &serde_json::json!({}));
    assert_eq!(answer.status, 200, "{answer:?}");
}
