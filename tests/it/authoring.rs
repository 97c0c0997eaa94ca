//! The author's side of plugins: a new folder becomes a signed package that the daemon's own reader takes, and the stock
//! minisign checks what was signed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aman::package::{Manifest, Package};
use serde_json::Value;

use crate::harness::{self, Folder};
use crate::package::COMPONENT;

/// Runs `aman plugin ARGS` in `folder`: exit code, standard output and standard error.
fn plugin(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = harness::command(folder);
    command.arg("plugin").args(args).current_dir(folder).env("HOME", folder).stdin(Stdio::null());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let output = command.output().expect("aman can be run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// As [`plugin`], and it must succeed.
fn good(folder: &Path, args: &[&str]) -> String {
    let (code, out, err) = plugin(folder, args);
    assert_eq!(code, 0, "{args:?}: {out}{err}");
    out
}

fn open(package: &Path, into: &Path) -> Package {
    let _old = fs::remove_dir_all(into);
    fs::create_dir_all(into).expect("a folder");
    Package::open(fs::File::open(package).expect("it is there"), into).expect("it is sound")
}

/// Runs the stock tool; `input` is what a person would type.
fn minisign(folder: &Path, args: &[&str], input: &str) -> (bool, String) {
    let mut command = Command::new("minisign");
    command.args(args).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("minisign, which scripts/setup installs");
    // It may end without reading.
    let _read = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// A new plugin with a component that does nothing, as if it had been built.
fn prepared(folder: &Path, name: &str, publisher: Option<&str>) -> PathBuf {
    good(folder, &["new", name]);
    let made = folder.join(name);
    fs::write(made.join("plugin.wasm"), COMPONENT).expect("written");
    if let Some(key) = publisher {
        name_publisher(&made, key);
    }
    made
}

fn name_publisher(plugin: &Path, key: &str) {
    let text = fs::read_to_string(plugin.join("plugin.toml")).expect("a manifest");
    fs::write(plugin.join("plugin.toml"), format!("publisher = \"{key}\"\n{text}")).expect("written");
}

/// Goal: the folder of each language is whole, and carries the plugin's name only.
#[test]
fn new_folders_are_whole() {
    let folder = Folder::new("authoring");
    for (language, source) in [("rust", "src/lib.rs"), ("javascript", "plugin.js"), ("python", "app.py")] {
        let name = format!("try-{language}");
        let out = good(folder.path(), &["new", &name, "--language", language]);
        assert!(out.contains(&name), "{out}");
        let made = folder.path().join(&name);
        let read = |file: &str| fs::read_to_string(made.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let manifest = Manifest::parse(&read("plugin.toml")).expect("a sound manifest");
        assert_eq!((manifest.name.as_str(), manifest.grants().len()), (name.as_str(), 0));
        let wit = if language == "rust" { "sdk/wit/types.wit" } else { "wit/deps/aman-plugin/types.wit" };
        assert!(read(wit).contains("variant error"));
        for file in [source, "plugin.toml", "README.md"] {
            let text = read(file);
            assert!(text.contains(&name) && !text.contains("my-plugin"), "{file}: {text}");
        }
        assert!(made.join(".gitignore").is_file());
        let (code, _, err) = plugin(folder.path(), &["new", &name]);
        assert!(code == 1 && err.contains("exists"), "{code} {err}");
    }
    for name in ["Up", "", "install", "a/b", "../x"] {
        let (code, _, err) = plugin(folder.path(), &["new", name]);
        assert!(code == 2 && err.contains("name"), "{name}: {code} {err}");
    }
    let hello = fs::read_to_string(folder.path().join("try-rust/src/lib.rs")).expect("it is there");
    assert!(hello.lines().count() < 25, "a first plugin is short");
}

/// Goal: what aman signs the stock tool verifies, whether the key has a password or not; the key is its owner's alone.
#[test]
fn packages_are_signed_for_the_stock_tool() {
    let folder = Folder::new("authoring");
    let at = |name: &str| folder.path().join(name);
    fs::write(at("password"), "open sesame\n").expect("written");
    for (n, flags) in [&["--no-password"][..], &["--password-file", "password"][..]].into_iter().enumerate() {
        let key = format!("keys/{n}.key");
        let made = good(folder.path(), &[&["keygen", "--key", &key, "--json"], flags].concat());
        let made: Value = serde_json::from_str(&made).expect("a document");
        let (public, id) = (made["public_key"].as_str().expect("a key"), made["id"].as_str().expect("an id"));
        let mode = |path: &str| fs::metadata(at(path)).expect("it is there").permissions().mode() & 0o777;
        assert_eq!((mode(&key), mode("keys")), (0o600, 0o700));
        let (code, _, err) = plugin(folder.path(), &["keygen", "--key", &key, "--no-password"]);
        assert!(code == 2 && err.contains("is there already"), "{code} {err}");

        let name = format!("signed-{n}");
        let source = prepared(folder.path(), &name, Some(public));
        let package = source.join(format!("{name}-0.1.0.tar.gz"));
        let out = good(folder.path(), &["pack", &name]);
        assert!(out.contains("not signed"), "{out}");
        assert_eq!(open(&package, &at("opened")).signed_by, None);
        let password: &[&str] = if n == 0 { &[] } else { &["--password-file", "password"] };
        let path = package.to_str().expect("UTF-8");
        let out = good(folder.path(), &[&["sign", path, "--key", &key], password].concat());
        assert!(out.contains(id), "{out}");
        assert_eq!(open(&package, &at("opened")).signed_by.as_deref(), Some(id));
        let (fine, said) = minisign(&at("opened"), &["-V", "-p", &format!("../keys/{n}.pub"), "-m", "SHA256SUMS"], "");
        assert!(fine && said.contains(&format!("{name} 0.1.0")), "{said}");
        assert_eq!(fs::read_dir(&source).expect("there").filter(hidden).count(), 1, "only .gitignore is hidden");

        // The key's own file serves the stock tool, too.
        let secret = format!("../{key}");
        let typed = "open sesame\n";
        let (fine, said) = minisign(&at("opened"), &["-S", "-s", &secret, "-m", "plugin.toml"], typed);
        assert!(fine, "{said}");
        let (fine, said) = minisign(&at("opened"), &["-V", "-P", public, "-m", "plugin.toml"], "");
        assert!(fine, "{said}");
    }
}

fn hidden(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with('.'))
}

/// Goal: a key of the stock tool signs here; a wrong key, password or manifest is told in words and changes nothing.
#[test]
fn wrong_signing_is_explained() {
    let folder = Folder::new("authoring");
    let at = |name: &str| folder.path().join(name);
    let (fine, said) = minisign(folder.path(), &["-G", "-W", "-p", "stock.pub", "-s", "stock.key"], "");
    assert!(fine, "{said}");
    let public = fs::read_to_string(at("stock.pub")).expect("there").lines().nth(1).expect("a key").to_owned();
    let source = prepared(folder.path(), "wrong", None);
    let (code, _, err) = plugin(folder.path(), &["pack", "wrong", "--key", "stock.key"]);
    assert!(code == 1 && err.contains(&format!("publisher = \"{public}\"")), "{code} {err}");
    assert!(!source.join("wrong-0.1.0.tar.gz").exists());
    name_publisher(&source, &public);
    let out = good(folder.path(), &["pack", "wrong", "--key", "stock.key"]);
    assert!(out.contains(", signed"), "{out}");
    let packed = fs::read(source.join("wrong-0.1.0.tar.gz")).expect("there");
    assert!(open(&source.join("wrong-0.1.0.tar.gz"), &at("opened")).signed_by.is_some());

    good(folder.path(), &["keygen", "--key", "other.key", "--no-password"]);
    fs::write(at("password"), "right\n").expect("written");
    good(folder.path(), &["keygen", "--key", "locked.key", "--password-file", "password"]);
    fs::write(at("password"), "wrong\n").expect("written");
    fs::write(at("rubbish.key"), "rubbish").expect("written");
    let package = "wrong/wrong-0.1.0.tar.gz";
    for (args, words) in [
        (&["sign", package, "--key", "other.key"][..], "another publisher"),
        (&["sign", package, "--key", "locked.key", "--password-file", "password"], "locked.key"),
        (&["sign", package, "--key", "rubbish.key"], "no secret key"),
        (&["sign", package, "--key", "locked.key"], "--password-file"),
        (&["sign", package, "--key", "none.key"], "none.key"),
        (&["sign", "none.tar.gz", "--key", "other.key"], "none.tar.gz"),
        (&["sign", "stock.pub", "--key", "other.key"], "tar.gz"),
    ] {
        let (code, out, err) = plugin(folder.path(), args);
        assert!(code == 1 && err.contains(words), "{args:?}: {code} {out}{err}");
    }
    assert_eq!(fs::read(source.join("wrong-0.1.0.tar.gz")).expect("there"), packed);
}

/// Goal: what cannot be built or packed says why.
#[test]
fn wrong_folders_are_explained() {
    let folder = Folder::new("authoring");
    good(folder.path(), &["new", "unbuilt"]);
    let (code, _, err) = plugin(folder.path(), &["pack", "unbuilt"]);
    assert!(code == 1 && err.contains("aman plugin build"), "{code} {err}");
    let (code, _, err) = plugin(folder.path(), &["build", "nowhere"]);
    assert!(code == 1 && err.contains("plugin.toml"), "{code} {err}");
    fs::remove_file(folder.path().join("unbuilt/Cargo.toml")).expect("it is there");
    let (code, _, err) = plugin(folder.path(), &["build", "unbuilt"]);
    assert!(code == 1 && err.contains("Cargo.toml"), "{code} {err}");
}
