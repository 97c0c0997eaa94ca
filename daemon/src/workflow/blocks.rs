//! What each kind of task does, and what the end of its inner tasks means.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::definition::{Auth, Call, Http, Kind, OpenApi, Process, Run, Subflow, Task, TaskId, Then};
use super::fault::Fault;
use super::links::{Strategy, Until};
use super::listen::Listening;
use super::machine::{Env, Machine, Next};
use super::size;
use super::state::{Action, Block, Child, Frame, Inner, Signal, Trying, Waiting};
use super::template::{Scope, Template};
use crate::clock::rfc3339;
use crate::event::NewEvent;
use crate::id::fresh;

/// Items that a loop may have.
const ITEMS_MAX: usize = 100_000;

/// A list of tasks that begins with `data`.
fn block(owner: TaskId, data: Value, vars: Vec<(String, Value)>) -> Block {
    Block { owner: Some(owner), data, vars, ..Block::default() }
}

impl Machine {
    pub(super) fn execute(&mut self, id: u32, task: &Task, env: &Env<'_>) -> Result<Next, Fault> {
        let input = self.input(id)?;
        match &task.kind {
            Kind::Set(data) => {
                let mut made = self.fill(id, data, env)?;
                self.clean(&mut made);
                Ok(Next::Done(made))
            }
            Kind::Do(_) => self.enter(id, input, Vec::new()),
            Kind::For { items, .. } => {
                let found = items.value(&Scope { now: &input, lookup: &|name| self.lookup(id, name, None, env) })?;
                let items = match found {
                    Value::Array(items) if items.len() <= ITEMS_MAX => items,
                    Value::Array(items) => {
                        return Err(Fault::runtime(format!("for.in has {} items; at most {ITEMS_MAX}", items.len())));
                    }
                    Value::Null => Vec::new(),
                    _ => return Err(Fault::expression("for.in is no list")),
                };
                self.doing_mut(id)?.inner = Inner::Loop(items, 0);
                let data = self.doing(id)?.input.clone();
                self.next_item(id, data, env)
            }
            Kind::Switch(cases) => {
                // The default counts when nothing else does, wherever it stands.
                let default = cases.iter().find(|case| case.when.is_none()).map(|case| case.then);
                let then = self.first_case(id, task, &input, env)?.or(default);
                let data = self.doing(id)?.input.clone();
                Ok(match then {
                    Some(then) => Next::Leads(data, then),
                    None => Next::Done(data),
                })
            }
            Kind::Try { catch, .. } => {
                let mut trying = Trying { retries: 0, first_ms: env.now_ms, deadline_ms: None, caught: false };
                if let Some(each) = catch.retry.as_ref().and_then(|retry| retry.each.as_ref()) {
                    let scope = Scope { now: &input, lookup: &|name| self.lookup(id, name, None, env) };
                    trying.deadline_ms = Some(env.now_ms.saturating_add(each.ms(&scope, env.now_ms)?));
                }
                self.doing_mut(id)?.inner = Inner::Try(trying);
                self.enter(id, input, Vec::new())
            }
            Kind::Fork { branches, .. } => self.fork(id, branches, task, &input),
            Kind::Raise(error) => Err(self.raised(id, error, env)?),
            Kind::Wait(time) => {
                let scope = Scope { now: &input, lookup: &|name| self.lookup(id, name, None, env) };
                let ms = time.ms(&scope, env.now_ms)?;
                Ok(Next::Wait(Waiting::Until(env.now_ms.saturating_add(ms))))
            }
            Kind::Emit(with) => self.emit(id, with, env),
            Kind::Listen { to, .. } => {
                let scope = Scope { now: &input, lookup: &|name| self.lookup(id, name, None, env) };
                let listening = Listening::new(to, &scope)?;
                self.doing_mut(id)?.inner = Inner::Listen(Box::new(listening));
                Ok(Next::Wait(Waiting::Events))
            }
            Kind::Call(call) => self.call(id, task, call, env),
            Kind::Run(run) => self.run_task(id, run, env),
        }
    }

