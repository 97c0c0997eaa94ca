//! SIGKILL at random moments of every change of a plugin. After each start it is wholly as it was before the change or
//! wholly as after it, what runs is what the records say, and nothing else lies on the disk.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{EVENTS, PUBLISH, body, packed};
use crate::harness::{Daemon, Seed, TOKEN, exchange, request, say};

/// Kills of one run.
const KILLS: usize = 24;
/// Changes that are made whole between two kills, at the most.
const WHOLE_MAX: usize = 2;

/// What is known of a plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct State {
    version: Option<String>,
    previous: Option<String>,
    pending: Option<String>,
    enabled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Installs 1.0.0 or 2.0.0, and agrees.
    Install(&'static str),
    /// Installs 3.0.0, which asks for more, and does not agree.
    Wider,
    Approve,
    Rollback,
    Disable,
    Enable,
    Uninstall {
        purge: bool,
    },
}

const CHANGES: [Change; 9] = [
    Change::Install("1.0.0"),
    Change::Install("2.0.0"),
    Change::Wider,
    Change::Approve,
    Change::Rollback,
    Change::Disable,
    Change::Enable,
    Change::Uninstall { purge: false },
    Change::Uninstall { purge: true },
];

/// The state after a change; none when the daemon refuses it.
fn after(before: Option<&State>, change: Change) -> Option<Option<State>> {
    let take = |state: &State, version: &str| {
        let mut next = State { pending: None, ..state.clone() };
        if next.version.as_deref() != Some(version) {
            next.previous = next.version.replace(version.to_owned());
        }
        next
    };
    let fresh = State { enabled: true, ..State::default() };
    let now = before.unwrap_or(&fresh);
    Some(Some(match change {
        Change::Install(version) => take(now, version),
        Change::Wider if now.version.as_deref() == Some("3.0.0") => take(now, "3.0.0"),
        Change::Wider => State { pending: Some("3.0.0".to_owned()), ..now.clone() },
        Change::Approve => take(before?, before?.pending.as_ref()?),
        Change::Rollback => {
            let back = before?.previous.as_ref()?;
            State { pending: now.pending.clone().filter(|pending| pending != back), ..take(now, back) }
        }
        Change::Disable => State { enabled: false, ..before?.clone() },
        Change::Enable => State { enabled: true, ..before?.clone() },
        Change::Uninstall { .. } => {
            before?;
            return Some(None);
        }
    }))
}

/// Some change. What never ran is not switched off, and what is gone is not removed with its data: nobody would see it.
fn any(rng: &mut fastrand::Rng, before: Option<&State>) -> Change {
    let never_ran = before.is_some_and(|state| state.version.is_none());
    loop {
        let change = CHANGES[rng.usize(..CHANGES.len())];
        let is_unseen = (change == Change::Disable && never_ran)
            || (change == Change::Uninstall { purge: true } && before.is_none());
        if !is_unseen {
            return change;
        }
    }
}

/// The bytes of the request that makes a change.
fn asks(daemon: &Daemon, change: Change, packages: &dyn Fn(&str) -> Vec<u8>) -> Vec<u8> {
    let token = format!("Bearer {TOKEN}");
    let common = [("authorization", token.as_str()), ("x-aman-confirm", "yes")];
    let install = |version: &str, query: &str| {
        let path = format!("/plugin/install?allow_unsigned=true&allow_downgrade=true{query}");
        let headers = [common[0], common[1], ("content-type", "application/gzip")];
        request("POST", &path, &headers, &packages(version))
    };
    let plain = |action: &str, body: &Value| {
        let headers = [common[0], common[1], ("content-type", "application/json")];
        request("POST", &format!("/plugin/probe/{action}"), &headers, body.to_string().as_bytes())
    };
    match change {
        Change::Install(version) => install(version, "&approve=true"),
        Change::Wider => install("3.0.0", ""),
        Change::Approve => {
            let digest = daemon.get("/plugin/probe").json["pending"]["digest"].clone();
            plain("approve", &json!({ "digest": digest }))
        }
        Change::Rollback => plain("rollback", &json!({})),
        Change::Disable => plain("disable", &json!({})),
        Change::Enable => plain("enable", &json!({})),
        Change::Uninstall { purge } => plain("uninstall", &json!({ "purge_data": purge })),
    }
}

