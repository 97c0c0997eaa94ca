//! Which agents there are: from the binary, from files, from HTTP. What was changed last counts, and everything that an
//! agent ever was is kept.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use serde_json::{Value, json};

use super::{Agent, Agents, Audit, Definition, Inner, check_id, narrow, view};
use crate::bundled;
use crate::error::Error;
use crate::event::Trust;
use crate::plain;
use crate::store::agents::{self as rows, AgentRow, DefinitionRow, Origin};
use crate::store::approvals;

/// Agents at the most.
const AGENTS_MAX: usize = 200;
/// Ids that are remembered, removed ones with their history among them.
const KNOWN_MAX: usize = 1000;

/// A definition that is to be stored.
pub struct Put {
    /// The agent.
    pub id: String,
    /// What it is to be.
    pub definition: Definition,
    /// Who says so.
    pub principal: String,
    /// Set when it may give the agent nothing that it does not have already, and is trusted no further than this.
    pub narrow: Option<Trust>,
    /// Check only.
    pub dry_run: bool,
}

/// A change of an agent besides its definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Switches it on.
    Enable,
    /// Switches it off: what is for it waits.
    Disable,
}

impl Agents {
    /// Every agent by id.
    pub async fn list(&self) -> Result<Vec<Value>, Error> {
        let agents: Vec<Arc<Agent>> = self.inner.held(|held| held.agents.values().cloned().collect());
        let mut shown = Vec::with_capacity(agents.len());
        for agent in agents {
            shown.push(self.shown(&agent).await?);
        }
        Ok(shown)
    }

    /// One agent with its definition.
    pub async fn get(&self, id: &str) -> Result<Value, Error> {
        let agent = self.inner.agent(id)?;
        let mut shown = self.shown(&agent).await?;
        shown["definition"] = agent.definition.to_json();
        shown["text"] = agent.definition.text.clone().into();
        Ok(shown)
    }

    async fn shown(&self, agent: &Agent) -> Result<Value, Error> {
        let (today, ever) = self.inner.parts.budget.usage(&format!("agent/{}", agent.row.id)).await?;
        let mut shown = view::agent(agent);
        shown["usage"] = json!({ "today": today, "ever": ever });
        Ok(shown)
    }

    /// Definitions that could not be read: where they lie, and why.
    pub fn left_out(&self) -> Vec<(String, String)> {
        self.inner.held(|held| held.left_out.clone().into_iter().collect())
    }

    /// The definitions that an agent had, newest first; also of one that was removed.
    pub async fn versions(&self, id: &str) -> Result<Vec<Value>, Error> {
        let owner = id.to_owned();
        let found = self.inner.bus.store().read(move |conn| rows::definitions(conn, &owner)).await?;
        if found.is_empty() {
            return Err(Error::not_found("agent", id));
        }
        let current = self.inner.agent(id).ok().map(|agent| agent.definition.digest.clone());
        let newest = found.iter().position(|row| Some(&row.digest) == current.as_ref());
        let shown = found.iter().enumerate().map(|(n, row)| view::version(row, newest == Some(n)));
        Ok(shown.collect())
    }

    /// Stores a definition as the one that is in force. Gives what is shown of it, and whether the agent is new.
    pub async fn put(&self, put: Put, audit: Audit) -> Result<(Value, bool), Error> {
        check_id(&put.id)?;
        self.inner.admit_exec(&put.definition)?;
        let _turn = self.inner.changing.lock().await;
        let before = self.inner.agent(&put.id).ok();
        if let Some(most) = put.narrow {
            let limits = self.inner.of_operator(&put.id).await?;
            narrow::check(before.as_ref().map(|agent| &*agent.definition), limits.as_ref(), &put.definition, most)?;
            self.inner.bus.store().takes_new()?;
        }
        let all = self.inner.bus.store().read(rows::all).await?;
        let stored = all.iter().find(|row| row.id == put.id);
        if stored.is_none() && all.len() >= KNOWN_MAX {
            let reason =
                format!("{KNOWN_MAX} agents were known here, which is the most. Take the id of a removed one.");
            return Err(Error::conflict("invalid_state", reason));
        }
        if before.is_none() && self.inner.held(|held| held.agents.len()) >= AGENTS_MAX {
            let reason = format!("There are {AGENTS_MAX} agents, which is the most. Remove one first.");
            return Err(Error::conflict("invalid_state", reason));
        }
        let row = AgentRow {
            id: put.id.clone(),
            digest: Some(put.definition.digest.clone()),
            origin: Origin::Api,
            file_digest: stored.and_then(|row| row.file_digest.clone()),
            disabled: match &before {
                Some(agent) => agent.row.disabled,
                // Who is no operator does not switch on by removing it first.
                None => put.narrow.is_some() && stored.is_some_and(|row| row.disabled),
            },
            updated_ms: self.inner.now_ms(),
        };
        let agent = self.inner.made(row, put.definition, before.as_deref());
        // What the bus would not take is not stored.
        self.inner.consumer(&agent)?;
        if put.dry_run {
            return Ok((view::agent(&agent), before.is_none()));
        }
        let shown = self.inner.store(Arc::new(agent), put.principal, audit).await?;
        Ok((shown, before.is_none()))
    }

