//! Inert stubs for the parts of WASI 0.2 that toolchains import whether a plugin uses them or not.
//!
//! There are no arguments, no environment, no files and no standard input. What a guest writes to its standard output or
//! error is kept as the last words before a trap. Clocks and randomness are real. Everything else traps with its name.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, LinkerInstance, Resource, ResourceType, Val};
use wasmtime::{Result, StoreContextMut, bail};

use crate::imports::{fill_random, random_number};
use crate::limits::RANDOM_BYTES_MAX;
use crate::state::State;

/// What a guest may write at once, in bytes.
const WRITE_BYTES: u64 = 4 << 10;

/// Stands for every resource of WASI's.
struct Stub;

/// A function of WASI's: arguments in, results out.
type Function = fn(&mut StoreContextMut<'_, State>, &[Val], &mut [Val]) -> Result<()>;

/// Defines a stub in `linker` for each import of `component` that is WASI's.
pub(crate) fn link(linker: &mut Linker<State>, component: &Component) -> Result<()> {
    let engine = linker.engine().clone();
    for (name, item) in component.component_type().imports(&engine) {
        let ComponentItem::ComponentInstance(interface) = item.ty else { continue };
        if !name.starts_with("wasi:") {
            continue;
        }
        let mut instance = linker.instance(name)?;
        for (item, ty) in interface.exports(&engine) {
            match ty.ty {
                ComponentItem::ComponentFunc(_) => function(&mut instance, name, item)?,
                ComponentItem::Resource(_) => instance.resource(item, ResourceType::host::<Stub>(), |_, _| Ok(()))?,
                _ => {}
            }
        }
    }
    Ok(())
}

fn function(instance: &mut LinkerInstance<'_, State>, interface: &str, name: &str) -> Result<()> {
    let short = interface.split('@').next().unwrap_or(interface);
    match known(short, name) {
        Some(known) => instance.func_new(name, move |mut store, _, params, results| {
            known(&mut store, params, results)?;
            give_back(&mut store, params)
        }),
        None => {
            let full: Arc<str> = format!("{short}#{name}").into();
            instance.func_new(name, move |_, _, _, _| bail!("it called {full}, which a plugin does not have"))
        }
    }
}

fn known(interface: &str, name: &str) -> Option<Function> {
    Some(match (interface, name) {
        ("wasi:cli/environment", "get-environment" | "get-arguments")
        | ("wasi:filesystem/preopens", "get-directories") => |_, _, results| put(results, Val::List(Vec::new())),
        ("wasi:cli/environment", "initial-cwd")
        | (
            "wasi:cli/terminal-stdin" | "wasi:cli/terminal-stdout" | "wasi:cli/terminal-stderr",
            "get-terminal-stdin" | "get-terminal-stdout" | "get-terminal-stderr",
        ) => |_, _, results| put(results, Val::Option(None)),
        ("wasi:cli/stdin" | "wasi:cli/stdout" | "wasi:cli/stderr", "get-stdin" | "get-stdout" | "get-stderr")
        | ("wasi:io/streams", "[method]output-stream.subscribe" | "[method]input-stream.subscribe") => stub,
        ("wasi:cli/exit", _) => |_, _, _| bail!("it called exit"),
        ("wasi:io/streams", "[method]output-stream.check-write") => {
            |_, _, results| put(results, ok(Some(Val::U64(WRITE_BYTES))))
        }
        ("wasi:io/streams", "[method]output-stream.write" | "[method]output-stream.blocking-write-and-flush") => write,
        ("wasi:io/streams", "[method]output-stream.flush" | "[method]output-stream.blocking-flush") => {
            |_, _, results| put(results, ok(None))
        }
        ("wasi:io/streams", "[method]input-stream.read" | "[method]input-stream.blocking-read") => {
            |_, _, results| put(results, Val::Result(Err(Some(Box::new(Val::Variant("closed".to_owned(), None))))))
        }
        ("wasi:clocks/monotonic-clock", "now") => |store, _, results| {
            let now = store.data().origin.elapsed().as_nanos();
            put(results, Val::U64(u64::try_from(now).unwrap_or(u64::MAX)))
        },
        ("wasi:clocks/monotonic-clock", "resolution") => |_, _, results| put(results, Val::U64(1)),
        ("wasi:clocks/wall-clock", "now") => |_, _, results| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            put(results, datetime(now.as_secs(), now.subsec_nanos()))
        },
        ("wasi:clocks/wall-clock", "resolution") => |_, _, results| put(results, datetime(0, 1)),
        ("wasi:random/random" | "wasi:random/insecure", "get-random-u64" | "get-insecure-random-u64") => {
            |_, _, results| put(results, Val::U64(random_number()))
        }
        ("wasi:random/random" | "wasi:random/insecure", "get-random-bytes" | "get-insecure-random-bytes") => random,
        ("wasi:random/insecure-seed", _) => {
            |_, _, results| put(results, Val::Tuple(vec![Val::U64(random_number()), Val::U64(random_number())]))
        }
        _ => return None,
    })
}

/// Handles that were lent for the call must be given back before it ends.
fn give_back(store: &mut StoreContextMut<'_, State>, params: &[Val]) -> Result<()> {
    for param in params {
        if let Val::Resource(lent) = param
            && !lent.owned()
        {
            Resource::<Stub>::try_from_resource_any(*lent, &mut *store)?;
        }
    }
    Ok(())
}

fn put(results: &mut [Val], value: Val) -> Result<()> {
    match results.first_mut() {
        Some(result) => *result = value,
        None => bail!("a function of WASI has another type than in WASI 0.2"),
    }
    Ok(())
}

fn ok(value: Option<Val>) -> Val {
    Val::Result(Ok(value.map(Box::new)))
}

fn datetime(seconds: u64, nanoseconds: u32) -> Val {
    let field = |name: &str, value| (name.to_owned(), value);
    Val::Record(vec![field("seconds", Val::U64(seconds)), field("nanoseconds", Val::U32(nanoseconds))])
}

fn stub(store: &mut StoreContextMut<'_, State>, _params: &[Val], results: &mut [Val]) -> Result<()> {
    let resource = Resource::<Stub>::new_own(0).try_into_resource_any(&mut *store)?;
    put(results, Val::Resource(resource))
}

fn write(store: &mut StoreContextMut<'_, State>, params: &[Val], results: &mut [Val]) -> Result<()> {
    if let Some(Val::List(bytes)) = params.get(1) {
        let bytes: Vec<u8> =
            bytes.iter().filter_map(|byte| if let Val::U8(byte) = byte { Some(*byte) } else { None }).collect();
        store.data_mut().complain(&bytes);
    }
    put(results, ok(None))
}

fn random(_store: &mut StoreContextMut<'_, State>, params: &[Val], results: &mut [Val]) -> Result<()> {
    let Some(&Val::U64(len)) = params.first() else { bail!("wasi:random takes a length") };
    if len > u64::from(RANDOM_BYTES_MAX) {
        bail!("it asked for {len} random bytes; at most {RANDOM_BYTES_MAX} at once");
    }
    let mut bytes = vec![0; usize::try_from(len)?];
    fill_random(&mut bytes);
    put(results, Val::List(bytes.into_iter().map(Val::U8).collect()))
}
