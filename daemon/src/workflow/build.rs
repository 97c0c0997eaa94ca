//! Makes a definition of a checked document: numbers its tasks, finds what it refers to, compiles every expression.

use std::collections::HashMap;

use serde_json::Value;

use super::check::Problem;
use super::definition::{
    Auth, Backoff, Call, Case, Catch, Definition, Each, Http, Journal, Kind, OpenApi, Output, Process, Read, Retry,
    Return, Run, Schedule, Shape, Subflow, Task, TaskId, Tell, Then,
};
use super::duration;
use super::links::Strategy;
use super::template::{Formula, Locals, Template};
use super::time::Time;
use crate::id::sha256_hex;
use crate::registry::Schema;
use crate::text::document::escaped;

/// Most instances that a schedule starts: one a second.
const EVERY_MS_MIN: i64 = 1000;

struct Builder<'v> {
    whole: &'v Value,
    tasks: Vec<Task>,
    problems: Vec<Problem>,
    functions: HashMap<String, TaskId>,
    /// Functions that are being built: one of them inside itself would never end.
    open: Vec<String>,
    /// See [`Locals::lazy`].
    lazy: bool,
}

/// Builds a definition; every problem has the pointer of its place.
pub(super) fn definition(whole: Value, lazy: bool) -> Result<Definition, Vec<Problem>> {
    let mut builder = Builder {
        whole: &whole,
        tasks: Vec::new(),
        problems: Vec::new(),
        functions: HashMap::new(),
        open: Vec::new(),
        lazy,
    };
    let none = Locals { names: Vec::new(), lazy };
    let root = builder.list(&whole["do"], "/do", &none);
    let (input, output) =
        (builder.shape(&whole, "", "input", "from", &none), builder.shape(&whole, "", "output", "as", &none));
    let timeout = builder.timeout(&whole, "", &none);
    let schedule = builder.schedule(&whole["schedule"]);
    for name in whole["use"]["functions"].as_object().into_iter().flat_map(|all| all.keys()) {
        builder.function(name, "/use/functions");
    }
    let journal = builder.chosen("aman.journal", &[("grouped", Journal::Grouped), ("strict", Journal::Strict)]);
    let tells = [("workflow", Tell::Workflows), ("tasks", Tell::Tasks), ("none", Tell::Nothing)];
    let tells = builder.chosen("aman.events", &tells);
    let (tasks, problems) = (builder.tasks, builder.problems);
    if !problems.is_empty() {
        return Err(problems);
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let document = &whole["document"];
    let secrets = whole["use"]["secrets"].as_array().into_iter().flatten().map(text).collect();
    Ok(Definition {
        digest: sha256_hex(whole.to_string().as_bytes()),
        namespace: text(&document["namespace"]),
        name: text(&document["name"]),
        version: text(&document["version"]),
        input,
        output,
        timeout,
        schedule,
        secrets,
        tasks,
        root,
        journal,
        tells,
        written: whole,
    })
}

impl<'v> Builder<'v> {
    fn wrong(&mut self, pointer: impl Into<String>, reason: impl Into<String>) {
        self.problems.push(Problem { pointer: pointer.into(), place: None, unsupported: false, reason: reason.into() });
    }

    fn formula(&mut self, value: &Value, pointer: &str, locals: &Locals) -> Option<Formula> {
        match Formula::compile(value.as_str()?, locals) {
            Ok(formula) => Some(formula),
            Err(why) => {
                self.wrong(pointer, format!("is no expression: {why}."));
                None
            }
        }
    }

    fn template(&mut self, value: &Value, pointer: &str, locals: &Locals) -> Template {
        let mut found = Vec::new();
        let template = Template::read(value, locals, &mut |below, why| found.push((below, why)));
        for (below, why) in found {
            self.wrong(format!("{pointer}{below}"), format!("is no expression: {why}."));
        }
        template
    }

    fn field(&mut self, value: &Value, pointer: &str, name: &str, locals: &Locals) -> Option<Template> {
        let inner = value.get(name)?;
        Some(self.template(inner, &format!("{pointer}/{name}"), locals))
    }

    fn time(&mut self, value: &Value, pointer: &str, locals: &Locals) -> Time {
        let mut found = Vec::new();
        let time = Time::read(value, locals, &mut |below, why| found.push((below, why)));
        for (below, why) in found {
            self.wrong(format!("{pointer}{below}"), why);
        }
        time
    }

    /// `input`, `output` or `export` of a task or of the whole.
    fn shape(&mut self, value: &Value, pointer: &str, name: &str, with: &str, locals: &Locals) -> Shape {
        let Some(written) = value.get(name) else { return Shape::default() };
        let at = format!("{pointer}/{name}");
        let lazy = self.lazy;
        let made = |document: Value| if lazy { Ok(Schema::known(document)) } else { Schema::new(document) };
        let schema = written["schema"].get("document").and_then(|document| match made(document.clone()) {
            Ok(schema) => Some(schema),
            Err(why) => {
                self.wrong(format!("{at}/schema/document"), why);
                None
            }
        });
        let with = match written.get(with) {
            None => None,
            Some(text @ Value::String(_)) => self.formula(text, &format!("{at}/{with}"), locals).map(Template::Formula),
            Some(object) => Some(self.template(object, &format!("{at}/{with}"), locals)),
        };
        Shape { schema, with }
    }

    /// What `value` is, or names in `use.<group>`; with the pointer of where it stands.
    fn used(&mut self, value: &'v Value, pointer: String, group: &str) -> Option<(&'v Value, String)> {
        let Some(name) = value.as_str() else { return Some((value, pointer)) };
        let found = self.whole["use"][group].get(name);
        if found.is_none() {
            self.wrong(pointer, format!("use.{group} has no '{name}'."));
        }
        found.map(|found| (found, format!("/use/{group}/{}", escaped(name))))
    }

    /// What the metadata of the document choose by this name; the first one unless they do.
    fn chosen<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> T {
        let default = choices[0].1;
        let Some(wanted) = self.whole["document"]["metadata"].get(name) else { return default };
        match choices.iter().find(|(choice, _)| wanted == *choice) {
            Some((_, chosen)) => *chosen,
            None => {
                let all: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
                self.wrong(format!("/document/metadata/{name}"), format!("must be one of {}.", all.join(", ")));
                default
            }
        }
    }

    fn timeout(&mut self, value: &'v Value, pointer: &str, locals: &Locals) -> Option<Time> {
        let (found, at) = self.used(value.get("timeout")?, format!("{pointer}/timeout"), "timeouts")?;
        Some(self.time(&found["after"], &format!("{at}/after"), locals))
    }

    fn schedule(&mut self, value: &Value) -> Option<Schedule> {
        let length = |builder: &mut Self, name: &str, least: i64| match duration::read(&value[name]) {
            Ok(length) => match length.fixed() {
                Some(ms) if ms >= least => ms,
                Some(_) => {
                    builder.wrong(format!("/schedule/{name}"), format!("must be at least {least} ms."));
                    least
                }
                None => {
                    builder.wrong(format!("/schedule/{name}"), "has years or months; say them with `cron`.");
                    least
                }
            },
            Err(why) => {
                builder.wrong(format!("/schedule/{name}"), why);
                least
            }
        };
        if value.get("every").is_some() {
            return Some(Schedule::Every(length(self, "every", EVERY_MS_MIN)));
        }
        if value.get("after").is_some() {
            return Some(Schedule::After(length(self, "after", EVERY_MS_MIN)));
        }
        if let Some(cron) = value["cron"].as_str() {
            if let Err((_, why)) = crate::schedule::Schedule::parse(cron, "UTC") {
                self.wrong("/schedule/cron", why);
            }
            return Some(Schedule::Cron(cron.to_owned()));
        }
        let on = value.get("on")?;
        Some(Schedule::On(self.strategy(on, "/schedule/on", &Locals { names: Vec::new(), lazy: self.lazy })))
    }

    fn strategy(&mut self, value: &Value, pointer: &str, locals: &Locals) -> Strategy {
        let mut found = Vec::new();
        let strategy = Strategy::read(value, locals, &mut |below, why| found.push((below, why)));
        for (below, why) in found {
            self.wrong(format!("{pointer}{below}"), format!("is no expression: {why}."));
        }
        strategy
    }

    fn function(&mut self, name: &str, pointer: &str) -> Option<TaskId> {
        if let Some(known) = self.functions.get(name) {
            return Some(*known);
        }
        let Some(written) = self.whole["use"]["functions"].get(name) else {
            let reason = format!(
                "there is no function '{name}': use.functions has none of that name, and ours are aman.skill, aman.approve, \
                 aman.tool and aman.agent."
            );
            self.wrong(pointer, reason);
            return None;
        };
        if self.open.iter().any(|open| open == name) {
            self.wrong(pointer, format!("the function '{name}' calls itself, which would never end."));
            return None;
        }
        self.open.push(name.to_owned());
        let at = format!("/use/functions/{}", escaped(name));
        let id = self.task(name, written, at, &[], &Locals { names: Vec::new(), lazy: self.lazy });
        self.open.pop();
        self.functions.insert(name.to_owned(), id);
        Some(id)
    }

    fn list(&mut self, list: &'v Value, pointer: &str, locals: &Locals) -> Vec<TaskId> {
        let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
        let names: Vec<&str> =
            items.iter().filter_map(|item| item.as_object()?.keys().next().map(String::as_str)).collect();
        let mut ids = Vec::with_capacity(items.len());
        for (n, item) in items.iter().enumerate() {
            for (name, task) in item.as_object().into_iter().flatten() {
                let at = format!("{pointer}/{n}/{}", escaped(name));
                ids.push(self.task(name, task, at, &names, locals));
            }
        }
        ids
    }

    fn then(&mut self, value: &Value, pointer: &str, names: &[&str]) -> Then {
        match value.as_str() {
            None | Some("continue") => Then::Continue,
            Some("exit") => Then::Exit,
            Some("end") => Then::End,
            Some(name) => match names.iter().position(|known| *known == name) {
                Some(at) => Then::Goto(at),
                None => {
                    self.wrong(pointer, format!("there is no task '{name}' in the same list of tasks."));
                    Then::Continue
                }
            },
        }
    }

    fn task(&mut self, name: &str, written: &'v Value, pointer: String, names: &[&str], locals: &Locals) -> TaskId {
        let id = self.tasks.len();
        // Its place is taken before its inner tasks get theirs.
        self.tasks.push(Task {
            name: name.to_owned(),
            pointer: pointer.clone(),
            written: written.clone(),
            condition: None,
            input: Shape::default(),
            output: Shape::default(),
            export: Shape::default(),
            timeout: None,
            then: Then::Continue,
            kind: Kind::Do(Vec::new()),
            idempotent: written["metadata"]["aman.idempotent"] == true,
            is_volatile: false,
        });
        let condition = written.get("if").and_then(|text| self.formula(text, &format!("{pointer}/if"), locals));
        let input = self.shape(written, &pointer, "input", "from", locals);
        let output = self.shape(written, &pointer, "output", "as", locals);
        let export = self.shape(written, &pointer, "export", "as", locals);
        let timeout = self.timeout(written, &pointer, locals);
        let then = self.then(&written["then"], &format!("{pointer}/then"), names);
        let kind = self.kind(written, &pointer, names, locals);
        let task = &mut self.tasks[id];
        (task.condition, task.input, task.output, task.export) = (condition, input, output, export);
        (task.timeout, task.then, task.kind) = (timeout, then, kind);
        task.is_volatile = is_volatile(task);
        id
    }

    fn kind(&mut self, written: &'v Value, at: &str, names: &[&str], locals: &Locals) -> Kind {
        let with = |more: &[&Value], default: &[&str]| {
            let mut all = locals.clone();
            for (value, default) in more.iter().zip(default) {
                all.names.push(value.as_str().unwrap_or(default).to_owned());
            }
            all
        };
        if written.get("call").is_some() {
            return Kind::Call(self.call(written, at, locals));
        }
        if let Some(loops) = written.get("for") {
            let inner = with(&[&loops["each"], &loops["at"]], &["item", "index"]);
            let (items, place) = (&loops["in"], format!("{at}/for/in"));
            let items = match items {
                Value::String(_) => self.formula(items, &place, locals).map(Template::Formula),
                list => Some(self.template(list, &place, locals)),
            };
            let while_ = written.get("while").and_then(|text| self.formula(text, &format!("{at}/while"), &inner));
            let tasks = self.list(&written["do"], &format!("{at}/do"), &inner);
            let [.., each, index] = &inner.names[..] else { return Kind::Do(tasks) };
            let Some(items) = items else { return Kind::Do(tasks) };
            return Kind::For { each: each.clone(), at: index.clone(), items, while_, tasks };
        }
        if written.get("try").is_some() {
            return self.try_task(written, at, names, locals);
        }
        if let Some(set) = written.get("set") {
            return match set {
                Value::String(_) => {
                    let formula = self.formula(set, &format!("{at}/set"), locals);
                    Kind::Set(formula.map_or(Template::Plain(Value::Null), Template::Formula))
                }
                data => Kind::Set(self.template(data, &format!("{at}/set"), locals)),
            };
        }
        if let Some(cases) = written["switch"].as_array() {
            return Kind::Switch(self.cases(cases, at, names, locals));
        }
        if let Some(fork) = written.get("fork") {
            let branches = fork["branches"].as_array().map(Vec::as_slice).unwrap_or_default();
            let mut ids = Vec::new();
            for (n, branch) in branches.iter().enumerate() {
                for (name, task) in branch.as_object().into_iter().flatten() {
                    let place = format!("{at}/fork/branches/{n}/{}", escaped(name));
                    ids.push(self.task(name, task, place, &[], locals));
                }
            }
            return Kind::Fork { branches: ids, compete: fork["compete"] == true };
        }
        if let Some(raise) = written.get("raise") {
            let Some((error, place)) = self.used(&raise["error"], format!("{at}/raise/error"), "errors") else {
                return Kind::Do(Vec::new());
            };
            return Kind::Raise(self.template(error, &place, locals));
        }
        if let Some(wait) = written.get("wait") {
            return Kind::Wait(self.time(wait, &format!("{at}/wait"), locals));
        }
        if let Some(emit) = written.get("emit") {
            return Kind::Emit(self.template(&emit["event"]["with"], &format!("{at}/emit/event/with"), locals));
        }
        if let Some(listen) = written.get("listen") {
            return self.listen(listen, written.get("foreach"), at, locals);
        }
        if let Some(run) = written.get("run") {
            return Kind::Run(self.run(run, &format!("{at}/run"), locals));
        }
        Kind::Do(self.list(&written["do"], &format!("{at}/do"), locals))
    }

    fn cases(&mut self, cases: &'v [Value], at: &str, names: &[&str], locals: &Locals) -> Vec<Case> {
        let mut found = Vec::new();
        for (n, item) in cases.iter().enumerate() {
            for (name, case) in item.as_object().into_iter().flatten() {
                let place = format!("{at}/switch/{n}/{}", escaped(name));
                let when = case.get("when").and_then(|text| self.formula(text, &format!("{place}/when"), locals));
                if case.get("when").is_none() && found.iter().any(|other: &Case| other.when.is_none()) {
                    self.wrong(place.clone(), "is a second default case; all but one need 'when'.");
                }
                let then = self.then(&case["then"], &format!("{place}/then"), names);
                found.push(Case { when, then });
            }
        }
        found
    }

    fn listen(&mut self, listen: &'v Value, each: Option<&'v Value>, at: &str, locals: &Locals) -> Kind {
        let to = self.strategy(&listen["to"], &format!("{at}/listen/to"), locals);
        let read = match listen["read"].as_str() {
            Some("envelope") => Read::Envelope,
            Some("raw") => Read::Raw,
            _ => Read::Data,
        };
        let each = each.map(|each| {
            let name = |field: &str, default: &str| each[field].as_str().unwrap_or(default).to_owned();
            let (item, index) = (name("item", "item"), name("at", "index"));
            let mut inner = locals.clone();
            inner.names.extend([item.clone(), index.clone()]);
            let place = format!("{at}/foreach");
            Box::new(Each {
                item,
                at: index,
                tasks: self.list(&each["do"], &format!("{place}/do"), &inner),
                output: self.shape(each, &place, "output", "as", &inner),
                export: self.shape(each, &place, "export", "as", &inner),
            })
        });
        Kind::Listen { to, read, each }
    }

    fn try_task(&mut self, written: &'v Value, at: &str, names: &[&str], locals: &Locals) -> Kind {
        let tasks = self.list(&written["try"], &format!("{at}/try"), locals);
        let (catch, place) = (&written["catch"], format!("{at}/catch"));
        let name = catch["as"].as_str().unwrap_or("error").to_owned();
        let mut inner = locals.clone();
        inner.names.push(name.clone());
        let with = catch["errors"]["with"].as_object().into_iter().flatten();
        let with = with.map(|(name, value)| (name.replace("details", "detail"), value.clone())).collect();
        let retry = catch.get("retry").and_then(|retry| self.used(retry, format!("{place}/retry"), "retries"));
        let catch = Catch {
            with,
            when: catch.get("when").and_then(|text| self.formula(text, &format!("{place}/when"), &inner)),
            except: catch.get("exceptWhen").and_then(|text| self.formula(text, &format!("{place}/exceptWhen"), &inner)),
            retry: retry.map(|(policy, at)| self.retry(policy, &at, &inner)),
            then: catch.get("then").map(|then| self.then(then, &format!("{place}/then"), names)),
            name,
        };
        let handler = written["catch"].get("do").map(|list| self.list(list, &format!("{place}/do"), &inner));
        Kind::Try { tasks, catch: Box::new(catch), handler }
    }

    fn retry(&mut self, policy: &Value, at: &str, locals: &Locals) -> Retry {
        let mut time =
            |value: Option<&Value>, place: &str| value.map(|value| self.time(value, &format!("{at}{place}"), locals));
        let limit = &policy["limit"];
        let delay = time(policy.get("delay"), "/delay");
        let each = time(limit["attempt"].get("duration"), "/limit/attempt/duration");
        let total = time(limit.get("duration"), "/limit/duration");
        let from = time(policy["jitter"].get("from"), "/jitter/from");
        let to = time(policy["jitter"].get("to"), "/jitter/to");
        Retry {
            when: policy.get("when").and_then(|text| self.formula(text, &format!("{at}/when"), locals)),
            except: policy.get("exceptWhen").and_then(|text| self.formula(text, &format!("{at}/exceptWhen"), locals)),
            delay,
            backoff: match () {
                () if policy["backoff"].get("exponential").is_some() => Backoff::Exponential,
                () if policy["backoff"].get("linear").is_some() => Backoff::Linear,
                () => Backoff::Constant,
            },
            count: limit["attempt"]["count"].as_u64(),
            each,
            total,
            jitter: from.zip(to),
        }
    }

    /// `{use}`, `{basic}` or `{bearer}`.
    fn auth(&mut self, value: Option<&'v Value>, at: &str, locals: &Locals) -> Option<Auth> {
        let value = value?;
        if let Some(name) = value.get("use") {
            let (found, place) = self.used(name, format!("{at}/use"), "authentications")?;
            return self.auth(Some(found), &place, locals);
        }
        let secret = |builder: &mut Self, value: &Value, at: String| -> Option<String> {
            let name = value.get("use")?.as_str()?;
            let secrets = builder.whole["use"]["secrets"].as_array();
            if !secrets.is_some_and(|all| all.iter().any(|known| known == name)) {
                builder.wrong(at, format!("use.secrets does not name '{name}'."));
            }
            Some(name.to_owned())
        };
        if let Some(basic) = value.get("basic") {
            let at = format!("{at}/basic");
            if let Some(name) = secret(self, basic, format!("{at}/use")) {
                return Some(Auth::BasicSecret(name));
            }
            let user = self.template(&basic["username"], &format!("{at}/username"), locals);
            return Some(Auth::Basic(user, self.template(&basic["password"], &format!("{at}/password"), locals)));
        }
        let (bearer, at) = (value.get("bearer")?, format!("{at}/bearer"));
        if let Some(name) = secret(self, bearer, format!("{at}/use")) {
            return Some(Auth::BearerSecret(name));
        }
        Some(Auth::Bearer(self.template(&bearer["token"], &format!("{at}/token"), locals)))
    }

    /// An address, and how to authenticate there.
    fn endpoint(&mut self, value: &'v Value, at: &str, locals: &Locals) -> (Template, Option<Auth>) {
        if value.is_string() {
            return (self.template(value, at, locals), None);
        }
        let uri = self.template(&value["uri"], &format!("{at}/uri"), locals);
        (uri, self.auth(value.get("authentication"), &format!("{at}/authentication"), locals))
    }

    fn call(&mut self, written: &'v Value, at: &str, locals: &Locals) -> Call {
        let (with, place) = (&written["with"], format!("{at}/with"));
        let output = match with["output"].as_str() {
            Some("raw") => Output::Raw,
            Some("response") => Output::Response,
            _ => Output::Content,
        };
        let redirect = with["redirect"] == true;
        match written["call"].as_str().unwrap_or_default() {
            "http" => {
                let (endpoint, auth) = self.endpoint(&with["endpoint"], &format!("{place}/endpoint"), locals);
                Call::Http(Box::new(Http {
                    method: self.template(&with["method"], &format!("{place}/method"), locals),
                    endpoint,
                    headers: self.field(with, &place, "headers", locals),
                    body: self.field(with, &place, "body", locals),
                    query: self.field(with, &place, "query", locals),
                    auth,
                    output,
                    redirect,
                }))
            }
            "openapi" => {
                let source = &with["document"]["endpoint"];
                let (document, document_auth) = self.endpoint(source, &format!("{place}/document/endpoint"), locals);
                Call::OpenApi(Box::new(OpenApi {
                    document,
                    document_auth,
                    operation: self.template(&with["operationId"], &format!("{place}/operationId"), locals),
                    parameters: self.field(with, &place, "parameters", locals),
                    auth: self.auth(with.get("authentication"), &format!("{place}/authentication"), locals),
                    output,
                    redirect,
                }))
            }
            "aman.skill" => Call::Skill(self.template(with, &place, locals)),
            "aman.tool" => Call::Tool(self.template(with, &place, locals)),
            "aman.approve" => {
                let expires = with.get("expires").map(|value| self.time(value, &format!("{place}/expires"), locals));
                Call::Approve(self.template(with, &place, locals), expires)
            }
            "aman.agent" => Call::Agent(self.template(with, &place, locals)),
            name => {
                let given = written.get("with").map(|with| self.template(with, &place, locals));
                match self.function(name, &format!("{at}/call")) {
                    Some(task) => Call::Function(task, given),
                    None => Call::Missing(name.to_owned()),
                }
            }
        }
    }

    fn run(&mut self, run: &'v Value, at: &str, locals: &Locals) -> Run {
        let wanted = match run["return"].as_str() {
            Some("stderr") => Return::Stderr,
            Some("code") => Return::Code,
            Some("all") => Return::All,
            Some("none") => Return::Nothing,
            _ => Return::Stdout,
        };
        if let Some(workflow) = run.get("workflow") {
            let place = format!("{at}/workflow");
            let latest = Value::from("latest");
            return Run::Workflow(Box::new(Subflow {
                namespace: self.template(&workflow["namespace"], &format!("{place}/namespace"), locals),
                name: self.template(&workflow["name"], &format!("{place}/name"), locals),
                version: self.template(workflow.get("version").unwrap_or(&latest), &format!("{place}/version"), locals),
                input: self.field(workflow, &place, "input", locals),
                awaited: run["await"] != false,
                wanted: wanted != Return::Nothing,
            }));
        }
        let (process, place, program, code) = match run.get("shell") {
            Some(shell) => (shell, format!("{at}/shell"), "sh", "command"),
            None => {
                let script = &run["script"];
                let program = if script["language"] == "python" { "python3" } else { "node" };
                (script, format!("{at}/script"), program, "code")
            }
        };
        Run::Process(Box::new(Process {
            program,
            code: self.template(&process[code], &format!("{place}/{code}"), locals),
            arguments: self.field(process, &place, "arguments", locals),
            environment: self.field(process, &place, "environment", locals),
            stdin: self.field(process, &place, "stdin", locals),
            wanted,
        }))
    }
}

/// Whether a task's own expressions may say something else another time.
fn is_volatile(task: &Task) -> bool {
    let shapes = [&task.input, &task.output, &task.export];
    let mut formulas: Vec<&Formula> = task.condition.iter().collect();
    formulas.extend(shapes.into_iter().filter_map(|shape| shape.with.as_ref()).flat_map(Template::formulas));
    match &task.kind {
        Kind::Set(data) | Kind::Raise(data) => formulas.extend(data.formulas()),
        Kind::For { items, while_, .. } => formulas.extend(items.formulas().into_iter().chain(while_)),
        Kind::Switch(cases) => formulas.extend(cases.iter().filter_map(|case| case.when.as_ref())),
        _ => {}
    }
    formulas.into_iter().any(Formula::is_volatile)
}