    /// Puts a definition that an agent had in force again; `wanted` is its digest, or the number of the version.
    pub async fn rollback(&self, id: &str, wanted: &str, principal: String, audit: Audit) -> Result<Value, Error> {
        let _turn = self.inner.changing.lock().await;
        let owner = id.to_owned();
        let found = self.inner.bus.store().read(move |conn| rows::definitions(conn, &owner)).await?;
        let is_it = |row: &&DefinitionRow| row.digest == wanted || row.number.to_string() == wanted;
        let Some(version) = found.iter().find(is_it) else {
            let kind = if found.is_empty() { "agent" } else { "version" };
            return Err(Error::not_found(kind, if found.is_empty() { id } else { wanted }));
        };
        let before = self.inner.agent(id).ok();
        let row = AgentRow {
            id: id.to_owned(),
            digest: Some(version.digest.clone()),
            origin: before.as_ref().map_or(Origin::Api, |agent| agent.row.origin),
            file_digest: self.inner.file_digest(id).await?,
            disabled: before.as_ref().is_some_and(|agent| agent.row.disabled),
            updated_ms: self.inner.now_ms(),
        };
        let definition = Definition::parse(&version.text)?;
        if before.as_ref().is_none_or(|agent| agent.definition.tools.exec != definition.tools.exec) {
            self.inner.admit_exec(&definition)?;
        }
        let agent = self.inner.made(row, definition, before.as_deref());
        self.inner.consumer(&agent)?;
        self.inner.store(Arc::new(agent), principal, audit).await
    }

    /// Removes an agent. Its sessions and its history stay; what is for it waits until it comes back.
    pub async fn remove(&self, id: &str, audit: Audit) -> Result<Value, Error> {
        let _turn = self.inner.changing.lock().await;
        let agent = self.inner.agent(id)?;
        let row = AgentRow { digest: None, updated_ms: self.inner.now_ms(), ..agent.row.clone() };
        let shown = json!({ "id": id, "deleted": true });
        let answer = shown.clone();
        let change = move |tx: &mut crate::store::Tx<'_>| {
            rows::put(tx, &row)?;
            // Another agent of that id begins with nothing allowed.
            approvals::forget_agent(tx, &row.id)?;
            audit(tx, &answer)
        };
        self.inner.bus.store().write(change).await?;
        self.inner.held(|held| held.agents.remove(id));
        self.inner.changed.notify_waiters();
        self.inner.bus.unregister(&[super::consumer_name(id)]).await;
        Ok(shown)
    }

    /// Switches an agent on or off.
    pub async fn change(&self, id: &str, change: Change, principal: String, audit: Audit) -> Result<Value, Error> {
        let _turn = self.inner.changing.lock().await;
        let before = self.inner.agent(id)?;
        let disabled = change == Change::Disable;
        let row = AgentRow { disabled, updated_ms: self.inner.now_ms(), ..before.row.clone() };
        let agent = self.inner.made(row, (*before.definition).clone(), Some(&before));
        self.inner.store(Arc::new(agent), principal, audit).await
    }

    /// Reads the file of an agent again, or what the binary has of it, and puts that in force.
    pub async fn reload(&self, id: &str, principal: String, audit: Audit) -> Result<Value, Error> {
        check_id(id)?;
        let _turn = self.inner.changing.lock().await;
        let path = self.inner.path(id);
        let read = tokio::task::spawn_blocking(move || {
            plain::read(&path, bytes_max())
                .map_err(|error| (error.kind(), path.display().to_string(), error.to_string()))
        });
        let (origin, text) = match read.await.map_err(Error::internal("reading the file of an agent"))? {
            Ok(text) => (Origin::File, text),
            Err((std::io::ErrorKind::NotFound, path, _)) => match bundled(id) {
                Some(text) => (Origin::Bundled, text.to_owned()),
                None if self.inner.agent(id).is_ok() => {
                    let reason = format!("'{id}' came in over HTTP: there is no file {path} to read again.");
                    return Err(Error::conflict("invalid_state", reason));
                }
                None => return Err(Error::not_found("agent", id)),
            },
            Err((_, path, error)) => return Err(Error::invalid(path, format!("cannot be read: {error}."))),
        };
        let definition = Definition::parse(&text)?;
        let before = self.inner.agent(id).ok();
        let row = AgentRow {
            id: id.to_owned(),
            digest: Some(definition.digest.clone()),
            origin,
            file_digest: Some(definition.digest.clone()),
            disabled: before.as_ref().is_some_and(|agent| agent.row.disabled),
            updated_ms: self.inner.now_ms(),
        };
        let agent = self.inner.made(row, definition, before.as_deref());
        self.inner.store(Arc::new(agent), principal, audit).await
    }
}

