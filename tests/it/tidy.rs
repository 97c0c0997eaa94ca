//! The repository's own rules, checked by reading its files. Each message says what to do.

mod floors;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use aman::id::sha256_hex;
use serde_json::Value;

use self::tokens::{Kind, tokens};

/// Lines of a Rust file, and of a script.
const LINES_MAX: usize = 700;
const SCRIPT_LINES_MAX: usize = 200;

/// What may stand at the top of the repository, besides hidden files; the first row must.
const TOP_LEVEL_REQUIRED: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "daemon",
    "scripts",
    "tests",
];
const TOP_LEVEL_ALLOWED: &[&str] = &["deny.toml", "plugins", "schemas", "skills", "soul", "target", "workflows"];

/// Folders whose content is data with a format; their README explains it.
const CONTENT_FOLDERS: &[&str] = &["plugins", "schemas", "skills", "soul", "workflows"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the daemon's folder lies in the repository").to_owned()
}

/// The text of a file, by its path from the repository's root; bytes that are no UTF-8 are replaced.
fn read(path: &str) -> String {
    let bytes = fs::read(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}; this file must exist"));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Every file of the repository as a path from its root, sorted; without what git ignores.
fn list() -> Vec<String> {
    let (root, mut files, mut folders) = (root(), Vec::new(), vec![root()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository can be read") {
            let entry = entry.expect("an entry of the repository can be read");
            let name = entry.file_name().to_string_lossy().into_owned();
            let ignored =
                matches!(name.as_str(), ".git" | ".venv" | "node_modules" | "target") || name.ends_with(".tmp");
            let kind = entry.file_type().expect("an entry of the repository has a type");
            if kind.is_dir() && !ignored {
                folders.push(entry.path());
            } else if kind.is_file() && !ignored {
                let path = entry.path();
                let inside = path.strip_prefix(&root).expect("the walk stays below the root");
                files.push(inside.to_string_lossy().into_owned());
            }
        }
    }
    files.sort();
    files
}

/// Fails with one line for each broken rule.
fn refuse(broken: Vec<String>) {
    assert!(broken.is_empty(), "{} broken rule(s):\n{}", broken.len(), broken.join("\n"));
}

/// Whether `scripts/bless` runs: golden files are then written, not compared.
fn blessing() -> bool {
    std::env::var_os("AMAN_BLESS").is_some()
}

/// Compares `actual` with the file `name` in tests/golden line by line, or writes it when blessing.
fn golden(name: &str, actual: &str, what_to_do: &str) {
    golden_at(&format!("tests/golden/{name}"), actual, what_to_do);
}

/// As [`golden`], with a file anywhere in the repository.
pub fn golden_at(path: &str, actual: &str, what_to_do: &str) {
    if blessing() {
        fs::write(root().join(path), actual).expect("the file can be written");
        return;
    }
    let expected = fs::read_to_string(root().join(path)).unwrap_or_default();
    let (old, new): (BTreeSet<&str>, BTreeSet<&str>) = (expected.lines().collect(), actual.lines().collect());
    let gone = old.difference(&new).map(|line| format!("- {line}"));
    let come = new.difference(&old).map(|line| format!("+ {line}"));
    let changes: Vec<String> = gone.chain(come).collect();
    assert!(expected == actual, "{path} differs; {what_to_do}\n{}", changes.join("\n"));
}

/// Goal: files stay small enough to be read in one go.
#[test]
fn files_are_not_too_long() {
    let mut broken = Vec::new();
    for path in list() {
        let lines_max = match path.as_str() {
            path if path.ends_with(".rs") => LINES_MAX,
            path if path.starts_with("scripts/") => SCRIPT_LINES_MAX,
            _ => continue,
        };
        let lines = read(&path).lines().count();
        if lines > lines_max {
            broken.push(format!("{path}: {lines} lines, at most {lines_max}; split it by what its parts hide"));
        }
    }
    refuse(broken);
}

/// Goal: every script can be run, stops at the first error and says what it does.
#[test]
fn scripts_are_strict_and_say_what_they_do() {
    let mut broken = Vec::new();
    // What lies in scripts/lib is read by scripts and never run.
    let runs = |path: &&String| path.starts_with(".ci/") || path.starts_with("scripts/");
    for path in list().iter().filter(runs).filter(|path| !path.starts_with("scripts/lib/")) {
        let text = read(path);
        let mode = fs::metadata(root().join(path)).expect("a listed file exists").permissions().mode();
        if mode & 0o111 == 0 {
            broken.push(format!("{path}: not executable; chmod +x {path}"));
        }
        if !text.starts_with("#!/usr/bin/env bash\n# ") {
            broken
                .push(format!("{path}: begin with `#!/usr/bin/env bash` and a comment that says what the script does"));
        }
        if !text.lines().any(|line| line == "set -euo pipefail") {
            broken.push(format!("{path}: add `set -euo pipefail`"));
        }
        if path.starts_with("scripts/") && !text.contains("--help") {
            broken.push(format!("{path}: answer --help"));
        }
    }
    refuse(broken);
}

/// Goal: the top of the repository stays a table of contents.
#[test]
fn top_level_is_fixed() {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root()).expect("the repository can be read") {
        found.insert(entry.expect("an entry can be read").file_name().to_string_lossy().into_owned());
    }
    let mut broken = Vec::new();
    for name in TOP_LEVEL_REQUIRED.iter().filter(|name| !found.contains(**name)) {
        broken.push(format!("{name} is missing at the top; write it"));
    }
    let known = |name: &str| name.starts_with('.') || [TOP_LEVEL_REQUIRED, TOP_LEVEL_ALLOWED].concat().contains(&name);
    for name in found.iter().filter(|name| !known(name)) {
        broken.push(format!("{name} is new at the top; put it into one of the folders that are there"));
    }
    refuse(broken);
}

