//! Building a plugin's component with the tools of its language.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::cli::failure::Failure;
use crate::package::pack::read_manifest;

/// The target whose output is a component already.
const TARGET: &str = "wasm32-wasip2";
/// In a folder of tools: the list that they were installed from.
const NOTE: &str = ".aman-installed";

/// What came of it.
pub struct Built {
    /// The component, beside `plugin.toml`.
    pub component: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// Builds the plugin in `folder`. The tools write to the terminal; standard output stays free for the command's own.
pub fn run(folder: &Path) -> Result<Built, Failure> {
    let manifest = read_manifest(folder).map_err(|error| super::refused(&error))?;
    let component = folder.join(&manifest.component);
    let has = |file: &str| folder.join(file).is_file();
    if has("Cargo.toml") {
        let made = rust(folder)?;
        copy(&made, &component)?;
    } else if has("package.json") {
        javascript(folder)?;
    } else if has("app.py") {
        python(folder, &manifest.component)?;
    } else {
        let reason = "neither Cargo.toml (Rust), package.json (JavaScript) nor app.py (Python) is there; build the component \
                      by your own means and put it beside plugin.toml.";
        return Err(Failure::Failed(format!("{}: {reason}", folder.display())));
    }
    let bytes = fs::metadata(&component).map(|found| found.len());
    let bytes = bytes.map_err(|_| Failure::Failed(format!("The build made no {}.", component.display())))?;
    Ok(Built { component, bytes })
}

/// A tool in the plugin's folder, writing to standard error only.
fn tool(folder: &Path, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(folder).stdin(Stdio::null()).stdout(std::io::stderr());
    command
}

/// Runs a tool to its end; `missing` says what to do when it is not there.
fn finish(mut command: Command, missing: &str) -> Result<(), Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::Failed(format!("{name} failed ({status}); what it said stands above."))),
        Err(error) => Err(Failure::Failed(format!("{name} cannot be run ({error}). {missing}"))),
    }
}

/// Whether a program answers `--version`.
fn answers(program: &str) -> bool {
    let mut asked = Command::new(program);
    asked.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    asked.status().is_ok_and(|status| status.success())
}

/// Whether the toolchain that works in `folder` has the target's standard library.
fn has_target(folder: &Path) -> Result<bool, Failure> {
    let mut asked = Command::new("rustc");
    asked.args(["--print", "target-libdir", "--target", TARGET]).current_dir(folder).stdin(Stdio::null());
    let missing = |error| {
        Failure::Failed(format!("rustc cannot be run ({error}). Rust comes from https://rustup.rs, 1.95 or newer."))
    };
    let output = asked.output().map_err(missing)?;
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(output.status.success() && Path::new(&folder).is_dir())
}

/// Builds with cargo, and finds what it made.
fn rust(folder: &Path) -> Result<PathBuf, Failure> {
    if !has_target(folder)? {
        let add = tool(folder, "rustup", &["target", "add", TARGET]);
        finish(add, &format!("Add the standard library for {TARGET} to your Rust toolchain, then build again."))?;
    }
    let args = ["build", "--release", "--target", TARGET, "--message-format", "json-render-diagnostics"];
    let mut cargo = tool(folder, "cargo", &args);
    cargo.stdout(Stdio::piped());
    let told = |error: std::io::Error| Failure::Failed(format!("cargo cannot be run ({error})."));
    let mut running = cargo.spawn().map_err(told)?;
    let lines = running.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines);
    let made = lines.map_while(Result::ok).filter_map(|line| component_of(&line)).last();
    let status = running.wait().map_err(told)?;
    if !status.success() {
        return Err(Failure::Failed(format!("cargo failed ({status}); what it said stands above.")));
    }
    let reason = "cargo made no component. Cargo.toml needs [lib] with crate-type = [\"cdylib\"].";
    made.ok_or_else(|| Failure::Failed(reason.to_owned()))
}

