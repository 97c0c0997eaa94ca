//! What becomes of the slots that are due. Pure.

use crate::clock::Millis;
use crate::schedule::{Misfire, Overlap, Schedule};

/// A slot that could not run this long after it was due has been missed; the policy of its job decides then.
pub const LATE_MS: Millis = 30_000;
/// A clock that is set back further than this was wrong before: jobs go on from the new time. What is set back less is
/// waited for, so that no slot runs twice.
pub const SET_BACK_MS: Millis = 3 * 3_600_000;
/// Missed slots that get a row each; what is older shares one.
const SLOTS_MAX: usize = 1000;

/// Runs of one job that may go on beside each other, where they may at all.
pub const RUNS_MAX: usize = 100;

/// Whether another run of a job may begin beside the `running` ones.
pub fn has_room(overlap: Overlap, running: usize) -> bool {
    running < if overlap == Overlap::Allow { RUNS_MAX } else { 1 }
}

/// Slots between the cursor and now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The first and the last of those that are too many to be named.
    pub folded: Option<(Millis, Millis)>,
    /// The others, oldest first.
    pub slots: Vec<Millis>,
}

/// Gathers the slots after `cursor_ms` that are due at `now_ms`; `put_off` says by how long a slot is put off.
///
/// Bounded whatever the gap: while there are more than the most, the older half of the time is folded away.
pub fn gather(schedule: &Schedule, cursor_ms: Millis, now_ms: Millis, put_off: impl Fn(Millis) -> Millis) -> Due {
    let mut due = Due::default();
    let mut from_ms = cursor_ms;
    loop {
        due.slots = collect(schedule, from_ms, now_ms, &put_off);
        if due.slots.len() <= SLOTS_MAX {
            return due;
        }
        let middle = i64::midpoint(from_ms, now_ms);
        // The search for the end of the fold begins shortly before it, and goes back until it finds a slot.
        let mut back_ms = 60_000;
        let last = loop {
            let begin = (middle - back_ms).max(from_ms);
            let found = collect(schedule, begin, middle, &|_| 0);
            if let Some(last) = found.last().filter(|_| found.len() <= SLOTS_MAX) {
                break *last;
            }
            if begin == from_ms {
                break due.slots[0];
            }
            back_ms *= 2;
        };
        let first = due.folded.map_or(due.slots[0], |(first, _)| first);
        due.folded = Some((first, last));
        from_ms = middle.max(last);
    }
}

fn collect(schedule: &Schedule, from_ms: Millis, to_ms: Millis, put_off: &impl Fn(Millis) -> Millis) -> Vec<Millis> {
    let mut slots = Vec::new();
    let mut at_ms = from_ms;
    while let Some(next) = schedule.next(at_ms).filter(|next| next + put_off(*next) <= to_ms) {
        slots.push(next);
        if slots.len() > SLOTS_MAX {
            break;
        }
        at_ms = next;
    }
    slots
}

/// What becomes of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Its event is published.
    Fire,
    /// It waits for the end of an earlier run.
    Queue,
    /// It is left out, for this reason.
    Skip(&'static str),
}

/// What the job does and has going on.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// For slots that were missed.
    pub misfire: Misfire,
    /// For slots during a run.
    pub overlap: Overlap,
    /// The longest that a slot is put off.
    pub jitter_ms: Millis,
    /// Runs that go on.
    pub running: usize,
    /// Whether one waits for its end.
    pub queued: bool,
}

