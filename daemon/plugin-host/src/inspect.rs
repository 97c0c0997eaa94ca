//! What a component imports and exports, held against what its manifest asks for.

use std::collections::BTreeSet;

use crate::Grants;
use crate::fault::Fault;

/// The interface that this host serves, as a manifest names it.
pub const INTERFACE: &str = "0.1";

/// Interfaces that need no permission.
const FREE: &[&str] = &["types", "config", "log", "metrics", "clock", "random"];
/// Packages of WASI of which toolchains import parts without asking; see [`crate::wasi`].
const STUBBED: &[&str] = &["cli", "clocks", "filesystem", "io", "random"];

/// What a component offers and needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surface {
    /// Its imports of `aman:plugin`, such as `kv`, sorted.
    pub imports: Vec<String>,
    /// It wants to know when an instance begins.
    pub lifecycle: bool,
    /// It handles events.
    pub events: bool,
    /// It serves routes.
    pub http_handler: bool,
    /// It provides tools.
    pub tools: bool,
    /// It is a source of events.
    pub source: bool,
    /// It imports parts of WASI, which the host offers as inert stubs.
    pub wasi: bool,
}

/// The parts of `namespace:package/interface@version`.
struct Name<'a> {
    namespace: &'a str,
    package: &'a str,
    interface: &'a str,
    version: &'a str,
}

fn parse(name: &str) -> Option<Name<'_>> {
    let (namespace, rest) = name.split_once(':')?;
    let (package, rest) = rest.split_once('/')?;
    let (interface, version) = rest.split_once('@').unwrap_or((rest, ""));
    Some(Name { namespace, package, interface, version })
}

/// `0.1` of `0.1.7`.
fn minor(version: &str) -> &str {
    version.match_indices('.').nth(1).map_or(version, |(at, _)| &version[..at])
}

fn is_ours(name: &Name<'_>) -> bool {
    name.namespace == "aman" && name.package == "plugin"
}

/// Reads the names of a component's imports and exports; says what is wrong with them, the version first.
pub(crate) fn surface(imports: &[&str], exports: &[&str], grants: &Grants) -> Result<Surface, Fault> {
    for name in imports.iter().chain(exports) {
        if let Some(name) = parse(name).filter(is_ours)
            && minor(name.version) != INTERFACE
        {
            let version = minor(name.version);
            return Err(Fault::refused(format!(
                "it was built for interface {version} of aman:plugin, and this daemon serves {INTERFACE}; get a build of \
                 the plugin for {INTERFACE}, or a daemon that serves {version}"
            )));
        }
    }
    let mut surface = Surface::default();
    read_imports(&mut surface, imports, grants)?;
    for name in exports {
        match parse(name).filter(is_ours).map(|name| name.interface) {
            Some("lifecycle") => surface.lifecycle = true,
            Some("events") => surface.events = true,
            Some("http-handler") => surface.http_handler = true,
            Some("tools") => surface.tools = true,
            Some("source") => surface.source = true,
            Some(_) | None => {}
        }
    }
    if !(surface.events || surface.http_handler || surface.tools || surface.source) {
        return Err(Fault::refused(
            "it exports none of aman:plugin's events, http-handler, tools and source, so it could do nothing",
        ));
    }
    Ok(surface)
}

