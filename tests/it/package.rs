//! Packages of plugins: what is packed is what is read, and nothing hostile gets through or costs more than its bound.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use aman::error::Error;
use aman::package::{Grant, Manifest, Package, pack::Content};
use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{EntryType, Header};

use crate::harness::Folder;

/// A component that does nothing.
pub const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
pub const MANIFEST: &str = r#"
name = "feeds"
version = "1.2.0"
description = "Feeds as events"
interface = "0.1"
component = "plugin.wasm"
"#;

/// One entry of an archive, as raw as it gets.
pub struct Entry {
    name: Vec<u8>,
    kind: EntryType,
    bytes: Vec<u8>,
    link: &'static str,
}

fn file(name: &str, bytes: &[u8]) -> Entry {
    Entry { name: name.into(), kind: EntryType::Regular, bytes: bytes.into(), link: "" }
}

fn odd(name: &str, kind: EntryType, link: &'static str) -> Entry {
    Entry { name: name.into(), kind, bytes: Vec::new(), link }
}

fn sums(files: &[(&str, &[u8])]) -> String {
    files.iter().map(|(name, bytes)| format!("{}  {name}\n", aman::id::sha256_hex(bytes))).collect()
}

fn tarred(entries: &[Entry]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_ustar();
        // Written as it is: the library would refuse what is tested here.
        header.as_mut_bytes()[..entry.name.len()].copy_from_slice(&entry.name);
        header.as_mut_bytes()[157..157 + entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_mode(0o4777);
        header.set_size(entry.bytes.len() as u64);
        header.set_cksum();
        archive.append(&header, entry.bytes.as_slice()).expect("in memory");
    }
    archive.into_inner().expect("in memory")
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).expect("in memory");
    packed.finish().expect("in memory")
}

/// A sound package, with `more` in it and listed in its digests.
fn package_with(manifest: &str, more: &[(&str, &[u8])]) -> Vec<Entry> {
    let mut files = vec![("plugin.toml", manifest.as_bytes()), ("plugin.wasm", COMPONENT)];
    files.extend_from_slice(more);
    let mut entries: Vec<Entry> = files.iter().map(|(name, bytes)| file(name, bytes)).collect();
    entries.push(file("SHA256SUMS", sums(&files).as_bytes()));
    entries
}

fn with(mut entry: Vec<Entry>) -> Vec<u8> {
    let mut entries = package_with(MANIFEST, &[]);
    entries.append(&mut entry);
    gzipped(&tarred(&entries))
}

fn edited(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = tarred(&package_with(MANIFEST, &[]));
    change(&mut bytes);
    gzipped(&bytes)
}

fn manifest(lines: &str) -> Vec<u8> {
    gzipped(&tarred(&package_with(&format!("{MANIFEST}{lines}"), &[])))
}

