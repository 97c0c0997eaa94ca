//! jq: the only expression language, compiled once, run within bounds.
//!
//! No expression hangs, exhausts memory or overflows the stack, whatever it says and whatever it is given:
//! - What can be seen before it runs is refused by [`Expr::compile`] with the place and the name: recursive functions,
//!   endless generators (`repeat`, `range(infinite)`, `recurse(f)` unless `f` goes into the value), modules, and what
//!   reaches outside (`input`, `inputs`, `env`, `$ENV`, `debug`, `stderr`, `halt`).
//! - Everything else is paid for while it runs. Each operation on a value charges a budget of memory and looks at the
//!   clock; a value knows its size as a tree and its depth, so what is small only because its parts are shared cannot
//!   be built, compared or written either. What cannot pay is ended, and `try` does not catch that.
//! - Functions of jq that have no bound of their own are missing (`jn`, `yn`) or written anew (`matches` and all that
//!   uses it, `flatten`, `join`, `fromjson`, `tojson`, `contains`, `indices`; time formats are at most 256 bytes). A
//!   regex is limited by its size and the length of the text together; texts over 128 KiB cannot be searched.
//!
//! Differences to jq: whole numbers are 64 bits wide and become floating-point numbers beyond that; objects are ordered
//! by key; a division by zero is an error; a value is at most 128 levels deep.

#[cfg(test)]
mod attacks;
mod budget;
mod check;
mod json;
mod natives;
mod ops;
mod paths;
mod prelude;
mod regex;
mod terms;
#[cfg(test)]
mod tests;
mod value;

use budget::{Budget, Ended, Stop};
use jaq_core::load::parse::Def;
use jaq_core::load::{Arena, File, Loader};
use jaq_core::{Compiler, Ctx, Exn, Vars};
use natives::Data;
use serde_json::Value;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use value::V;

/// The name of the definition that holds the expression itself.
const MAIN: &str = "__main";
/// The stack that an evaluation may use on the thread of its caller; the threads of the runtime have 2 MiB.
const OWN_STACK: usize = 512 << 10;
/// The stack of a thread for what needs more, of which only the part that is used becomes memory.
const BIG_STACK: usize = 32 << 20;
/// What of the big stack is left for what happens between two looks at it.
const BIG_MARGIN: usize = 2 << 20;
/// The stack of the thread that compiles: more than the most deeply nested source of the largest size can use.
const COMPILE_STACK: usize = 64 << 20;
/// Bytes of an error message.
const MAX_MESSAGE: usize = 300;

/// An expression that cannot be used; the message names the place and the construct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    /// For humans, such as `line 1, column 8: repeat: never ends`.
    pub message: String,
}

impl CompileError {
    fn unknown() -> Self {
        Self { message: "is not a jq expression".to_owned() }
    }
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CompileError {}

/// Why an evaluation gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvalErrorKind {
    /// The input, or the value of a variable, is not JSON or larger than allowed.
    Input,
    /// The expression failed by itself: a wrong type, `error("…")`.
    Failed,
    /// It took too long.
    Time,
    /// It wanted more memory, or did more work, than it may.
    Memory,
    /// It or its values are nested too deeply.
    Depth,
    /// It gave more outputs, or larger ones, than allowed.
    Output,
    /// The interpreter itself failed.
    Internal,
}

/// An evaluation without an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalError {
    /// For humans, at most 300 bytes; may quote parts of the input.
    pub message: String,
    /// What callers tell apart.
    pub kind: EvalErrorKind,
}

impl EvalError {
    fn new(kind: EvalErrorKind, message: impl Into<String>) -> Self {
        Self { message: message.into(), kind }
    }
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for EvalError {}

/// What one evaluation may use. The default suits conditions.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Wall-clock time from the start, parsing of the input included.
    pub time: Duration,
    /// Bytes of JSON of the input and all variables together.
    pub input_bytes: usize,
    /// Number of outputs.
    pub outputs: usize,
    /// Bytes of all outputs as JSON, about.
    pub output_bytes: usize,
    /// Bytes allocated over the whole evaluation, freed ones included; every step counts 128 and some work counts too.
    /// A single value may be a quarter of it.
    pub memory: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_millis(100),
            input_bytes: 1 << 20,
            outputs: 1000,
            output_bytes: 1 << 20,
            memory: 64 << 20,
        }
    }
}

impl Limits {
    /// For expressions that transform data rather than ask for a condition: two seconds, four times the rest.
    pub fn transform() -> Self {
        Self {
            time: Duration::from_secs(2),
            input_bytes: 4 << 20,
            outputs: 10_000,
            output_bytes: 4 << 20,
            memory: 256 << 20,
        }
    }
}

