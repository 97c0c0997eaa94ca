//! The machine: takes an instance from one state to the next. It never waits and does nothing itself: what is to be
//! stored, published, started or asked it wishes for, and it is told what came of it.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::definition::{Definition, Journal, Shape, Task, TaskId, Then};
use super::fault::Fault;
use super::size;
use super::state::{Action, Block, Doing, Ended, Fiber, Frame, Inner, State, Step, StepStatus, Waiting, Wishes};
use super::template::{Scope, Template};
use crate::clock::{Millis, rfc3339};
use crate::redact;
use crate::registry::Schema;

/// Tasks of one instance; whoever needs more goes in circles.
const STEPS_MAX: u64 = 1_000_000;
/// Lists and tasks inside each other.
const FRAMES_MAX: usize = 400;
/// Branches at one time.
const FIBERS_MAX: usize = 1000;

/// What the machine must know of the world.
pub struct Env<'a> {
    /// The time.
    pub now_ms: Millis,
    /// The instance.
    pub id: &'a str,
    /// The value of a secret.
    pub secret: &'a (dyn Fn(&str) -> Result<Value, Fault> + Sync),
}

/// Why the machine stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Everything waits, or it has ended.
    Idle,
    /// It can go on once the wishes are met.
    Full,
}

/// An instance between two moments.
pub struct Machine {
    /// Its definition.
    pub definition: Arc<Definition>,
    /// Where it stands.
    pub state: State,
    /// What it wishes for.
    pub wishes: Wishes,
}

/// What became of the beginning of a task.
pub(super) enum Next {
    /// It is done, with this output.
    Done(Value),
    /// It is done, and says itself what comes next.
    Leads(Value, Then),
    /// It waits.
    Wait(Waiting),
    /// Its inner tasks come first.
    Inside,
}

impl Machine {
    /// An instance that is where `state` says.
    pub fn new(definition: Arc<Definition>, state: State) -> Machine {
        Machine { definition, state, wishes: Wishes::default() }
    }

    /// Goes on until everything waits, the instance ends, or `steps_max` tasks or the wishes are to be stored.
    pub fn run(&mut self, env: &Env<'_>, steps_max: usize) -> Stop {
        if self.state.fibers.is_empty() && self.state.ended.is_none() {
            self.start(env);
        }
        let mut steps = 0;
        while self.state.ended.is_none() {
            let ready: Vec<u32> =
                self.state.fibers.iter().filter(|(_, fiber)| fiber.wait.is_none()).map(|(id, _)| *id).collect();
            if ready.is_empty() {
                break;
            }
            for id in ready {
                if self.state.fibers.get(&id).is_some_and(|fiber| fiber.wait.is_none()) && self.state.ended.is_none() {
                    self.step(id, env);
                    steps += 1;
                }
            }
            if self.wishes.flush || steps >= steps_max || self.wishes.bytes > size::VALUE_BYTES_MAX {
                return Stop::Full;
            }
        }
        Stop::Idle
    }

    /// What it wishes for, once.
    pub fn take_wishes(&mut self) -> Wishes {
        std::mem::take(&mut self.wishes)
    }

    fn start(&mut self, env: &Env<'_>) {
        match self.first_input(env) {
            Ok(input) => {
                self.state.context = input.clone();
                let block = Block { data: input, ..Block::default() };
                self.spawn(None, block);
            }
            Err(fault) => self.end_faulted(fault.at("/input")),
        }
    }

    fn first_input(&mut self, env: &Env<'_>) -> Result<Value, Fault> {
        let definition = Arc::clone(&self.definition);
        if let Some(time) = &definition.timeout {
            let input = self.state.input.clone();
            let ms = time.ms(&Scope { now: &input, lookup: &|name| self.around(env, name) }, self.state.started_ms)?;
            self.state.deadline_ms = Some(self.state.started_ms.saturating_add(ms));
        }
        fits(definition.input.schema.as_ref(), "input.schema", &self.state.input)?;
        let input = self.state.input.clone();
        let mut made = match &definition.input.with {
            None => return Ok(input),
            Some(with) => with.value(&Scope { now: &input, lookup: &|name| self.around(env, name) })?,
        };
        self.clean(&mut made);
        Ok(made)
    }