/// Every hostile or broken package, with a part of what is said of it.
pub fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let deep = format!("ui/{}x", "a/".repeat(9));
    let many = (0..1100).map(|n| file(&format!("ui/{n}.txt"), b"x")).collect();
    let zeros = vec![0; 24 << 20];
    let mut rows = vec![
        ("parent", with(vec![file("../evil", b"x")]), "'.' or '..'"),
        ("parent inside", with(vec![file("ui/../../evil", b"x")]), "'.' or '..'"),
        ("absolute", with(vec![file("/tmp/evil", b"x")]), "absolute"),
        ("backslash", with(vec![file("ui\\..\\evil", b"x")]), "holds"),
        ("drive", with(vec![file("C:evil", b"x")]), "holds ':'"),
        ("dot twice", with(vec![file("././evil", b"x")]), "'.' or '..'"),
        ("double slash", with(vec![file("ui//evil", b"x")]), "empty or hidden"),
        ("hidden", with(vec![file("ui/.git", b"x")]), "empty or hidden"),
        ("no name", with(vec![file("", b"x")]), "1 to 200"),
        ("control character", with(vec![file("ui/a\x1b[2J", b"x")]), "holds"),
        ("space", with(vec![file("ui/a b", b"x")]), "holds ' '"),
        ("bidi", with(vec![file("ui/a\u{202e}txt", b"x")]), "holds"),
        ("not UTF-8", with(vec![Entry { name: b"ui/\xff".to_vec(), ..file("", b"x") }]), "UTF-8"),
        ("too deep", with(vec![file(&deep, b"x")]), "nested deeper"),
        ("symbolic link", with(vec![odd("ui/l", EntryType::Symlink, "/etc/passwd")]), "is a link"),
        ("link, then through it", with(vec![odd("ui", EntryType::Symlink, "/tmp"), file("ui/x", b"x")]), "is a link"),
        ("hard link", with(vec![odd("ui/l", EntryType::Link, "plugin.toml")]), "is a link"),
        ("character device", with(vec![odd("ui/d", EntryType::Char, "")]), "device"),
        ("block device", with(vec![odd("ui/d", EntryType::Block, "")]), "device"),
        ("pipe", with(vec![odd("ui/d", EntryType::Fifo, "")]), "device or a pipe"),
        ("sparse", with(vec![odd("ui/s", EntryType::GNUSparse, "")]), "sparse"),
        ("contiguous", with(vec![odd("ui/s", EntryType::Continuous, "")]), "unknown kind"),
        ("letter of nobody", with(vec![odd("ui/s", EntryType::new(b'Z'), "")]), "unknown kind"),
        (
            "PAX header",
            with(vec![Entry { kind: EntryType::XHeader, ..file("p", b"18 path=/etc/evil\n") }]),
            "extension",
        ),
        ("PAX global", with(vec![Entry { kind: EntryType::XGlobalHeader, ..file("p", b"9 size=9\n") }]), "extension"),
        ("GNU long name", with(vec![Entry { kind: EntryType::GNULongName, ..file("p", b"../evil\0") }]), "extension"),
        ("GNU long link", with(vec![Entry { kind: EntryType::GNULongLink, ..file("p", b"/etc\0") }]), "extension"),
        ("twice", with(vec![file("plugin.toml", b"x")]), "twice"),
        ("differs in case", with(vec![file("PLUGIN.toml", b"x")]), "case only"),
        ("folder that is a file", with(vec![file("ui", b"x"), file("ui/x", b"x")]), "twice"),
        ("file that is a folder", with(vec![file("ui/x", b"x"), file("ui", b"x")]), "twice"),
        ("folder with bytes", with(vec![Entry { kind: EntryType::Directory, ..file("ui/", b"x") }]), "with bytes"),
        ("name of a folder", with(vec![file("ui/", b"x")]), "empty or hidden"),
        ("too many", with(many), "more than 1024"),
        ("not listed", with(vec![file("ui/x", b"x")]), "not listed"),
        ("bomb", gzipped(&zeros), "hundred times"),
        ("bomb in a file", with(vec![file("ui/zeros", &zeros)]), "hundred times"),
        ("claims more than the cap", edited(|bytes| resize(bytes, 300 << 20)), "goes beyond the 256 MiB"),
        ("cut off", with(vec![])[..200].to_vec(), "is no whole tar.gz"),
        ("no gzip", tarred(&package_with(MANIFEST, &[])), "is no whole tar.gz"),
        ("empty", Vec::new(), "is no whole tar.gz"),
        ("gzip of nothing", gzipped(b""), "SHA256SUMS: is missing"),
        ("wrong header sum", edited(|bytes| bytes[0] = b'q'), "is no whole tar.gz"),
        ("size beyond the end", edited(|bytes| resize(bytes, 0o7_777_777)), "ends before its size"),
        ("size of exabytes", edited(|bytes| resize_base256(bytes)), "goes beyond"),
        ("bytes behind the archive", edited(|bytes| bytes.extend_from_slice(b"more")), "behind the end of its archive"),
        ("second gzip member", [with(vec![]), with(vec![])].concat(), "behind the end of its gzip data"),
        ("rubbish behind", [with(vec![]), b"rubbish".to_vec()].concat(), "behind the end of its gzip data"),
    ];
    rows.extend(unsound());
    rows
}

