//! A definition as a Mermaid flowchart, with the state of an instance marked if there is one.

use std::collections::HashMap;
use std::fmt::Write;

use super::definition::{Call, Definition, Kind, Run, Task, TaskId, Then};
use super::state::StepStatus;

/// How the tasks of an instance stand, by their number.
pub type Marks = HashMap<TaskId, StepStatus>;

/// The flowchart.
pub fn render(definition: &Definition, marks: &Marks) -> String {
    let mut chart = Chart { definition, text: "flowchart TD\n".to_owned(), marks };
    chart.line(1, "start([start])");
    chart.line(1, "stop([end])");
    chart.list(&definition.root, 1, "start", "stop");
    chart.classes();
    chart.text
}

struct Chart<'d> {
    definition: &'d Definition,
    text: String,
    marks: &'d Marks,
}

impl Chart<'_> {
    fn line(&mut self, depth: usize, text: &str) {
        let _infallible = writeln!(self.text, "{}{text}", "  ".repeat(depth));
    }

    fn edge(&mut self, from: &str, to: &str, label: &str) {
        if label.is_empty() {
            self.line(1, &format!("{from} --> {to}"));
        } else {
            self.line(1, &format!("{from} -- \"{}\" --> {to}", quoted(label)));
        }
    }

    /// Nodes and edges of a list, from `before` to `after`.
    fn list(&mut self, tasks: &[TaskId], depth: usize, before: &str, after: &str) {
        for task in tasks {
            self.node(*task, depth);
        }
        let first = tasks.first().map_or_else(|| after.to_owned(), |task| id(*task));
        self.edge(before, &first, "");
        for (n, task_id) in tasks.iter().enumerate() {
            let task = &self.definition.tasks[*task_id];
            let next = tasks.get(n + 1).map_or_else(|| after.to_owned(), |task| id(*task));
            let target = |then: Then| match then {
                Then::Continue => next.clone(),
                Then::Exit => after.to_owned(),
                Then::End => "stop".to_owned(),
                Then::Goto(at) => tasks.get(at).map_or_else(|| next.clone(), |task| id(*task)),
            };
            if let Kind::Switch(cases) = &task.kind {
                let names = task.written["switch"].as_array().into_iter().flatten();
                let names = names.filter_map(|item| item.as_object()?.keys().next().cloned());
                let edges: Vec<(String, String)> =
                    names.zip(cases).map(|(name, case)| (target(case.then), name)).collect();
                for (to, name) in edges {
                    self.edge(&id(*task_id), &to, &name);
                }
                if cases.iter().any(|case| case.when.is_none()) {
                    continue;
                }
            }
            if let Kind::Try { catch, .. } = &task.kind
                && let Some(then) = catch.then
            {
                self.edge(&id(*task_id), &target(then), "caught");
            }
            if !matches!(task.kind, Kind::Raise(_)) {
                self.edge(&id(*task_id), &target(task.then), "");
            }
        }
    }

    fn node(&mut self, task_id: TaskId, depth: usize) {
        let definition = self.definition;
        let task = &definition.tasks[task_id];
        let (name, kind) = (quoted(&task.name), kind_of(task));
        let (open, close) = match &task.kind {
            Kind::Switch(_) => ("{", "}"),
            Kind::Wait(_) | Kind::Listen { .. } => ("([", "])"),
            Kind::Raise(_) => ("[[", "]]"),
            _ => ("[", "]"),
        };
        let node = id(task_id);
        self.line(depth, &format!("{node}{open}\"{name}<br/><small>{}</small>\"{close}", quoted(&kind)));
        match &task.kind {
            Kind::Do(tasks) | Kind::For { tasks, .. } => self.inner(task_id, "", tasks, depth),
            Kind::Try { tasks, handler, .. } => {
                self.inner(task_id, "try", tasks, depth);
                if let Some(handler) = handler {
                    self.inner(task_id, "catch", handler, depth);
                }
            }
            Kind::Listen { each: Some(each), .. } => self.inner(task_id, "for each event", &each.tasks, depth),
            Kind::Fork { branches, .. } => {
                for (n, branch) in branches.iter().enumerate() {
                    self.inner(task_id, &format!("branch {}", n + 1), std::slice::from_ref(branch), depth);
                }
            }
            Kind::Call(Call::Function(function, _)) => {
                self.inner(task_id, "function", std::slice::from_ref(function), depth);
            }
            _ => {}
        }
    }

    /// A box with the inner tasks of a task, which lead back to it.
    fn inner(&mut self, owner: TaskId, label: &str, tasks: &[TaskId], depth: usize) {
        // A function that is called twice is drawn once.
        if tasks.is_empty() || self.text.contains(&format!("{}[", id(tasks[0]))) {
            return;
        }
        let title = if label.is_empty() { self.definition.tasks[owner].name.clone() } else { label.to_owned() };
        self.line(depth, &format!("subgraph s{owner}_{}[\"{}\"]", tasks[0], quoted(&title)));
        let node = id(owner);
        self.list(tasks, depth + 1, &node, &node);
        self.line(depth, "end");
    }

    fn classes(&mut self) {
        let styles = [
            (StepStatus::Completed, "done", "fill:#d3f9d8,stroke:#2b8a3e"),
            (StepStatus::Running, "active", "fill:#d0ebff,stroke:#1864ab,stroke-width:3px"),
            (StepStatus::Waiting, "waiting", "fill:#fff3bf,stroke:#e67700,stroke-width:3px"),
            (StepStatus::Faulted, "faulted", "fill:#ffe3e3,stroke:#c92a2a,stroke-width:3px"),
            (StepStatus::Skipped, "skipped", "fill:#f1f3f5,stroke:#868e96,stroke-dasharray:4"),
            (StepStatus::Cancelled, "cancelled", "fill:#f1f3f5,stroke:#868e96"),
        ];
        for (status, name, style) in styles {
            let mut tasks: Vec<TaskId> =
                self.marks.iter().filter(|(_, mark)| **mark == status).map(|(task, _)| *task).collect();
            if tasks.is_empty() {
                continue;
            }
            tasks.sort_unstable();
            let nodes: Vec<String> = tasks.into_iter().map(id).collect();
            self.line(1, &format!("classDef {name} {style}"));
            self.line(1, &format!("class {} {name}", nodes.join(",")));
        }
    }
}