fn bytes_max() -> u64 {
    super::definition::TEXT_BYTES_MAX as u64
}

fn bundled(id: &str) -> Option<&'static str> {
    bundled::AGENTS.iter().find(|(known, _)| *known == id).map(|(_, text)| *text)
}

impl Inner {
    fn path(&self, id: &str) -> PathBuf {
        self.settings.folder.join(format!("{id}.toml"))
    }

    /// What its operator said last that an agent is.
    async fn of_operator(&self, id: &str) -> Result<Option<Definition>, Error> {
        let owner = id.to_owned();
        let row = self.bus.store().read(move |conn| rows::newest_of_operator(conn, &owner)).await?;
        row.map(|row| Definition::parse(&row.text)).transpose()
    }

    async fn file_digest(&self, id: &str) -> Result<Option<String>, Error> {
        let all = self.bus.store().read(rows::all).await?;
        Ok(all.into_iter().find(|row| row.id == id).and_then(|row| row.file_digest))
    }

    /// Whether a definition may come in over HTTP.
    fn admit_exec(&self, definition: &Definition) -> Result<(), Error> {
        if !definition.executes() || self.settings.allow_exec {
            return Ok(());
        }
        let reason = "This agent may run commands, which may not come in over HTTP. Put its file into the folder 'agents' \
                      beside the configuration and reload it, or set http.allow_exec_definitions = true in the \
                      configuration file.";
        Err(Error::Forbidden { code: "exec_not_allowed", reason: reason.to_owned() })
    }

    /// An agent of these parts, which goes on doing what it did before.
    fn made(&self, row: AgentRow, definition: Definition, before: Option<&Agent>) -> Agent {
        let state = before.map(|agent| Arc::clone(&agent.state)).unwrap_or_default();
        Agent { row, definition: Arc::new(definition), state }
    }