    /// The first case of a switch whose condition holds.
    fn first_case(&self, id: u32, task: &Task, input: &Value, env: &Env<'_>) -> Result<Option<Then>, Fault> {
        let Kind::Switch(cases) = &task.kind else { return Ok(None) };
        let scope = Scope { now: input, lookup: &|name| self.lookup(id, name, None, env) };
        for case in cases {
            if let Some(when) = &case.when
                && when.holds(&scope)?
            {
                return Ok(Some(case.then));
            }
        }
        Ok(None)
    }

    /// Begins the inner tasks of the innermost task.
    fn enter(&mut self, id: u32, data: Value, vars: Vec<(String, Value)>) -> Result<Next, Fault> {
        let owner = self.doing(id)?.task;
        // What is stored holds no secret, whether there is a restart or not.
        let mut data = data;
        self.clean(&mut data);
        if let Some(fiber) = self.state.fibers.get_mut(&id) {
            fiber.frames.push(Frame::Block(block(owner, data, vars)));
        }
        Ok(Next::Inside)
    }

    /// Goes on with the next item of a loop, over `data`.
    fn next_item(&mut self, id: u32, data: Value, env: &Env<'_>) -> Result<Next, Fault> {
        let definition = Arc::clone(&self.definition);
        let doing = self.doing(id)?;
        let owner = doing.task;
        let Kind::For { each, at, while_, .. } = &definition.tasks[owner].kind else {
            return Ok(Next::Done(data));
        };
        let Inner::Loop(items, index) = &doing.inner else { return Ok(Next::Done(data)) };
        let Some(item) = items.get(*index) else { return Ok(Next::Done(data)) };
        let vars = vec![(each.clone(), item.clone()), (at.clone(), Value::from(*index))];
        if let Some(fiber) = self.state.fibers.get_mut(&id) {
            fiber.frames.push(Frame::Block(block(owner, data.clone(), vars)));
        }
        if let Some(while_) = while_ {
            let goes_on = while_.holds(&Scope { now: &data, lookup: &|name| self.lookup(id, name, None, env) });
            if !matches!(goes_on, Ok(true)) {
                if let Some(fiber) = self.state.fibers.get_mut(&id) {
                    fiber.frames.pop();
                }
                return goes_on.map(|_| Next::Done(data));
            }
        }
        Ok(Next::Inside)
    }

    /// The inner tasks of the innermost task are done.
    pub(super) fn inner_done(&mut self, id: u32, done: Block, exited: bool, env: &Env<'_>) {
        let Ok(doing) = self.doing_mut(id) else { return };
        let next = match &mut doing.inner {
            Inner::Loop(_, index) if !exited => {
                *index += 1;
                self.next_item(id, done.data, env)
            }
            Inner::Listen(_) => self.heard(id, done, exited, env),
            Inner::Try(Trying { caught: true, .. }) => Ok(self.handled(id, done.data)),
            _ => Ok(Next::Done(done.data)),
        };
        match next {
            Ok(Next::Done(output)) => self.complete(id, output, None, env),
            Ok(Next::Leads(output, then)) => self.complete(id, output, Some(then), env),
            Ok(Next::Wait(wait)) => {
                if let Some(fiber) = self.state.fibers.get_mut(&id) {
                    fiber.wait = Some(wait);
                }
            }
            Ok(Next::Inside) => {}
            Err(fault) => self.fail(id, fault, env),
        }
    }

    /// The tasks of a catch are done.
    fn handled(&self, id: u32, data: Value) -> Next {
        let kind = self.doing(id).map(|doing| &self.definition.tasks[doing.task].kind);
        match kind {
            Ok(Kind::Try { catch, .. }) if let Some(then) = catch.then => Next::Leads(data, then),
            _ => Next::Done(data),
        }
    }