/// Goal: whoever opens a content folder learns its format there.
#[test]
fn content_folders_have_a_readme() {
    let missing = CONTENT_FOLDERS.iter().filter(|folder| !root().join(folder).join("README.md").is_file());
    refuse(
        missing
            .map(|folder| format!("{folder}/README.md is missing; say what belongs there and in which format"))
            .collect(),
    );
}

/// Goal: versions and features of dependencies stand in the workspace's Cargo.toml only.
#[test]
fn members_take_dependencies_from_the_workspace() {
    let workspace: toml::Table = read("Cargo.toml").parse().expect("Cargo.toml is TOML");
    let members = workspace["workspace"]["members"].as_array().expect("the workspace lists its members");
    let mut broken = Vec::new();
    for member in members.iter().filter_map(toml::Value::as_str) {
        let path = format!("{member}/Cargo.toml");
        let manifest: toml::Table = read(&path).parse().expect("a member's Cargo.toml is TOML");
        let targets = manifest.get("target").and_then(toml::Value::as_table);
        let tables = targets.into_iter().flat_map(|targets| targets.values().filter_map(toml::Value::as_table));
        for table in std::iter::once(&manifest).chain(tables) {
            for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
                for (name, wanted) in table.get(kind).and_then(toml::Value::as_table).into_iter().flatten() {
                    let inherits = wanted.get("workspace").and_then(toml::Value::as_bool) == Some(true);
                    let alone = wanted
                        .as_table()
                        .is_some_and(|keys| keys.keys().all(|key| key == "workspace" || key == "optional"));
                    if !inherits || !alone {
                        broken.push(format!(
                            "{path}: write `{name}.workspace = true`, the rest in the workspace's Cargo.toml"
                        ));
                    }
                }
            }
        }
        for key in ["edition", "license", "rust-version", "version"] {
            if manifest["package"].get(key).and_then(|value| value.get("workspace")).is_none() {
                broken.push(format!("{path}: write `{key}.workspace = true`"));
            }
        }
        if manifest.get("lints").and_then(|lints| lints.get("workspace")).is_none() {
            broken.push(format!("{path}: write `[lints]` `workspace = true`"));
        }
    }
    refuse(broken);
}