/// A compiled expression; cloning is cheap.
#[derive(Clone)]
pub struct Expr(Arc<Inner>);

/// Two are the same when they were written the same.
impl PartialEq for Expr {
    fn eq(&self, other: &Expr) -> bool {
        self.0.source == other.0.source
    }
}

struct Inner {
    source: String,
    filter: jaq_core::Filter<Data>,
    vars: usize,
    paths: Vec<String>,
    reads_clock: bool,
    /// Was found to need the big stack.
    deep: AtomicBool,
}

impl fmt::Debug for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expr").field(&self.0.source).finish()
    }
}

impl Expr {
    /// Compiles an expression without variables of its surroundings.
    ///
    /// # Errors
    /// When it is too large, not jq, calls what does not exist, or cannot be bounded.
    pub fn compile(source: &str) -> Result<Self, CompileError> {
        Self::compile_with(source, &[])
    }

    /// Compiles an expression that can use the variables `vars`, named with their `$`, such as `$context`.
    ///
    /// # Errors
    /// As [`Expr::compile`].
    pub fn compile_with(source: &str, vars: &[&str]) -> Result<Self, CompileError> {
        // the parser is recursive: a thread makes its stack independent of the caller's
        let inner = on_stack(COMPILE_STACK, || Inner::compile(source, vars));
        let inner = inner.ok_or_else(|| CompileError { message: "cannot start a thread to compile".to_owned() })?;
        Ok(Self(Arc::new(inner?)))
    }

    /// The text that it was compiled from.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// The parts of the input that it reads, as far as they can be told, such as `.data.name`; each is an expression
    /// with one output.
    pub fn paths(&self) -> &[String] {
        &self.0.paths
    }

    /// Whether its answer depends on the time or the time zone of this machine.
    pub fn reads_clock(&self) -> bool {
        self.0.reads_clock
    }

    /// All outputs for the input `json`.
    ///
    /// Blocks for up to `limits.time`; call it where blocking is fine.
    ///
    /// # Errors
    /// When the expression fails or exceeds a limit; outputs before that are lost.
    pub fn run(&self, json: &[u8], limits: &Limits) -> Result<Vec<Value>, EvalError> {
        self.run_with(json, &[], limits)
    }

    /// As [`Expr::run`] for an input that is parsed already.
    ///
    /// # Errors
    /// As [`Expr::run`].
    pub fn run_value(&self, input: &Value, limits: &Limits) -> Result<Vec<Value>, EvalError> {
        self.run(input.to_string().as_bytes(), limits)
    }

    /// As [`Expr::run`], with the JSON values of the variables in the order given to [`Expr::compile_with`].
    ///
    /// # Errors
    /// As [`Expr::run`]; also when the number of variables is another one.
    pub fn run_with(&self, json: &[u8], vars: &[&[u8]], limits: &Limits) -> Result<Vec<Value>, EvalError> {
        self.evaluate(json, vars, limits, false)
    }

    /// Whether the first output for the input `json` is neither `null` nor `false`; no output is `false`.
    ///
    /// # Errors
    /// As [`Expr::run`].
    pub fn test(&self, json: &[u8], limits: &Limits) -> Result<bool, EvalError> {
        let outputs = self.evaluate(json, &[], limits, true)?;
        Ok(outputs.first() == Some(&Value::Bool(true)))
    }

    fn evaluate(&self, json: &[u8], vars: &[&[u8]], limits: &Limits, test: bool) -> Result<Vec<Value>, EvalError> {
        let inner = &*self.0;
        if vars.len() != inner.vars {
            let message = format!("{} variables given, {} declared", vars.len(), inner.vars);
            return Err(EvalError::new(EvalErrorKind::Internal, message));
        }
        let bytes = json.len() + vars.iter().map(|var| var.len()).sum::<usize>();
        if bytes > limits.input_bytes {
            let message = format!("input of {bytes} bytes is larger than {}", limits.input_bytes);
            return Err(EvalError::new(EvalErrorKind::Input, message));
        }
        // a time that cannot be represented is none
        let now = Instant::now();
        let deadline = now.checked_add(limits.time).unwrap_or(now + Duration::from_secs(3600));
        let run = |stack| {
            let budget = Budget { deadline, memory: limits.memory, stack };
            budget::guarded(&budget, || inner.outputs(json, vars, limits, test))
        };
        let mut result = None;
        if !inner.deep.load(Ordering::Relaxed) {
            result = Some(run(OWN_STACK));
        }
        if matches!(result, None | Some(Err(Ended::Stopped(Stop::Stack)))) {
            inner.deep.store(true, Ordering::Relaxed);
            result = on_stack(BIG_STACK, || run(BIG_STACK - BIG_MARGIN));
        }
        match result {
            Some(Ok(outputs)) => outputs,
            Some(Err(ended)) => Err(ended.into()),
            None => Err(EvalError::new(EvalErrorKind::Internal, "cannot start a thread to evaluate")),
        }
    }
}