    pub(super) fn spawn(&mut self, parent: Option<u32>, block: Block) -> u32 {
        let id = self.state.next_fiber;
        self.state.next_fiber += 1;
        self.state.fibers.insert(id, Fiber::new(parent, block));
        id
    }

    fn step(&mut self, id: u32, env: &Env<'_>) {
        let Some(fiber) = self.state.fibers.get(&id) else { return };
        match fiber.frames.last() {
            Some(Frame::Block(block)) => {
                let tasks = self.definition.block(block.owner, block.handler);
                let next = match block.only {
                    Some(task) => (block.at == 0).then_some(task),
                    None => tasks.get(block.at).copied(),
                };
                match next {
                    Some(task) => self.begin(id, task, block.data.clone(), env),
                    None => self.leave_block(id, false, env),
                }
            }
            // A task on top of a line that can go on is one whose wait was taken from it: it begins anew.
            Some(Frame::Task(_)) => self.redo(id),
            None => {}
        }
    }

    /// Has the innermost task begin once more.
    pub(super) fn redo(&mut self, id: u32) {
        if let Some(fiber) = self.state.fibers.get_mut(&id)
            && matches!(fiber.frames.last(), Some(Frame::Task(_)))
        {
            fiber.frames.pop();
        }
    }

    fn begin(&mut self, id: u32, task_id: TaskId, raw: Value, env: &Env<'_>) {
        let definition = Arc::clone(&self.definition);
        let task = &definition.tasks[task_id];
        let step = self.state.next_step;
        self.state.next_step += 1;
        let attempt = self.attempt(id);
        let doing = Doing {
            task: task_id,
            step,
            attempt,
            input: raw.clone(),
            raw,
            live: None,
            hidden: false,
            started_ms: env.now_ms,
            deadline_ms: None,
            inner: Inner::Plain,
        };
        let Some(fiber) = self.state.fibers.get_mut(&id) else { return };
        fiber.frames.push(Frame::Task(Box::new(doing)));
        if fiber.frames.len() > FRAMES_MAX || step > STEPS_MAX || self.state.fibers.len() > FIBERS_MAX {
            return self.fail(
                id,
                Fault::runtime("the workflow does more than one may do at once; does it go in circles?"),
                env,
            );
        }
        let begun = self
            .prepare(id, task, env)
            .and_then(|runs| if runs { self.execute(id, task, env).map(Some) } else { Ok(None) });
        match begun {
            Ok(Some(Next::Done(output))) => self.complete(id, output, None, env),
            Ok(Some(Next::Leads(output, then))) => self.complete(id, output, Some(then), env),
            Ok(Some(Next::Wait(wait))) => {
                self.note(id, StepStatus::Waiting, None, None, env);
                if let Some(fiber) = self.state.fibers.get_mut(&id) {
                    fiber.wait = Some(wait);
                }
            }
            Ok(Some(Next::Inside)) => self.note(id, StepStatus::Running, None, None, env),
            Ok(None) => self.skip(id, env),
            Err(fault) => self.fail(id, fault, env),
        }
    }

    /// The condition, the input and the time limit; false when the task is to be left out.
    fn prepare(&mut self, id: u32, task: &Task, env: &Env<'_>) -> Result<bool, Fault> {
        if let Some(condition) = &task.condition {
            let raw = self.doing(id)?.raw.clone();
            if !condition.holds(&Scope { now: &raw, lookup: &|name| self.lookup(id, name, None, env) })? {
                return Ok(false);
            }
        }
        fits(task.input.schema.as_ref(), "input.schema", &self.doing(id)?.raw)?;
        if let Some(input) = self.transformed(id, task, env)? {
            let hidden = !self.definition.secrets.is_empty() && {
                let mut clean = input.clone();
                redact::value(&mut clean);
                let hidden = clean != input;
                self.doing_mut(id)?.input = clean;
                hidden
            };
            let doing = self.doing_mut(id)?;
            (doing.hidden, doing.live) = (hidden, hidden.then(|| input.clone()));
            if !hidden {
                doing.input = input;
            }
        }
        if let Some(time) = &task.timeout {
            let input = self.input(id)?;
            let scope = Scope { now: &input, lookup: &|name| self.lookup(id, name, None, env) };
            let ms = time.ms(&scope, env.now_ms)?;
            self.doing_mut(id)?.deadline_ms = Some(env.now_ms.saturating_add(ms));
        }
        Ok(true)
    }

