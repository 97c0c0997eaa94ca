//! What the kernel hinted at: paths to look at, and when. Hints decide nothing; the comparison with the disk does.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::entry::Entry;

/// Paths that are remembered one by one; with more, the whole tree is compared instead.
pub const PATHS_MAX: usize = 65_536;
/// How long size and time must stand still when nothing told that a file is complete.
pub const STABLE: Duration = Duration::from_secs(1);

/// What the kernel told of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// There is a new file; its writer has not closed it yet.
    Created,
    /// There is a new folder.
    Folder,
    /// Someone opened it, to read or to write.
    Opened,
    /// Its content changed.
    Written,
    /// A writer closed it.
    Closed,
    /// It was moved to this path.
    Arrived,
    /// It was removed or moved away.
    Left,
    /// Its times or rights changed.
    Touched,
}

/// How sure it is that nobody is still writing a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// It was closed after the last write, or moved in.
    Complete,
    /// It was closed after the last write, but someone opened it who did not close it after writing.
    Reopened,
    /// It was seen growing, and no close was seen.
    Growing,
    /// Nothing is known: no hint came for it.
    None,
}

/// A path to look at now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Relative to the root.
    pub path: Vec<u8>,
    /// What the hints tell.
    pub evidence: Evidence,
    /// How often it was looked at and put off.
    pub tries: u32,
    /// When anything about the file had last changed, by its own clock, as it was put off.
    pub touched_ns: Option<i64>,
}

/// When to look at a path again that was not complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Again {
    /// After this time.
    At(Instant),
    /// When the kernel tells that its writer closed it.
    OnHint,
    /// Together with that path, where the file seems to have gone.
    With(Vec<u8>),
}

/// The paths to look at.
#[derive(Debug)]
pub struct Dirty {
    settle: Duration,
    entries: HashMap<Vec<u8>, Entry>,
    folders: Vec<Vec<u8>>,
    rescan: Option<Instant>,
    armed: Option<Instant>,
}

impl Dirty {
    /// Nothing to look at; a path is looked at once no hint came for it during `settle`.
    pub fn new(settle: Duration) -> Dirty {
        Dirty { settle, entries: HashMap::new(), folders: Vec::new(), rescan: None, armed: None }
    }

    /// Notes a hint. True when whoever waits must be woken: there is something to do before it expected.
    pub fn hint(&mut self, path: &[u8], hint: Hint, now: Instant) -> bool {
        if path.is_empty() {
            return self.rescan_at(now + self.settle);
        }
        if !self.entries.contains_key(path) {
            if hint == Hint::Opened {
                return false;
            }
            if self.entries.len() >= PATHS_MAX {
                return self.overflow(now);
            }
            self.entries.insert(path.to_vec(), Entry::new(now));
        }
        let Some(entry) = self.entries.get_mut(path) else { return false };
        entry.note(hint, now);
        let due = entry.due(self.settle);
        if hint == Hint::Folder {
            self.folders.push(path.to_vec());
        }
        self.wakes(due) || hint == Hint::Folder
    }

    /// Notes that one file moved: what is known of its writer goes with it, and both paths are looked at together.
    pub fn moved(&mut self, from: &[u8], to: &[u8], now: Instant) -> bool {
        if let Some(old) = self.entries.get(from)
            && old.grew
            && !old.complete
        {
            let (opens, closes) = (old.opens, old.closes);
            if let Some(new) = self.entries.get_mut(to) {
                (new.complete, new.grew, new.opens, new.closes) = (false, true, opens, closes);
                new.again = Some(Again::At(now + STABLE));
            }
        }
        if let Some(old) = self.entries.get_mut(from) {
            old.last = now;
            old.again = Some(Again::With(to.to_vec()));
        }
        if let Some(new) = self.entries.get_mut(to) {
            new.last = now;
        }
        false
    }

    /// Forgets single paths, since hints were lost, and has everything compared soon.
    pub fn overflow(&mut self, now: Instant) -> bool {
        self.entries.clear();
        self.folders.clear();
        self.rescan_at(now + STABLE)
    }

