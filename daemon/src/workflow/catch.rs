//! Errors, retries and time limits; and what comes in from outside: times, events, the ends of actions.

use std::sync::Arc;

use serde_json::{Value, json};

use super::definition::{Backoff, Call, Catch, Kind, Retry};
use super::fault::{Fault, same_type};
use super::machine::{Env, Machine, Next};
use super::state::{Block, Doing, Ended, Frame, Inner, StepStatus, Trying, Waiting};
use super::template::Scope;
use crate::clock::Millis;

/// The type of the event that answers a question of `aman.approve`.
pub const APPROVAL: &str = "approval";

/// Where an error is caught: fiber and frame of the try.
type Catcher = (u32, usize);

impl Machine {
    /// The innermost task of a fiber failed.
    pub(super) fn fail(&mut self, id: u32, fault: Fault, env: &Env<'_>) {
        let top = self.state.fibers.get(&id).map_or(0, |fiber| fiber.frames.len().saturating_sub(1));
        self.fail_below(id, top, fault, env);
    }

    /// A task failed; whoever catches it stands below frame `below` of its fiber, or in a fiber around it.
    fn fail_below(&mut self, id: u32, below: usize, fault: Fault, env: &Env<'_>) {
        let definition = Arc::clone(&self.definition);
        let pointer = self.doing(id).map(|doing| definition.tasks[doing.task].pointer.clone()).unwrap_or_default();
        let mut fault = fault.at(&pointer);
        if let Some(detail) = &mut fault.detail {
            crate::redact::string(detail);
        }
        self.note(id, StepStatus::Faulted, None, Some(&fault), env);
        match self.catcher(id, below, &fault, env) {
            Ok(Some((fiber, at))) => self.caught(fiber, at, fault, env),
            Ok(None) => self.uncaught(id, fault),
            // An error in looking for who catches it is the error that counts.
            Err(worse) => self.uncaught(id, worse.at(&pointer)),
        }
    }

    fn uncaught(&mut self, id: u32, fault: Fault) {
        if let Some(fiber) = self.state.fibers.get_mut(&id) {
            fiber.wait = Some(Waiting::Failed(fault.clone()));
        }
        self.end_faulted(fault);
    }

    fn catcher(&self, id: u32, below: usize, fault: &Fault, env: &Env<'_>) -> Result<Option<Catcher>, Fault> {
        let (mut at, mut limit) = (Some(id), below);
        while let Some((id, fiber)) = at.and_then(|id| Some((id, self.state.fibers.get(&id)?))) {
            for (n, frame) in fiber.frames.iter().enumerate().take(limit).rev() {
                let Frame::Task(doing) = frame else { continue };
                let (Inner::Try(trying), Kind::Try { catch, .. }) =
                    (&doing.inner, &self.definition.tasks[doing.task].kind)
                else {
                    continue;
                };
                if !trying.caught && self.catches(id, n, catch, fault, env)? {
                    return Ok(Some((id, n)));
                }
            }
            (at, limit) = (fiber.parent, usize::MAX);
        }
        Ok(None)
    }

    /// Whether the filter and the conditions of a catch let the error in.
    fn catches(&self, id: u32, frame: usize, catch: &Catch, fault: &Fault, env: &Env<'_>) -> Result<bool, Fault> {
        let shown = fault.to_value();
        let fits = |(name, wanted): &(String, Value)| match wanted.as_str() {
            Some(wanted) if name == "type" => same_type(&fault.kind, wanted),
            _ => shown.get(name) == Some(wanted),
        };
        if !catch.with.iter().all(fits) {
            return Ok(false);
        }
        let input = self.input_at(id, frame);
        let lookup = self.with_error(id, &catch.name, &shown, env);
        let scope = Scope { now: &input, lookup: &lookup };
        let wanted = catch.when.as_ref().map_or(Ok(true), |when| when.holds(&scope))?;
        let unwanted = catch.except.as_ref().map_or(Ok(false), |except| except.holds(&scope))?;
        Ok(wanted && !unwanted)
    }

