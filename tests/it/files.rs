//! The file source: what happens in a watched folder becomes events, each once, whatever happens to the daemon.
//!
//! That nothing was told is shown by a sentinel: a file that is dropped afterwards and whose event is waited for.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{Daemon, Folder, signal};

/// A daemon that watches one folder, and a place beside it on the same disk.
struct Watched {
    daemon: Daemon,
    root: PathBuf,
    beside: PathBuf,
    sentinels: u32,
    _folder: Folder,
}

impl Watched {
    /// Watches a folder after `prepare` filled it, with further settings of the source.
    fn start(settings: &str, prepare: impl FnOnce(&Path)) -> Watched {
        let folder = Folder::new("watched");
        let (root, beside) = (folder.path().join("root"), folder.path().join("beside"));
        fs::create_dir(&root).expect("the root is made");
        fs::create_dir(&beside).expect("the place beside it is made");
        prepare(&root);
        let toml = format!("[sources.t]\nkind = \"files\"\npath = \"{}\"\n{settings}\n", root.display());
        Watched { daemon: Daemon::configured(&toml), root, beside, sentinels: 0, _folder: folder }
    }

    /// Watches an empty folder.
    fn empty() -> Watched {
        Watched::start("", |_| {})
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().expect("it lies below the root")).expect("its folder is made");
        fs::write(path, text).expect("it is written");
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.root.join(from), self.root.join(to)).expect("it is renamed");
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.root.join(path)).expect("it is removed");
    }

    /// Every file event in order, without those of sentinels.
    fn events(&self) -> Vec<Value> {
        let (mut events, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.daemon.get(&format!("/events/recent?limit=1000&types=file.*{cursor}")).json;
            events.extend(page["items"].as_array().cloned().expect("a list of events"));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        events.reverse();
        events.retain(|event| !event["data"]["name"].as_str().is_some_and(|name| name.starts_with("sentinel")));
        events
    }

    /// The events in words: `+path`, `*path`, `-path`, `from>path`, sorted within what may come in any order.
    fn told(&self) -> Vec<String> {
        let root = format!("{}/", self.root.display());
        let short = |path: &Value| path.as_str().unwrap_or_default().replacen(&root, "", 1);
        let words = self.events().into_iter().map(|event| {
            let path = short(&event["data"]["path"]);
            match event["type"].as_str() {
                Some("file.created") => format!("+{path}"),
                Some("file.changed") => format!("*{path}"),
                Some("file.removed") => format!("-{path}"),
                Some("file.renamed") => format!("{}>{path}", short(&event["data"]["previous_path"])),
                other => panic!("{other:?} is no file event"),
            }
        });
        words.collect()
    }

    /// Waits until exactly these events were told, in this order.
    fn expect(&mut self, expected: &[&str]) {
        self.daemon.wait(&format!("{expected:?}; told: {:?}", self.told()), || {
            let told = self.told();
            (told.len() >= expected.len()).then_some(())
        });
        self.sentinel();
        assert_eq!(self.told(), expected);
    }

    /// As [`Watched::expect`], for events that may come in any order.
    fn expect_any_order(&mut self, expected: &[&str]) {
        self.daemon.wait(&format!("{expected:?}"), || (self.told().len() >= expected.len()).then_some(()));
        self.sentinel();
        let (mut told, mut expected) = (self.told(), expected.to_vec());
        told.sort();
        expected.sort_unstable();
        assert_eq!(told, expected);
    }

    /// Waits until what happened up to now was looked at.
    fn sentinel(&mut self) {
        self.sentinels += 1;
        let name = format!("sentinel-{}.md", self.sentinels);
        self.write(&name, "");
        self.wait_for_sentinel(&name);
    }

    /// As [`Watched::sentinel`] for a file of which no close is seen: so at least the time passes that such a file waits.
    fn slow_sentinel(&mut self) {
        self.sentinels += 1;
        let name = format!("sentinel-{}.md", self.sentinels);
        fs::write(self.beside.join(&name), "").expect("it is written");
        fs::hard_link(self.beside.join(&name), self.root.join(&name)).expect("it is linked");
        self.wait_for_sentinel(&name);
    }

    fn wait_for_sentinel(&self, name: &str) {
        self.daemon.wait(name, || {
            let recent = self.daemon.recent("file.created");
            recent.iter().any(|event| event["data"]["name"] == name).then_some(())
        });
    }

    fn restart_after(&mut self, change: impl FnOnce(&Watched)) {
        self.daemon.kill();
        change(self);
        self.daemon.again();
    }
}