/// The `.wasm` that one line of cargo's messages tells of. Of several the last is that of the folder's own package.
fn component_of(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let files = (message["reason"] == "compiler-artifact").then(|| message["filenames"].as_array()).flatten()?;
    files.iter().filter_map(Value::as_str).find(|file| file.ends_with(".wasm")).map(PathBuf::from)
}

/// Whether what `list` asks for was installed into `folder`, as [`installed`] noted.
fn is_installed(folder: &Path, list: &str) -> bool {
    fs::read_to_string(folder.join(NOTE)).is_ok_and(|note| note == list)
}

/// Notes that all of `list` was installed into `folder`.
fn installed(folder: &Path, list: &str) -> Result<(), Failure> {
    let path = folder.join(NOTE);
    fs::write(&path, list).map_err(|error| Failure::Failed(format!("{} cannot be written: {error}.", path.display())))
}

fn list_of(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::Failed(format!("{} cannot be read: {error}.", path.display())))
}

/// Runs the script `build` of package.json, after what it names is there.
fn javascript(folder: &Path) -> Result<(), Failure> {
    let missing = "Node.js with npm is needed; on Debian: apt install nodejs npm.";
    let (list, modules) = (list_of(&folder.join("package.json"))?, folder.join("node_modules"));
    let is_there = |name: &String| name == "@bytecodealliance/componentize-js" && answers("componentize-js");
    if !is_installed(&modules, &list) && !dependencies(&list).iter().all(is_there) {
        finish(tool(folder, "npm", &["install", "--no-audit", "--no-fund", "--ignore-scripts"]), missing)?;
        installed(&modules, &list)?;
    }
    finish(tool(folder, "npm", &["run", "--silent", "build"]), missing)
}

/// What a `package.json` depends on.
fn dependencies(list: &str) -> Vec<String> {
    let package: Value = serde_json::from_str(list).unwrap_or_default();
    let of =
        |key: &str| package[key].as_object().into_iter().flat_map(|group| group.keys().cloned()).collect::<Vec<_>>();
    [of("dependencies"), of("devDependencies")].concat()
}

/// Runs componentize-py over `app.py`, after what requirements.txt names is there.
fn python(folder: &Path, component: &str) -> Result<(), Failure> {
    let missing = "Python 3.10 or newer with venv is needed; on Debian: apt install python3-venv.";
    let (list, venv) = (list_of(&folder.join("requirements.txt"))?, folder.join(".venv"));
    let only_the_tool = list.split_whitespace().all(|word| word.starts_with("componentize-py"));
    let program = if !is_installed(&venv, &list) && only_the_tool && answers("componentize-py") {
        PathBuf::from("componentize-py")
    } else {
        let inside = |name: &str| std::path::absolute(venv.join("bin").join(name)).unwrap_or_default();
        if !is_installed(&venv, &list) {
            finish(tool(folder, "python3", &["-m", "venv", ".venv"]), missing)?;
            let args = ["install", "--quiet", "--disable-pip-version-check", "--requirement", "requirements.txt"];
            finish(tool(folder, inside("pip"), &args), missing)?;
            installed(&venv, &list)?;
        }
        inside("componentize-py")
    };
    let args = ["-d", "wit", "-w", "plugin", "componentize", "--stub-wasi", "app", "-o", component];
    finish(tool(folder, program, &args), missing)
}

/// Puts what was made beside `plugin.toml`, whole or not at all.
fn copy(made: &Path, component: &Path) -> Result<(), Failure> {
    let making = component.with_extension("wasm.new");
    let copied = fs::copy(made, &making).and_then(|_| fs::rename(&making, component));
    copied.map_err(|error| Failure::Failed(format!("{} cannot be written: {error}.", component.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_found() {
        let list = "{\"dependencies\": {\"marked\": \"1\"}, \"devDependencies\": {\"@a/b\": \"0.23.0\"}}";
        assert_eq!(dependencies(list), ["marked", "@a/b"]);
        for list in ["{}", "", "{\"dependencies\": []}"] {
            assert!(dependencies(list).is_empty(), "{list}");
        }
    }
}