    fn transformed(&self, id: u32, task: &Task, env: &Env<'_>) -> Result<Option<Value>, Fault> {
        let Some(with) = &task.input.with else { return Ok(None) };
        let raw = &self.doing(id)?.raw;
        with.value(&Scope { now: raw, lookup: &|name| self.lookup(id, name, None, env) }).map(Some)
    }

    /// Sees to it that an input with secrets is there again after a restart.
    pub(super) fn revive(&mut self, id: u32, env: &Env<'_>) -> Result<(), Fault> {
        let definition = Arc::clone(&self.definition);
        let doing = self.doing(id)?;
        if doing.hidden && doing.live.is_none() {
            let input = self.transformed(id, &definition.tasks[doing.task], env)?;
            self.doing_mut(id)?.live = input;
        }
        Ok(())
    }

    /// The output of the innermost task is there.
    pub(super) fn complete(&mut self, id: u32, raw: Value, then: Option<Then>, env: &Env<'_>) {
        let definition = Arc::clone(&self.definition);
        let done = self.doing(id).map(|doing| doing.task).and_then(|task| {
            let task = &definition.tasks[task];
            self.output(id, (&task.output, &task.export), raw, env).map(|output| (task, output))
        });
        match done {
            Ok((task, output)) => {
                self.wishes.flush |= task.is_volatile || definition.journal == Journal::Strict;
                self.note(id, StepStatus::Completed, Some(&output), None, env);
                self.forget_keys(id);
                self.redo(id);
                self.leave(id, output, then.unwrap_or(task.then), env);
            }
            Err(fault) => self.fail(id, fault, env),
        }
    }

    fn skip(&mut self, id: u32, env: &Env<'_>) {
        let Ok(doing) = self.doing(id) else { return };
        let raw = doing.raw.clone();
        self.note(id, StepStatus::Skipped, Some(&raw), None, env);
        self.wishes.flush |= self.definition.journal == Journal::Strict;
        self.redo(id);
        self.leave(id, raw, Then::Continue, env);
    }

    /// `output.as`, its schema, `export.as` and its schema.
    pub(super) fn output(
        &mut self,
        id: u32,
        (output, export): (&Shape, &Shape),
        raw: Value,
        env: &Env<'_>,
    ) -> Result<Value, Fault> {
        let mut made = match &output.with {
            None => raw.clone(),
            Some(with) => {
                with.value(&Scope { now: &raw, lookup: &|name| self.lookup(id, name, Some((&raw, &raw)), env) })?
            }
        };
        self.clean(&mut made);
        fits(output.schema.as_ref(), "output.schema", &made)?;
        if let Some(with) = &export.with {
            let scope = Scope { now: &made, lookup: &|name| self.lookup(id, name, Some((&raw, &made)), env) };
            let mut context = with.value(&scope)?;
            self.clean(&mut context);
            fits(export.schema.as_ref(), "export.schema", &context)?;
            self.state.context = context;
        }
        Ok(made)
    }

    /// Goes where `then` leads from a list in which a task is done.
    pub(super) fn leave(&mut self, id: u32, output: Value, then: Then, env: &Env<'_>) {
        let Some(fiber) = self.state.fibers.get_mut(&id) else { return };
        let Some(Frame::Block(block)) = fiber.frames.last_mut() else { return };
        block.data = output;
        match then {
            Then::Continue => block.at += 1,
            Then::Goto(at) => {
                block.rounds += u64::from(at <= block.at);
                block.at = at;
            }
            Then::Exit => self.leave_block(id, true, env),
            Then::End => {
                let output = block.data.clone();
                self.finish(id, output, env);
            }
        }
    }

