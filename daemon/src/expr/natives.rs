//! The functions that are written in Rust: our own, and those of jaq that are bounded.

use super::budget::{STEP, charge};
use super::regex::{self, Parts};
use super::value::{Res, V};
use super::{json, ops};
use jaq_core::data::JustLut;
use jaq_core::native::{Filter, Fun, bome, run, unary, v};
use jaq_core::{Error, Native, RunPtr, ValR};

/// What the interpreter runs over.
pub(super) type Data = JustLut<V>;

/// Does nothing but pay; it stands in front of every function of the user and in deep terms.
pub(super) const TICK: &str = "__tick";

/// Those of jaq that have no bound of their own or touch the world outside, and those that we replace.
const DROPPED: &[&str] =
    &["env", "debug_empty", "stderr_empty", "halt", "jn", "yn", "matches", "split_matches", "split_"];

/// Those that get a check of their arguments in the prelude, under which name they are called from there.
const RENAMED: &[(&str, &str)] =
    &[("strftime", "__strftime"), ("strflocaltime", "__strflocaltime"), ("strptime", "__strptime")];

/// All of them.
pub(super) fn all() -> impl Iterator<Item = Fun<Data>> {
    let theirs = jaq_core::funs().chain(jaq_std::funs()).filter(|(name, ..)| !DROPPED.contains(name));
    let theirs = theirs.map(|(name, args, native)| {
        let renamed = RENAMED.iter().find(|(from, _)| *from == name);
        (renamed.map_or(name, |(_, to)| *to), args, native)
    });
    theirs.chain([tick()]).chain(constants().into_iter().chain(functions()).map(run::<Data>))
}

fn tick() -> Fun<Data> {
    let native = Native::new(|cv| {
        charge(STEP);
        bome(Ok(cv.1))
    });
    let native = native.with_paths(|cv| {
        charge(STEP);
        Box::new(std::iter::once(Ok(cv.1)))
    });
    let native = native.with_update(|cv, update| {
        charge(STEP);
        update(cv.1)
    });
    (TICK, v(0), native)
}

fn constants() -> Vec<Filter<RunPtr<Data>>> {
    vec![
        ("null", v(0), |_| bome(Ok(V::NULL))),
        ("true", v(0), |_| bome(Ok(V::Bool(true)))),
        ("false", v(0), |_| bome(Ok(V::Bool(false)))),
        ("nan", v(0), |_| bome(Ok(V::Float(f64::NAN)))),
        ("infinite", v(0), |_| bome(Ok(V::Float(f64::INFINITY)))),
        ("isnan", v(0), |cv| bome(Ok(V::Bool(matches!(cv.1, V::Float(f) if f.is_nan()))))),
        ("type", v(0), |cv| bome(Ok(V::text(cv.1.kind())))),
    ]
}

fn functions() -> Vec<Filter<RunPtr<Data>>> {
    vec![
        ("length", v(0), |cv| bome(length(&cv.1))),
        ("tojson", v(0), |cv| bome(Ok(V::text(json::write(&cv.1))))),
        ("fromjson", v(0), |cv| bome(from_json(&cv.1))),
        ("tonumber", v(0), |cv| bome(to_number(&cv.1))),
        ("contains", v(1), |cv| unary(cv, |l, r| contains(&l, &r))),
        ("has", v(1), |cv| unary(cv, |v, key| v.lookup(&key).map(|found| V::Bool(found.is_some())))),
        ("indices", v(1), |cv| unary(cv, |whole, part| ops::indices(&whole, &part))),
        ("bsearch", v(1), |cv| unary(cv, |array, wanted| search(&array, &wanted))),
        ("join", v(1), |cv| unary(cv, |array, separator| join(&array, &separator))),
        ("__flatten", v(1), |cv| unary(cv, |array, depth| flatten(&array, &depth))),
        ("matches", v(2), |cv| bome(find(cv, Parts { mismatches: false, matches: true }))),
        ("split_matches", v(2), |cv| bome(find(cv, Parts { mismatches: true, matches: true }))),
        ("split_", v(2), |cv| bome(find(cv, Parts { mismatches: true, matches: false }))),
    ]
}

