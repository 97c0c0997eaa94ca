//! The value type of expressions: JSON, with its size and depth known without a walk.
//!
//! Parts of a value are shared. The weight of a node is its size as a tree, so a value that is small in memory and
//! huge when written or compared (`[., .]` thirty times) is refused while it is built.

use super::budget::{self, STEP, Stop, charge};
use jaq_core::box_iter::{BoxIter, box_once};
use jaq_core::path::Opt;
use jaq_core::val::Range;
use jaq_core::{Error, Exn, ValR, ValX};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Levels of arrays and objects that a value may have; also how often a missing field may be looked into.
pub(super) const MAX_DEPTH: u16 = 128;
/// What a value weighs by itself.
const BASE: usize = 16;
/// What an entry of an object weighs besides its key and its value.
const ENTRY: usize = 32;

pub(super) type Map = BTreeMap<Rc<String>, V>;
pub(super) type Res<T = V> = Result<T, Error<V>>;

/// A JSON value.
pub(super) enum V {
    /// With the number of lookups into nothing that led here: `.a.b` on `null` is 2 deep.
    Null(u16),
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Rc<String>),
    Arr(Rc<Node<Vec<V>>>),
    Obj(Rc<Node<Map>>),
}

/// The content of an array or object.
pub(super) struct Node<T> {
    pub items: T,
    /// Of all children together.
    weight: usize,
    /// At least the levels below and including this one.
    depth: u16,
}

impl<T> Node<T> {
    fn new(items: T, weight: usize, depth: u16) -> Rc<Self> {
        charge(48);
        budget::check_size(weight);
        if depth > MAX_DEPTH {
            budget::stop(Stop::Depth);
        }
        Rc::new(Self { items, weight, depth })
    }
}

impl Clone for V {
    fn clone(&self) -> Self {
        charge(STEP);
        self.share()
    }
}

impl V {
    pub const NULL: Self = Self::Null(0);

    /// Another reference to the value, paid for by the caller.
    pub fn share(&self) -> Self {
        match self {
            Self::Null(depth) => Self::Null(*depth),
            Self::Bool(b) => Self::Bool(*b),
            Self::Int(i) => Self::Int(*i),
            Self::Float(f) => Self::Float(*f),
            Self::Str(s) => Self::Str(Rc::clone(s)),
            Self::Arr(a) => Self::Arr(Rc::clone(a)),
            Self::Obj(o) => Self::Obj(Rc::clone(o)),
        }
    }

    pub fn text(text: impl Into<String>) -> Self {
        let text = text.into();
        charge(text.len());
        budget::check_size(text.len());
        Self::Str(Rc::new(text))
    }

    pub fn array(items: Vec<Self>) -> Self {
        charge(items.len() * BASE);
        let weight = items.iter().map(Self::weight).fold(0, usize::saturating_add);
        let depth = items.iter().map(Self::depth).max().unwrap_or(0) + 1;
        Self::Arr(Node::new(items, weight, depth))
    }

    pub fn object(items: Map) -> Self {
        charge(items.len() * ENTRY);
        let weight = items.iter().map(|(k, v)| entry_weight(k, v)).fold(0, usize::saturating_add);
        let depth = items.values().map(Self::depth).max().unwrap_or(0) + 1;
        Self::Obj(Node::new(items, weight, depth))
    }

    /// About the bytes that the value would need if nothing of it was shared.
    pub fn weight(&self) -> usize {
        match self {
            Self::Null(_) | Self::Bool(_) | Self::Int(_) | Self::Float(_) => BASE,
            Self::Str(s) => BASE + s.len(),
            Self::Arr(a) => BASE + a.weight,
            Self::Obj(o) => BASE + o.weight,
        }
    }

