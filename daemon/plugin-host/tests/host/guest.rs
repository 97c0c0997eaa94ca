//! Guests: core modules in text, made into components with the world that they ask for.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The folder with the interface.
const WIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../schemas/wit/0.1");

/// A guest in the making. Every body has a default that does nothing and answers well.
///
/// Memory: 0 to 1023 is zeros (so 0 is a pointer to `done`, to `ok` of nothing and to an empty answer), 1024 on is for
/// the data of the test, 4096 on for what it writes, 65536 on is handed out for arguments and taken back after the call.
#[derive(Clone)]
pub struct Guest {
    /// Interfaces of aman:plugin that it imports.
    pub imports: &'static [&'static str],
    /// Interfaces of aman:plugin that it exports.
    pub exports: &'static [&'static str],
    /// Imports, globals, tables, functions and data of its own.
    pub own: &'static str,
    /// Pages of memory at the beginning.
    pub pages: u32,
    pub init: &'static str,
    pub handle_event: &'static str,
    pub handle_http: &'static str,
    pub next: &'static str,
    pub call: &'static str,
    pub poll: &'static str,
    pub realloc: &'static str,
}

/// Everything a guest may export.
pub const ALL: &[&str] = &["lifecycle", "events", "http-handler", "tools", "source"];

const REALLOC: &str = "
    (global.set $heap (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (local.set $at (global.get $heap))
    (global.set $heap (i32.add (global.get $heap) (local.get 3)))
    (block $fits
      (br_if $fits (i32.le_u (global.get $heap) (i32.shl (memory.size) (i32.const 16))))
      (drop (memory.grow (i32.add (i32.shr_u (local.get 3) (i32.const 16)) (i32.const 1)))))
    (local.get $at)";

impl Default for Guest {
    fn default() -> Guest {
        Guest {
            imports: &[],
            exports: ALL,
            own: "",
            pages: 2,
            init: "(i32.const 0)",
            handle_event: "(i32.const 0)",
            // ok: status 200 and nothing else.
            handle_http: "(i32.store16 offset=8 (i32.const 512) (i32.const 200)) (i32.const 512)",
            next: "(i32.const 0)",
            call: "(i32.const 0)",
            poll: "(i32.const 0)",
            realloc: REALLOC,
        }
    }
}

/// An exported function: name within its interface, core parameters, and the body that it gets.
fn functions<'a>(guest: &'a Guest, interface: &str) -> Vec<(&'static str, usize, &'a str)> {
    match interface {
        "lifecycle" => vec![("init", 8, guest.init)],
        "events" => vec![("handle", 1, guest.handle_event)],
        "http-handler" => vec![("handle", 1, guest.handle_http), ("[method]body-stream.next", 1, guest.next)],
        "tools" => vec![("call", 11, guest.call)],
        "source" => vec![("poll", 5, guest.poll)],
        other => panic!("{other} is no export"),
    }
}

impl Guest {
    /// The core module's text.
    fn text(&self) -> String {
        let mut exported = String::new();
        for interface in self.exports {
            let path = format!("aman:plugin/{interface}@0.1.0");
            for (name, params, body) in functions(self, interface) {
                let params = " i32".repeat(params);
                exported.push_str(&format!(
                    "(func (export \"{path}#{name}\") (param{params}) (result i32) (local $i i32) (local $n i64) {body})\n\
                     (func (export \"cabi_post_{path}#{name}\") (param i32) (global.set $heap (i32.const 65536)))\n"
                ));
            }
        }
        let resource = if self.exports.contains(&"http-handler") {
            "(import \"[export]aman:plugin/http-handler@0.1.0\" \"[resource-new]body-stream\"
               (func $new-stream (param i32) (result i32)))"
        } else {
            ""
        };
        format!(
            "(module {resource} {own}
               (memory (export \"memory\") {pages})
               (global $heap (mut i32) (i32.const 65536))
               (func $realloc (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) (local $at i32) {realloc})
               {exported})",
            own = self.own,
            pages = self.pages,
            realloc = self.realloc,
        )
    }

    /// The component in its binary form.
    pub fn component(&self) -> Vec<u8> {
        self.component_of("0.1.0", WIT)
    }

    /// As [`Guest::component`], with another version of the interface in all names.
    pub fn of_version(&self, version: &str) -> Vec<u8> {
        let folder = std::env::temp_dir().join(format!("aman-wit-{}-{version}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        for entry in std::fs::read_dir(WIT).expect("the interface is there") {
            let path = entry.expect("an entry can be read").path();
            let text = std::fs::read_to_string(&path).expect("the interface is text");
            let name = path.file_name().expect("a file has a name");
            std::fs::write(folder.join(name), text.replace("@0.1.0", &format!("@{version}"))).expect("can be written");
        }
        let component = self.component_of(version, folder.to_str().expect("a path of ours is text"));
        std::fs::remove_dir_all(&folder).expect("what was made can be removed");
        component
    }

    fn component_of(&self, version: &str, wit: &str) -> Vec<u8> {
        let mut resolve = Resolve::default();
        resolve.push_path(wit).expect("the interface is WIT");
        let item = |kind: &str, name: &&str| format!("{kind} aman:plugin/{name}@{version};\n");
        let items: String = self
            .imports
            .iter()
            .map(|name| item("import", name))
            .chain(self.exports.iter().map(|name| item("export", name)))
            .collect();
        let package = resolve
            .push_source("guest.wit", &format!("package test:guest;\nworld guest {{\n{items}}}\n"))
            .expect("the guest's world is WIT");
        let world = resolve.select_world(&[package], Some("guest")).expect("the guest's world is there");
        let text = self.text().replace("@0.1.0", &format!("@{version}"));
        let mut module = wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("the world fits");
        let encoder = ComponentEncoder::default().module(&module);
        encoder.and_then(|mut encoder| encoder.encode()).unwrap_or_else(|error| panic!("{error:?}\n{text}"))
    }
}