    /// Has everything compared at `at` or before. True when whoever waits must be woken.
    pub fn rescan_at(&mut self, at: Instant) -> bool {
        if self.rescan.is_none_or(|planned| at < planned) {
            self.rescan = Some(at);
        }
        self.wakes(Some(at))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Dirty::new(self.settle);
    }

    /// True when a path waits to be looked at later, so that it must be left alone now.
    pub fn waits(&self, path: &[u8]) -> bool {
        self.entries.contains_key(path)
    }

    /// New folders, which must be watched at once.
    pub fn take_folders(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.folders)
    }

    /// Puts a path off that [`Dirty::take_due`] gave; a hint that came since is newer and stands.
    pub fn put_off(&mut self, due: &Due, again: Again, now: Instant) {
        if self.entries.contains_key(&due.path) {
            return;
        }
        if self.entries.len() >= PATHS_MAX {
            self.overflow(now);
            return;
        }
        let grew = matches!(due.evidence, Evidence::Growing);
        let entry = Entry {
            complete: matches!(due.evidence, Evidence::Complete),
            grew,
            opens: u32::from(grew || due.evidence == Evidence::Reopened),
            tries: due.tries.saturating_add(1),
            touched_ns: due.touched_ns,
            again: Some(again),
            ..Entry::new(now)
        };
        self.entries.insert(due.path.clone(), entry);
    }

    /// What to look at now: everything, when the first value is true, and these paths.
    pub fn take_due(&mut self, now: Instant) -> (bool, Vec<Due>) {
        let everything = self.rescan.is_some_and(|at| at <= now);
        if everything {
            self.rescan = None;
        }
        let ready = |entry: &Entry| entry.due(self.settle).is_some_and(|at| at <= now);
        let takes = |entry: &Entry| match &entry.again {
            Some(Again::With(path)) => self.entries.get(path).map_or_else(|| ready(entry), ready),
            _ => ready(entry),
        };
        let paths: Vec<Vec<u8>> =
            self.entries.iter().filter(|(_, entry)| takes(entry)).map(|(path, _)| path.clone()).collect();
        let mut due: Vec<Due> = Vec::with_capacity(paths.len());
        for path in paths {
            if let Some(entry) = self.entries.remove(&path) {
                due.push(Due { path, evidence: entry.evidence(), tries: entry.tries, touched_ns: entry.touched_ns });
            }
        }
        self.armed = None;
        (everything, due)
    }

    /// When there is something to look at next; no hint before that changes it to an earlier time without telling.
    pub fn arm(&mut self) -> Option<Instant> {
        let paths = self.entries.values().filter_map(|entry| match &entry.again {
            // It goes with the other path; alone only when that one is not waiting at all.
            Some(Again::With(path)) if self.entries.contains_key(path) => None,
            Some(Again::With(_)) => Some(entry.last + self.settle),
            _ => entry.due(self.settle),
        });
        self.armed = paths.chain(self.rescan).min();
        self.armed
    }

    fn wakes(&mut self, due: Option<Instant>) -> bool {
        let Some(due) = due else { return false };
        let earlier = self.armed.is_none_or(|armed| due < armed);
        if earlier {
            self.armed = Some(due);
        }
        earlier
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_millis(100);

    /// Plays hints, each with its time in milliseconds, and tells what is due at `at_ms`.
    fn due(hints: &[(u64, &str, Hint)], at_ms: u64) -> Vec<(String, Evidence)> {
        let (mut dirty, start) = (Dirty::new(SETTLE), Instant::now());
        for (ms, path, hint) in hints {
            dirty.hint(path.as_bytes(), *hint, start + Duration::from_millis(*ms));
        }
        let (_, due) = dirty.take_due(start + Duration::from_millis(at_ms));
        let mut due: Vec<_> =
            due.into_iter().map(|due| (String::from_utf8(due.path).expect("text"), due.evidence)).collect();
        due.sort_by(|a, b| a.0.cmp(&b.0));
        due
    }

    fn one(evidence: Evidence) -> Vec<(String, Evidence)> {
        vec![("a".to_owned(), evidence)]
    }

    #[test]
    fn a_closed_file_is_complete_after_it_rested() {
        let hints = [(0, "a", Hint::Created), (0, "a", Hint::Opened), (5, "a", Hint::Written), (9, "a", Hint::Closed)];
        assert_eq!(due(&hints, 108), vec![]);
        assert_eq!(due(&hints, 109), one(Evidence::Complete));
        assert_eq!(due(&hints[..3], 1004), vec![]);
        assert_eq!(due(&hints[..3], 1005), one(Evidence::Growing));
        assert_eq!(due(&hints[..1], 1000), one(Evidence::None));
        assert_eq!(due(&[(0, "a", Hint::Opened)], 5000), vec![]);
    }

    #[test]
    fn a_second_opener_makes_it_doubtful() {
        let hints = [(0, "a", Hint::Created), (0, "a", Hint::Opened), (1, "a", Hint::Closed), (2, "a", Hint::Opened)];
        assert_eq!(due(&hints, 200), one(Evidence::Reopened));
        let two = [(0, "a", Hint::Written), (1, "a", Hint::Opened), (2, "a", Hint::Closed), (3, "a", Hint::Written)];
        assert_eq!(due(&two, 200), vec![]);
        assert_eq!(due(&two, 1100), one(Evidence::Growing));
    }

    #[test]
    fn a_restless_path_is_looked_at_all_the_same() {
        let hints: Vec<_> = (0..100).map(|n| (n * 20, "a", Hint::Closed)).collect();
        assert_eq!(due(&hints, 1000), one(Evidence::Complete));
    }

    #[test]
    fn both_ends_of_a_move_go_together() {
        let (mut dirty, start) = (Dirty::new(SETTLE), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        dirty.hint(b"a", Hint::Left, at(0));
        dirty.hint(b"b", Hint::Arrived, at(0));
        dirty.moved(b"a", b"b", at(0));
        dirty.hint(b"b", Hint::Written, at(50));
        assert_eq!(dirty.take_due(at(200)), (false, vec![]), "the file is being written at its new path");
        dirty.hint(b"b", Hint::Closed, at(300));
        assert_eq!(dirty.arm(), Some(at(400)));
        assert_eq!(dirty.take_due(at(400)).1.len(), 2);
        assert_eq!(dirty.arm(), None);
    }

    #[test]
    fn what_is_put_off_waits_and_newer_hints_stand() {
        let (mut dirty, start) = (Dirty::new(SETTLE), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        dirty.hint(b"a", Hint::Written, at(0));
        let (_, due) = dirty.take_due(at(1000));
        dirty.put_off(&due[0], Again::OnHint, at(1000));
        assert_eq!(dirty.arm(), None, "a writer has it open: only its close matters");
        assert!(dirty.waits(b"a"));
        assert!(dirty.hint(b"a", Hint::Closed, at(9000)));
        assert_eq!(
            dirty.take_due(at(9100)).1,
            vec![Due { path: b"a".to_vec(), evidence: Evidence::Complete, tries: 0, touched_ns: None }]
        );
        dirty.hint(b"b", Hint::Closed, at(9200));
        let late = Due { path: b"b".to_vec(), evidence: Evidence::Growing, tries: 3, touched_ns: None };
        dirty.put_off(&late, Again::At(at(20_000)), at(9200));
        assert_eq!(dirty.arm(), Some(at(9300)), "the newer hint stands");
    }

    #[test]
    fn too_many_paths_become_one_comparison_of_everything() {
        let (mut dirty, now) = (Dirty::new(SETTLE), Instant::now());
        for n in 0..=PATHS_MAX {
            dirty.hint(format!("{n}").as_bytes(), Hint::Closed, now);
        }
        assert!(dirty.take_due(now + STABLE).0);
        assert!(!dirty.waits(b"1"));
    }

    #[test]
    fn only_earlier_work_wakes() {
        let (mut dirty, now) = (Dirty::new(SETTLE), Instant::now());
        assert!(dirty.hint(b"a", Hint::Closed, now));
        assert!(!dirty.hint(b"a", Hint::Closed, now), "the wait already ends in time");
        assert!(!dirty.hint(b"b", Hint::Written, now));
        assert!(dirty.hint(b"d", Hint::Folder, now), "a new folder is watched at once");
        assert!(!dirty.rescan_at(now + STABLE));
        assert!(dirty.rescan_at(now));
    }
}