/// Goal: a migration that was released stays as it was; a new one is listed.
#[test]
fn golden_migrations_never_change() {
    let listed = fs::read_to_string(root().join("tests/golden/sql.txt")).unwrap_or_default();
    let mut known: BTreeMap<&str, &str> =
        listed.lines().filter_map(|line| line.split_once("  ")).map(|(digest, name)| (name, digest)).collect();
    let (mut broken, mut lines) = (Vec::new(), Vec::new());
    for path in list().iter().filter(|path| path.starts_with("schemas/sql/") && path.ends_with(".sql")) {
        let name = path.trim_start_matches("schemas/sql/");
        let digest = sha256_hex(&fs::read(root().join(path)).expect("a listed file can be read"));
        match known.remove(name) {
            Some(old) if old != digest => broken.push(format!(
                "{path} was edited; put the old text back and write a new migration. Was it never released? Then delete its line in tests/golden/sql.txt and run scripts/bless"
            )),
            None if !blessing() => broken.push(format!("{path} is new; run scripts/bless to list it")),
            _ => {}
        }
        lines.push(format!("{digest}  {name}\n"));
    }
    broken.extend(known.keys().map(|name| format!("schemas/sql/{name} is gone; put it back, old databases need it")));
    refuse(broken);
    golden("sql.txt", &lines.concat(), "run scripts/bless");
}

/// Versions of the plugin interface that were released. Plugins were built for them: their files stay as they are.
const INTERFACES_RELEASED: &[&str] = &[];

/// Goal: a released version of the plugin interface never changes, and a change of the next one is seen in review.
#[test]
fn golden_interfaces_never_change() {
    let listed = fs::read_to_string(root().join("tests/golden/wit.txt")).unwrap_or_default();
    let digests = list().into_iter().filter(|path| path.starts_with("schemas/wit/")).map(|path| {
        let digest = sha256_hex(&fs::read(root().join(&path)).expect("a listed file can be read"));
        format!("{digest}  {}\n", path.trim_start_matches("schemas/wit/"))
    });
    let actual: String = digests.collect();
    let of = |text: &str, version: &str| {
        let folder = format!("  {version}/");
        text.lines().filter(|line| line.contains(&folder)).map(str::to_owned).collect::<Vec<_>>()
    };
    let changed = INTERFACES_RELEASED.iter().filter(|version| of(&listed, version) != of(&actual, version));
    refuse(
        changed
            .map(|version| {
                format!(
                    "schemas/wit/{version} was released; put it back as it was and make a folder for the next version"
                )
            })
            .collect(),
    );
    golden("wit.txt", &actual, "run scripts/bless");
}

fn is_code(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// The error codes that `source` makes, with their lines: `code: "x"`, `code = "x"`, `Error::conflict("x", …)` and its
/// like, and `StatusCode::X, "x"`. Write a code in one of these forms, so that this test sees it.
fn error_codes(source: &str) -> Vec<(usize, String)> {
    const WITH_CODE: &[&str] = &["busy", "conflict", "forbidden", "invalid_as", "mismatch"];
    let tokens = tokens(source);
    let mut codes = Vec::new();
    for window in tokens.windows(5) {
        let [a, b, c, d, code] = window else { continue };
        let field = c.is("code") && (d.is(":") || d.is("="));
        let call =
            a.is("Error") && b.is("::") && c.kind == Kind::Word && WITH_CODE.contains(&c.text.as_str()) && d.is("(");
        let status = a.is("StatusCode") && b.is("::") && d.is(",");
        if code.kind == Kind::Text && (field || call || status) && is_code(&code.text) {
            codes.push((code.line, code.text.clone()));
        }
    }
    codes
}

/// Goal: a client that meets an error code finds its section in schemas/errors.md, and no section is about nothing.
#[test]
fn error_codes_are_documented() {
    let documented: BTreeSet<String> = read("schemas/errors.md")
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim().trim_matches('`').to_owned())
        .filter(|heading| is_code(heading))
        .collect();
    let (mut broken, mut written) = (Vec::new(), BTreeSet::new());
    for path in list().iter().filter(|path| path.starts_with("daemon/src/") && path.ends_with(".rs")) {
        let text = read(path);
        for (line, code) in error_codes(&text) {
            if !documented.contains(&code) {
                broken.push(format!(
                    "{path}:{line}: add a section `## {code}` to schemas/errors.md: when it comes, what to do"
                ));
            }
        }
        written.extend(tokens(&text).into_iter().filter(|t| t.kind == Kind::Text).map(|t| t.text));
    }
    for code in documented.iter().filter(|code| !written.contains(*code)) {
        broken.push(format!("schemas/errors.md: no code in daemon/src says \"{code}\"; remove the section"));
    }
    refuse(broken);
}

