//! Runtime expressions: jq, compiled with the variables that they name, and values that hold them.
//!
//! Strict mode: in data, only a text that is `${ … }` as a whole is an expression. Where the DSL asks for an expression
//! (`if`, `when`, `in`, `from`, `as` …) the braces may be left out.

use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};

use super::fault::Fault;
use super::size;
use crate::expr::{EvalErrorKind, Expr, Limits};

/// The arguments that the DSL defines for expressions.
pub const ARGUMENTS: [&str; 8] =
    ["context", "input", "output", "secrets", "task", "workflow", "runtime", "authorization"];

/// What an expression is evaluated over.
pub struct Scope<'a> {
    /// `.`
    pub now: &'a Value,
    /// The value of a variable by its name without `$`; none = there is none here.
    pub lookup: &'a dyn Fn(&str) -> Result<Option<Value>, Fault>,
}

/// A scope without variables.
pub fn scope(now: &Value) -> Scope<'_> {
    Scope { now, lookup: &|_| Ok(None) }
}

/// What expressions are compiled with.
#[derive(Debug, Clone, Default)]
pub struct Locals {
    /// Names of the variables around them.
    pub names: Vec<String>,
    /// True for what was checked before: each is compiled when it is evaluated first.
    pub lazy: bool,
}

/// An expression.
#[derive(Debug, Clone)]
pub struct Formula {
    source: String,
    vars: Vec<String>,
    expr: Arc<OnceLock<Expr>>,
}

/// Two are the same when they were written the same.
impl PartialEq for Formula {
    fn eq(&self, other: &Formula) -> bool {
        self.source == other.source && self.vars == other.vars
    }
}

/// The inside of `${ … }`; none when the text is something else.
pub fn inside(text: &str) -> Option<&str> {
    text.trim().strip_prefix("${")?.strip_suffix('}')
}

impl Formula {
    /// Compiles an expression, with or without `${ }`. `locals` are the names of the variables around it.
    pub fn compile(text: &str, locals: &Locals) -> Result<Formula, String> {
        let source = inside(text).unwrap_or(text);
        let known = ARGUMENTS.iter().copied().chain(locals.names.iter().map(String::as_str));
        let mut vars: Vec<String> = known.filter(|name| names(source, name)).map(str::to_owned).collect();
        vars.dedup();
        let formula = Formula { source: source.to_owned(), vars, expr: Arc::default() };
        if !locals.lazy {
            formula.expr()?;
        }
        Ok(formula)
    }

    /// The compiled expression.
    fn expr(&self) -> Result<&Expr, String> {
        if let Some(known) = self.expr.get() {
            return Ok(known);
        }
        let dollared: Vec<String> = self.vars.iter().map(|name| format!("${name}")).collect();
        let dollared: Vec<&str> = dollared.iter().map(String::as_str).collect();
        let expr = Expr::compile_with(&self.source, &dollared).map_err(|error| error.message)?;
        Ok(self.expr.get_or_init(|| expr))
    }

    /// Its first output; null when there is none.
    pub fn value(&self, scope: &Scope<'_>) -> Result<Value, Fault> {
        let mut given = Vec::with_capacity(self.vars.len());
        for name in &self.vars {
            let value = (scope.lookup)(name)?.unwrap_or(Value::Null);
            given.push(value.to_string().into_bytes());
        }
        let given: Vec<&[u8]> = given.iter().map(Vec::as_slice).collect();
        let json = scope.now.to_string();
        let expr = self.expr().map_err(Fault::expression)?;
        match expr.run_with(json.as_bytes(), &given, &Limits::transform()) {
            Ok(outputs) => Ok(outputs.into_iter().next().unwrap_or(Value::Null)),
            Err(error) => {
                let mut source = self.source.trim().to_owned();
                source.truncate(source.floor_char_boundary(120));
                let why = match error.kind {
                    EvalErrorKind::Time => "took longer than two seconds".to_owned(),
                    _ => error.message,
                };
                Err(Fault::expression(format!("{source}: {why}")))
            }
        }
    }

    /// Whether its first output is neither null nor false.
    pub fn holds(&self, scope: &Scope<'_>) -> Result<bool, Fault> {
        Ok(!matches!(self.value(scope)?, Value::Null | Value::Bool(false)))
    }

    /// Whether it may say something else when it is evaluated again over the same data: it reads the time, secrets or
    /// the runtime.
    pub fn is_volatile(&self) -> bool {
        let unsteady = |name: &String| matches!(name.as_str(), "secrets" | "runtime" | "authorization" | "task");
        // A word in a text counts too, which costs a commit and harms nothing.
        let reads_clock = ["now", "localtime", "strflocaltime"].iter().any(|name| self.source.contains(name));
        reads_clock || self.vars.iter().any(unsteady)
    }

    /// Whether `.name` stands in it, at the beginning of a path.
    pub fn names_field(&self, name: &str) -> bool {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        self.source.match_indices('.').any(|(at, _)| {
            let begins = !self.source[..at].ends_with(|c: char| word(c) || c == ']' || c == '"');
            begins && self.source[at + 1..].strip_prefix(name).is_some_and(|rest| !rest.starts_with(word))
        })
    }

    /// Whether it names this variable.
    pub fn reads(&self, name: &str) -> bool {
        self.vars.iter().any(|var| var == name)
    }
}

/// Whether `$name` stands in `source`, as a whole word.
fn names(source: &str, name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    source
        .match_indices('$')
        .any(|(at, _)| source[at + 1..].strip_prefix(name).is_some_and(|rest| !rest.starts_with(word)))
}