/// Decides about `slots`, oldest first.
pub fn decide(slots: &[Millis], now_ms: Millis, mut standing: Standing) -> Vec<(Millis, Act)> {
    let late = slots.iter().filter(|slot| now_ms - **slot - standing.jitter_ms > LATE_MS).count();
    // A slot that is on time stands in for those that were missed.
    let on_time = late < slots.len();
    let kept = match standing.misfire {
        Misfire::Skip => 0,
        Misfire::RunOnce | Misfire::Within(_) if on_time => 0,
        Misfire::RunOnce => 1,
        Misfire::RunAll(max) => usize::try_from(max).unwrap_or(usize::MAX),
        Misfire::Within(ms) => usize::from(late > 0 && now_ms - slots[late - 1] <= ms),
    };
    let acts = slots.iter().enumerate().map(|(n, slot)| {
        let is_late = n < late;
        if is_late && n + kept < late {
            return (*slot, Act::Skip("misfire"));
        }
        let act = match standing.overlap {
            // What waits already goes first.
            overlap if has_room(overlap, standing.running) && !standing.queued => Act::Fire,
            _ if is_late && matches!(standing.misfire, Misfire::RunAll(_)) => Act::Queue,
            Overlap::QueueOne if !standing.queued => Act::Queue,
            Overlap::QueueOne | Overlap::Skip | Overlap::Allow => Act::Skip("overlap"),
        };
        standing.running += usize::from(act == Act::Fire);
        standing.queued |= act == Act::Queue;
        (*slot, act)
    });
    acts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Millis = 60_000;

    fn check(misfire: Misfire, overlap: Overlap, running: usize, ages_min: &[i64]) -> String {
        let now_ms = 1_000 * MINUTE;
        let slots: Vec<Millis> = ages_min.iter().map(|age| now_ms - age * MINUTE).collect();
        let standing = Standing { misfire, overlap, jitter_ms: 0, running, queued: false };
        let acts = decide(&slots, now_ms, standing);
        assert!(acts.iter().map(|(slot, _)| slot).eq(&slots), "every slot is decided, in order");
        let letters = acts.into_iter().map(|(_, act)| match act {
            Act::Fire => 'F',
            Act::Queue => 'Q',
            Act::Skip("misfire") => 'm',
            Act::Skip(_) => 'o',
        });
        letters.collect()
    }

    #[test]
    fn policies_decide() {
        use Misfire::{RunAll, RunOnce, Skip, Within};
        use Overlap::{Allow, QueueOne};
        let cases = [
            (Skip, Overlap::Skip, 0, &[3, 2, 1][..], "mmm"),
            (Skip, Overlap::Skip, 0, &[2, 1, 0], "mmF"),
            (RunOnce, Overlap::Skip, 0, &[3, 2, 1], "mmF"),
            (RunOnce, Overlap::Skip, 1, &[3, 2, 1], "mmo"),
            (RunOnce, QueueOne, 1, &[3, 2, 1], "mmQ"),
            (RunOnce, Overlap::Skip, 0, &[2, 1, 0], "mmF"),
            (RunOnce, Allow, 1, &[2, 1, 0], "mmF"),
            (RunAll(2), Overlap::Skip, 0, &[3, 2, 1], "mFQ"),
            (RunAll(9), Overlap::Skip, 0, &[3, 2, 1], "FQQ"),
            (RunAll(9), Overlap::Skip, 1, &[3, 2, 1, 0], "QQQo"),
            (RunAll(9), Allow, 1, &[3, 2, 1], "FFF"),
            (Within(5 * MINUTE), Overlap::Skip, 0, &[9, 5], "mF"),
            (Within(4 * MINUTE), Overlap::Skip, 0, &[9, 5], "mm"),
            (Within(4 * MINUTE), Overlap::Skip, 0, &[0], "F"),
            (RunOnce, Overlap::Skip, 1, &[0], "o"),
            (RunOnce, QueueOne, 1, &[0, 0], "Qo"),
            (RunOnce, Overlap::Skip, 0, &[], ""),
            (RunOnce, Allow, RUNS_MAX - 1, &[0, 0], "Fo"),
            (RunAll(9), Allow, RUNS_MAX - 1, &[3, 2, 0], "FQo"),
            (RunAll(9), Allow, RUNS_MAX, &[3, 2], "QQ"),
        ];
        for (misfire, overlap, running, ages, expected) in cases {
            assert_eq!(check(misfire, overlap, running, ages), expected, "{misfire:?} {overlap:?} {running} {ages:?}");
        }
    }

    #[test]
    fn a_slot_that_jitter_puts_off_is_not_late() {
        let standing = Standing {
            misfire: Misfire::Skip,
            overlap: Overlap::Skip,
            jitter_ms: 2 * MINUTE,
            running: 0,
            queued: false,
        };
        assert_eq!(decide(&[0], 2 * MINUTE + LATE_MS, standing), [(0, Act::Fire)]);
        assert_eq!(decide(&[0], 2 * MINUTE + LATE_MS + 1, standing), [(0, Act::Skip("misfire"))]);
    }

    #[test]
    fn long_gaps_are_folded() {
        let year = 365 * 86_400_000;
        for (expression, exact) in [("* * * * * *", false), ("* * * * *", false), ("0 8 * * *", true)] {
            let schedule = Schedule::parse(expression, "Europe/Berlin").expect(expression);
            let start = 1_767_225_600_000;
            let due = gather(&schedule, start, start + year, |_| 0);
            assert!(due.slots.len() <= SLOTS_MAX && due.slots.len() >= 300, "{expression}: {}", due.slots.len());
            assert_eq!(due.folded.is_none(), exact, "{expression}");
            if let Some((first, last)) = due.folded {
                assert_eq!(Some(first), schedule.next(start), "{expression}");
                assert_eq!(schedule.next(last), due.slots.first().copied(), "{expression}: no slot is lost");
            }
            assert!(due.slots.windows(2).all(|pair| schedule.next(pair[0]) == Some(pair[1])), "{expression}");
            assert!(schedule.next(due.slots[due.slots.len() - 1]) > Some(start + year), "{expression}");
        }
    }
}
