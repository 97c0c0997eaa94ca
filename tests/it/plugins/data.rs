//! What plugins keep, and what the daemon keeps of them: data that stay or go, code that was damaged.

use serde_json::json;

use super::{MANIFEST, ONE, PUBLISH, body, installed, package, packed};
use crate::harness::{Daemon, manifest};

const KEEPER: &[u8] = include_bytes!("../../fixtures/guests/keeper.wasm");

/// A plugin that keeps a key and a table once `/put` was asked for, and says at `/t` whether the key is there.
fn keeper(version: &str) -> Vec<u8> {
    let more = "permissions = { kv = \"1MiB\", sql = \"1MiB\" }\n\
        [[routes]]\nmethod = \"GET\"\npath = \"/t\"\n[[routes]]\nmethod = \"POST\"\npath = \"/put\"\n";
    package(&format!("{}{more}", manifest("keeper", version)), KEEPER)
}

/// Goal: uninstalled with its data a plugin leaves nothing; without, everything is there when it comes back.
#[test]
fn data_stay_or_go_as_asked() {
    let mut daemon = Daemon::start();
    let file = daemon.home().join("plugins/.data/keeper.db");
    installed(&daemon, &keeper("1.0.0"), "approve=true");
    let first = daemon.get("/api/v1/t");
    assert_eq!(first.status, 404, "{first:?} {:?}", body(&first));
    assert_eq!(daemon.post("/api/v1/put", &json!({})).status, 200, "{}", daemon.log());
    assert_eq!((daemon.get("/api/v1/t").status, file.exists()), (200, true));
    let kept = daemon.get("/plugin/keeper").json["used"]["storage"].clone();
    assert_eq!(kept["kv_bytes"], 8, "{kept}");
    let gone = daemon.post("/plugin/keeper/uninstall", &json!({}));
    assert_eq!((gone.status, &gone.json["data_kept"]), (200, &json!(true)));
    assert_eq!((daemon.get("/plugin/keeper").status, file.exists()), (404, true));
    daemon.kill();
    daemon.again();
    assert_eq!(installed(&daemon, &keeper("1.0.0"), "")["status"], "pending_consent", "consent is not kept");
    assert_eq!(super::approved(&daemon, "keeper").status, 200);
    assert_eq!(daemon.get("/api/v1/t").status, 200, "what it kept is there");
    let gone = daemon.post("/plugin/keeper/uninstall", &json!({ "purge_data": true }));
    assert_eq!((gone.status, &gone.json["data_kept"]), (200, &json!(false)), "{gone:?}");
    let left = std::fs::read_dir(daemon.home().join("plugins/.data")).expect("the folder").count();
    assert_eq!(left, 0);
    installed(&daemon, &keeper("1.0.0"), "approve=true");
    assert_eq!(daemon.get("/api/v1/t").status, 404, "nothing of before is there");
    assert_eq!(daemon.get("/plugin/keeper").json["used"]["storage"]["kv_bytes"], 0);
}

/// Goal: data whose removal a crash cut off go at the next start if their plugin is gone, and are back if it is not.
#[test]
fn a_removal_that_was_cut_off_is_settled() {
    let mut daemon = Daemon::start();
    installed(&daemon, &keeper("1.0.0"), "approve=true");
    assert_eq!(daemon.post("/api/v1/put", &json!({})).status, 200);
    daemon.kill();
    let folder = daemon.home().join("plugins/.data");
    std::fs::rename(folder.join("keeper.db"), folder.join("keeper.db.gone")).expect("what a removal does first");
    std::fs::write(folder.join("other.db.gone"), b"of a plugin that is gone").expect("a file");
    daemon.again();
    assert!(folder.join("keeper.db").exists() && !folder.join("other.db.gone").exists());
    assert_eq!(daemon.get("/api/v1/t").status, 200);
}

/// Goal: a removal that the disk does not allow changes nothing, and ends no rest.
#[test]
fn a_removal_that_fails_changes_nothing() {
    let daemon = Daemon::start();
    installed(&daemon, &packed("1.0.0", "one", PUBLISH), "approve=true");
    for _ in 0..5 {
        daemon.get("/api/v1/trap");
    }
    daemon.wait("the rest is stored", || daemon.recent("aman.plugin.quarantined").pop());
    let folder = daemon.home().join("plugins/.data");
    let in_the_way = folder.join("probe.db.gone");
    std::fs::create_dir_all(in_the_way.join("something")).expect("a folder");
    std::fs::write(folder.join("probe.db"), b"").expect("a file");
    let failed = daemon.post("/plugin/probe/uninstall", &json!({ "purge_data": true }));
    assert_eq!(failed.status, 500, "{failed:?}");
    let shown = daemon.get("/plugin/probe").json;
    assert_eq!((&shown["state"], &shown["health"]["rests"]), (&json!("quarantined"), &json!(1)), "{shown}");
    std::fs::remove_dir_all(&in_the_way).expect("it is there");
    let gone = daemon.post("/plugin/probe/uninstall", &json!({ "purge_data": true }));
    assert_eq!((gone.status, folder.join("probe.db").exists()), (200, false), "{gone:?}");
}