    /// A list is done: whoever it belongs to goes on.
    fn leave_block(&mut self, id: u32, exited: bool, env: &Env<'_>) {
        let Some(fiber) = self.state.fibers.get_mut(&id) else { return };
        if fiber.frames.len() == 1 && fiber.parent.is_none() {
            let Some(Frame::Block(block)) = fiber.frames.last_mut() else { return };
            let output = block.data.clone();
            return self.finish(id, output, env);
        }
        let Some(Frame::Block(block)) = fiber.frames.pop() else { return };
        match fiber.parent {
            Some(parent) if fiber.frames.is_empty() => self.branch_done(parent, id, block.data, env),
            _ => self.inner_done(id, block, exited, env),
        }
    }

    /// The workflow is done with this output.
    fn finish(&mut self, id: u32, raw: Value, env: &Env<'_>) {
        let definition = Arc::clone(&self.definition);
        let made = match &definition.output.with {
            None => Ok(raw),
            Some(with) => {
                let lookup = |name: &str| match name {
                    "context" => Ok(Some(self.state.context.clone())),
                    _ => self.around(env, name),
                };
                with.value(&Scope { now: &raw, lookup: &lookup })
            }
        };
        let made = made.and_then(|mut made| {
            self.clean(&mut made);
            fits(definition.output.schema.as_ref(), "output.schema", &made).map(|()| made)
        });
        match made {
            Ok(output) => {
                let fibers: Vec<u32> = self.state.fibers.keys().copied().collect();
                fibers.into_iter().for_each(|fiber| self.drop_fiber(fiber, fiber == id, env));
                self.state.ended = Some(Ended::Completed(output));
            }
            Err(fault) => {
                let fault = fault.at("/output");
                if let Some(fiber) = self.state.fibers.get_mut(&id) {
                    fiber.wait = Some(Waiting::Failed(fault.clone()));
                }
                self.end_faulted(fault);
            }
        }
    }

    pub(super) fn end_faulted(&mut self, fault: Fault) {
        self.state.ended = Some(Ended::Faulted(fault));
    }

    /// Ends it because it holds more than it may; nothing catches that.
    pub fn overflow(&mut self, what: &str) {
        if self.state.ended.is_none() {
            self.end_faulted(size::too_much(what, size::STATE_BYTES_MAX).at("/"));
        }
    }

    /// Ends a fiber and the branches below it, and says so of what it was doing.
    pub(super) fn drop_fiber(&mut self, id: u32, completed: bool, env: &Env<'_>) {
        let below: Vec<u32> =
            self.state.fibers.iter().filter(|(_, fiber)| fiber.parent == Some(id)).map(|(id, _)| *id).collect();
        below.into_iter().for_each(|fiber| self.drop_fiber(fiber, false, env));
        self.keep_key(id);
        let Some(fiber) = self.state.fibers.remove(&id) else { return };
        let status = if completed { StepStatus::Completed } else { StepStatus::Cancelled };
        for frame in fiber.frames {
            if let Frame::Task(doing) = frame {
                self.push_step(&doing, status, None, None, env);
            }
        }
    }

    /// Takes away everything above frame `at` of a fiber, with the branches that belong to it.
    pub(super) fn truncate(&mut self, id: u32, at: usize, fault: &Fault, env: &Env<'_>) {
        let below: Vec<u32> =
            self.state.fibers.iter().filter(|(_, fiber)| fiber.parent == Some(id)).map(|(id, _)| *id).collect();
        below.into_iter().for_each(|fiber| self.drop_fiber(fiber, false, env));
        self.keep_key(id);
        let Some(fiber) = self.state.fibers.get_mut(&id) else { return };
        fiber.wait = None;
        let gone: Vec<Frame> = fiber.frames.drain(at + 1..).collect();
        for frame in gone {
            if let Frame::Task(doing) = frame {
                self.push_step(&doing, StepStatus::Faulted, None, Some(fault), env);
            }
        }
    }