    fn depth(&self) -> u16 {
        match self {
            Self::Arr(a) => a.depth,
            Self::Obj(o) => o.depth,
            _ => 0,
        }
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null(_) => "null",
            Self::Bool(_) => "boolean",
            Self::Int(_) | Self::Float(_) => "number",
            Self::Str(_) => "string",
            Self::Arr(_) => "array",
            Self::Obj(_) => "object",
        }
    }

    pub fn is_true(&self) -> bool {
        !matches!(self, Self::Null(_) | Self::Bool(false))
    }

    /// The number as a whole one, rounded down.
    fn as_index(&self) -> Option<i64> {
        match self {
            Self::Int(i) => Some(*i),
            // the cast saturates and makes 0 of NaN, both of which are fine for an index
            Self::Float(f) => Some(f.floor() as i64),
            _ => None,
        }
    }

    /// What is at `index`; `None` when there is nothing.
    pub fn lookup(&self, index: &Self) -> Res<Option<Self>> {
        charge(16);
        Ok(match (self, index) {
            (Self::Null(depth), Self::Str(_) | Self::Int(_) | Self::Float(_) | Self::Obj(_) | Self::Null(_)) => {
                if *depth >= MAX_DEPTH {
                    return Err(Error::str("path goes too deep into null"));
                }
                Some(Self::Null(depth + 1))
            }
            (Self::Obj(o), Self::Str(key)) => o.items.get(key).map(Self::share),
            (Self::Arr(a), Self::Int(_) | Self::Float(_)) => {
                let at = index.as_index().and_then(|i| position(i, a.items.len()));
                at.and_then(|i| a.items.get(i)).map(Self::share)
            }
            (Self::Arr(_), Self::Arr(_)) => {
                budget::odd_path();
                Some(super::ops::indices(self, index)?)
            }
            (Self::Arr(_) | Self::Str(_), Self::Obj(o)) => {
                budget::odd_path();
                let bound = |name: &str| o.items.iter().find(|(k, _)| k.as_str() == name).map(|(_, v)| v);
                Some(slice(self, bound("start"), bound("end"))?)
            }
            _ => return Err(Error::index(self.share(), index.share())),
        })
    }
}

fn entry_weight(key: &str, value: &V) -> usize {
    ENTRY + key.len() + value.weight()
}

/// The items of a node, copied only when someone else holds them too.
pub(super) fn into_items(node: Rc<Node<Vec<V>>>) -> Vec<V> {
    match Rc::try_unwrap(node) {
        Ok(node) => node.items,
        Err(shared) => {
            charge(shared.items.len() * BASE);
            shared.items.iter().map(V::share).collect()
        }
    }
}

/// The entries of a node, copied only when someone else holds them too.
pub(super) fn into_map(node: Rc<Node<Map>>) -> Map {
    match Rc::try_unwrap(node) {
        Ok(node) => node.items,
        Err(shared) => {
            charge(shared.items.len() * ENTRY);
            shared.items.iter().map(|(k, v)| (Rc::clone(k), v.share())).collect()
        }
    }
}

/// Appends `more` to an array, in place when nobody else holds it.
pub(super) fn append(node: Rc<Node<Vec<V>>>, more: &Node<Vec<V>>) -> V {
    let (weight, depth) = (node.weight.saturating_add(more.weight), node.depth.max(more.depth));
    charge(more.items.len() * BASE);
    budget::check_size(weight);
    let mut items = into_items(node);
    items.extend(more.items.iter().map(V::share));
    V::Arr(Node::new(items, weight, depth))
}

/// The entries of two objects, those of `r` over those of `l`; the larger one is changed in place if nobody else holds it.
pub(super) fn extend(l: Rc<Node<Map>>, r: Rc<Node<Map>>) -> V {
    let depth = l.depth.max(r.depth);
    // `{a, b, c}` is `{a} + ({b} + {c})`: walking over the smaller side keeps it from being quadratic
    let over = l.items.len() >= r.items.len();
    let (large, small) = if over { (l, r) } else { (r, l) };
    let mut weight = large.weight;
    let mut items = into_map(large);
    for (key, value) in &small.items {
        charge(ENTRY + BASE);
        let old = if over { None } else { items.get(key).map(V::share) };
        let value = old.unwrap_or_else(|| value.share());
        weight = weight.saturating_add(entry_weight(key, &value));
        if let Some(old) = items.insert(Rc::clone(key), value) {
            weight -= entry_weight(key, &old);
        }
    }
    V::Obj(Node::new(items, weight, depth))
}