impl From<Ended> for EvalError {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Stopped(Stop::Time) => Self::new(EvalErrorKind::Time, "takes too long"),
            Ended::Stopped(Stop::Memory) => Self::new(EvalErrorKind::Memory, "needs too much memory or work"),
            Ended::Stopped(Stop::Stack) => Self::new(EvalErrorKind::Depth, "is nested too deeply"),
            Ended::Stopped(Stop::Depth) => Self::new(EvalErrorKind::Depth, "makes a value or path that is too deep"),
            Ended::Panicked => Self::new(EvalErrorKind::Internal, "the interpreter failed"),
        }
    }
}

/// Runs `work` on a thread of its own with a stack of `size` bytes; `None` when there is no such thread to be had.
fn on_stack<T: Send>(size: usize, work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("expr".to_owned()).stack_size(size);
        thread.spawn_scoped(scope, work).ok()?.join().ok()
    })
}

impl Inner {
    fn compile(source: &str, vars: &[&str]) -> Result<Self, CompileError> {
        let term = check::parse(source, vars)?;
        let (paths, reads_clock) = (paths::of(&term), check::reads_clock(&term));
        let mut defs: Vec<Def<&str>> = prelude::needed_by(&term);
        defs.push(Def { name: MAIN, args: Vec::new(), body: term });
        let arena = Arena::default();
        let main = File { code: MAIN, path: () };
        let modules = Loader::new(defs).load(&arena, main).map_err(|_| CompileError::unknown())?;
        let compiler = Compiler::default().with_funs(natives::all()).with_global_vars(vars.iter().copied());
        let filter = compiler.compile(modules).map_err(|errors| {
            let first = errors.iter().flat_map(|(_, errors)| errors).next();
            first.map_or_else(CompileError::unknown, |(name, what)| undefined(source, name, what))
        })?;
        let deep = AtomicBool::new(false);
        Ok(Self { source: source.to_owned(), filter, vars: vars.len(), paths, reads_clock, deep })
    }

    fn outputs(&self, json: &[u8], vars: &[&[u8]], limits: &Limits, test: bool) -> Result<Vec<Value>, EvalError> {
        let parse = |json: &[u8]| {
            json::read(json).map_err(|e| EvalError::new(EvalErrorKind::Input, format!("input is not JSON: {e}")))
        };
        let input = parse(json)?;
        let vars = vars.iter().map(|var| parse(var)).collect::<Result<Vec<V>, _>>()?;
        let ctx = Ctx::<Data>::new(&self.filter.lut, Vars::new(vars));
        let (mut outputs, mut bytes) = (Vec::new(), 0_usize);
        for output in self.filter.id.run((ctx, input)) {
            let output = output.map_err(failed)?;
            if test {
                return Ok(vec![Value::Bool(output.is_true())]);
            }
            bytes = bytes.saturating_add(json::size(&output));
            if outputs.len() >= limits.outputs || bytes > limits.output_bytes {
                let message = format!("more than {} outputs or {} bytes", limits.outputs, limits.output_bytes);
                return Err(EvalError::new(EvalErrorKind::Output, message));
            }
            outputs.push(json::to_value(&output));
        }
        Ok(outputs)
    }
}

fn failed(exn: Exn<'_, V>) -> EvalError {
    match exn.get_err() {
        Ok(error) => {
            let mut message = match error.into_val() {
                V::Str(text) => text.as_str().to_owned(),
                other => other.to_string(),
            };
            message.truncate(message.floor_char_boundary(MAX_MESSAGE));
            EvalError::new(EvalErrorKind::Failed, message)
        }
        // a `break` or tail call that nobody caught
        Err(_) => EvalError::new(EvalErrorKind::Internal, "the interpreter lost its way"),
    }
}

fn undefined(source: &str, name: &str, what: &jaq_core::compile::Undefined) -> CompileError {
    use jaq_core::compile::Undefined;
    let message = match what {
        Undefined::Filter(arity) => match check::other_arities(name).as_slice() {
            [] => format!("{name}: no such function"),
            others => format!("{name}: no such function with {arity} arguments, only with {others:?}"),
        },
        other => format!("{name}: no such {}", other.as_str()),
    };
    check::error_at(source, name, &message)
}

const fn shareable<T: Send + Sync>() {}
const _: () = shareable::<Expr>();