/// Goal: nothing in the repository depends on, or tells of, the machine it was written on.
#[test]
fn no_paths_of_one_machine() {
    // In two halves, so that this file does not find itself.
    let (absolute, beside) = (concat!("/wo", "rk/"), concat!("..", "/shared"));
    let starts_path = |text: &str, at: usize| {
        !text[..at]
            .ends_with(|c: char| c.is_alphanumeric() || matches!(c, '~' | '.' | '-' | '_' | '}' | '/' | '>' | '$'))
    };
    let mut broken = Vec::new();
    for path in list() {
        for (n, line) in read(&path).lines().enumerate() {
            let foreign = line.contains(beside) || line.match_indices(absolute).any(|(at, _)| starts_path(line, at));
            if foreign {
                broken.push(format!("{path}:{}: names a path of one machine; write what it means instead", n + 1));
            }
        }
    }
    refuse(broken);
}

/// `1` of `1.2.3`, `0.2` of `0.2.3`, `0.0.3` of itself: what Cargo treats as interchangeable.
fn compatible(version: &str) -> String {
    let parts: Vec<&str> = version.split(['.', '-', '+']).collect();
    let kept = parts.iter().take_while(|part| **part == "0").count() + 1;
    parts[..kept.min(parts.len())].join(".")
}

/// The ids of the packages that `from` needs over edges of these kinds (`null` is normal), itself included.
fn reachable(nodes: &BTreeMap<&str, &Value>, from: &BTreeSet<String>, kinds: &[&str]) -> BTreeSet<String> {
    let (mut found, mut waiting) = (from.clone(), from.iter().cloned().collect::<Vec<_>>());
    while let Some(id) = waiting.pop() {
        for dependency in nodes[id.as_str()]["deps"].as_array().into_iter().flatten() {
            let wanted = |edge: &Value| kinds.contains(&edge["kind"].as_str().unwrap_or("null"));
            let needed = dependency["dep_kinds"].as_array().into_iter().flatten().any(wanted);
            let id = dependency["pkg"].as_str().expect("a dependency has an id").to_owned();
            if needed && found.insert(id.clone()) {
                waiting.push(id);
            }
        }
    }
    found
}

/// Goal: a new dependency, or a new licence, is seen in review.
#[test]
fn golden_dependencies_with_their_licences() {
    const ARGUMENTS: &[&str] = &["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform"];
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(ARGUMENTS).arg("x86_64-unknown-linux-gnu").current_dir(root());
    let output = command.output().expect("cargo can be started");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo metadata failed; is everything fetched (cargo fetch)?\n{complaint}");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata answers JSON");

    let list_of = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let nodes = metadata["resolve"]["nodes"].as_array().expect("metadata has a resolve graph");
    let nodes: BTreeMap<&str, &Value> =
        nodes.iter().map(|node| (node["id"].as_str().unwrap_or_default(), node)).collect();
    let ours: BTreeSet<String> =
        list_of(&metadata["workspace_members"]).iter().filter_map(|id| id.as_str().map(str::to_owned)).collect();
    let shipped = reachable(&nodes, &ours, &["null"]);
    let built = reachable(&nodes, &ours, &["null", "build"]);
    let tested = reachable(&nodes, &ours, &["null", "build", "dev"]);

    let mut lines = BTreeSet::new();
    for package in list_of(&metadata["packages"]) {
        let text = |key: &str| package[key].as_str().unwrap_or("none").to_owned();
        let id = text("id");
        if ours.contains(&id) || !tested.contains(&id) {
            continue;
        }
        let group = if shipped.contains(&id) {
            ""
        } else if built.contains(&id) {
            "  (to build)"
        } else {
            "  (to test)"
        };
        lines.insert(format!("{} {}: {}{group}\n", text("name"), compatible(&text("version")), text("license")));
    }
    let lines: String = lines.into_iter().collect();
    golden(
        "dependencies.txt",
        &lines,
        "give the commit the reason for a new one, run scripts/bless and read the change",
    );
}
