//! No event for a half-written file: what differs becomes an event only once nobody writes it any more.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::store::files::Seen;

use super::compare::{Arrival, content_differs, is_same_file};
use super::dirty::{Again, Due, Evidence, STABLE};
use super::look::{Round, parent};
use super::writers::{self, FileNumber};

/// How long a file must stand still that grew without a close, when not every process could be looked into.
const STABLE_UNSEEN: Duration = Duration::from_secs(30);
/// The longest wait between two looks at a file that someone keeps open and whose close is not hinted at.
const PUT_OFF_MAX: Duration = Duration::from_secs(30);

/// What the hints and times say of a file that differs.
enum Verdict {
    Complete,
    /// Complete if nobody has it open.
    Ask,
    /// To be looked at again after this time.
    Early(Duration),
}

impl Round<'_> {
    /// Puts off what is not complete, and what belongs to it.
    pub(super) fn settle(&mut self) {
        let now = Instant::now();
        let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let now_ns = i64::try_from(now_ns).unwrap_or(i64::MAX);
        let (mut ask, mut put_off) = (Vec::new(), Vec::new());
        let mut missing: HashMap<i64, Vec<Seen>> = HashMap::new();
        for seen in self.found.differences.missing.values() {
            missing.entry(seen.inode).or_default().push(*seen);
        }
        for (path, arrival) in &self.found.differences.arrived {
            // A known file that only moved is as complete as it was.
            let moved = |seen: &Seen| is_same_file(seen, &arrival.found) && !content_differs(seen, &arrival.found);
            if missing.get(&arrival.found.inode).is_some_and(|places| places.iter().any(moved)) {
                continue;
            }
            match self.verdict(path, arrival, now_ns) {
                Verdict::Complete => {}
                Verdict::Ask => ask.push((path.clone(), self.number(arrival))),
                Verdict::Early(wait) => put_off.push((path.clone(), Again::At(now + wait))),
            }
        }
        if !ask.is_empty() {
            self.ask(ask, now, now_ns, &mut put_off);
        }
        for (path, again) in put_off {
            if let Some(arrival) = self.found.differences.arrived.remove(&path) {
                let due = Due { touched_ns: Some(arrival.touched_ns), ..self.due_of(&path) };
                self.found.put_off.push((due, again));
                self.held.push((path, arrival.found));
            }
        }
        self.hold_where_they_came_from();
    }

    fn verdict(&self, path: &[u8], arrival: &Arrival, now_ns: i64) -> Verdict {
        let due = self.due.get(path);
        match due.map_or(Evidence::None, |due| due.evidence) {
            Evidence::Complete => return Verdict::Complete,
            Evidence::Reopened => return Verdict::Ask,
            Evidence::Growing | Evidence::None => {}
        }
        // Its own clock may be another machine's: standing still between two looks counts as well.
        let stood_still = due.is_some_and(|due| due.touched_ns == Some(arrival.touched_ns));
        match Duration::from_nanos(u64::try_from(now_ns.saturating_sub(arrival.touched_ns)).unwrap_or(0)) {
            age if age >= STABLE || stood_still => Verdict::Ask,
            age => Verdict::Early(STABLE - age),
        }
    }

    /// Puts off those that a process has open for writing.
    fn ask(&self, ask: Vec<(Vec<u8>, FileNumber)>, now: Instant, now_ns: i64, put_off: &mut Vec<(Vec<u8>, Again)>) {
        let numbers: HashSet<FileNumber> = ask.iter().map(|(_, number)| *number).collect();
        let writers = writers::of(&numbers);
        for (path, number) in ask {
            let due = self.due_of(&path);
            if let Some(opened_as) = writers.open.get(&number) {
                // The kernel tells of the close under the path that was used to open.
                let hinted = *opened_as == self.full(&path) && self.scanner.watches.covers(parent(&path));
                let wait = STABLE.saturating_mul(1 << due.tries.min(5)).min(PUT_OFF_MAX);
                put_off.push((path, if hinted { Again::OnHint } else { Again::At(now + wait) }));
            } else if !writers.saw_all && due.evidence == Evidence::Growing {
                let touched_ns = self.found.differences.arrived.get(&path).map_or(0, |arrival| arrival.touched_ns);
                let age = Duration::from_nanos(u64::try_from(now_ns.saturating_sub(touched_ns)).unwrap_or(0));
                if age < STABLE_UNSEEN {
                    put_off.push((path, Again::At(now + (STABLE_UNSEEN - age))));
                }
            }
        }
    }

    /// A file that is missing where it was and not yet complete where it is now: both wait, to become one rename.
    fn hold_where_they_came_from(&mut self) {
        if self.held.is_empty() || self.found.differences.missing.is_empty() {
            return;
        }
        let mut held: HashMap<i64, Vec<usize>> = HashMap::new();
        for (n, (_, seen)) in self.held.iter().enumerate() {
            held.entry(seen.inode).or_default().push(n);
        }
        let missing = std::mem::take(&mut self.found.differences.missing);
        for (path, seen) in missing {
            let places = held.get(&seen.inode).into_iter().flatten();
            let went = places.map(|n| &self.held[*n]).find(|(_, found)| is_same_file(&seen, found));
            if let Some((to, _)) = went {
                self.found.put_off.push((self.due_of(&path), Again::With(to.clone())));
            } else {
                self.found.differences.missing.insert(path, seen);
            }
        }
    }

    fn due_of(&self, path: &[u8]) -> Due {
        let unknown = || Due { path: path.to_vec(), evidence: Evidence::None, tries: 0, touched_ns: None };
        self.due.get(path).cloned().unwrap_or_else(unknown)
    }

    fn number(&self, arrival: &Arrival) -> FileNumber {
        let device = match arrival.found.device {
            0 => self.root_device,
            other => other.cast_unsigned(),
        };
        (device, arrival.found.inode.cast_unsigned())
    }
}
