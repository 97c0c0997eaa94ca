//! Order, equality and arithmetic of values.

use super::budget::{self, charge};
use super::value::{Res, V, append, extend, into_items, into_map};
use jaq_core::Error;
use jaq_core::ops::Math;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Parses a whole number as such when it fits, anything else as a floating-point one.
pub(super) fn parse_number(text: &str) -> Option<V> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.' | b'e' | b'E'));
    if !plain || text.len() > 1024 {
        return None;
    }
    let whole = text.parse().ok().map(V::Int);
    whole.or_else(|| text.parse().ok().map(V::Float))
}

fn compare_mixed(int: i64, float: f64) -> Ordering {
    // the limits of i64 as floats; inside them the cast is exact for the whole part
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if float.is_nan() || float < -LIMIT {
        Ordering::Greater
    } else if float >= LIMIT {
        Ordering::Less
    } else {
        let rest = float.fract();
        int.cmp(&(float.trunc() as i64)).then(0.0_f64.partial_cmp(&rest).unwrap_or(Ordering::Equal))
    }
}

/// A total order in which NaN is the smallest number, so that sorting is safe.
fn compare_floats(l: f64, r: f64) -> Ordering {
    l.partial_cmp(&r).unwrap_or_else(|| r.is_nan().cmp(&l.is_nan()))
}

fn rank(value: &V) -> u8 {
    match value {
        V::Null(_) => 0,
        V::Bool(_) => 1,
        V::Int(_) | V::Float(_) => 2,
        V::Str(_) => 3,
        V::Arr(_) => 4,
        V::Obj(_) => 5,
    }
}

impl Ord for V {
    fn cmp(&self, other: &Self) -> Ordering {
        charge(16);
        match (self, other) {
            (Self::Bool(l), Self::Bool(r)) => l.cmp(r),
            (Self::Int(l), Self::Int(r)) => l.cmp(r),
            (Self::Float(l), Self::Float(r)) => compare_floats(*l, *r),
            (Self::Int(l), Self::Float(r)) => compare_mixed(*l, *r),
            (Self::Float(l), Self::Int(r)) => compare_mixed(*r, *l).reverse(),
            (Self::Str(l), Self::Str(r)) => {
                charge(l.len().min(r.len()) / 8);
                l.cmp(r)
            }
            (Self::Arr(l), Self::Arr(r)) => l.items.cmp(&r.items),
            (Self::Obj(l), Self::Obj(r)) => {
                charge(l.items.len().min(r.items.len()) * 16);
                l.items.keys().cmp(r.items.keys()).then_with(|| l.items.values().cmp(r.items.values()))
            }
            _ => rank(self).cmp(&rank(other)),
        }
    }
}

impl PartialOrd for V {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for V {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Str(l), Self::Str(r)) if l.len() != r.len() => false,
            _ => self.cmp(other) == Ordering::Equal,
        }
    }
}

impl Eq for V {}

fn as_float(value: &V) -> Option<f64> {
    match value {
        V::Int(i) => Some(*i as f64),
        V::Float(f) => Some(*f),
        _ => None,
    }
}

/// Whole numbers stay whole as long as they fit; else the result is a floating-point number.
fn arithmetic(l: V, op: Math, r: V, whole: fn(i64, i64) -> Option<i64>, float: fn(f64, f64) -> f64) -> Res {
    charge(16);
    if let (V::Int(l), V::Int(r)) = (&l, &r)
        && let Some(result) = whole(*l, *r)
    {
        return Ok(V::Int(result));
    }
    match (as_float(&l), as_float(&r)) {
        (Some(l), Some(r)) => Ok(V::Float(float(l, r))),
        _ => Err(Error::math(l, op, r)),
    }
}

impl std::ops::Add for V {
    type Output = Res;
    fn add(self, rhs: Self) -> Res {
        match (self, rhs) {
            (Self::Null(_), other) | (other, Self::Null(_)) => Ok(other),
            (Self::Str(mut l), Self::Str(r)) => {
                budget::check_size(l.len() + r.len());
                charge(32 + r.len() + if Rc::strong_count(&l) > 1 { l.len() } else { 0 });
                Rc::make_mut(&mut l).push_str(&r);
                Ok(Self::Str(l))
            }
            (Self::Arr(l), Self::Arr(r)) => Ok(append(l, &r)),
            (Self::Obj(l), Self::Obj(r)) => Ok(extend(l, r)),
            (l, r) => arithmetic(l, Math::Add, r, i64::checked_add, |l, r| l + r),
        }
    }
}

fn without(mut items: Vec<V>, unwanted: &[V]) -> V {
    charge(unwanted.len() * 32);
    let unwanted: BTreeSet<&V> = unwanted.iter().collect();
    items.retain(|item| !unwanted.contains(item));
    V::array(items)
}

impl std::ops::Sub for V {
    type Output = Res;
    fn sub(self, rhs: Self) -> Res {
        match (self, rhs) {
            (Self::Arr(l), Self::Arr(r)) => Ok(without(into_items(l), &r.items)),
            (l, r) => arithmetic(l, Math::Sub, r, i64::checked_sub, |l, r| l - r),
        }
    }
}

fn repeat(text: &str, times: &V) -> V {
    let times = as_float(times).unwrap_or(0.0);
    if times <= 0.0 || times.is_nan() {
        return V::NULL;
    }
    let times = times.max(1.0) as usize;
    let len = text.len().saturating_mul(times);
    budget::check_size(len);
    charge(len);
    V::text(text.repeat(times))
}