fn read_imports(surface: &mut Surface, imports: &[&str], grants: &Grants) -> Result<(), Fault> {
    let (mut denied, mut foreign) = (BTreeSet::new(), BTreeSet::new());
    for &full in imports {
        let Some(name) = parse(full) else {
            foreign.insert(full.to_owned());
            continue;
        };
        if is_ours(&name) {
            let granted = match name.interface {
                "bus" => grants.publish,
                "kv" => grants.kv,
                "sql" => grants.sql,
                "http-client" => grants.http,
                "workflows" => grants.workflows,
                "notify" => grants.notify,
                "agents" => grants.agents_read || grants.agents_manage,
                "chat" => grants.chat,
                other if FREE.contains(&other) => true,
                _ => {
                    foreign.insert(full.to_owned());
                    continue;
                }
            };
            if !granted {
                denied.insert(format!("aman:plugin/{}", name.interface));
            } else if name.interface != "types" {
                surface.imports.push(name.interface.to_owned());
            }
        } else if name.namespace == "wasi" && STUBBED.contains(&name.package) && minor(name.version) == "0.2" {
            surface.wasi = true;
        } else {
            foreign.insert(full.to_owned());
        }
    }
    if !foreign.is_empty() {
        let names: Vec<String> = foreign.into_iter().collect();
        return Err(Fault::refused(format!("it imports {}, which the daemon does not offer", names.join(", "))));
    }
    if !denied.is_empty() {
        return Err(Fault::Denied { imports: denied.into_iter().collect() });
    }
    surface.imports.sort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Grants = Grants {
        publish: true,
        kv: true,
        sql: true,
        http: true,
        workflows: true,
        notify: true,
        agents_read: true,
        agents_manage: true,
        chat: true,
    };

    fn check(imports: &[&str], exports: &[&str], grants: Grants) -> Result<Vec<String>, String> {
        surface(imports, exports, &grants).map(|surface| surface.imports).map_err(|fault| fault.to_string())
    }

    /// Goal: what a component may import is decided by name, and each refusal names what is wrong.
    #[test]
    fn imports_are_held_against_grants() {
        let handler = ["aman:plugin/events@0.1.0"];
        let ok = |imports: &[&str], grants| check(imports, &handler, grants).expect("may be loaded");
        let no = |imports: &[&str], grants| check(imports, &handler, grants).expect_err("is refused");
        assert_eq!(ok(&["aman:plugin/log@0.1.0", "aman:plugin/types@0.1.0"], Grants::default()), ["log"]);
        assert_eq!(ok(&["aman:plugin/kv@0.1.3", "wasi:io/streams@0.2.6"], ALL), ["kv"]);
        let names = ["kv", "bus", "workflows", "notify", "sql", "http-client", "agents", "chat"];
        let names = names.map(|name| format!("aman:plugin/{name}@0.1.0"));
        let denied = no(&names.each_ref().map(String::as_str), Grants::default());
        for name in
            ["agents, aman:plugin/bus, aman:plugin/chat, aman:plugin/http-client, aman:plugin/kv", "notify", "sql"]
        {
            assert!(denied.contains(&format!("aman:plugin/{name}")), "{denied}");
        }
        for foreign in ["wasi:sockets/tcp@0.2.0", "wasi:http/types@0.2.0", "wasi:io/poll@0.3.0", "env", "a:b/c"] {
            assert!(no(&[foreign], ALL).contains(foreign), "{foreign}");
        }
        for (granted, may) in [("agents_read", true), ("agents_manage", true), ("chat", false)] {
            let grants = Grants {
                agents_read: granted == "agents_read",
                agents_manage: granted == "agents_manage",
                chat: granted == "chat",
                ..Grants::default()
            };
            let is_granted = check(&["aman:plugin/agents@0.1.0"], &handler, grants).is_ok();
            assert_eq!((is_granted, check(&["aman:plugin/chat@0.1.0"], &handler, grants).is_ok()), (may, !may));
        }
        assert!(no(&["aman:plugin/files@0.1.0"], ALL).contains("aman:plugin/files"));
    }

    /// Goal: a plugin of another interface is refused in words before anything else is looked at.
    #[test]
    fn version_comes_first() {
        for version in ["0.2.0", "1.0.0", "0.10.1", "0.1"] {
            let name = format!("aman:plugin/events@{version}");
            let answer = check(&["env", "aman:plugin/kv@0.1.0"], &[&name], Grants::default());
            if minor(version) == INTERFACE {
                assert!(answer.expect_err("env").contains("env"));
            } else {
                assert!(answer.expect_err("wrong version").contains(&format!("interface {}", minor(version))));
            }
        }
        let nothing = check(&[], &["aman:plugin/lifecycle@0.1.0", "run"], ALL).expect_err("does nothing");
        assert!(nothing.contains("could do nothing"), "{nothing}");
    }
}