/// Where a possibly negative index points to, if inside.
fn position(index: i64, len: usize) -> Option<usize> {
    let at = if index < 0 { index.checked_add_unsigned(len as u64)? } else { index };
    usize::try_from(at).ok().filter(|at| *at < len)
}

/// The start and end of a slice within `len`.
fn limits(len: usize, from: Option<&V>, upto: Option<&V>) -> Res<(usize, usize)> {
    let bound = |value: Option<&V>, default: usize| match value {
        None | Some(V::Null(_)) => Ok(default),
        Some(value) => {
            let index = value.as_index().ok_or_else(|| Error::typ(value.share(), "integer"))?;
            let at = if index < 0 { index.saturating_add_unsigned(len as u64).max(0) } else { index };
            Ok(usize::try_from(at).unwrap_or(len).min(len))
        }
    };
    let from = bound(from, 0)?;
    Ok((from, bound(upto, len)?.max(from)))
}

fn slice(value: &V, from: Option<&V>, upto: Option<&V>) -> Res {
    match value {
        V::Null(depth) if *depth < MAX_DEPTH => Ok(V::Null(depth + 1)),
        V::Arr(a) => {
            let (from, upto) = limits(a.items.len(), from, upto)?;
            Ok(V::array(a.items[from..upto].iter().map(V::share).collect()))
        }
        V::Str(s) => {
            charge(s.len() / 4);
            let (from, upto) = limits(s.chars().count(), from, upto)?;
            Ok(V::text(s.chars().skip(from).take(upto - from).collect::<String>()))
        }
        _ => Err(Error::typ(value.share(), "array or string")),
    }
}

/// Puts the first output of `f` where `index` points to; without an output the place is removed.
fn map_array<'a, I>(node: Rc<Node<Vec<V>>>, index: &V, opt: Opt, f: impl Fn(V) -> I) -> ValX<'a, V>
where
    I: Iterator<Item = ValX<'a, V>>,
{
    let len = node.items.len();
    let at = index.as_index().and_then(|i| position(i, len).or_else(|| usize::try_from(i).ok()));
    let Some(at) = at else {
        return opt.fail(V::Arr(node), |v| Exn::from(Error::index(v, index.share())));
    };
    let depth = node.depth;
    if at >= len {
        // paid before it is allocated: this is what stops `.[1000000000] = 1`
        charge((at - len).saturating_add(1).saturating_mul(BASE));
    }
    let weight = node.weight;
    let mut items = into_items(node);
    // the place is emptied, so that `f` gets a value that nobody else holds and can change it in place
    let old = items.get_mut(at).map(std::mem::take).unwrap_or_default();
    let removed = if at < len { old.weight() } else { 0 };
    let Some(new) = f(old).next().transpose()? else {
        if at < len {
            items.remove(at);
        }
        return Ok(V::Arr(Node::new(items, weight - removed, depth)));
    };
    let added = new.weight() + at.saturating_sub(len) * BASE;
    let depth = depth.max(new.depth() + 1);
    if at < len {
        items[at] = new;
    } else {
        items.resize_with(at, || V::NULL);
        items.push(new);
    }
    Ok(V::Arr(Node::new(items, (weight - removed).saturating_add(added), depth)))
}

fn map_object<'a, I>(node: Rc<Node<Map>>, key: &Rc<String>, f: impl Fn(V) -> I) -> ValX<'a, V>
where
    I: Iterator<Item = ValX<'a, V>>,
{
    let (weight, depth) = (node.weight, node.depth);
    let mut items = into_map(node);
    let old = items.get_mut(key).map(std::mem::take);
    let removed = old.as_ref().map_or(0, |old| entry_weight(key, old));
    match f(old.unwrap_or_default()).next().transpose()? {
        None => {
            items.remove(key);
            Ok(V::Obj(Node::new(items, weight - removed, depth)))
        }
        Some(new) => {
            let weight = (weight - removed).saturating_add(entry_weight(key, &new));
            let depth = depth.max(new.depth() + 1);
            items.insert(Rc::clone(key), new);
            Ok(V::Obj(Node::new(items, weight, depth)))
        }
    }
}