fn merge(l: V, r: &V) -> V {
    match (l, r) {
        (V::Obj(l), V::Obj(r)) => {
            let mut map = into_map(l);
            for (key, new) in &r.items {
                charge(64);
                let old = map.get_mut(key).map(std::mem::take);
                map.insert(Rc::clone(key), old.map_or_else(|| new.share(), |old| merge(old, new)));
            }
            V::object(map)
        }
        (_, r) => r.share(),
    }
}

impl std::ops::Mul for V {
    type Output = Res;
    fn mul(self, rhs: Self) -> Res {
        match (self, rhs) {
            (Self::Str(s), n @ (Self::Int(_) | Self::Float(_)))
            | (n @ (Self::Int(_) | Self::Float(_)), Self::Str(s)) => Ok(repeat(&s, &n)),
            (l @ Self::Obj(_), r @ Self::Obj(_)) => Ok(merge(l, &r)),
            (l, r) => arithmetic(l, Math::Mul, r, i64::checked_mul, |l, r| l * r),
        }
    }
}

/// The parts of `text` between separators; of the empty text none, by the empty separator its characters.
pub(super) fn split(text: &str, separator: &str) -> V {
    charge(text.len());
    if text.is_empty() {
        V::array(Vec::new())
    } else if separator.is_empty() {
        text.chars().map(String::from).map(priced).collect()
    } else {
        text.split(separator).map(priced).collect()
    }
}

fn priced(text: impl Into<String>) -> V {
    charge(48);
    V::text(text)
}

impl std::ops::Div for V {
    type Output = Res;
    fn div(self, rhs: Self) -> Res {
        let whole = |l: i64, r: i64| (l.checked_rem(r)? == 0).then(|| l / r);
        match (self, rhs) {
            (Self::Str(l), Self::Str(r)) => Ok(split(&l, &r)),
            (l, r) if as_float(&l).is_some() && as_float(&r) == Some(0.0) => {
                Err(Error::str(format_args!("cannot divide {l} by zero")))
            }
            (l, r) => arithmetic(l, Math::Div, r, whole, |l, r| l / r),
        }
    }
}

impl std::ops::Rem for V {
    type Output = Res;
    fn rem(self, rhs: Self) -> Res {
        charge(16);
        // as jq does: the rest of the whole parts
        let whole = |v: &Self| match v {
            Self::Int(i) => Some(*i),
            Self::Float(f) => Some(*f as i64),
            _ => None,
        };
        match (whole(&self), whole(&rhs)) {
            (Some(_), Some(0)) => Err(Error::str(format_args!("cannot divide {self} by zero"))),
            (Some(l), Some(r)) => Ok(Self::Int(l.checked_rem(r).unwrap_or(0))),
            _ => Err(Error::math(self, Math::Rem, rhs)),
        }
    }
}

impl std::ops::Neg for V {
    type Output = Res;
    fn neg(self) -> Res {
        match self {
            Self::Int(i) => Ok(i.checked_neg().map_or(Self::Float(-(i as f64)), Self::Int)),
            Self::Float(f) => Ok(Self::Float(-f)),
            other => Err(Error::typ(other, "number")),
        }
    }
}

/// Where `part` begins in `whole`: characters of a text, elements of an array.
pub(super) fn indices(whole: &V, part: &V) -> Res {
    match (whole, part) {
        (V::Null(_), _) => Ok(V::NULL),
        (V::Str(whole), V::Str(part)) => Ok(text_indices(whole, part)),
        (V::Arr(whole), V::Arr(part)) => {
            if part.items.is_empty() {
                return Ok(V::NULL);
            }
            let windows = whole.items.windows(part.items.len()).enumerate();
            Ok(windows.filter(|(_, window)| *window == part.items).map(|(i, _)| V::from(i)).collect())
        }
        (V::Arr(whole), part) => {
            Ok(whole.items.iter().enumerate().filter(|(_, item)| *item == part).map(|(i, _)| V::from(i)).collect())
        }
        (whole, part) => Err(Error::index(whole.share(), part.share())),
    }
}

fn text_indices(whole: &str, part: &str) -> V {
    let Some(first) = part.chars().next() else { return V::NULL };
    charge(whole.len());
    let (mut found, mut from, mut counted, mut chars) = (Vec::new(), 0, 0, 0);
    while let Some(at) = whole[from..].find(part).map(|at| at + from) {
        charge(32 + part.len());
        chars += whole[counted..at].chars().count();
        counted = at;
        found.push(V::from(chars));
        from = at + first.len_utf8();
    }
    V::array(found)
}

/// Whether every part of `r` is somewhere in `l`.
pub(super) fn contains(l: &V, r: &V) -> bool {
    charge(32);
    match (l, r) {
        (V::Str(l), V::Str(r)) => {
            charge(l.len() / 4);
            l.contains(r.as_str())
        }
        (V::Arr(l), V::Arr(r)) => r.items.iter().all(|r| l.items.iter().any(|l| contains(l, r))),
        (V::Obj(l), V::Obj(r)) => r.items.iter().all(|(k, r)| l.items.get(k).is_some_and(|l| contains(l, r))),
        _ => l == r,
    }
}
