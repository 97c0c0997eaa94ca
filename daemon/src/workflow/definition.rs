//! A definition, ready to run: its tasks in the order of the document, with every expression compiled.

use serde_json::Value;

use super::links::Strategy;
use super::template::{Formula, Template};
use super::time::Time;
use crate::registry::Schema;

/// The place of a task among all tasks of its definition. The same text always gives the same numbers.
pub type TaskId = usize;

/// SHA-256 of a definition, 64 hex digits.
pub type Digest = String;

/// Whether tasks are journaled one by one, or in groups as long as nothing acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    /// In groups.
    Grouped,
    /// One by one.
    Strict,
}

/// Which lifecycle events of the standard there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tell {
    /// None.
    Nothing,
    /// Those of instances.
    Workflows,
    /// Those of tasks, too.
    Tasks,
}

/// When instances start by themselves.
#[derive(Debug, Clone, PartialEq)]
pub enum Schedule {
    /// Again and again, this many milliseconds apart.
    Every(i64),
    /// By a cron expression, in UTC.
    Cron(String),
    /// This many milliseconds after the end of the one before.
    After(i64),
    /// When these events come.
    On(Strategy),
}

/// A check, and what is made of the data.
#[derive(Default)]
pub struct Shape {
    /// What the data must fit.
    pub schema: Option<Schema>,
    /// What it becomes; none = it stays.
    pub with: Option<Template>,
}

/// What comes after a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The next one.
    Continue,
    /// The end of this list of tasks.
    Exit,
    /// The end of the workflow.
    End,
    /// The task at this place in the same list.
    Goto(usize),
}

/// A task.
pub struct Task {
    /// What it is called.
    pub name: String,
    /// Its JSON pointer.
    pub pointer: String,
    /// How it was written.
    pub written: Value,
    /// Only run when it holds.
    pub condition: Option<Formula>,
    /// What becomes of its input.
    pub input: Shape,
    /// What becomes of its output.
    pub output: Shape,
    /// What the context becomes.
    pub export: Shape,
    /// How long it may take.
    pub timeout: Option<Time>,
    /// What comes next.
    pub then: Then,
    /// What it does.
    pub kind: Kind,
    /// True when it may be repeated although nobody knows whether it happened (`aman.idempotent`).
    pub idempotent: bool,
    /// True when its expressions may say something else another time.
    pub is_volatile: bool,
}

/// One case of a switch.
pub struct Case {
    /// None = the default.
    pub when: Option<Formula>,
    /// Where it leads.
    pub then: Then,
}

/// What an error must be to be caught.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catch {
    /// Fields that it must have.
    pub with: Vec<(String, Value)>,
    /// The name of its variable.
    pub name: String,
    /// Caught only when it holds.
    pub when: Option<Formula>,
    /// Not caught when it holds.
    pub except: Option<Formula>,
    /// How the tasks are tried again.
    pub retry: Option<Retry>,
    /// What comes next once it was caught; none = what comes after the try.
    pub then: Option<Then>,
}

/// How waits between retries grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backoff {
    /// They do not.
    Constant,
    /// By one delay each time.
    Linear,
    /// Twice as long each time.
    Exponential,
}

/// A retry policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// Only when it holds.
    pub when: Option<Formula>,
    /// Not when it holds.
    pub except: Option<Formula>,
    /// The first wait.
    pub delay: Option<Time>,
    /// How waits grow.
    pub backoff: Backoff,
    /// Most retries.
    pub count: Option<u64>,
    /// How long each attempt may take.
    pub each: Option<Time>,
    /// How long all attempts may take.
    pub total: Option<Time>,
    /// Added to each wait: something between the two.
    pub jitter: Option<(Time, Time)>,
}

/// How to authenticate.
#[derive(Debug, Clone, PartialEq)]
pub enum Auth {
    /// Name and password.
    Basic(Template, Template),
    /// A token.
    Bearer(Template),
    /// A secret with `username` and `password`.
    BasicSecret(String),
    /// A secret that is, or has, a `token`.
    BearerSecret(String),
}

/// What of an answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Its bytes as base64.
    Raw,
    /// Its content, read.
    Content,
    /// All of it.
    Response,
}

/// An HTTP call.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// The method.
    pub method: Template,
    /// The address: a URI template or an expression.
    pub endpoint: Template,
    /// Headers.
    pub headers: Option<Template>,
    /// What is sent.
    pub body: Option<Template>,
    /// Parameters of the query.
    pub query: Option<Template>,
    /// How to authenticate.
    pub auth: Option<Auth>,
    /// What of the answer is wanted.
    pub output: Output,
    /// Whether redirections are followed, and are no errors.
    pub redirect: bool,
}

/// A call of an operation that an OpenAPI document describes.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenApi {
    /// Where the document is.
    pub document: Template,
    /// How to authenticate for the document.
    pub document_auth: Option<Auth>,
    /// Which operation.
    pub operation: Template,
    /// Its parameters.
    pub parameters: Option<Template>,
    /// How to authenticate for the call.
    pub auth: Option<Auth>,
    /// What of the answer is wanted.
    pub output: Output,
    /// Whether redirections are followed, and are no errors.
    pub redirect: bool,
}

/// What is called.
pub enum Call {
    /// HTTP.
    Http(Box<Http>),
    /// OpenAPI.
    OpenApi(Box<OpenApi>),
    /// A task of `use.functions`; its own input is `with`, if there is one.
    Function(TaskId, Option<Template>),
    /// `aman.skill`: `with` has `name` and `input`.
    Skill(Template),
    /// `aman.tool`: `with` has `name` and `input`.
    Tool(Template),
    /// `aman.approve`: `with` has `title`, `message`.
    Approve(Template, Option<Time>),
    /// `aman.agent`: `with` has `prompt`, and may have `agent`, `input`, `session` and `output`; or it has `answer` and
    /// `session`, which is what the agent is to have said there.
    Agent(Template),
    /// A function that is not there; such a definition is refused.
    Missing(String),
}