impl Default for V {
    fn default() -> Self {
        Self::NULL
    }
}

impl jaq_core::ValT for V {
    fn from_num(n: &str) -> ValR<Self> {
        super::ops::parse_number(n).ok_or_else(|| Error::str(format_args!("cannot parse {n} as number")))
    }

    fn from_map<I: IntoIterator<Item = (Self, Self)>>(iter: I) -> ValR<Self> {
        let mut map = Map::new();
        for (key, value) in iter {
            match key {
                Self::Str(key) => map.insert(key, value),
                other => return Err(Error::typ(other, "object key")),
            };
        }
        Ok(Self::object(map))
    }

    fn key_values(self) -> BoxIter<'static, ValR<(Self, Self), Self>> {
        charge(STEP);
        match self {
            Self::Arr(a) => Box::new((0..a.items.len()).map(move |i| Ok((Self::Int(i as i64), a.items[i].clone())))),
            Self::Obj(o) => Box::new(into_map(o).into_iter().map(|(key, value)| {
                charge(STEP);
                Ok((Self::Str(key), value))
            })),
            other => box_once(Err(Error::typ(other, "iterable (array or object)"))),
        }
    }

    fn values(self) -> Box<dyn Iterator<Item = ValR<Self>>> {
        charge(STEP);
        match self {
            Self::Arr(a) => Box::new((0..a.items.len()).map(move |i| Ok(a.items[i].clone()))),
            Self::Obj(o) => Box::new(into_map(o).into_values().map(|value| {
                charge(STEP);
                Ok(value)
            })),
            other => box_once(Err(Error::typ(other, "iterable (array or object)"))),
        }
    }

    fn index(self, index: &Self) -> ValR<Self> {
        self.lookup(index).map(|found| found.unwrap_or(Self::Null(1)))
    }

    fn range(self, range: Range<&Self>) -> ValR<Self> {
        slice(&self, range.start, range.end)
    }

    fn map_values<'a, I: Iterator<Item = ValX<'a, Self>>>(self, opt: Opt, f: impl Fn(Self) -> I) -> ValX<'a, Self> {
        charge(STEP);
        match self {
            Self::Arr(a) => into_items(a).into_iter().flat_map(f).collect(),
            Self::Obj(o) => {
                let mut map = Map::new();
                for (key, value) in into_map(o) {
                    charge(STEP);
                    if let Some(value) = f(value).next().transpose()? {
                        map.insert(key, value);
                    }
                }
                Ok(Self::object(map))
            }
            other => opt.fail(other, |v| Exn::from(Error::typ(v, "iterable (array or object)"))),
        }
    }

    fn map_index<'a, I: Iterator<Item = ValX<'a, Self>>>(
        self,
        index: &Self,
        opt: Opt,
        f: impl Fn(Self) -> I,
    ) -> ValX<'a, Self> {
        charge(STEP);
        match (self, index) {
            (Self::Obj(o), Self::Str(key)) => map_object(o, key, f),
            (Self::Null(_), Self::Str(key)) => map_object(Node::new(Map::new(), 0, 1), key, f),
            (Self::Arr(a), Self::Int(_) | Self::Float(_)) => map_array(a, index, opt, f),
            (Self::Null(_), Self::Int(_) | Self::Float(_)) => map_array(Node::new(Vec::new(), 0, 1), index, opt, f),
            (this @ (Self::Arr(_) | Self::Null(_)), Self::Obj(o)) => {
                let bound = |name: &str| o.items.iter().find(|(k, _)| k.as_str() == name).map(|(_, v)| v);
                this.map_range(bound("start")..bound("end"), opt, f)
            }
            (other, index) => opt.fail(other, |v| Exn::from(Error::index(v, index.share()))),
        }
    }

    fn map_range<'a, I: Iterator<Item = ValX<'a, Self>>>(
        self,
        range: Range<&Self>,
        opt: Opt,
        f: impl Fn(Self) -> I,
    ) -> ValX<'a, Self> {
        charge(STEP);
        let mut items = match self {
            Self::Arr(a) => into_items(a),
            Self::Null(_) => Vec::new(),
            other => return opt.fail(other, |v| Exn::from(Error::typ(v, "array"))),
        };
        let (from, upto) = match limits(items.len(), range.start, range.end) {
            Ok(limits) => limits,
            Err(error) => return opt.fail(Self::array(items), |_| Exn::from(error)),
        };
        let part = Self::array(items[from..upto].iter().map(Self::share).collect());
        let new = match f(part).next().transpose()? {
            None => Vec::new(),
            Some(Self::Arr(new)) => into_items(new),
            Some(other) => return Err(Error::typ(other, "array").into()),
        };
        items.splice(from..upto, new);
        Ok(Self::array(items))
    }

    fn as_bool(&self) -> bool {
        self.is_true()
    }

    fn into_string(self) -> Self {
        match self {
            text @ Self::Str(_) => text,
            other => Self::text(super::json::write(&other)),
        }
    }
}