fn id(task: TaskId) -> String {
    format!("t{task}")
}

fn kind_of(task: &Task) -> String {
    match &task.kind {
        Kind::Set(_) => "set".to_owned(),
        Kind::Do(_) => "do".to_owned(),
        Kind::For { each, .. } => format!("for each {each}"),
        Kind::Switch(_) => "switch".to_owned(),
        Kind::Try { .. } => "try".to_owned(),
        Kind::Fork { compete: true, .. } => "fork, first one wins".to_owned(),
        Kind::Fork { .. } => "fork".to_owned(),
        Kind::Raise(_) => "raise".to_owned(),
        Kind::Wait(_) => "wait".to_owned(),
        Kind::Emit(_) => format!("emit {}", task.written["emit"]["event"]["with"]["type"].as_str().unwrap_or_default()),
        Kind::Listen { .. } => "listen".to_owned(),
        Kind::Call(_) => format!("call {}", task.written["call"].as_str().unwrap_or_default()),
        Kind::Run(Run::Workflow(_)) => "run workflow".to_owned(),
        Kind::Run(Run::Process(process)) => format!("run {}", process.program),
    }
}

/// Text inside the quotes of a label.
fn quoted(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '"' => "#quot;".to_owned(),
            '<' => "#lt;".to_owned(),
            '>' => "#gt;".to_owned(),
            '#' => "#35;".to_owned(),
            c if c.is_control() => " ".to_owned(),
            c => c.to_string(),
        })
        .collect()
}