    /// The tasks for one event are done.
    fn heard(&mut self, id: u32, done: Block, exited: bool, env: &Env<'_>) -> Result<Next, Fault> {
        let definition = Arc::clone(&self.definition);
        let Kind::Listen { each: Some(each), .. } = &definition.tasks[self.doing(id)?.task].kind else {
            return Ok(Next::Done(done.data));
        };
        let data = done.data.clone();
        // What becomes of their output may name the event, as they do.
        if let Some(fiber) = self.state.fibers.get_mut(&id) {
            fiber.frames.push(Frame::Block(done));
        }
        let made = self.output(id, (&each.output, &each.export), data, env);
        if let Some(fiber) = self.state.fibers.get_mut(&id) {
            fiber.frames.pop();
        }
        let made = made?;
        let enough = self.heard_enough(id, env)?;
        let Inner::Listen(listening) = &mut self.doing_mut(id)?.inner else { return Ok(Next::Done(made)) };
        listening.results.push(made);
        listening.done |= enough;
        if exited {
            listening.done = true;
            listening.queue.clear();
        }
        self.next_event(id)
    }

    /// Whether the condition of `until` holds now that the tasks for an event may have changed the context.
    fn heard_enough(&self, id: u32, env: &Env<'_>) -> Result<bool, Fault> {
        let doing = self.doing(id)?;
        let (Kind::Listen { to: Strategy::Any(_, Some(Until::Holds(until))), .. }, Inner::Listen(listening)) =
            (&self.definition.tasks[doing.task].kind, &doing.inner)
        else {
            return Ok(false);
        };
        let heard = Value::Array(listening.heard.clone());
        until.holds(&Scope { now: &heard, lookup: &|name| self.lookup(id, name, None, env) })
    }

    /// Goes on with the next event that was heard, or waits for one, or is done.
    pub(super) fn next_event(&mut self, id: u32) -> Result<Next, Fault> {
        let definition = Arc::clone(&self.definition);
        let doing = self.doing_mut(id)?;
        let owner = doing.task;
        let Inner::Listen(listening) = &mut doing.inner else { return Ok(Next::Wait(Waiting::Events)) };
        let Kind::Listen { each, .. } = &definition.tasks[owner].kind else { return Ok(Next::Wait(Waiting::Events)) };
        let Some(each) = each else {
            listening.queue.clear();
            let heard = Value::Array(listening.heard.clone());
            return Ok(if listening.done { Next::Done(heard) } else { Next::Wait(Waiting::Events) });
        };
        // What its tasks have looked at is not kept, so that a listener may go on for ever.
        if let Some(item) = listening.queue.pop_front() {
            let index = Value::from(listening.results.len());
            return self.enter(id, item.clone(), vec![(each.item.clone(), item), (each.at.clone(), index)]);
        }
        if listening.done {
            return Ok(Next::Done(Value::Array(std::mem::take(&mut listening.results))));
        }
        Ok(Next::Wait(Waiting::Events))
    }

    fn fork(&mut self, id: u32, branches: &[TaskId], task: &Task, input: &Value) -> Result<Next, Fault> {
        let Kind::Fork { compete, .. } = &task.kind else { return Err(Fault::runtime("is no fork")) };
        if branches.is_empty() {
            return Ok(Next::Done(if *compete { input.clone() } else { json!([]) }));
        }
        let owner = self.doing(id)?.task;
        if size::bytes(input).saturating_mul(branches.len()) > size::STATE_BYTES_MAX {
            return Err(size::too_much("the branches get more together", size::STATE_BYTES_MAX));
        }
        let mut data = input.clone();
        self.clean(&mut data);
        let fibers: Vec<u32> = branches
            .iter()
            .map(|branch| {
                let only = Block { only: Some(*branch), ..block(owner, data.clone(), Vec::new()) };
                self.spawn(Some(id), only)
            })
            .collect();
        self.doing_mut(id)?.inner = Inner::Fork(fibers, BTreeMap::new());
        Ok(Next::Wait(Waiting::Branches))
    }

