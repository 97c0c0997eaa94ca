//! Where an instance stands: what is stored between two moments, and what the machine wants done.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::definition::TaskId;
use super::fault::Fault;
use super::listen::Listening;
use crate::clock::Millis;

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Ended {
    /// With this output.
    Completed(Value),
    /// With this error, which nothing caught.
    Faulted(Fault),
}

/// Everything of an instance that must survive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The input as it was given.
    pub input: Value,
    /// When it started.
    pub started_ms: Millis,
    /// When it has taken too long.
    pub deadline_ms: Option<Millis>,
    /// `$context`
    pub context: Value,
    /// What runs side by side; number 0 is the workflow itself.
    pub fibers: BTreeMap<u32, Fiber>,
    /// The number of the next fiber.
    pub next_fiber: u32,
    /// The number of the next row of the journal.
    pub next_step: u64,
    /// The keys of actions whose outcome nobody knows, by where they stood.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub open: BTreeMap<String, String>,
    /// How it ended.
    pub ended: Option<Ended>,
}

/// One line of execution: what it is inside of, outermost first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Fiber {
    /// The fiber whose fork it is a branch of.
    pub parent: Option<u32>,
    /// Lists and tasks that are not done.
    pub frames: Vec<Frame>,
    /// What it waits for; none = it can go on.
    pub wait: Option<Waiting>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A list of tasks or a task that is not done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Frame {
    /// A list.
    Block(Block),
    /// A task.
    Task(Box<Doing>),
}

/// A list of tasks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// The task whose list it is; none = the workflow.
    pub owner: Option<TaskId>,
    /// True for the tasks of `catch`.
    pub handler: bool,
    /// A branch of a fork: this task alone.
    pub only: Option<TaskId>,
    /// The place of the task that is done next.
    pub at: usize,
    /// How often `then` led back.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rounds: u64,
    /// The output of the one before.
    pub data: Value,
    /// The variables that its tasks see.
    pub vars: Vec<(String, Value)>,
}

/// A task that is being done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Doing {
    /// Which.
    pub task: TaskId,
    /// Its row in the journal.
    pub step: u64,
    /// Counts from 1.
    pub attempt: u32,
    /// Its input as it came.
    pub raw: Value,
    /// Its input; without secrets.
    pub input: Value,
    /// The input with secrets, which is not stored.
    #[serde(skip)]
    pub live: Option<Value>,
    /// True when the input holds secrets.
    pub hidden: bool,
    /// When it began.
    pub started_ms: Millis,
    /// When it has taken too long.
    pub deadline_ms: Option<Millis>,
    /// What else is known of it.
    pub inner: Inner,
}

/// What is known of a task that is being done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Inner {
    /// Nothing.
    Plain,
    /// A loop: its items, and which of them is done.
    Loop(Vec<Value>, usize),
    /// A try.
    Try(Trying),
    /// A fork: its fibers, and the outputs of those that ended, by their place.
    Fork(Vec<u32>, BTreeMap<usize, Value>),
    /// A listener.
    Listen(Box<Listening>),
}

/// Where a try stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trying {
    /// Retries made.
    pub retries: u32,
    /// When the first attempt began.
    pub first_ms: Millis,
    /// When this attempt has taken too long.
    pub deadline_ms: Option<Millis>,
    /// True once its tasks have failed for good and those of `catch` run.
    pub caught: bool,
}

/// What a fiber waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Waiting {
    /// A time.
    Until(Millis),
    /// The end of something outside.
    Action(Action),
    /// The end of another instance, by its key.
    Child(String),
    /// Events.
    Events,
    /// Its branches.
    Branches,
    /// Nothing more: it failed, and nothing caught it.
    Failed(Fault),
}

/// Something outside that is to be done, or is being done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// Its task.
    pub task: TaskId,
    /// The same for every repetition of it, and for nothing else.
    pub key: String,
    /// What it is done with; without secrets.
    pub args: Value,
    /// What it is done with, which is not stored.
    #[serde(skip)]
    pub live: Option<Value>,
    /// True once it may have begun.
    pub sent: bool,
}