/// What the daemon says of the plugin, and the digests that it names.
fn look(daemon: &Daemon) -> (Option<State>, BTreeSet<String>) {
    let answer = daemon.get("/plugin/probe");
    if answer.status == 404 {
        return (None, BTreeSet::new());
    }
    let shown = answer.json;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let (pending, previous) = (&shown["pending"], &shown["previous"]);
    let state = State {
        version: text(&shown["version"]),
        previous: text(&previous["version"]),
        pending: text(&pending["version"]),
        enabled: shown["state"] != "disabled",
    };
    let digests = [&shown["digest"], &pending["digest"], &previous["digest"]];
    (Some(state), digests.into_iter().filter_map(text).collect())
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
    entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Asserts that what the records say is what is served and what lies on the disk, and nothing else; gives the state.
fn assert_whole(daemon: &Daemon) -> Option<State> {
    let (state, digests) = look(daemon);
    let served = daemon.get("/api/v1/t");
    match state.as_ref().filter(|state| state.enabled).and_then(|state| state.version.as_deref()) {
        Some(version) => {
            let text = if version == "1.0.0" { "one" } else { "two" };
            assert_eq!((served.status, body(&served).as_str()), (200, text), "{state:?}; {}", daemon.log());
        }
        None => assert_eq!(served.status, 404, "{state:?}"),
    }
    let plugins = daemon.home().join("plugins");
    daemon
        .wait("only the files of its versions are there", || (names(&plugins.join("probe")) == digests).then_some(()));
    assert_eq!(names(&plugins.join(".staging")), BTreeSet::new());
    assert!(names(&plugins.join(".data")).iter().all(|name| !name.ends_with(".gone")));
    let code = names(&plugins.join(".code"));
    assert!(code.iter().all(|name| name.ends_with(".code")) && code.len() <= digests.len(), "{code:?} {state:?}");
    state
}

/// Asserts that the state is one of those that it may be in; none for the changed one when the daemon refused.
fn assert_one_of(state: Option<&State>, before: Option<&State>, changed: Option<&Option<State>>, change: Change) {
    let fits = state == before || changed.is_some_and(|changed| state == changed.as_ref());
    assert!(fits, "{change:?} of {before:?} gave {state:?}, not {changed:?}");
}

/// Goal: see the module.
#[test]
fn a_kill_leaves_the_old_or_the_new() {
    let seed = Seed::take();
    let mut rng = seed.rng(0);
    let with = |more: &str| format!("{EVENTS}{PUBLISH}{more}");
    let made = [
        packed("1.0.0", "one", &with("")),
        packed("2.0.0", "two", &with("")),
        packed("3.0.0", "two", &with("kv = \"1MiB\"\n")),
    ];
    let packages = |version: &str| made[usize::from(version.as_bytes()[0] - b'1')].clone();
    let mut daemon = Daemon::start();
    let begun = Instant::now();
    let first = exchange(&daemon.address, &asks(&daemon, Change::Install("1.0.0"), &packages)).expect("an answer");
    assert_eq!(first.status, 201, "{first:?}");
    let usual = begun.elapsed().as_millis().try_into().unwrap_or(1000);
    let mut before = assert_whole(&daemon);
    let (mut kills, mut changed_first, mut cut_off) = (0, 0, 0);
    while kills < KILLS {
        for _ in 0..rng.usize(..=WHOLE_MAX) {
            let change = any(&mut rng, before.as_ref());
            let answer = exchange(&daemon.address, &asks(&daemon, change, &packages)).expect("an answer");
            let wanted = after(before.as_ref(), change);
            assert_eq!(answer.status < 300, wanted.is_some(), "{change:?} of {before:?}: {answer:?}");
            let now = assert_whole(&daemon);
            assert_eq!(now, wanted.unwrap_or(before), "{change:?}: {answer:?}");
            before = now;
        }
        let change = any(&mut rng, before.as_ref());
        let (address, bytes) = (daemon.address.clone(), asks(&daemon, change, &packages));
        let asking = std::thread::spawn(move || exchange(&address, &bytes).map(|answer| answer.status));
        // Changes without a compilation are much quicker.
        let slowest = if matches!(change, Change::Install(_) | Change::Wider) { usual } else { usual / 8 };
        std::thread::sleep(Duration::from_millis(rng.u64(..=slowest.max(4))));
        daemon.kill();
        let answered = asking.join().expect("nobody panics there");
        daemon.again();
        kills += 1;
        let (now, wanted) = (assert_whole(&daemon), after(before.as_ref(), change));
        assert_one_of(now.as_ref(), before.as_ref(), wanted.as_ref(), change);
        match answered {
            Ok(status) if status < 300 => {
                assert_eq!(Some(&now), wanted.as_ref(), "{change:?} was acknowledged");
                changed_first += 1;
            }
            Ok(_) => assert_eq!(now, before, "{change:?} was refused"),
            Err(_) => cut_off += 1,
        }
        before = now;
    }
    assert_eq!(daemon.get("/audit-log/verify").json["ok"], true);
    assert!(cut_off > 0, "no kill cut a change off");
    say(&format!("{KILLS} kills: {cut_off} cut a change off, {changed_first} came after its answer"));
}