/// Packages that unpack well and hold something that is wrong.
fn unsound() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let plain = |files: &[(&str, &[u8])], sums: &str| {
        let mut entries: Vec<Entry> = files.iter().map(|(name, bytes)| file(name, bytes)).collect();
        entries.push(file("SHA256SUMS", sums.as_bytes()));
        gzipped(&tarred(&entries))
    };
    let both: [(&str, &[u8]); 2] = [("plugin.toml", MANIFEST.as_bytes()), ("plugin.wasm", COMPONENT)];
    let wasm = |bytes: &[u8]| {
        let files: [(&str, &[u8]); 2] = [("plugin.toml", MANIFEST.as_bytes()), ("plugin.wasm", bytes)];
        plain(&files, &sums(&files))
    };
    let huge = format!("{MANIFEST}# {}", "x".repeat(300 << 10));
    let key = "publisher = \"RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\"";
    vec![
        ("changed file", plain(&both, &sums(&[("plugin.toml", b"x"), both[1]])), "was changed"),
        ("listed and missing", plain(&both, &format!("{}{}", sums(&both), sums(&[("x", b"x")]))), "not in the package"),
        ("listed twice", plain(&both, &[sums(&both), sums(&both)].concat()), "twice"),
        ("sums of nothing", plain(&both, "rubbish"), "line 1"),
        ("no manifest", plain(&both[1..], &sums(&both[1..])), "plugin.toml: is missing"),
        ("no component", plain(&both[..1], &sums(&both[..1])), "plugin.wasm: is named"),
        ("core module", wasm(b"\0asm\x01\0\0\0"), "core module"),
        ("machine code", wasm(b"\x7fELF\x02\x01\x01\0"), "machine code"),
        ("no component at all", wasm(b"#!/bin/sh"), "no WebAssembly component"),
        ("huge manifest", gzipped(&tarred(&package_with(&huge, &[]))), "more than 256 KiB"),
        ("no TOML", manifest("]]"), "plugin.toml"),
        ("deep TOML", manifest(&format!("x = {}", "[".repeat(50_000))), "plugin.toml"),
        ("unknown key", manifest("colour = 1"), "unknown field `colour`"),
        ("unknown permission", manifest("[permissions]\nfiles = []"), "unknown field `files`"),
        ("route into the core", manifest("[[routes]]\nmethod = \"GET\"\npath = \"/../events\""), "no part of a path"),
        ("route of no method", manifest("[[routes]]\nmethod = \"CONNECT\"\npath = \"/x\""), "routes[0].method"),
        ("route of HEAD", manifest("[[routes]]\nmethod = \"HEAD\"\npath = \"/x\""), "GET answers HEAD too"),
        (
            "route of large bodies",
            manifest("[[routes]]\nmethod = \"PUT\"\npath = \"/x\"\nbody = \"65MiB\""),
            "64 MiB at the most",
        ),
        (
            "public route of large bodies",
            manifest("[[routes]]\nmethod = \"PUT\"\npath = \"/x\"\npublic = true\nbody = \"17MiB\""),
            "16 MiB at the most on a public route",
        ),
        ("page outside ui", manifest("[[pages]]\nid = \"a\"\ntitle = \"A\"\npath = \"plugin.toml\""), "below ui/"),
        ("page that is missing", manifest("[[pages]]\nid = \"a\"\ntitle = \"A\"\npath = \"ui/a.html\""), "missing"),
        (
            "schema outside",
            manifest("[[tools]]\nname = \"a\"\ndescription = \"A\"\nschema = \"../a\""),
            "below schemas/",
        ),
        ("host with a path", manifest("[permissions]\nhttp = [{ host = \"a.b/c\" }]"), "is no host"),
        ("every host", manifest("[permissions]\nhttp = [{ host = \"*\" }]"), "is no host"),
        ("every host below a top-level domain", manifest("[permissions]\nhttp = [{ host = \"*.com\" }]"), "is no host"),
        ("broken condition", manifest("[[events]]\ntypes = [\"a\"]\nwhen = \".[\""), "events[0].when"),
        ("no key", manifest("publisher = \"RWQ\""), "minisign public key"),
        ("signature of nobody", signed_wrongly(""), "names no publisher"),
        ("signature that is none", signed_wrongly(&format!("{key}\n")), "no minisign signature"),
    ]
}

fn signed_wrongly(line: &str) -> Vec<u8> {
    let mut entries = package_with(&format!("{line}{MANIFEST}"), &[]);
    entries.push(file("SHA256SUMS.minisig", b"rubbish"));
    gzipped(&tarred(&entries))
}

/// Rewrites the size of the first entry and its header's sum.
fn resize(bytes: &mut [u8], size: u64) {
    let mut header = Header::new_ustar();
    header.as_mut_bytes().copy_from_slice(&bytes[..512]);
    header.set_size(size);
    header.set_cksum();
    bytes[..512].copy_from_slice(header.as_bytes());
}

fn resize_base256(bytes: &mut [u8]) {
    resize(bytes, 1 << 60);
}

fn open(packed: &[u8], into: &Path) -> Result<Package, Error> {
    let fresh = into.join("fresh");
    std::fs::create_dir_all(&fresh).expect("a folder");
    let opened = Package::open(packed, &fresh);
    let _gone = std::fs::remove_dir_all(&fresh);
    opened
}