    fn with_error<'a>(
        &'a self,
        id: u32,
        name: &'a str,
        error: &'a Value,
        env: &'a Env<'_>,
    ) -> impl Fn(&str) -> Result<Option<Value>, Fault> + 'a {
        move |wanted| if wanted == name { Ok(Some(error.clone())) } else { self.lookup(id, wanted, None, env) }
    }

    fn input_at(&self, id: u32, frame: usize) -> Value {
        match self.state.fibers.get(&id).and_then(|fiber| fiber.frames.get(frame)) {
            Some(Frame::Task(doing)) => doing.live.as_ref().unwrap_or(&doing.input).clone(),
            _ => Value::Null,
        }
    }

    /// A try caught an error: it is tried again, handled, or passed over.
    fn caught(&mut self, id: u32, at: usize, fault: Fault, env: &Env<'_>) {
        let definition = Arc::clone(&self.definition);
        self.truncate(id, at, &fault, env);
        let Ok(doing) = self.doing(id) else { return };
        let Kind::Try { catch, handler, .. } = &definition.tasks[doing.task].kind else { return };
        let Inner::Try(trying) = doing.inner.clone() else { return };
        let retry = catch.retry.as_ref().map(|retry| self.wait_of(id, retry, &catch.name, (&trying, &fault), env));
        match retry.transpose() {
            Err(worse) => return self.fail(id, worse, env),
            Ok(Some(Some(wait_ms))) => return self.wait_to_retry(id, trying, wait_ms, env),
            Ok(Some(None)) if handler.is_none() => return self.fail(id, fault, env),
            Ok(_) => {}
        }
        if let Ok(doing) = self.doing_mut(id) {
            doing.inner = Inner::Try(Trying { caught: true, ..trying });
        }
        let Some(_) = handler else {
            let input = self.doing(id).map(|doing| doing.input.clone()).unwrap_or_default();
            return self.complete(id, input, catch.then, env);
        };
        let Ok(doing) = self.doing(id) else { return };
        let block = Block {
            owner: Some(doing.task),
            handler: true,
            data: doing.input.clone(),
            vars: vec![(catch.name.clone(), fault.to_value())],
            ..Block::default()
        };
        if let Some(fiber) = self.state.fibers.get_mut(&id) {
            fiber.frames.push(Frame::Block(block));
        }
    }

    fn wait_to_retry(&mut self, id: u32, trying: Trying, wait_ms: Millis, env: &Env<'_>) {
        if let Ok(doing) = self.doing_mut(id) {
            let retries = trying.retries.saturating_add(1);
            doing.inner = Inner::Try(Trying { retries, deadline_ms: None, ..trying });
        }
        // What is drawn or read off the clock is stored at once.
        self.wishes.flush = true;
        if let Some(fiber) = self.state.fibers.get_mut(&id) {
            fiber.wait = Some(Waiting::Until(env.now_ms.saturating_add(wait_ms)));
        }
    }

    /// How long to wait before the tasks are tried again; none when they are not.
    fn wait_of(
        &self,
        id: u32,
        retry: &Retry,
        name: &str,
        (trying, fault): (&Trying, &Fault),
        env: &Env<'_>,
    ) -> Result<Option<Millis>, Fault> {
        let (input, shown) = (self.input(id)?, fault.to_value());
        let lookup = self.with_error(id, name, &shown, env);
        let scope = Scope { now: &input, lookup: &lookup };
        let wanted = retry.when.as_ref().map_or(Ok(true), |when| when.holds(&scope))?;
        let unwanted = retry.except.as_ref().map_or(Ok(false), |except| except.holds(&scope))?;
        if !wanted || unwanted || retry.count.is_some_and(|count| u64::from(trying.retries) >= count) {
            return Ok(None);
        }
        let delay = retry.delay.as_ref().map_or(Ok(0), |delay| delay.ms(&scope, env.now_ms))?;
        let factor = match retry.backoff {
            Backoff::Constant => 1,
            Backoff::Linear => i64::from(trying.retries) + 1,
            Backoff::Exponential => 1_i64 << trying.retries.min(40),
        };
        let mut wait_ms = delay.saturating_mul(factor).min(10 * 366 * 86_400_000);
        if let Some((from, to)) = &retry.jitter {
            let (from, to) = (from.ms(&scope, env.now_ms)?, to.ms(&scope, env.now_ms)?);
            wait_ms = wait_ms.saturating_add(fastrand::i64(from.min(to)..=from.max(to)));
        }
        if let Some(total) = &retry.total
            && env.now_ms.saturating_add(wait_ms) > trying.first_ms.saturating_add(total.ms(&scope, trying.first_ms)?)
        {
            return Ok(None);
        }
        // Without any limit and wait it would spin; an instance must let others run.
        let unlimited = retry.count.is_none() && retry.total.is_none();
        Ok(Some(if unlimited { wait_ms.max(100) } else { wait_ms }))
    }

    /// Does what is due by the time: ends waits, and what has taken too long.
    pub fn tick(&mut self, env: &Env<'_>) {
        if self.state.ended.is_some() {
            return;
        }
        if self.state.deadline_ms.is_some_and(|at| at <= env.now_ms) {
            return self.end_faulted(Fault::timeout("the workflow took longer than its timeout").at("/"));
        }
        let fibers: Vec<u32> = self.state.fibers.keys().copied().collect();
        for id in fibers {
            if let Some((at, inside)) = self.overdue(id, env.now_ms) {
                let fault = self.too_late(id);
                self.truncate(id, at, &fault, env);
                // An attempt that took too long is an error inside the try; a task that did is one around it.
                self.fail_below(id, at + usize::from(inside), fault, env);
            } else {
                self.wake(id, env);
            }
        }
    }

    /// The error of what took too long; whether a call that it cut off was done nobody knows.
    fn too_late(&self, id: u32) -> Fault {
        if self.is_outside(id) {
            let detail = "took longer than its timeout; unknown_outcome: nobody knows how far what it did outside came";
            return Fault::timeout(detail).unknown();
        }
        Fault::timeout("took longer than its timeout")
    }

    /// The outermost frame of a fiber that has taken too long; true when it is an attempt of a try.
    fn overdue(&self, id: u32, now_ms: Millis) -> Option<(usize, bool)> {
        let fiber = self.state.fibers.get(&id)?;
        fiber.frames.iter().enumerate().find_map(|(n, frame)| {
            let Frame::Task(doing) = frame else { return None };
            let late = |at: Option<Millis>| at.is_some_and(|at| at <= now_ms);
            match &doing.inner {
                _ if late(doing.deadline_ms) => Some((n, false)),
                Inner::Try(trying) if !trying.caught && late(trying.deadline_ms) => Some((n, true)),
                _ => None,
            }
        })
    }

    fn wake(&mut self, id: u32, env: &Env<'_>) {
        let definition = Arc::clone(&self.definition);
        let Some(fiber) = self.state.fibers.get_mut(&id) else { return };
        let Some(Waiting::Until(at_ms)) = fiber.wait else { return };
        if at_ms > env.now_ms {
            return;
        }
        fiber.wait = None;
        let Ok(doing) = self.doing(id) else { return };
        let Kind::Try { catch, .. } = &definition.tasks[doing.task].kind else {
            let output = doing.input.clone();
            return self.complete(id, output, None, env);
        };
        let (task, data) = (doing.task, doing.input.clone());
        if let Some(each) = catch.retry.as_ref().and_then(|retry| retry.each.as_ref()) {
            let scope = Scope { now: &data, lookup: &|name| self.lookup(id, name, None, env) };
            let ms = each.ms(&scope, env.now_ms).unwrap_or(0);
            if let Ok(doing) = self.doing_mut(id)
                && let Inner::Try(trying) = &mut doing.inner
            {
                trying.deadline_ms = Some(env.now_ms.saturating_add(ms));
            }
        }
        let block = Block { owner: Some(task), data, ..Block::default() };
        if let Some(fiber) = self.state.fibers.get_mut(&id) {
            fiber.frames.push(Frame::Block(block));
        }
    }

    /// The action or the instance with this key has ended.
    pub fn resolve(&mut self, key: &str, result: Result<Value, Fault>, env: &Env<'_>) {
        let waits = |wait: &Waiting| match wait {
            Waiting::Action(action) => action.key == key,
            Waiting::Child(child) => child == key,
            _ => false,
        };
        let found = self.state.fibers.iter().find(|(_, fiber)| fiber.wait.as_ref().is_some_and(waits));
        let Some(id) = found.map(|(id, _)| *id).filter(|_| self.state.ended.is_none()) else { return };
        let result = result.and_then(|output| self.revive(id, env).map(|()| output));
        match result {
            Ok(mut output) => {
                if let Some(fiber) = self.state.fibers.get_mut(&id) {
                    fiber.wait = None;
                }
                self.clean(&mut output);
                self.complete(id, output, None, env);
            }
            Err(fault) => {
                if fault.unknown {
                    self.keep_key(id);
                }
                if let Some(fiber) = self.state.fibers.get_mut(&id) {
                    fiber.wait = None;
                }
                self.fail(id, fault, env);
            }
        }
    }

    /// Offers an event to every listener. `signal` says that it was sent to this instance alone. True when one of them
    /// waited for it.
    pub fn offer(&mut self, event: &Value, signal: bool, env: &Env<'_>) -> bool {
        let fibers: Vec<u32> = self.state.fibers.keys().copied().collect();
        // An answer that names no question is for the only one.
        let names = !event["data"]["task"].is_null();
        if signal && event["type"] == APPROVAL && !names && self.questions().len() > 1 {
            return false;
        }
        let mut taken = false;
        for id in fibers {
            if self.state.ended.is_none() {
                taken |= self.offer_to(id, event, signal, env);
            }
        }
        taken
    }

    /// Names of the tasks that wait for an answer of the person.
    pub fn questions(&self) -> Vec<String> {
        let waiting = self.state.fibers.values().filter(|fiber| matches!(fiber.wait, Some(Waiting::Events)));
        let asking = waiting.filter_map(|fiber| {
            let doing = fiber.doing()?;
            let asks = matches!(self.definition.tasks[doing.task].kind, Kind::Call(Call::Approve(..)));
            asks.then(|| self.question(doing))
        });
        asking.collect()
    }

    /// The name of a question: the pointer of its task. Several may ask what stands in a function, at the same time; there
    /// the number of the step tells them apart.
    pub(super) fn question(&self, doing: &Doing) -> String {
        let pointer = &self.definition.tasks[doing.task].pointer;
        if pointer.starts_with("/use/functions/") { format!("{pointer}~{}", doing.step) } else { pointer.clone() }
    }

    fn offer_to(&mut self, id: u32, event: &Value, signal: bool, env: &Env<'_>) -> bool {
        let definition = Arc::clone(&self.definition);
        let waits = |fiber: &super::state::Fiber| matches!(fiber.wait, Some(Waiting::Events));
        let waiting = self.state.fibers.get(&id).is_some_and(waits);
        let Ok(doing) = self.doing(id) else { return false };
        let task = &definition.tasks[doing.task];
        if let Kind::Call(Call::Approve(..)) = &task.kind {
            let data = &event["data"];
            let meant = data["task"].is_null() || data["task"] == self.question(doing).as_str();
            let fits = signal && waiting && meant && event["type"] == APPROVAL && data["approved"].is_boolean();
            if fits {
                let output = json!({ "approved": data["approved"], "reason": data["reason"] });
                if let Some(fiber) = self.state.fibers.get_mut(&id) {
                    fiber.wait = None;
                }
                self.complete(id, output, None, env);
            }
            return fits;
        }
        let taken = match self.hear(id, event, env) {
            Ok(taken) => taken,
            Err(fault) => {
                self.fail(id, fault, env);
                return true;
            }
        };
        if taken && waiting {
            if let Some(fiber) = self.state.fibers.get_mut(&id) {
                fiber.wait = None;
            }
            match self.next_event(id) {
                Ok(Next::Done(output)) => self.complete(id, output, None, env),
                Ok(Next::Wait(wait)) => {
                    if let Some(fiber) = self.state.fibers.get_mut(&id) {
                        fiber.wait = Some(wait);
                    }
                }
                Ok(Next::Inside | Next::Leads(..)) => {}
                Err(fault) => self.fail(id, fault, env),
            }
        }
        taken
    }

    /// Offers an event to the listeners of one fiber, whether or not their tasks are busy with another.
    fn hear(&mut self, id: u32, event: &Value, env: &Env<'_>) -> Result<bool, Fault> {
        let definition = Arc::clone(&self.definition);
        let frames = self.state.fibers.get(&id).map_or(0, |fiber| fiber.frames.len());
        let mut taken = false;
        for n in 0..frames {
            let listener = self.state.fibers.get(&id).and_then(|fiber| match fiber.frames.get(n) {
                Some(Frame::Task(doing)) => match &doing.inner {
                    Inner::Listen(listening) => Some((doing.task, listening.clone())),
                    _ => None,
                },
                _ => None,
            });
            let Some((task, mut listening)) = listener else { continue };
            let Kind::Listen { to, read, each } = &definition.tasks[task].kind else { continue };
            let scope = Scope { now: event, lookup: &|name| self.lookup(id, name, None, env) };
            if !listening.offer(to, event, *read, &scope)? {
                continue;
            }
            // Only conditions over everything heard so far need what tasks have looked at already.
            if each.is_some() && !keeps(to) {
                listening.heard.clear();
            }
            taken = true;
            if let Some(Frame::Task(doing)) = self.state.fibers.get_mut(&id).and_then(|fiber| fiber.frames.get_mut(n)) {
                doing.inner = Inner::Listen(listening);
            }
        }
        Ok(taken)
    }

    /// Takes a faulted instance up again at the task that failed.
    pub fn retry(&mut self, env: &Env<'_>) {
        self.state.ended = None;
        let definition = Arc::clone(&self.definition);
        if let (Some(at), Some(time)) = (self.state.deadline_ms, &definition.timeout)
            && at <= env.now_ms
        {
            let input = self.state.input.clone();
            let ms = time.ms(&super::template::scope(&input), env.now_ms).unwrap_or(0);
            self.state.deadline_ms = Some(env.now_ms.saturating_add(ms));
        }
        for fiber in self.state.fibers.values_mut() {
            for frame in &mut fiber.frames {
                if let Frame::Task(doing) = frame
                    && doing.deadline_ms.is_some_and(|at| at <= env.now_ms)
                {
                    doing.deadline_ms = None;
                }
            }
            if matches!(fiber.wait, Some(Waiting::Failed(_))) {
                fiber.wait = None;
            }
        }
    }

    /// True when it faulted and can be taken up again.
    pub fn is_faulted(&self) -> bool {
        matches!(self.state.ended, Some(Ended::Faulted(_)))
    }
}

/// Whether what was heard is still looked at later.
fn keeps(to: &super::links::Strategy) -> bool {
    matches!(to, super::links::Strategy::Any(_, Some(super::links::Until::Holds(_))))
}
