//! The bounds of one evaluation: work, memory, time and stack, kept per thread.
//!
//! Every operation on a value pays here before it does its work. What cannot be paid ends the evaluation by unwinding
//! to [`guarded`], so that neither `try` in an expression nor an infallible trait method (`Clone`, `Ord`) can swallow it.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::Instant;

#[cfg(not(panic = "unwind"))]
compile_error!("the bounds of expressions need panic = \"unwind\"");

/// What one step of the interpreter costs: about the memory that it may keep alive in iterators.
pub(super) const STEP: usize = 128;
/// The clock is read once for so many bytes of work.
const SLICE: usize = 64 << 10;
/// Slices and indices by value in path mode, which are the only ones that can make a path longer than a value is deep.
const ODD_PATHS: u32 = 500;
/// Compiled regular expressions kept during one evaluation.
const REGEXES: usize = 8;

/// Why an evaluation was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Time,
    Memory,
    Stack,
    Depth,
}

/// How a guarded evaluation ended early.
pub(super) enum Ended {
    Stopped(Stop),
    /// A panic inside the interpreter: a bug of it, not of the daemon.
    Panicked,
}

/// What an evaluation may use.
pub(super) struct Budget {
    pub deadline: Instant,
    pub memory: usize,
    /// Bytes of stack below the caller of [`guarded`].
    pub stack: usize,
}

type CachedRegex = (String, usize, Rc<regex_bites::bytes::Regex>);

struct State {
    slice: Cell<usize>,
    rest: Cell<usize>,
    value_max: Cell<usize>,
    floor: Cell<usize>,
    odd_paths: Cell<u32>,
    deadline: Cell<Option<Instant>>,
    regexes: RefCell<Vec<CachedRegex>>,
}

thread_local! {
    static STATE: State = const {
        State {
            slice: Cell::new(0),
            rest: Cell::new(0),
            value_max: Cell::new(0),
            floor: Cell::new(0),
            odd_paths: Cell::new(0),
            deadline: Cell::new(None),
            regexes: RefCell::new(Vec::new()),
        }
    };
}

/// Runs `work` under `budget`; an evaluation inside an evaluation does not exist.
pub(super) fn guarded<T>(budget: &Budget, work: impl FnOnce() -> T) -> Result<T, Ended> {
    STATE.with(|state| {
        state.slice.set(0);
        state.rest.set(budget.memory);
        state.value_max.set(budget.memory / 4);
        state.floor.set(stack_pointer().saturating_sub(budget.stack));
        state.odd_paths.set(0);
        state.deadline.set(Some(budget.deadline));
    });
    let result = catch_unwind(AssertUnwindSafe(work));
    STATE.with(|state| {
        state.floor.set(0);
        state.slice.set(0);
        state.rest.set(0);
        state.regexes.borrow_mut().clear();
    });
    result.map_err(|payload: Box<dyn Any + Send>| match payload.downcast::<Stop>() {
        Ok(stop) => Ended::Stopped(*stop),
        Err(_) => Ended::Panicked,
    })
}

/// The address of a local variable; only compared with another one of the same thread.
#[inline(never)]
fn stack_pointer() -> usize {
    let here = 0_u8;
    std::ptr::from_ref(std::hint::black_box(&here)).addr()
}

/// Pays for `bytes` of memory or work, or ends the evaluation.
pub(super) fn charge(bytes: usize) {
    STATE.with(|state| {
        if stack_pointer() < state.floor.get() {
            stop(Stop::Stack);
        }
        match state.slice.get().checked_sub(bytes) {
            Some(left) => state.slice.set(left),
            None => refill(state, bytes),
        }
    });
}

#[cold]
fn refill(state: &State, bytes: usize) {
    let wanted = bytes.max(SLICE);
    let have = state.slice.get().saturating_add(state.rest.get());
    if have < bytes {
        stop(Stop::Memory);
        return;
    }
    let slice = wanted.min(have);
    state.rest.set(have - slice);
    state.slice.set(slice - bytes);
    in_time(state);
}

fn in_time(state: &State) {
    if state.deadline.get().is_some_and(|deadline| Instant::now() >= deadline) {
        stop(Stop::Time);
    }
}

/// Ends the evaluation when its time is over; for loops whose rounds can be long.
pub(super) fn check_time() {
    STATE.with(in_time);
}

/// Ends the evaluation when a single value would become larger than any that it may hold.
pub(super) fn check_size(weight: usize) {
    if weight > STATE.with(|state| state.value_max.get()) {
        stop(Stop::Memory);
    }
}

/// Counts a step that lengthens a path without descending into the value.
pub(super) fn odd_path() {
    let count = STATE.with(|state| state.odd_paths.replace(state.odd_paths.get() + 1));
    if count >= ODD_PATHS {
        stop(Stop::Depth);
    }
}

/// Ends the evaluation. Returns only while the thread unwinds already, where a second unwinding would abort.
#[cold]
pub(super) fn stop(why: Stop) {
    if !std::thread::panicking() {
        resume_unwind(Box::new(why));
    }
}

/// The regular expression for `key` and `limit`, built at most once an evaluation as long as few are in use.
pub(super) fn cached_regex<E>(
    key: &str,
    limit: usize,
    build: impl FnOnce() -> Result<regex_bites::bytes::Regex, E>,
) -> Result<Rc<regex_bites::bytes::Regex>, E> {
    let found = STATE.with(|state| {
        let regexes = state.regexes.borrow();
        regexes.iter().find(|(k, l, _)| k == key && *l == limit).map(|(_, _, regex)| Rc::clone(regex))
    });
    if let Some(regex) = found {
        return Ok(regex);
    }
    let regex = Rc::new(build()?);
    STATE.with(|state| {
        let mut regexes = state.regexes.borrow_mut();
        if regexes.len() >= REGEXES {
            regexes.remove(0);
        }
        regexes.push((key.to_owned(), limit, Rc::clone(&regex)));
    });
    Ok(regex)
}