/// Data with expressions in it.
#[derive(Debug, Clone, PartialEq)]
pub enum Template {
    /// Said as it is.
    Plain(Value),
    /// An expression.
    Formula(Formula),
    /// A list with expressions in it.
    List(Vec<Template>),
    /// An object with expressions in it.
    Map(Vec<(String, Template)>),
}

impl Template {
    /// Reads data; `wrong` hears of every expression that cannot be compiled, with the pointer below this value.
    pub fn read(value: &Value, locals: &Locals, wrong: &mut dyn FnMut(String, String)) -> Template {
        match value {
            Value::String(text) if inside(text).is_some() => match Formula::compile(text, locals) {
                Ok(formula) => Template::Formula(formula),
                Err(why) => {
                    wrong(String::new(), why);
                    Template::Plain(Value::Null)
                }
            },
            Value::Array(items) => {
                let read = |(n, item): (usize, &Value)| {
                    Template::read(item, locals, &mut |below, why| wrong(format!("/{n}{below}"), why))
                };
                let items: Vec<Template> = items.iter().enumerate().map(read).collect();
                if items.iter().all(Template::is_plain) {
                    Template::Plain(value.clone())
                } else {
                    Template::List(items)
                }
            }
            Value::Object(fields) => {
                let read = |(name, item): (&String, &Value)| {
                    let part = crate::text::document::escaped(name);
                    let item = Template::read(item, locals, &mut |below, why| wrong(format!("/{part}{below}"), why));
                    (name.clone(), item)
                };
                let fields: Vec<(String, Template)> = fields.iter().map(read).collect();
                if fields.iter().all(|(_, item)| item.is_plain()) {
                    Template::Plain(value.clone())
                } else {
                    Template::Map(fields)
                }
            }
            plain => Template::Plain(plain.clone()),
        }
    }

    fn is_plain(&self) -> bool {
        matches!(self, Template::Plain(_))
    }

    /// The data.
    pub fn value(&self, scope: &Scope<'_>) -> Result<Value, Fault> {
        self.within(scope, &mut 0)
    }

    /// The data; `bytes` counts what expressions have made, so that many of them cannot fill the memory.
    fn within(&self, scope: &Scope<'_>, bytes: &mut usize) -> Result<Value, Fault> {
        match self {
            Template::Plain(value) => Ok(value.clone()),
            Template::Formula(formula) => {
                let made = formula.value(scope)?;
                *bytes += size::bytes(&made);
                if *bytes > size::VALUE_BYTES_MAX {
                    return Err(size::too_much("the expressions of the task make more", size::VALUE_BYTES_MAX));
                }
                Ok(made)
            }
            Template::List(items) => items.iter().map(|item| item.within(scope, bytes)).collect(),
            Template::Map(fields) => {
                let one = |(name, item): &(String, Template)| Ok((name.clone(), item.within(scope, bytes)?));
                fields.iter().map(one).collect::<Result<Map<_, _>, Fault>>().map(Value::Object)
            }
        }
    }

    /// The expressions in it.
    pub fn formulas(&self) -> Vec<&Formula> {
        match self {
            Template::Plain(_) => Vec::new(),
            Template::Formula(formula) => vec![formula],
            Template::List(items) => items.iter().flat_map(Template::formulas).collect(),
            Template::Map(fields) => fields.iter().flat_map(|(_, item)| item.formulas()).collect(),
        }
    }

    /// The template of a field of an object.
    pub fn field(&self, name: &str) -> Option<Template> {
        match self {
            Template::Plain(Value::Object(fields)) => fields.get(name).map(|value| Template::Plain(value.clone())),
            Template::Map(fields) => fields.iter().find(|(known, _)| known == name).map(|(_, item)| item.clone()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_whole_texts_are_expressions() {
        let lookup = |name: &str| Ok((name == "context").then(|| json!({ "n": 2 })));
        let now = json!({ "a": 1 });
        let scope = Scope { now: &now, lookup: &lookup };
        for (data, wanted) in [
            (json!("${ .a }"), json!(1)),
            (json!(" ${.a + $context.n} "), json!(3)),
            (json!("Hello ${ .a }!"), json!("Hello ${ .a }!")),
            (json!(".a"), json!(".a")),
            (json!({ "x": ["${ .a }", { "y": "${ \"}\" }" }] }), json!({ "x": [1, { "y": "}" }] })),
            (json!("${ empty }"), Value::Null),
            (json!("${ $input }"), Value::Null),
        ] {
            let template = Template::read(&data, &Locals::default(), &mut |_, why| panic!("{why}"));
            assert_eq!(template.value(&scope).expect("a value"), wanted, "{data}");
        }
        let mut wrong = Vec::new();
        Template::read(&json!({ "a/b": [1, "${ $nobody }"] }), &Locals::default(), &mut |at, why| {
            wrong.push((at, why))
        });
        assert_eq!(wrong.len(), 1);
        assert_eq!(wrong[0].0, "/a~1b/1");
        let local = Formula::compile(
            "$pet.id == $index",
            &Locals { names: vec!["pet".to_owned(), "index".to_owned()], lazy: false },
        )
        .expect("compiles");
        assert!(local.reads("pet") && !local.is_volatile());
        assert!(Formula::compile("now", &Locals::default()).expect("compiles").is_volatile());
        assert!(
            Formula::compile("error(\"x\")", &Locals::default())
                .expect("compiles")
                .value(&scope)
                .expect_err("fails")
                .status
                == 400
        );
    }
}