fn find(mut cv: jaq_core::Cv<'_, Data>, wanted: Parts) -> ValR<V> {
    let flags = cv.0.pop_var();
    let pattern = cv.0.pop_var();
    regex::search(&cv.1, &pattern, &flags, wanted)
}

fn length(value: &V) -> Res {
    Ok(match value {
        V::Null(_) => V::Int(0),
        V::Int(i) => i.checked_abs().map_or(V::Float((*i as f64).abs()), V::Int),
        V::Float(f) => V::Float(f.abs()),
        V::Str(s) => {
            charge(s.len() / 16);
            V::from(s.chars().count())
        }
        V::Arr(a) => V::from(a.items.len()),
        V::Obj(o) => V::from(o.items.len()),
        V::Bool(_) => return Err(Error::str(format_args!("{value} has no length"))),
    })
}

fn from_json(value: &V) -> Res {
    match value {
        V::Str(s) => {
            json::read(s.as_bytes()).map_err(|e| Error::str(format_args!("cannot parse {value} as JSON: {e}")))
        }
        other => Err(Error::typ(other.share(), "string")),
    }
}

fn to_number(value: &V) -> Res {
    match value {
        V::Int(_) | V::Float(_) => Ok(value.share()),
        V::Str(s) => ops::parse_number(s).ok_or_else(|| Error::str(format_args!("cannot parse {value} as number"))),
        other => Err(Error::typ(other.share(), "number")),
    }
}

fn contains(l: &V, r: &V) -> Res {
    if l.kind() == r.kind() {
        Ok(V::Bool(ops::contains(l, r)))
    } else {
        Err(Error::str(format_args!("{l} and {r} cannot have their containment checked")))
    }
}

fn search(array: &V, wanted: &V) -> Res {
    match array {
        V::Arr(a) => Ok(match a.items.binary_search(wanted) {
            Ok(at) => V::from(at),
            Err(at) => V::Int(-1 - at as i64),
        }),
        other => Err(Error::typ(other.share(), "array")),
    }
}

fn join(array: &V, separator: &V) -> Res {
    let V::Arr(array) = array else {
        return Err(Error::typ(array.share(), "array"));
    };
    let mut out = V::NULL;
    for (i, item) in array.items.iter().enumerate() {
        charge(16);
        if i > 0 {
            out = (out + separator.share())?;
        }
        out = match item {
            V::Null(_) => out + V::text(""),
            V::Str(_) => out + item.share(),
            V::Bool(_) | V::Int(_) | V::Float(_) => out + V::text(json::write(item)),
            V::Arr(_) | V::Obj(_) => Err(Error::typ(item.share(), "string")),
        }?;
    }
    Ok(if array.items.is_empty() { V::text("") } else { out })
}

fn flatten(array: &V, depth: &V) -> Res {
    let depth = match depth {
        V::Int(depth) if *depth >= 0 => *depth,
        V::Float(depth) if *depth >= 0.0 => *depth as i64,
        other => return Err(Error::typ(other.share(), "depth of flattening")),
    };
    let mut out = Vec::new();
    match array {
        V::Arr(a) => a.items.iter().for_each(|item| flatten_into(item, depth, &mut out)),
        V::Obj(o) => o.items.values().for_each(|item| flatten_into(item, depth, &mut out)),
        other => return Err(Error::typ(other.share(), "array")),
    }
    Ok(V::array(out))
}

fn flatten_into(value: &V, depth: i64, out: &mut Vec<V>) {
    charge(32);
    match value {
        V::Arr(a) if depth > 0 => a.items.iter().for_each(|item| flatten_into(item, depth - 1, out)),
        other => out.push(other.share()),
    }
}
