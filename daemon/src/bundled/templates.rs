//! What `aman plugin new` makes a plugin's folder of: the repository's own templates, interface and Rust library.

/// A file of a template: its path in the new folder, and its text.
type File = (&'static str, &'static str);

/// The name in the templates that the plugin's own takes the place of.
pub const PLACEHOLDER: &str = "my-plugin";

macro_rules! files {
    ($from:literal, $into:literal: $($file:literal),+) => {
        &[$((concat!($into, $file), include_str!(concat!("../../../", $from, $file)))),+]
    };
}

/// Files that carry the plugin's name.
pub const RUST: &[File] = &[
    ("Cargo.toml", include_str!("../../../plugins/templates/rust/Cargo.toml")),
    ("README.md", include_str!("../../../plugins/templates/rust/README.md")),
    ("plugin.toml", include_str!("../../../plugins/templates/rust/plugin.toml")),
    ("src/lib.rs", include_str!("../../../plugins/templates/rust/src/lib.rs")),
    (".gitignore", "/target\n/plugin.wasm\n*.tar.gz\n"),
];

/// See [`RUST`].
pub const JAVASCRIPT: &[File] = &[
    ("README.md", include_str!("../../../plugins/templates/javascript/README.md")),
    ("package.json", include_str!("../../../plugins/templates/javascript/package.json")),
    ("plugin.js", include_str!("../../../plugins/templates/javascript/plugin.js")),
    ("plugin.toml", include_str!("../../../plugins/templates/javascript/plugin.toml")),
    ("wit/plugin.wit", include_str!("../../../plugins/templates/javascript/wit/plugin.wit")),
    (".gitignore", "/node_modules\n/plugin.wasm\n*.tar.gz\n"),
];

/// See [`RUST`].
pub const PYTHON: &[File] = &[
    ("README.md", include_str!("../../../plugins/templates/python/README.md")),
    ("app.py", include_str!("../../../plugins/templates/python/app.py")),
    ("plugin.toml", include_str!("../../../plugins/templates/python/plugin.toml")),
    ("requirements.txt", include_str!("../../../plugins/templates/python/requirements.txt")),
    ("wit/plugin.wit", include_str!("../../../plugins/templates/python/wit/plugin.wit")),
    (".gitignore", "/.venv\n/__pycache__\n/plugin.wasm\n*.tar.gz\n"),
];

/// The Rust library.
pub const SDK: &[File] = files!("plugins/sdk/", "sdk/":
    "Cargo.toml", "src/agents.rs", "src/bindings.rs", "src/chat.rs", "src/error.rs", "src/event.rs", "src/http.rs",
    "src/kv.rs", "src/lib.rs", "src/notify.rs", "src/parts.rs", "src/polled.rs", "src/routes.rs", "src/sql.rs", "src/workflows.rs");

/// The interface, for the Rust library.
pub const SDK_WIT: &[File] =
    files!("schemas/wit/0.1/", "sdk/wit/": "exports.wit", "imports.wit", "types.wit", "world.wit");

/// The interface, for other languages.
pub const WIT: &[File] =
    files!("schemas/wit/0.1/", "wit/deps/aman-plugin/": "exports.wit", "imports.wit", "types.wit", "world.wit");

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: whoever makes a plugin gets the whole library.
    #[test]
    fn the_library_is_whole() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins/sdk/src");
        for entry in std::fs::read_dir(folder).expect("the library is there") {
            let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
            let place = format!("sdk/src/{name}");
            assert!(SDK.iter().any(|(known, _)| *known == place), "{place} is missing from the bundled files");
        }
    }
}