    /// A branch is done with this output.
    pub(super) fn branch_done(&mut self, parent: u32, branch: u32, output: Value, env: &Env<'_>) {
        self.state.fibers.remove(&branch);
        let definition = Arc::clone(&self.definition);
        let Ok(doing) = self.doing_mut(parent) else { return };
        let task = doing.task;
        let Inner::Fork(fibers, results) = &mut doing.inner else { return };
        let Some(place) = fibers.iter().position(|fiber| *fiber == branch) else { return };
        results.insert(place, output.clone());
        let compete = matches!(definition.tasks[task].kind, Kind::Fork { compete: true, .. });
        if !compete && results.len() < fibers.len() {
            return;
        }
        let all = Value::Array(std::mem::take(results).into_values().collect());
        for fiber in fibers.clone() {
            self.drop_fiber(fiber, false, env);
        }
        if let Some(fiber) = self.state.fibers.get_mut(&parent) {
            fiber.wait = None;
        }
        self.complete(parent, if compete { output } else { all }, None, env);
    }

    fn raised(&self, id: u32, error: &Template, env: &Env<'_>) -> Result<Fault, Fault> {
        let made = self.fill(id, error, env)?;
        let text = |name: &str| match &made[name] {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        let Some(kind) = text("type") else { return Err(Fault::expression("raise.error.type is no text")) };
        let Some(status) = made["status"].as_i64() else {
            return Err(Fault::expression("raise.error.status is no whole number"));
        };
        Ok(Fault {
            kind,
            status,
            title: text("title"),
            detail: text("detail"),
            instance: text("instance").unwrap_or_default(),
            unknown: false,
        })
    }

    fn emit(&mut self, id: u32, with: &Template, env: &Env<'_>) -> Result<Next, Fault> {
        let made = self.fill(id, with, env)?;
        let Value::Object(given) = made else { return Err(Fault::expression("emit.event.with is no object")) };
        let mut event = Map::new();
        event.insert("specversion".to_owned(), "1.0".into());
        event.insert("id".to_owned(), fresh().into());
        event.insert("time".to_owned(), rfc3339(env.now_ms).into());
        event.extend(given.into_iter().filter(|(_, value)| !value.is_null()));
        for name in ["id", "source", "type"] {
            if event.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                return Err(Fault::expression(format!("emit.event.with.{name} is no text")));
            }
        }
        let mut event = Value::Object(event);
        self.clean(&mut event);
        let sent = emitted(&event);
        sent.check().and_then(|()| sent.check_names_free()).map_err(|error| Fault::validation(error.to_string()))?;
        self.wishes.bytes += event.to_string().len();
        self.wishes.events.push(event.clone());
        Ok(Next::Done(event))
    }

    fn action(&mut self, id: u32, args: Value, env: &Env<'_>) -> Result<Next, Fault> {
        let (task, key) = (self.doing(id)?.task, self.key(id, env)?);
        let mut clean = args.clone();
        self.clean(&mut clean);
        Ok(Next::Wait(Waiting::Action(Action { task, key, args: clean, live: Some(args), sent: false })))
    }

    fn call(&mut self, id: u32, task: &Task, call: &Call, env: &Env<'_>) -> Result<Next, Fault> {
        match call {
            Call::Http(_) | Call::OpenApi(_) => {
                let args = self.arguments(id, env)?;
                self.action(id, args, env)
            }
            Call::Function(_, with) => {
                let data = match with {
                    Some(with) => self.fill(id, with, env)?,
                    None => self.input(id)?,
                };
                self.enter(id, data, Vec::new())
            }
            Call::Skill(_) | Call::Tool(_) | Call::Agent(_) => {
                let args = self.arguments(id, env)?;
                self.action(id, args, env)
            }
            Call::Approve(with, expires) => {
                let made = self.fill(id, with, env)?;
                let text = |name: &str| made[name].as_str().unwrap_or_default().to_owned();
                let doing = self.doing(id)?;
                let (step, task) = (doing.step, self.question(doing));
                let signal = Signal { title: text("title"), message: text("message"), task, step };
                if let Some(time) = expires {
                    let input = self.input(id)?;
                    let scope = Scope { now: &input, lookup: &|name| self.lookup(id, name, None, env) };
                    let ms = time.ms(&scope, env.now_ms)?;
                    let doing = self.doing_mut(id)?;
                    let at = env.now_ms.saturating_add(ms);
                    doing.deadline_ms = Some(doing.deadline_ms.map_or(at, |other| other.min(at)));
                }
                self.wishes.signals.push(signal);
                Ok(Next::Wait(Waiting::Events))
            }
            Call::Missing(name) => Err(Fault::configuration(format!("there is no function '{name}' ({})", task.name))),
        }
    }