/// Goal: create, change, rename and remove are told once each, with what the event says of the file.
#[test]
fn each_change_is_told_once() {
    let mut watched = Watched::empty();
    watched.write("a.md", "one");
    watched.expect(&["+a.md"]);
    watched.write("a.md", "one two");
    watched.expect(&["+a.md", "*a.md"]);
    watched.rename("a.md", "b.md");
    watched.expect(&["+a.md", "*a.md", "a.md>b.md"]);
    watched.remove("b.md");
    watched.expect(&["+a.md", "*a.md", "a.md>b.md", "-b.md"]);
    let events = watched.events();
    let (path, data) = (watched.root.join("b.md").display().to_string(), &events[2]["data"]);
    assert_eq!(
        (data["name"].as_str(), data["size"].as_i64(), data["mime"].as_str()),
        (Some("b.md"), Some(7), Some("text/markdown"))
    );
    assert_eq!((events[2]["source"].as_str(), events[2]["subject"].as_str()), (Some("files/t"), Some(path.as_str())));
    assert_eq!(events[2]["trust"], "owner");
    assert!(data["modified"].as_str().is_some_and(|at| at.ends_with('Z') && at.len() == 24), "{data}");
}

/// Goal: the first sight of a folder is silent, unless the source is told to emit it.
#[test]
fn the_first_sight_is_a_baseline() {
    let fill = |root: &Path| {
        fs::create_dir(root.join("d")).expect("a folder");
        fs::write(root.join("d/old.md"), "old").expect("a file");
    };
    let mut silent = Watched::start("", fill);
    silent.write("d/old.md", "changed");
    silent.expect(&["*d/old.md"]);
    let mut emitting = Watched::start("initial = \"emit\"", fill);
    emitting.expect(&["+d/old.md"]);
    emitting.restart_after(|_| {});
    emitting.expect(&["+d/old.md"]);
}

/// Goal: what happened while the daemon was down is told at the next start, renames as renames.
#[test]
fn changes_while_down_are_told() {
    let mut watched = Watched::start("", |root| {
        for name in ["changed.md", "removed.md", "renamed.md", "same.md"] {
            fs::write(root.join(name), name).expect("a file");
        }
    });
    watched.restart_after(|watched| {
        watched.write("changed.md", "other content");
        watched.remove("removed.md");
        watched.rename("renamed.md", "to.md");
        watched.write("d/new.md", "new");
    });
    watched.expect_any_order(&["*changed.md", "-removed.md", "renamed.md>to.md", "+d/new.md"]);
    watched.restart_after(|_| {});
    watched.expect_any_order(&["*changed.md", "-removed.md", "renamed.md>to.md", "+d/new.md"]);
}

/// Goal: moving a folder renames every file below it, live and while down; new folders are watched to any depth.
#[test]
fn a_moved_folder_renames_its_files() {
    let mut watched = Watched::empty();
    watched.write("a/b/c/one.md", "1");
    watched.write("a/two.md", "2");
    watched.expect_any_order(&["+a/b/c/one.md", "+a/two.md"]);
    watched.rename("a", "z");
    let moved = ["+a/b/c/one.md", "+a/two.md", "a/b/c/one.md>z/b/c/one.md", "a/two.md>z/two.md"];
    watched.expect_any_order(&moved);
    watched.write("z/b/c/one.md", "changed");
    let changed = [&moved[..], &["*z/b/c/one.md"]].concat();
    watched.expect_any_order(&changed);
    watched.restart_after(|watched| watched.rename("z", "y"));
    watched.expect_any_order(&[&changed[..], &["z/b/c/one.md>y/b/c/one.md", "z/two.md>y/two.md"]].concat());
    let before = watched.told().len();
    fs::rename(watched.root.join("y"), watched.beside.join("gone")).expect("moved out");
    watched.daemon.wait("both removals", || (watched.told().len() == before + 2).then_some(()));
    assert!(watched.told().contains(&"-y/two.md".to_owned()));
    fs::rename(watched.beside.join("gone"), watched.root.join("back")).expect("moved in");
    watched.daemon.wait("both arrivals", || (watched.told().len() == before + 4).then_some(()));
    assert!(watched.told().contains(&"+back/b/c/one.md".to_owned()));
}

/// Goal: a file that is written slowly is told once, after its writer closed it, with all of its content.
#[test]
fn a_half_written_file_is_not_told() {
    let mut watched = Watched::empty();
    let mut writer = fs::File::create(watched.root.join("slow.md")).expect("it is made");
    for part in ["one ", "two ", "three"] {
        writer.write_all(part.as_bytes()).expect("it is written");
        watched.slow_sentinel();
        assert_eq!(watched.told(), Vec::<String>::new(), "its writer still has it open");
    }
    watched.rename("slow.md", "renamed.md");
    watched.slow_sentinel();
    assert_eq!(watched.told(), Vec::<String>::new(), "under its new name as well");
    drop(writer);
    watched.expect(&["+renamed.md"]);
    assert_eq!(watched.events()[0]["data"]["size"], 13);
}