/// What of an ended process is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
    /// Its exit code.
    Code,
    /// All of it.
    All,
    /// Nothing.
    Nothing,
}

/// A process.
pub struct Process {
    /// `sh`, `node` or `python3`.
    pub program: &'static str,
    /// The command or code.
    pub code: Template,
    /// Its arguments.
    pub arguments: Option<Template>,
    /// Its environment.
    pub environment: Option<Template>,
    /// What it reads.
    pub stdin: Option<Template>,
    /// What is wanted of it.
    pub wanted: Return,
}

/// Another workflow that is run.
pub struct Subflow {
    /// Its namespace.
    pub namespace: Template,
    /// Its name.
    pub name: Template,
    /// Its version; `latest` is the newest.
    pub version: Template,
    /// Its input.
    pub input: Option<Template>,
    /// Whether its end is waited for.
    pub awaited: bool,
    /// Whether its output is wanted.
    pub wanted: bool,
}

/// What is run.
pub enum Run {
    /// A script or a shell command.
    Process(Box<Process>),
    /// Another workflow.
    Workflow(Box<Subflow>),
}

/// How events are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// Their data.
    Data,
    /// All of them.
    Envelope,
    /// Their data as text.
    Raw,
}

/// What is done with each event.
pub struct Each {
    /// The variable of the event.
    pub item: String,
    /// The variable of its number.
    pub at: String,
    /// The tasks.
    pub tasks: Vec<TaskId>,
    /// What becomes of their output.
    pub output: Shape,
    /// What the context becomes.
    pub export: Shape,
}

/// What a task does.
pub enum Kind {
    /// Makes data.
    Set(Template),
    /// Runs tasks one after another.
    Do(Vec<TaskId>),
    /// Runs tasks for each item.
    For {
        /// The variable of the item.
        each: String,
        /// The items.
        items: Template,
        /// The variable of its number.
        at: String,
        /// Goes on while it holds.
        while_: Option<Formula>,
        /// The tasks.
        tasks: Vec<TaskId>,
    },
    /// Chooses what comes next.
    Switch(Vec<Case>),
    /// Runs tasks and catches their errors.
    Try {
        /// The tasks.
        tasks: Vec<TaskId>,
        /// What is caught.
        catch: Box<Catch>,
        /// What is done then; none = nothing was said.
        handler: Option<Vec<TaskId>>,
    },
    /// Runs tasks side by side.
    Fork {
        /// The tasks.
        branches: Vec<TaskId>,
        /// Whether the first to end ends all.
        compete: bool,
    },
    /// Raises an error: its fields.
    Raise(Template),
    /// Waits.
    Wait(Time),
    /// Publishes an event.
    Emit(Template),
    /// Waits for events.
    Listen {
        /// Which.
        to: Strategy,
        /// How they are read.
        read: Read,
        /// What is done with each.
        each: Option<Box<Each>>,
    },
    /// Calls something.
    Call(Call),
    /// Runs something.
    Run(Run),
}

/// A definition.
pub struct Definition {
    /// How it was written.
    pub written: Value,
    /// SHA-256 of how it was written, without regard to order and layout.
    pub digest: Digest,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What becomes of the input.
    pub input: Shape,
    /// What becomes of the output.
    pub output: Shape,
    /// How long an instance may take.
    pub timeout: Option<Time>,
    /// When instances start by themselves.
    pub schedule: Option<Schedule>,
    /// The names of the secrets that it uses.
    pub secrets: Vec<String>,
    /// All tasks.
    pub tasks: Vec<Task>,
    /// The tasks of `do`.
    pub root: Vec<TaskId>,
    /// How tasks are journaled.
    pub journal: Journal,
    /// Which lifecycle events there are.
    pub tells: Tell,
}

impl Definition {
    /// The skills that `aman.skill` names literally.
    pub fn skills(&self) -> Vec<String> {
        let named = |task: &Task| match &task.kind {
            Kind::Call(Call::Skill(with)) => match with.field("name") {
                Some(Template::Plain(Value::String(name))) => Some(name),
                _ => None,
            },
            _ => None,
        };
        self.tasks.iter().filter_map(named).collect()
    }

    /// True when it runs commands.
    pub fn executes(&self) -> bool {
        self.tasks.iter().any(|task| matches!(task.kind, Kind::Run(Run::Process(_))))
    }

    /// Every type that its tasks listen to; none among them = any type.
    pub fn listens(&self) -> Vec<Option<Vec<String>>> {
        let kinds = |task: &Task| match &task.kind {
            Kind::Listen { to, .. } => Some(to.kinds()),
            _ => None,
        };
        self.tasks.iter().filter_map(kinds).collect()
    }

    /// The tasks of an inner list: the body of `owner`, or its handler of errors; without an owner those of `do`.
    pub fn block(&self, owner: Option<TaskId>, handler: bool) -> &[TaskId] {
        let Some(owner) = owner else { return &self.root };
        match &self.tasks[owner].kind {
            Kind::Do(tasks) | Kind::For { tasks, .. } => tasks,
            Kind::Try { handler: Some(tasks), .. } if handler => tasks,
            Kind::Try { tasks, .. } => tasks,
            Kind::Listen { each: Some(each), .. } => &each.tasks,
            Kind::Call(Call::Function(task, _)) => std::slice::from_ref(task),
            _ => &[],
        }
    }
}