    pub(super) fn doing(&self, id: u32) -> Result<&Doing, Fault> {
        self.state.fibers.get(&id).and_then(Fiber::doing).ok_or_else(lost)
    }

    pub(super) fn doing_mut(&mut self, id: u32) -> Result<&mut Doing, Fault> {
        self.state.fibers.get_mut(&id).and_then(Fiber::doing_mut).ok_or_else(lost)
    }

    /// The input of the innermost task.
    pub(super) fn input(&self, id: u32) -> Result<Value, Fault> {
        let doing = self.doing(id)?;
        Ok(doing.live.as_ref().unwrap_or(&doing.input).clone())
    }

    /// Writes a row of the journal for the innermost task.
    pub(super) fn note(
        &mut self,
        id: u32,
        status: StepStatus,
        output: Option<&Value>,
        fault: Option<&Fault>,
        env: &Env<'_>,
    ) {
        let Some(doing) = self.state.fibers.get(&id).and_then(Fiber::doing).cloned() else { return };
        self.push_step(&doing, status, output, fault, env);
    }

    fn push_step(
        &mut self,
        doing: &Doing,
        status: StepStatus,
        output: Option<&Value>,
        fault: Option<&Fault>,
        env: &Env<'_>,
    ) {
        let open = matches!(status, StepStatus::Running | StepStatus::Waiting);
        let (input, bytes) = size::journaled(&doing.input);
        let output = output.map(size::journaled);
        // What is long in the journal is long in the state.
        self.wishes.bytes += 256 + bytes + output.as_ref().map_or(0, |(_, bytes)| *bytes);
        self.wishes.steps.push(Step {
            number: doing.step,
            task: doing.task,
            status,
            attempt: doing.attempt,
            started_ms: doing.started_ms,
            ended_ms: (!open).then_some(env.now_ms),
            input: Some(input),
            output: output.map(|(output, _)| output),
            error: fault.cloned(),
        });
    }

    /// Which attempt of the nearest try around it a task belongs to.
    fn attempt(&self, id: u32) -> u32 {
        let frames = self.state.fibers.get(&id).map(|fiber| fiber.frames.as_slice()).unwrap_or_default();
        let tries = frames.iter().rev().find_map(|frame| match frame {
            Frame::Task(doing) => match &doing.inner {
                Inner::Try(trying) if !trying.caught => Some(trying.retries),
                _ => None,
            },
            Frame::Block(_) => None,
        });
        tries.unwrap_or(0) + 1
    }

    /// Takes secrets out of data.
    pub(super) fn clean(&self, value: &mut Value) {
        if !self.definition.secrets.is_empty() {
            redact::value(value);
        }
    }

    /// The variables that there are everywhere.
    fn around(&self, env: &Env<'_>, name: &str) -> Result<Option<Value>, Fault> {
        Ok(Some(match name {
            "workflow" => json!({
                "id": env.id,
                "definition": self.definition.written,
                "input": self.state.input,
                "startedAt": moment(self.state.started_ms),
            }),
            "runtime" => json!({ "name": "aman", "version": env!("CARGO_PKG_VERSION"), "metadata": {} }),
            "secrets" => {
                let one = |name: &String| Ok((name.clone(), (env.secret)(name)?));
                Value::Object(self.definition.secrets.iter().map(one).collect::<Result<Map<_, _>, Fault>>()?)
            }
            _ => return Ok(None),
        }))
    }

    /// A variable for an expression of the innermost task; `output` is its raw and its transformed output, once it has
    /// them.
    pub(super) fn lookup(
        &self,
        id: u32,
        name: &str,
        output: Option<(&Value, &Value)>,
        env: &Env<'_>,
    ) -> Result<Option<Value>, Fault> {
        if let Some(local) = self.local(id, name) {
            return Ok(Some(local.clone()));
        }
        Ok(Some(match name {
            "context" => self.state.context.clone(),
            "input" => self.input(id)?,
            "output" => return Ok(output.map(|(_, made)| made.clone())),
            "authorization" => return self.authorization(id, env),
            "task" => {
                let doing = self.doing(id)?;
                let task = &self.definition.tasks[doing.task];
                json!({
                    "name": task.name,
                    "reference": task.pointer,
                    "definition": task.written,
                    "input": doing.raw,
                    "output": output.map(|(raw, _)| raw),
                    "startedAt": moment(doing.started_ms),
                })
            }
            _ => return self.around(env, name),
        }))
    }

