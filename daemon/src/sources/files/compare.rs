//! From what was known and what was found to what happened. Pure.

use std::collections::{BTreeMap, HashMap};

use crate::store::files::{Seen, Update};

/// Paths relative to the root, as bytes, with the state of the file there.
pub type Files = BTreeMap<Vec<u8>, Seen>;

/// What happened to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// There is a file where none was known.
    Created {
        /// Where it is.
        path: Vec<u8>,
        /// Its state.
        seen: Seen,
    },
    /// The file at a known path has other content, or is another file.
    Changed {
        /// Where it is.
        path: Vec<u8>,
        /// Its state.
        seen: Seen,
    },
    /// A known file is gone.
    Removed {
        /// Where it was.
        path: Vec<u8>,
        /// Its last known state.
        seen: Seen,
    },
    /// A known file has another path.
    Renamed {
        /// Where it was.
        from: Vec<u8>,
        /// Where it is.
        path: Vec<u8>,
        /// Its state.
        seen: Seen,
    },
}

impl Change {
    /// The path that the event is about.
    pub fn path(&self) -> &[u8] {
        match self {
            Change::Created { path, .. }
            | Change::Changed { path, .. }
            | Change::Removed { path, .. }
            | Change::Renamed { path, .. } => path,
        }
    }

    /// The state that the event tells.
    pub fn seen(&self) -> &Seen {
        match self {
            Change::Created { seen, .. }
            | Change::Changed { seen, .. }
            | Change::Removed { seen, .. }
            | Change::Renamed { seen, .. } => seen,
        }
    }

    /// What becomes known with the event, in order.
    pub fn updates(&self) -> Vec<Update> {
        match self {
            Change::Created { path, seen } | Change::Changed { path, seen } => vec![Update::Put(path.clone(), *seen)],
            Change::Removed { path, .. } => vec![Update::Forget(path.clone())],
            Change::Renamed { from, path, seen } => {
                vec![Update::Forget(from.clone()), Update::Put(path.clone(), *seen)]
            }
        }
    }
}

/// A file that is at a path and was not, or not in this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The state that was found.
    pub found: Seen,
    /// The state that was known of this path.
    pub known: Option<Seen>,
    /// When anything about the file last changed, its times included; nanoseconds since 1970 UTC.
    pub touched_ns: i64,
}

/// What has to be explained.
#[derive(Debug, Default)]
pub struct Differences {
    /// Known files that are not there.
    pub missing: Files,
    /// Files that are new or different.
    pub arrived: BTreeMap<Vec<u8>, Arrival>,
}

/// True when the content may differ.
pub fn content_differs(one: &Seen, other: &Seen) -> bool {
    one.size != other.size || one.mtime_ns != other.mtime_ns
}

/// True when both states are of one file. A number alone proves nothing, since file systems use it again for the next
/// file: the time of birth decides where it is known, else size and time of change.
pub fn is_same_file(one: &Seen, other: &Seen) -> bool {
    if one.inode != other.inode || one.device != other.device {
        return false;
    }
    match (one.born_ns, other.born_ns) {
        (Some(one_born), Some(other_born)) => one_born == other_born,
        _ => !content_differs(one, other),
    }
}

/// Explains the differences by as few changes as possible: a file that is missing at one path and arrived at another
/// was renamed, and whatever it displaced there may have been renamed in its turn.
///
/// The order is one in which the changes can have happened, so storing any beginning of it leaves a true state.
pub fn explain(differences: Differences) -> Vec<Change> {
    let Differences { missing, mut arrived } = differences;
    let mut by_inode: HashMap<i64, Vec<Vec<u8>>> = HashMap::new();
    if !missing.is_empty() {
        for (path, arrival) in &arrived {
            by_inode.entry(arrival.found.inode).or_default().push(path.clone());
        }
    }
    let mut changes = Vec::with_capacity(missing.len() + arrived.len());
    for (path, seen) in missing {
        explain_missing(path, seen, &mut arrived, &by_inode, &mut changes);
    }
    changes.extend(arrived.into_iter().map(|(path, arrival)| match arrival.known {
        None => Change::Created { path, seen: arrival.found },
        Some(_) => Change::Changed { path, seen: arrival.found },
    }));
    changes
}