#[test]
fn hostile_packages_are_refused_in_words_and_leave_nothing_outside() {
    let folder = Folder::new("package");
    let rows = hostile();
    assert!(rows.len() >= 70, "{} rows", rows.len());
    for (name, packed, words) in rows {
        let error = open(&packed, folder.path()).expect_err(name);
        let told = error.to_string();
        assert!(matches!(error, Error::Invalid { code: "invalid_plugin", .. }), "{name}: {error:?}");
        assert!(told.contains(words), "{name}: {told}");
        assert!(told.len() < 2000 && !told.contains('\x1b'), "{name}: {told}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("it is there").collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!Path::new("/tmp/evil").exists());
}

fn minisign(folder: &Path, args: &[&str]) {
    let mut command = Command::new("minisign");
    let status = command.args(args).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).status();
    assert!(status.expect("minisign, which scripts/setup installs").success(), "{args:?}");
}

/// Packs a folder twice, the second time signed by the stock tool, and opens both.
#[test]
fn what_is_packed_is_what_is_read_and_the_stock_tool_signs_it() {
    let folder = Folder::new("package");
    let source = folder.path().join("source");
    std::fs::create_dir_all(source.join("ui/assets")).expect("a folder");
    minisign(folder.path(), &["-G", "-W", "-p", "key.pub", "-s", "key.sec"]);
    let public = std::fs::read_to_string(folder.path().join("key.pub")).expect("minisign wrote it");
    let (comment, key) = public.trim().split_once('\n').expect("two lines");
    let write = |name: &str, text: &[u8]| std::fs::write(source.join(name), text).expect("written");
    let page = "[[pages]]\nid = \"feeds\"\ntitle = \"Feeds\"\npath = \"ui/index.html\"\n";
    write("plugin.toml", format!("publisher = \"{key}\"{MANIFEST}{page}").as_bytes());
    write("plugin.wasm", COMPONENT);
    write("ui/index.html", b"<p>hello");
    write("ui/assets/a.css", b"p{}");
    write("notes.txt", b"not for the package");

    let mut content = Content::read(&source).expect("a package");
    let packed = |content: &Content| {
        let mut bytes = Vec::new();
        content.write(&mut bytes).expect("in memory");
        bytes
    };
    let unsigned = packed(&content);
    assert_eq!(unsigned, packed(&Content::read(&source).expect("a package")), "the same files give the same bytes");
    let opened = open(&unsigned, folder.path()).expect("it is sound");
    assert_eq!((opened.signed_by, opened.files.len()), (None, 4));
    assert!(!opened.files.contains_key("notes.txt"));

    std::fs::write(folder.path().join("SHA256SUMS"), content.sums()).expect("written");
    minisign(folder.path(), &["-S", "-s", "key.sec", "-m", "SHA256SUMS"]);
    content.sign(std::fs::read_to_string(folder.path().join("SHA256SUMS.minisig")).expect("minisign wrote it"));
    let signed = open(&packed(&content), folder.path()).expect("it is sound");
    let id = signed.signed_by.expect("it is signed");
    assert!(comment.ends_with(&id), "{comment} names {id}");
    assert_eq!(signed.digest, opened.digest, "a signature does not change what is signed");

    write("ui/index.html", b"<p>changed");
    let mut changed = Content::read(&source).expect("a package");
    changed.sign(std::fs::read_to_string(folder.path().join("SHA256SUMS.minisig")).expect("minisign wrote it"));
    let error = open(&packed(&changed), folder.path()).expect_err("the signature is of another content");
    assert!(error.to_string().contains("does not fit"), "{error}");
}

/// An upgrade's difference is what it may do beyond before: more of a kind, another method, a wider pattern.
#[test]
fn grants_say_what_an_upgrade_adds() {
    let grants = |lines: &str| Manifest::parse(&format!("{MANIFEST}{lines}")).expect("it is sound").grants();
    let http = |methods: &str| format!("[permissions]\nhttp = [{{ host = \"a.example.org\", methods = [{methods}] }}]");
    let rows = [
        ("nothing asked", String::new(), String::new(), vec![]),
        ("the same", http("\"GET\""), http("\"GET\""), vec![]),
        ("less", http("\"GET\", \"POST\""), http("\"GET\""), vec![]),
        ("another method", http("\"GET\""), http("\"GET\", \"POST\""), vec!["send POST requests to a.example.org"]),
        (
            "more space",
            "[permissions]\nkv = \"1MiB\"".into(),
            "[permissions]\nkv = \"2MiB\"".into(),
            vec!["keep keys and values of its own, up to 2048 KiB"],
        ),
        ("less space", "[permissions]\nkv = \"2MiB\"".into(), "[permissions]\nkv = \"1MiB\"".into(), vec![]),
        (
            "events",
            String::new(),
            "[[events]]\ntypes = [\"file.**\"]".into(),
            vec!["receive every event of type file.**"],
        ),
        (
            "public",
            String::new(),
            "[[routes]]\nmethod = \"GET\"\npath = \"/x\"\npublic = true".into(),
            vec!["answer GET /api/v1/x to anyone, without credentials"],
        ),
        ("plain route", String::new(), "[[routes]]\nmethod = \"GET\"\npath = \"/x\"".into(), vec![]),
    ];
    for (name, old, new, added) in rows {
        let widened = Grant::widened(&grants(&new), &grants(&old));
        let texts: Vec<&str> = widened.iter().map(|grant| grant.text.as_str()).collect();
        assert_eq!(texts, added, "{name}");
    }
}