    /// Records an agent and puts it in force.
    async fn store(self: &Arc<Self>, agent: Arc<Agent>, principal: String, audit: Audit) -> Result<Value, Error> {
        let (row, shown) = (agent.row.clone(), view::agent(&agent));
        let (new, answer) = (self.definition_row(&agent.definition, principal), shown.clone());
        let change = move |tx: &mut crate::store::Tx<'_>| {
            rows::define(tx, &row.id, &new)?;
            rows::put(tx, &row)?;
            audit(tx, &answer)
        };
        self.bus.store().write(change).await?;
        self.take_up(agent).await?;
        Ok(shown)
    }

    fn definition_row(&self, definition: &Definition, principal: String) -> DefinitionRow {
        DefinitionRow {
            number: 0,
            digest: definition.digest.clone(),
            text: definition.text.clone(),
            principal,
            created_ms: self.now_ms(),
        }
    }

    /// Has the bus bring an agent its events.
    async fn take_up(self: &Arc<Self>, agent: Arc<Agent>) -> Result<(), Error> {
        self.held(|held| {
            held.left_out.remove(&agent.row.id);
            held.agents.insert(agent.row.id.clone(), Arc::clone(&agent));
        });
        self.changed.notify_waiters();
        self.bus.register(vec![self.consumer(&agent)?]).await?;
        self.moves(&agent, |_| ());
        Ok(())
    }

    /// Reads what is stored, in the binary and in the folder.
    pub(super) async fn load(self: &Arc<Self>) -> Result<(), Error> {
        let stored = self.bus.store().read(rows::all).await?;
        let folder = self.settings.folder.clone();
        let files = tokio::task::spawn_blocking(move || files(&folder))
            .await
            .map_err(Error::internal("reading the files of agents"))?;
        let from_binary = bundled::AGENTS
            .iter()
            .map(|(id, text)| (Origin::Bundled, (*id).to_owned(), Ok::<String, String>((*text).to_owned())));
        let from_files = files.into_iter().map(|(id, text)| (Origin::File, id, text));
        let mut known = stored;
        for (origin, id, text) in from_binary.chain(from_files) {
            let read = text.map_err(|reason| Error::invalid("file", reason)).and_then(|text| {
                check_id(&id)?;
                Definition::parse(&text)
            });
            match read {
                Ok(definition) => self.take(&mut known, origin, &id, definition).await?,
                Err(error) => self.leave_out(id, &error),
            }
        }
        let mut consumers = Vec::new();
        for row in known {
            let Some(digest) = row.digest.clone() else { continue };
            let id = row.id.clone();
            let text = self.bus.store().read(move |conn| rows::definition(conn, &id, &digest)).await?;
            let definition = text.ok_or_else(|| Error::not_found("version", row.id.clone()));
            match definition.and_then(|found| Definition::parse(&found.text)) {
                Ok(definition) => {
                    let agent = Arc::new(self.made(row, definition, None));
                    match self.consumer(&agent) {
                        Ok(consumer) => consumers.push(consumer),
                        Err(error) => {
                            self.leave_out(agent.row.id.clone(), &error);
                            continue;
                        }
                    }
                    agent.state.lock().unwrap_or_else(PoisonError::into_inner).told = Some(agent.status());
                    self.held(|held| held.agents.insert(agent.row.id.clone(), agent));
                }
                Err(error) => self.leave_out(row.id, &error),
            }
        }
        self.bus.register(consumers).await
    }

    /// Takes a definition over, unless this very content was taken over before: what was changed last counts.
    async fn take(
        &self,
        known: &mut Vec<AgentRow>,
        origin: Origin,
        id: &str,
        definition: Definition,
    ) -> Result<(), Error> {
        let before = known.iter().position(|row| row.id == id);
        let old = before.map(|at| known[at].clone());
        if old.as_ref().is_some_and(|row| row.file_digest.as_ref() == Some(&definition.digest)) {
            return Ok(());
        }
        // A file of the operator's own stands above one of the same name in this binary, and what was removed stays removed.
        let is_own = |row: &AgentRow| row.origin != Origin::Bundled || row.digest.is_none();
        if origin == Origin::Bundled && old.as_ref().is_some_and(is_own) {
            return Ok(());
        }
        let row = AgentRow {
            id: id.to_owned(),
            digest: Some(definition.digest.clone()),
            origin,
            file_digest: Some(definition.digest.clone()),
            disabled: old.is_some_and(|row| row.disabled),
            updated_ms: self.now_ms(),
        };
        let who = if origin == Origin::Bundled { "aman" } else { "file" };
        let (put, new) = (row.clone(), self.definition_row(&definition, who.to_owned()));
        let change = move |tx: &mut crate::store::Tx<'_>| {
            rows::define(tx, &put.id, &new)?;
            rows::put(tx, &put)
        };
        self.bus.store().write(change).await?;
        match before {
            Some(at) => known[at] = row,
            None => known.push(row),
        }
        Ok(())
    }

    /// Notes that an agent's definition cannot be read.
    fn leave_out(&self, id: String, error: &Error) {
        let reason = error.chain().join(": ");
        tracing::warn!(
            agent = id,
            error = reason,
            "The definition of an agent cannot be read; what was before it counts."
        );
        self.held(|held| held.left_out.insert(id, reason));
    }
}

/// The definitions in a folder by the agent's id; an error for what cannot be read.
fn files(folder: &std::path::Path) -> Vec<(String, Result<String, String>)> {
    let Ok(listed) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let read = |path: PathBuf| {
        let id = path.file_stem()?.to_str()?.to_owned();
        Some((id, plain::read(&path, bytes_max()).map_err(|error| format!("cannot be read: {error}."))))
    };
    paths.into_iter().take(AGENTS_MAX).filter_map(read).collect()
}