    /// What the innermost task's action is done with, secrets included.
    pub fn arguments(&self, id: u32, env: &Env<'_>) -> Result<Value, Fault> {
        let definition = Arc::clone(&self.definition);
        match &definition.tasks[self.doing(id)?.task].kind {
            Kind::Call(Call::Http(http)) => self.http(id, http, env),
            Kind::Call(Call::OpenApi(openapi)) => self.openapi(id, openapi, env),
            Kind::Call(Call::Skill(with)) => {
                let made = self.fill(id, with, env)?;
                Ok(json!({ "skill": { "name": made["name"], "input": made["input"] } }))
            }
            Kind::Call(Call::Agent(with)) => Ok(json!({ "agent": self.fill(id, with, env)? })),
            Kind::Call(Call::Tool(with)) => {
                let made = self.fill(id, with, env)?;
                Ok(json!({ "tool": { "name": made["name"], "input": made["input"] } }))
            }
            Kind::Run(Run::Process(process)) => self.process(id, process, env),
            _ => Err(Fault::runtime("the machine lost its place")),
        }
    }

    fn http(&self, id: u32, http: &Http, env: &Env<'_>) -> Result<Value, Fault> {
        let fill = |template: Option<&Template>| template.map(|template| self.fill(id, template, env)).transpose();
        Ok(json!({ "http": {
            "method": self.fill(id, &http.method, env)?,
            "uri": self.address(id, &http.endpoint, env)?,
            "headers": fill(http.headers.as_ref())?,
            "query": fill(http.query.as_ref())?,
            "body": fill(http.body.as_ref())?,
            "authorization": self.authorized(id, http.auth.as_ref(), env)?,
        }}))
    }

    fn openapi(&self, id: u32, openapi: &OpenApi, env: &Env<'_>) -> Result<Value, Fault> {
        let parameters = openapi.parameters.as_ref().map(|template| self.fill(id, template, env)).transpose()?;
        Ok(json!({ "openapi": {
            "document": self.address(id, &openapi.document, env)?,
            "document_authorization": self.authorized(id, openapi.document_auth.as_ref(), env)?,
            "operation": self.fill(id, &openapi.operation, env)?,
            "parameters": parameters,
            "authorization": self.authorized(id, openapi.auth.as_ref(), env)?,
        }}))
    }

    fn process(&self, id: u32, process: &Process, env: &Env<'_>) -> Result<Value, Fault> {
        let fill = |template: Option<&Template>| template.map(|template| self.fill(id, template, env)).transpose();
        Ok(json!({ "process": {
            "program": process.program,
            "code": self.fill(id, &process.code, env)?,
            "arguments": fill(process.arguments.as_ref())?,
            "environment": fill(process.environment.as_ref())?,
            "stdin": fill(process.stdin.as_ref())?,
        }}))
    }

    /// An address: an expression, or a URI template whose `{name}`s are top-level fields of the input (RFC 6570, simple
    /// string expansion).
    fn address(&self, id: u32, template: &Template, env: &Env<'_>) -> Result<String, Fault> {
        let made = self.fill(id, template, env)?;
        let Value::String(text) = made else { return Err(Fault::expression("the address is no text")) };
        if !matches!(template, Template::Plain(_)) {
            return Ok(text);
        }
        let input = self.input(id)?;
        let (mut out, mut rest) = (String::new(), text.as_str());
        while let Some((before, more)) = rest.split_once('{') {
            let Some((name, after)) = more.split_once('}') else { break };
            out.push_str(before);
            let value = match &input[name] {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                value @ (Value::Bool(_) | Value::Number(_)) => value.to_string(),
                _ => return Err(Fault::expression(format!("{{{name}}} in the address is no text or number"))),
            };
            out.extend(percent_encoding::utf8_percent_encode(&value, UNRESERVED));
            rest = after;
        }
        Ok(out + rest)
    }

