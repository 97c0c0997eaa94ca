//! Keys of actions whose outcome nobody knows. Whoever does the same at the same place again comes with the same key, so
//! that the other side can tell a repetition from a second wish. An instance that was cut off is kept by its key likewise:
//! the one that is started in its place begins with the keys that it left open.

use std::collections::BTreeMap;

use super::fault::Fault;
use super::machine::{Env, Machine};
use super::state::Waiting;

impl Machine {
    /// Where a fiber stands, from the workflow on: the same for whatever is tried again there, and for nothing else.
    /// `frames` of its own count.
    fn place(&self, id: u32, frames: usize) -> String {
        let Some(fiber) = self.state.fibers.get(&id) else { return String::new() };
        let around = |parent| self.place(parent, usize::MAX);
        fiber.parent.map_or_else(String::new, around) + &fiber.path(frames)
    }

    /// Keeps the key of what a fiber does outside, before nobody waits for it any more.
    pub(super) fn keep_key(&mut self, id: u32) {
        let key = match self.state.fibers.get(&id).and_then(|fiber| fiber.wait.as_ref()) {
            Some(Waiting::Action(action)) => action.key.clone(),
            Some(Waiting::Child(key)) => key.clone(),
            _ => return,
        };
        self.state.open.insert(self.place(id, usize::MAX), key);
    }

    /// The keys of everything whose outcome nobody knows when it goes no further, by where it stood.
    pub fn left_open(&self) -> BTreeMap<String, String> {
        let mut open = self.state.open.clone();
        for (id, fiber) in &self.state.fibers {
            match &fiber.wait {
                Some(Waiting::Action(action)) if action.sent => {
                    open.insert(self.place(*id, usize::MAX), action.key.clone());
                }
                Some(Waiting::Child(key)) => {
                    open.insert(self.place(*id, usize::MAX), key.clone());
                }
                _ => {}
            }
        }
        open
    }

    /// Whether a fiber, or a branch of it, waits for something outside, or for a workflow that may do so.
    pub(super) fn is_outside(&self, id: u32) -> bool {
        let Some(fiber) = self.state.fibers.get(&id) else { return false };
        let branches = || self.state.fibers.iter().filter(|(_, one)| one.parent == Some(id)).map(|(id, _)| *id);
        matches!(fiber.wait, Some(Waiting::Action(_) | Waiting::Child(_)))
            || branches().any(|branch| self.is_outside(branch))
    }

    /// The key of the action that the innermost task begins.
    pub(super) fn key(&mut self, id: u32, env: &Env<'_>) -> Result<String, Fault> {
        let new = format!("{}-{}", env.id, self.doing(id)?.step);
        Ok(self.take_key(id).unwrap_or(new))
    }

    /// The key that was kept of what the innermost task does.
    pub(super) fn take_key(&mut self, id: u32) -> Option<String> {
        if self.state.open.is_empty() {
            return None;
        }
        let place = self.place(id, usize::MAX);
        self.state.open.remove(&place)
    }

    /// The innermost task is done: nothing within it is tried again.
    pub(super) fn forget_keys(&mut self, id: u32) {
        if self.state.open.is_empty() {
            return;
        }
        let frames = self.state.fibers.get(&id).map_or(0, |fiber| fiber.frames.len());
        let place = self.place(id, frames.saturating_sub(1));
        let within = |known: &String| {
            known
                .strip_prefix(&place)
                .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit() || next == '~'))
        };
        self.state.open.retain(|known, _| !within(known));
    }
}