/// Follows one missing file to where it went, then the file it displaced there, and so on.
fn explain_missing(
    path: Vec<u8>,
    seen: Seen,
    arrived: &mut BTreeMap<Vec<u8>, Arrival>,
    by_inode: &HashMap<i64, Vec<Vec<u8>>>,
    changes: &mut Vec<Change>,
) {
    let mut chain: Vec<Vec<Change>> = Vec::new();
    let (mut from, mut was) = (path, seen);
    loop {
        let target = by_inode.get(&was.inode).into_iter().flatten().find(|target| {
            **target != from && arrived.get(*target).is_some_and(|arrival| is_same_file(&was, &arrival.found))
        });
        let Some((target, arrival)) = target.and_then(|target| arrived.remove_entry(target)) else {
            if chain.is_empty() {
                changes.push(Change::Removed { path: from, seen: was });
            } else if let Some(last) = chain.last_mut() {
                // Nothing shows where the displaced file went: it was overwritten, so the path has other content.
                last.push(Change::Changed { seen: *last[0].seen(), path: from });
            }
            break;
        };
        let mut step = vec![Change::Renamed { from, path: target.clone(), seen: arrival.found }];
        let displaced = arrival.known.filter(|known| !is_same_file(known, &arrival.found));
        if displaced.is_none() && content_differs(&was, &arrival.found) {
            step.push(Change::Changed { path: target.clone(), seen: arrival.found });
        }
        chain.push(step);
        match displaced {
            Some(displaced) => (from, was) = (target, displaced),
            None => break,
        }
    }
    // The last of the chain moved first, to make room.
    changes.extend(chain.into_iter().rev().flatten());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: i64, content: i64) -> Seen {
        Seen { size: content, mtime_ns: content, inode, device: 0, born_ns: Some(inode * 10) }
    }

    /// Plays both states through `explain` and tells the changes in words.
    fn check(known: &[(&str, Seen)], found: &[(&str, Seen)], expected: &[&str]) {
        let find = |list: &[(&str, Seen)], path: &str| list.iter().find(|(p, _)| *p == path).map(|(_, seen)| *seen);
        let mut differences = Differences::default();
        for (path, seen) in known {
            if find(found, path).is_none() {
                differences.missing.insert(path.as_bytes().to_vec(), *seen);
            }
        }
        for (path, seen) in found {
            let known = find(known, path);
            if known != Some(*seen) {
                differences.arrived.insert(path.as_bytes().to_vec(), Arrival { found: *seen, known, touched_ns: 0 });
            }
        }
        let changes = explain(differences);
        let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let words: Vec<String> = changes
            .iter()
            .map(|change| match change {
                Change::Created { path, .. } => format!("+{}", text(path)),
                Change::Changed { path, .. } => format!("*{}", text(path)),
                Change::Removed { path, .. } => format!("-{}", text(path)),
                Change::Renamed { from, path, .. } => format!("{}>{}", text(from), text(path)),
            })
            .collect();
        assert_eq!(words, expected, "{known:?} {found:?}");
        let mut rows: BTreeMap<Vec<u8>, Seen> = known.iter().map(|(p, s)| (p.as_bytes().to_vec(), *s)).collect();
        for update in changes.iter().flat_map(Change::updates) {
            match update {
                Update::Put(path, seen) => drop(rows.insert(path, seen)),
                Update::Forget(path) => drop(rows.remove(&path)),
            }
        }
        let disk: BTreeMap<Vec<u8>, Seen> = found.iter().map(|(p, s)| (p.as_bytes().to_vec(), *s)).collect();
        assert_eq!(rows, disk, "the updates lead to what is on disk");
    }

    #[test]
    fn changes_are_explained() {
        let (a, b) = (file(1, 7), file(2, 8));
        check(&[], &[("x", a)], &["+x"]);
        check(&[("x", a)], &[], &["-x"]);
        check(&[("x", a)], &[("x", file(1, 9))], &["*x"]);
        check(&[("x", a)], &[("x", b)], &["*x"]);
        check(&[("x", a)], &[("y", a)], &["x>y"]);
        check(&[("x", a)], &[("y", file(1, 9))], &["x>y", "*y"]);
        check(&[("x", a)], &[("y", b)], &["-x", "+y"]);
        check(&[("d/x", a), ("d/y", b)], &[("e/x", a), ("e/y", b)], &["d/x>e/x", "d/y>e/y"]);
    }

    #[test]
    fn chains_make_room_first() {
        let (a, b, c) = (file(1, 7), file(2, 8), file(3, 9));
        check(&[("x", a), ("y", b)], &[("y", a), ("z", b)], &["y>z", "x>y"]);
        check(&[("x", a), ("y", b), ("z", c)], &[("y", a), ("z", b)], &["y>z", "*z", "x>y"]);
        check(&[("x", a), ("y", b)], &[("y", a)], &["x>y", "*y"]);
        // An atomic save that keeps a copy: the file is there all the time, the copy is new.
        check(&[("f", a)], &[("f", b), ("f.bak", a)], &["*f", "+f.bak"]);
        // A second name for the file, then the first removed.
        check(&[("f", a), ("g", a)], &[("g", a)], &["-f"]);
    }

    #[test]
    fn a_number_used_again_is_another_file() {
        let old = file(1, 7);
        let young = Seen { born_ns: Some(99), ..old };
        check(&[("x", old)], &[("y", young)], &["-x", "+y"]);
        let (old, later) = (Seen { born_ns: None, ..old }, Seen { born_ns: None, mtime_ns: 8, ..old });
        check(&[("x", old)], &[("y", later)], &["-x", "+y"]);
        check(&[("x", old)], &[("y", old)], &["x>y"]);
    }
}