impl jaq_std::ValT for V {
    fn into_seq<S: FromIterator<Self>>(self) -> Result<S, Self> {
        match self {
            Self::Arr(a) => Ok(into_items(a).into_iter().collect()),
            other => Err(other),
        }
    }

    fn is_int(&self) -> bool {
        self.as_isize().is_some()
    }

    fn as_isize(&self) -> Option<isize> {
        match self {
            Self::Int(i) => isize::try_from(*i).ok(),
            Self::Float(f) if f.fract() == 0.0 && f.abs() < 9e15 => Some(*f as isize),
            _ => None,
        }
    }

    fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(i) => Some(*i as f64),
            Self::Float(f) => Some(*f),
            _ => None,
        }
    }

    fn is_utf8_str(&self) -> bool {
        matches!(self, Self::Str(_))
    }

    fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Str(s) => {
                // whoever asks for the bytes is about to read them
                charge(STEP + s.len() / 4);
                Some(s.as_bytes())
            }
            _ => None,
        }
    }

    fn as_sub_str(&self, sub: &[u8]) -> Self {
        Self::from_utf8_bytes(sub.to_vec())
    }

    fn from_utf8_bytes(b: impl AsRef<[u8]> + Send + 'static) -> Self {
        Self::text(String::from_utf8_lossy(b.as_ref()).into_owned())
    }
}

impl FromIterator<Self> for V {
    fn from_iter<T: IntoIterator<Item = Self>>(iter: T) -> Self {
        let mut items = Vec::new();
        let mut weight = 0_usize;
        for item in iter {
            charge(BASE);
            weight = weight.saturating_add(item.weight());
            budget::check_size(weight);
            items.push(item);
        }
        Self::array(items)
    }
}

impl From<bool> for V {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}

impl From<isize> for V {
    fn from(i: isize) -> Self {
        Self::Int(i as i64)
    }
}

impl From<usize> for V {
    fn from(i: usize) -> Self {
        i64::try_from(i).map_or(Self::Float(i as f64), Self::Int)
    }
}

impl From<f64> for V {
    fn from(f: f64) -> Self {
        Self::Float(f)
    }
}

impl From<String> for V {
    fn from(s: String) -> Self {
        Self::text(s)
    }
}

/// Only path mode makes a value of a slice: `path(.[1:])`.
impl From<Range<Self>> for V {
    fn from(range: Range<Self>) -> Self {
        budget::odd_path();
        let entry = |name: &str, value: Option<Self>| value.map(|value| (Rc::new(name.to_owned()), value));
        Self::object(entry("start", range.start).into_iter().chain(entry("end", range.end)).collect())
    }
}