/// Goal: that a source is paused belongs to the data: it stays with them and goes with them.
#[test]
fn a_paused_source_stays_or_goes_with_the_data() {
    let daemon = Daemon::start();
    let packed = packed("1.0.0", "one", &format!("[[sources]]\nid = \"tick\"\nevery = \"1h\"\n{PUBLISH}"));
    let is_paused = || {
        let sources = daemon.get("/event-sources").items();
        let own = sources.into_iter().find(|source| source["id"] == "probe.tick");
        own.expect("it is listed")["paused"].clone()
    };
    installed(&daemon, &packed, "approve=true");
    assert_eq!(daemon.post("/event-source/probe.tick/pause", &json!({})).status, 200);
    for (purge, wanted) in [(false, true), (true, false)] {
        assert_eq!(is_paused(), json!(true));
        let gone = daemon.post("/plugin/probe/uninstall", &json!({ "purge_data": purge }));
        assert_eq!(gone.status, 200, "{gone:?}");
        installed(&daemon, &packed, "approve=true");
        assert_eq!(is_paused(), json!(wanted));
    }
}

/// Goal: events that wait for a plugin are given up with it: they meet neither a later plugin of the name, nor hold
/// anything for ever.
#[test]
fn what_waits_for_a_plugin_goes_with_it() {
    let daemon = Daemon::start();
    let packed = packed("1.0.0", "one", &format!("{}{PUBLISH}", super::EVENTS));
    for purge in [false, true] {
        installed(&daemon, &packed, "approve=true");
        assert_eq!(daemon.post_confirmed("/plugin/probe/disable", &json!({})).status, 200);
        let pushed = daemon.push("in.one", json!({}));
        assert_eq!(daemon.post("/plugin/probe/uninstall", &json!({ "purge_data": purge })).status, 200);
        assert_eq!(daemon.outcome(&pushed), "discarded");
        installed(&daemon, &packed, "approve=true");
        daemon.settle();
        assert_eq!(daemon.recent("test.kind").len(), 0);
        assert_eq!(daemon.post("/plugin/probe/uninstall", &json!({ "purge_data": purge })).status, 200);
    }
}

/// Goal: compiled code that was damaged or is gone is made again from the component; a component that was changed is
/// never run, and installing the same package once more repairs it.
#[test]
fn damaged_code_is_made_again() {
    let mut daemon = Daemon::start();
    let packed = packed("1.0.0", "one", PUBLISH);
    installed(&daemon, &packed, "approve=true");
    let code = || {
        let files = std::fs::read_dir(daemon.home().join("plugins/.code")).expect("the folder");
        let files: Vec<_> = files.flatten().map(|file| file.path()).collect();
        <[_; 1]>::try_from(files).expect("one file").into_iter().next().expect("one file")
    };
    let (file, whole) = (code(), std::fs::read(code()).expect("it is there"));
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [None, Some(Vec::new()), Some(whole[..whole.len() / 2].to_vec()), Some(flipped)] {
        daemon.kill();
        std::fs::remove_file(&file).expect("it is there");
        if let Some(bytes) = damaged {
            std::fs::write(&file, bytes).expect("a file");
        }
        daemon.again();
        let answer = daemon.get("/api/v1/t");
        assert_eq!((answer.status, body(&answer).as_str()), (200, "one"), "{answer:?}; {}", daemon.log());
        assert!(std::fs::read(&file).is_ok_and(|now| now == whole), "the same code is there again");
    }
    daemon.kill();
    let component = find(&daemon, "plugin.wasm");
    let mut changed = std::fs::read(&component).expect("it is there");
    changed.push(0);
    std::fs::write(&component, changed).expect("a file");
    std::fs::remove_file(&file).expect("it is there");
    std::fs::write(file.with_extension("new.tmp"), b"half").expect("a file");
    std::fs::write(file.with_file_name("0000-1111.code"), b"of nobody").expect("a file");
    daemon.again();
    let left = std::fs::read_dir(file.parent().expect("its folder")).expect("the folder").count();
    assert_eq!(left, 0, "what nobody needs is removed");
    let refused = daemon.get("/api/v1/t");
    assert_eq!((refused.status, refused.code()), (502, "plugin_trap"), "{refused:?}");
    assert!(refused.json["detail"].as_str().is_some_and(|text| text.contains("install")), "{refused:?}");
    installed(&daemon, &packed, "");
    assert_eq!(body(&daemon.get("/api/v1/t")), "one", "{}", daemon.log());
}

/// The one file of this name in the folder of the plugin's only version.
fn find(daemon: &Daemon, name: &str) -> std::path::PathBuf {
    let mut versions = std::fs::read_dir(daemon.home().join("plugins/probe")).expect("the folder").flatten();
    versions.next().expect("a version").path().join(name)
}

/// Goal: files that anyone may ask for are small enough to be sent to many.
#[test]
fn pages_are_bounded() {
    let daemon = Daemon::start();
    let folder = crate::harness::Folder::new("large");
    let manifest = format!("version = \"1.0.0\"\n{MANIFEST}{PUBLISH}");
    super::write(folder.path(), &manifest, ONE);
    std::fs::write(folder.path().join("ui/large.bin"), vec![7; (4 << 20) + 1]).expect("a file");
    let mut packed = Vec::new();
    aman::package::pack::Content::read(folder.path()).expect("a sound plugin").write(&mut packed).expect("in memory");
    let refused = super::install(&daemon, &packed, "");
    assert_eq!((refused.status, refused.fields()), (400, vec!["ui/large.bin"]), "{refused:?}");
}