    /// A variable of a loop, a listener or a catch around the innermost task.
    fn local(&self, id: u32, name: &str) -> Option<&Value> {
        let mut at = Some(id);
        while let Some(fiber) = at.and_then(|id| self.state.fibers.get(&id)) {
            for frame in fiber.frames.iter().rev() {
                if let Frame::Block(block) = frame
                    && let Some((_, value)) = block.vars.iter().rev().find(|(known, _)| known == name)
                {
                    return Some(value);
                }
            }
            at = fiber.parent;
        }
        None
    }

    /// When something is due by itself; none = never.
    pub fn due_ms(&self) -> Option<Millis> {
        let fibers = self.state.fibers.values();
        let waits = fibers.clone().filter_map(|fiber| match fiber.wait {
            Some(Waiting::Until(at)) => Some(at),
            _ => None,
        });
        let limits = fibers.flat_map(|fiber| &fiber.frames).filter_map(|frame| match frame {
            Frame::Task(doing) => match &doing.inner {
                Inner::Try(trying) if !trying.caught => doing.deadline_ms.into_iter().chain(trying.deadline_ms).min(),
                _ => doing.deadline_ms,
            },
            Frame::Block(_) => None,
        });
        waits.chain(limits).chain(self.state.deadline_ms).min().filter(|_| self.state.ended.is_none())
    }

    /// Pointers of the tasks that are being done, one a line of execution.
    pub fn current(&self) -> Vec<&str> {
        let leaf = |fiber: &Fiber| !matches!(fiber.wait, Some(Waiting::Branches));
        let fibers = self.state.fibers.values().filter(|fiber| leaf(fiber));
        fibers.filter_map(|fiber| Some(self.definition.tasks[fiber.doing()?.task].pointer.as_str())).collect()
    }

    /// What is to be done outside, or is being done: by fiber.
    pub fn actions(&self) -> Vec<(u32, &Action)> {
        let fibers = self.state.fibers.iter();
        fibers
            .filter_map(|(id, fiber)| match &fiber.wait {
                Some(Waiting::Action(action)) => Some((*id, action)),
                _ => None,
            })
            .collect()
    }

    /// Says of every action that it may have begun from now on.
    pub fn mark_sent(&mut self) {
        for fiber in self.state.fibers.values_mut() {
            if let Some(Waiting::Action(action)) = &mut fiber.wait {
                action.sent = true;
            }
        }
    }

    /// The keys of the instances whose end is waited for.
    pub fn awaited(&self) -> Vec<(u32, String)> {
        let key = |(id, fiber): (&u32, &Fiber)| match &fiber.wait {
            Some(Waiting::Child(key)) => Some((*id, key.clone())),
            _ => None,
        };
        self.state.fibers.iter().filter_map(key).collect()
    }

    /// A value for a template of the innermost task.
    pub(super) fn fill(&self, id: u32, template: &Template, env: &Env<'_>) -> Result<Value, Fault> {
        let input = self.input(id)?;
        template.value(&Scope { now: &input, lookup: &|name| self.lookup(id, name, None, env) })
    }
}

fn lost() -> Fault {
    Fault::runtime("the machine lost its place")
}

/// The DSL's description of a time.
fn moment(at_ms: Millis) -> Value {
    json!({
        "iso8601": rfc3339(at_ms),
        "epoch": { "seconds": at_ms.div_euclid(1000), "milliseconds": at_ms },
    })
}

/// Holds data against a schema.
pub(super) fn fits(schema: Option<&Schema>, name: &str, value: &Value) -> Result<(), Fault> {
    let Some(schema) = schema else { return Ok(()) };
    schema.check("data", name, value).map_err(|error| Fault::validation(error.to_string()))
}