/// Goal: a writer that was at work when the daemon started is waited for too.
#[test]
fn a_writer_from_before_the_start_is_waited_for() {
    let mut watched = Watched::empty();
    let mut writer = None;
    watched.restart_after(|watched| {
        let mut file = fs::File::create(watched.root.join("slow.md")).expect("it is made");
        file.write_all(b"begun").expect("it is written");
        writer = Some(file);
    });
    watched.slow_sentinel();
    watched.slow_sentinel();
    assert_eq!(watched.told(), Vec::<String>::new());
    drop(writer);
    watched.expect(&["+slow.md"]);
}

/// Goal: editors that save by renaming a new file over the old one change it, and leave no trace of their names.
#[test]
fn an_atomic_save_is_one_change() {
    let mut watched = Watched::start("", |root| fs::write(root.join("f.md"), "old").expect("a file"));
    watched.write("f.md.new", "new content");
    watched.rename("f.md.new", "f.md");
    watched.expect(&["*f.md"]);
    watched.write(".f.md.swp", "x");
    watched.rename("f.md", "f.md~");
    watched.write("f.md", "newer");
    watched.remove("f.md~");
    watched.remove(".f.md.swp");
    watched.expect(&["*f.md", "*f.md"]);
    watched.write("short-lived.md", "x");
    watched.remove("short-lived.md");
    watched.write("download.md.part", "x");
    watched.rename("download.md.part", "download.md");
    watched.expect(&["*f.md", "*f.md", "+download.md"]);
}

/// Goal: symlinks are neither told of nor followed, not even where a known folder was.
#[test]
fn symlinks_are_left_alone() {
    let mut watched = Watched::empty();
    fs::create_dir(watched.beside.join("secret")).expect("a folder");
    fs::write(watched.beside.join("secret/inside.md"), "secret").expect("a file");
    symlink(watched.beside.join("secret"), watched.root.join("link")).expect("a link to a folder");
    symlink(watched.beside.join("secret/inside.md"), watched.root.join("link.md")).expect("a link to a file");
    symlink("/nonexistent", watched.root.join("broken.md")).expect("a broken link");
    watched.slow_sentinel();
    fs::write(watched.beside.join("secret/inside.md"), "changed").expect("it is changed");
    watched.slow_sentinel();
    assert_eq!(watched.told(), Vec::<String>::new());
    watched.write("d/inside.md", "mine");
    watched.expect(&["+d/inside.md"]);
    fs::rename(watched.root.join("d"), watched.beside.join("d")).expect("moved out");
    symlink(watched.beside.join("secret"), watched.root.join("d")).expect("a link in its place");
    watched.expect(&["+d/inside.md", "-d/inside.md"]);
    watched.restart_after(|_| {});
    watched.expect(&["+d/inside.md", "-d/inside.md"]);
}

/// Goal: patterns choose, ignored and hidden names stay out; other patterns later are no news about old files.
#[test]
fn patterns_choose_the_files() {
    let settings = "patterns = [\"**/*.md\", \"**/.notes/*.md\"]\nignore = [\"drafts/**\"]";
    let mut watched = Watched::start(settings, |_| {});
    for name in ["a.txt", "drafts/a.md", ".hidden.md", ".git/a.md", "a.md.tmp", "b/c.md", ".notes/d.md"] {
        watched.write(name, "x");
    }
    watched.expect_any_order(&["+b/c.md", "+.notes/d.md"]);
    watched.rename("a.txt", "e.md");
    watched.expect_any_order(&["+b/c.md", "+.notes/d.md", "+e.md"]);
    let config = watched.daemon.home().join("aman.toml");
    let text = fs::read_to_string(&config).expect("the configuration");
    watched.restart_after(|_| {
        let wider = text.replace("patterns = [\"**/*.md\", \"**/.notes/*.md\"]", "patterns = [\"**/*.{md,txt}\"]");
        fs::write(&config, wider).expect("the configuration is changed");
    });
    watched.write("b/new.txt", "x");
    watched.expect_any_order(&["+b/c.md", "+.notes/d.md", "+e.md", "+b/new.txt"]);
}