    /// `$authorization` of the innermost task.
    pub(super) fn authorization(&self, id: u32, env: &Env<'_>) -> Result<Option<Value>, Fault> {
        let definition = Arc::clone(&self.definition);
        let auth = match &definition.tasks[self.doing(id)?.task].kind {
            Kind::Call(Call::Http(http)) => http.auth.as_ref(),
            Kind::Call(Call::OpenApi(openapi)) => openapi.auth.as_ref(),
            _ => None,
        };
        self.authorized(id, auth, env)
    }

    fn authorized(&self, id: u32, auth: Option<&Auth>, env: &Env<'_>) -> Result<Option<Value>, Fault> {
        use base64::Engine;
        let Some(auth) = auth else { return Ok(None) };
        let text = |value: Value, what: &str| match value {
            Value::String(text) => Ok(text),
            _ => Err(Fault::new("authentication", 401, "Not authenticated", format!("{what} is no text"))),
        };
        let basic = |user: String, password: String| {
            let parameter = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            // A secret is one in base64 too.
            if crate::redact::is_in(&password) && !crate::redact::is_in(&parameter) {
                crate::redact::learn(&parameter);
            }
            json!({ "scheme": "Basic", "parameter": parameter })
        };
        let bearer = |token: String| json!({ "scheme": "Bearer", "parameter": token });
        Ok(Some(match auth {
            Auth::Basic(user, password) => {
                basic(text(self.fill(id, user, env)?, "username")?, text(self.fill(id, password, env)?, "password")?)
            }
            Auth::Bearer(token) => bearer(text(self.fill(id, token, env)?, "token")?),
            Auth::BasicSecret(name) => {
                let secret = (env.secret)(name)?;
                basic(text(secret["username"].clone(), "username")?, text(secret["password"].clone(), "password")?)
            }
            Auth::BearerSecret(name) => match (env.secret)(name)? {
                Value::String(token) => bearer(token),
                secret => bearer(text(secret["token"].clone(), "token")?),
            },
        }))
    }

    fn run_task(&mut self, id: u32, run: &Run, env: &Env<'_>) -> Result<Next, Fault> {
        let Run::Workflow(subflow) = run else {
            let args = self.arguments(id, env)?;
            return self.action(id, args, env);
        };
        let Subflow { namespace, name, version, input, awaited, .. } = &**subflow;
        let text = |template: &Template, what: &str| match self.fill(id, template, env)? {
            Value::String(text) => Ok(text),
            _ => Err(Fault::expression(format!("run.workflow.{what} is no text"))),
        };
        let (namespace, name, version) =
            (text(namespace, "namespace")?, text(name, "name")?, text(version, "version")?);
        let mut input = match input {
            Some(input) => self.fill(id, input, env)?,
            None => self.input(id)?,
        };
        self.clean(&mut input);
        let (key, after) = (format!("{}-{}", env.id, self.doing(id)?.step), self.take_key(id));
        self.wishes.bytes += input.to_string().len();
        self.wishes.children.push(Child {
            key: key.clone(),
            after,
            namespace,
            name,
            version,
            input,
            awaited: *awaited,
        });
        if *awaited {
            return Ok(Next::Wait(Waiting::Child(key)));
        }
        Ok(Next::Done(self.doing(id)?.input.clone()))
    }
}

/// An emitted event as the bus takes it.
pub fn emitted(event: &Value) -> NewEvent {
    let text = |name: &str| event[name].as_str().map(str::to_owned);
    let known = ["specversion", "id", "source", "type", "time", "subject", "datacontenttype", "data"];
    let mut sent = NewEvent {
        id: text("id"),
        time: text("time"),
        subject: text("subject"),
        content_type: text("datacontenttype"),
        ..NewEvent::new(text("source").unwrap_or_default(), text("type").unwrap_or_default(), &event["data"])
    };
    for (name, value) in event.as_object().into_iter().flatten().filter(|(name, _)| !known.contains(&name.as_str())) {
        sent.extensions.insert(name.clone(), value.clone());
    }
    sent
}

/// RFC 3986's unreserved characters stay.
const UNRESERVED: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