/// How a task of the journal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepStatus {
    /// It is being done.
    Running,
    /// It waits.
    Waiting,
    /// It is done.
    Completed,
    /// It failed.
    Faulted,
    /// Its condition did not hold.
    Skipped,
    /// It was left.
    Cancelled,
}

/// A row of the journal; a later one of the same number takes its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Its number.
    pub number: u64,
    /// Its task.
    pub task: TaskId,
    /// How it stands.
    pub status: StepStatus,
    /// Counts from 1.
    pub attempt: u32,
    /// When it began.
    pub started_ms: Millis,
    /// When it ended.
    pub ended_ms: Option<Millis>,
    /// Its input.
    pub input: Option<Value>,
    /// Its output.
    pub output: Option<Value>,
    /// Its error.
    pub error: Option<Fault>,
}

/// An instance that is to be started.
#[derive(Debug, Clone, PartialEq)]
pub struct Child {
    /// Names it to its parent.
    pub key: String,
    /// The key of the one in whose place it is started, since that was cut off.
    pub after: Option<String>,
    /// Its workflow.
    pub namespace: String,
    /// Its workflow.
    pub name: String,
    /// Its version, or `latest`.
    pub version: String,
    /// Its input.
    pub input: Value,
    /// Whether its end is waited for.
    pub awaited: bool,
}

/// A question for the person, which an event answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Signal {
    /// What is asked.
    pub title: String,
    /// More of it.
    pub message: String,
    /// Name of the task that asks, which an answer repeats.
    pub task: String,
    /// Number of the step, which no other question of the instance has.
    pub step: u64,
}

/// What must be written and done once the state is stored.
#[derive(Debug, Default)]
pub struct Wishes {
    /// Rows of the journal.
    pub steps: Vec<Step>,
    /// Events to publish: CloudEvents as JSON.
    pub events: Vec<Value>,
    /// Instances to start.
    pub children: Vec<Child>,
    /// Questions to ask.
    pub signals: Vec<Signal>,
    /// True when it must be stored before anything else is done.
    pub flush: bool,
    /// Bytes of the rows, about.
    pub bytes: usize,
}

impl State {
    /// A new one over `input`.
    pub fn new(input: Value, started_ms: Millis) -> State {
        State {
            input,
            started_ms,
            deadline_ms: None,
            context: Value::Null,
            fibers: BTreeMap::new(),
            next_fiber: 0,
            next_step: 1,
            open: BTreeMap::new(),
            ended: None,
        }
    }
}

impl Fiber {
    /// A line that begins with a list.
    pub fn new(parent: Option<u32>, block: Block) -> Fiber {
        Fiber { parent, frames: vec![Frame::Block(block)], wait: None }
    }

    /// The innermost task.
    pub fn doing(&self) -> Option<&Doing> {
        self.frames.iter().rev().find_map(|frame| match frame {
            Frame::Task(doing) => Some(&**doing),
            Frame::Block(_) => None,
        })
    }

    /// The innermost task.
    pub fn doing_mut(&mut self) -> Option<&mut Doing> {
        self.frames.iter_mut().rev().find_map(|frame| match frame {
            Frame::Task(doing) => Some(&mut **doing),
            Frame::Block(_) => None,
        })
    }

    /// Where it stands within its first `frames`: each attempt of a try is the same place, each round of a loop another.
    pub fn path(&self, frames: usize) -> String {
        let mut path = String::new();
        for frame in self.frames.iter().take(frames) {
            match frame {
                Frame::Block(block) => {
                    if let Some(branch) = block.only {
                        path.push_str(&format!("|{branch}"));
                    }
                    path.push_str(if block.handler { "!" } else { "/" });
                    path.push_str(&block.at.to_string());
                    if block.rounds > 0 {
                        path.push_str(&format!("~{}", block.rounds));
                    }
                }
                Frame::Task(doing) => match &doing.inner {
                    Inner::Loop(_, index) => path.push_str(&format!("#{index}")),
                    Inner::Listen(listening) => path.push_str(&format!("#{}", listening.results.len())),
                    _ => {}
                },
            }
        }
        path
    }
}

/// Values by name.
pub type Named = Map<String, Value>;
/// Events in the order in which they came.
pub type Queue = VecDeque<Value>;