/// Goal: any name is told, and none can break the source.
#[test]
fn strange_names_are_told() {
    let mut watched = Watched::empty();
    for name in [&b"bad-\xFF\xFE.md"[..], b"line\nbreak.md", "ümlaut ☃.md".as_bytes(), b"'quote\".md"] {
        fs::write(watched.root.join(OsStr::from_bytes(name)), "x").expect("the disk takes any name");
    }
    let names = ["+bad-\u{FFFD}\u{FFFD}.md", "+line\nbreak.md", "+ümlaut ☃.md", "+'quote\".md"];
    watched.expect_any_order(&names);
    let events = watched.events();
    let bad = events.iter().find(|event| event["data"]["path_bytes"].is_string()).expect("the exact bytes are told");
    assert_eq!(bad["data"]["name"], "bad-\u{FFFD}\u{FFFD}.md");
    fs::rename(watched.root.join(OsStr::from_bytes(b"bad-\xFF\xFE.md")), watched.root.join("good.md"))
        .expect("renamed");
    watched.expect_any_order(&[&names[..], &["bad-\u{FFFD}\u{FFFD}.md>good.md"]].concat());
}

/// How often each path was told as created, over the pages of a long list.
fn created(watched: &Watched) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for word in watched.told() {
        let path = word.strip_prefix('+').unwrap_or_else(|| panic!("{word}: only creations were expected"));
        *counts.entry(path.to_owned()).or_insert(0) += 1;
    }
    counts
}

/// Goal: of a burst of files in new folders each is told once.
#[test]
fn a_burst_is_told_completely() {
    let mut watched = Watched::empty();
    for n in 0..2000 {
        watched.write(&format!("d{}/f{n}.md", n % 20), "x");
    }
    watched.daemon.wait("2,000 files", || (watched.events().len() >= 2000).then_some(()));
    watched.sentinel();
    let counts = created(&watched);
    assert_eq!((counts.len(), counts.values().max()), (2000, Some(&1)));
}

/// Goal: when the kernel drops its messages, everything is compared and nothing is lost.
#[test]
fn dropped_messages_are_made_good() {
    let mut watched = Watched::empty();
    watched.write("d/known.md", "x");
    watched.expect(&["+d/known.md"]);
    // Each file makes four messages; the kernel keeps 16,384 for a program that does not read them.
    signal(watched.daemon.pid(), "STOP");
    for n in 0..5000 {
        watched.write(&format!("d/f{n}.md"), "x");
    }
    watched.remove("d/known.md");
    signal(watched.daemon.pid(), "CONT");
    watched.daemon.wait("every file", || (watched.events().len() >= 5002).then_some(()));
    watched.sentinel();
    let told = watched.told();
    assert_eq!((told.len(), told.iter().filter(|word| *word == "-d/known.md").count()), (5002, 1));
    assert!(watched.daemon.log().contains("The kernel dropped messages"), "the test made the queue overflow");
}

/// Goal: killed again and again during a burst, the daemon tells each file once.
#[test]
fn a_burst_survives_kills() {
    let mut watched = Watched::empty();
    for round in 0..4 {
        for n in 0..250 {
            watched.write(&format!("d{}/r{round}-{n}.md", n % 5), "x");
        }
        // Killed as soon as something of this round is stored: in the middle of it.
        let told = watched.events().len();
        watched.daemon.wait("a part of the burst", || (watched.events().len() > told.min(round * 250)).then_some(()));
        watched.restart_after(|watched| watched.write(&format!("down-{round}.md"), "x"));
    }
    watched.daemon.wait("all files", || (watched.events().len() >= 1004).then_some(()));
    watched.sentinel();
    let counts = created(&watched);
    assert_eq!((counts.len(), counts.values().max()), (1004, Some(&1)));
}

/// Goal: a root that goes away takes no file with it: they are compared once it is back.
#[test]
fn a_root_may_go_and_come_back() {
    let mut watched = Watched::start("", |root| {
        for name in ["kept.md", "lost.md"] {
            fs::write(root.join(name), name).expect("a file");
        }
    });
    let away = watched.beside.join("away");
    fs::rename(&watched.root, &away).expect("the root is moved away");
    watched.daemon.wait("the state 'missing'", || watched.daemon.log().contains("state=Missing").then_some(()));
    fs::remove_file(away.join("lost.md")).expect("removed while away");
    fs::write(away.join("new.md"), "new").expect("made while away");
    assert_eq!(watched.told(), Vec::<String>::new());
    fs::rename(&away, &watched.root).expect("the root is back");
    watched.expect_any_order(&["-lost.md", "+new.md"]);
    watched.write("kept.md", "changed");
    watched.expect_any_order(&["-lost.md", "+new.md", "*kept.md"]);
}
