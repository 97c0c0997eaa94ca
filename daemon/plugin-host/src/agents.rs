//! Agents and conversations with them, as guests import them.

use std::time::Duration;

use wasmtime::component::Resource;

use crate::bindings::aman::plugin::chat::TurnStream;
use crate::bindings::aman::plugin::{agents, chat};
use crate::imports::{busy, invalid, wait_for};
use crate::limits;
use crate::state::{Call, Mode, State};
use crate::values::{
    AgentDefinition, AgentShown, AgentStored, Asked, Error, Frame, MessagePage, NewSession, NewTurn, Session,
    SessionPage, TurnAnswer, TurnInfo,
};

impl State {
    /// The call, if the plugin may ask for this (`granted`), and in this call, and not too often.
    fn asking(&mut self, granted: bool, changes: bool, right: &str) -> Result<&mut Call, Error> {
        if !granted {
            return Err(Error::Denied(format!("the manifest does not ask for agents = [\"{right}\"]")));
        }
        let rates = &self.common.rates;
        if !(if changes { rates.may_ask() } else { rates.may_store() }) {
            return Err(busy("requests to agents"));
        }
        let call = self.call()?;
        if call.mode == Mode::Begin {
            return Err(Error::Denied("agents are not there within lifecycle.init".to_owned()));
        }
        Ok(call)
    }

    fn reading(&mut self) -> Result<&mut Call, Error> {
        self.asking(self.common.grants.agents_read, false, "read")
    }

    fn managing(&mut self) -> Result<&mut Call, Error> {
        self.asking(self.common.grants.agents_manage, true, "manage")
    }

    fn chatting(&mut self, changes: bool) -> Result<&mut Call, Error> {
        self.asking(self.common.grants.chat, changes, "chat")
    }
}

impl agents::Host for State {
    async fn list(&mut self) -> Result<Vec<AgentShown>, Error> {
        let call = self.reading()?;
        call.api.agents_list(&call.caller).await
    }

    async fn read(&mut self, id: String) -> Result<AgentDefinition, Error> {
        let call = self.reading()?;
        call.api.agent_read(&call.caller, &id).await
    }

    async fn put(&mut self, id: String, definition: String) -> Result<AgentStored, Error> {
        let call = self.managing()?;
        if definition.len() > limits::DEFINITION_BYTES_MAX {
            return Err(invalid("definition", format!("must have at most {} bytes", limits::DEFINITION_BYTES_MAX)));
        }
        call.api.agent_put(&call.caller, &id, &definition).await
    }

    async fn remove(&mut self, id: String) -> Result<(), Error> {
        let call = self.managing()?;
        call.api.agent_remove(&call.caller, &id).await
    }
}

/// Checks what bounds a turn; the rest of its rules are the daemon's.
fn check(turn: &NewTurn) -> Result<(), Error> {
    if let Asked::Send(said) = &turn.asked
        && said.attachments.len() > limits::ATTACHMENTS_MAX
    {
        return Err(invalid("attachments", format!("may be at most {}", limits::ATTACHMENTS_MAX)));
    }
    let (text, attached) = match &turn.asked {
        Asked::Send(said) => (
            said.text.len(),
            said.attachments.iter().map(|one| one.data.len() + one.name.len() + one.media_type.len()).sum(),
        ),
        Asked::Edit(edited) => (edited.text.len(), 0),
        Asked::Retry => (0, 0),
    };
    if text > limits::SAID_BYTES_MAX {
        return Err(invalid("text", format!("must have at most {} bytes; it has {text}", limits::SAID_BYTES_MAX)));
    }
    if attached > limits::ATTACHED_BYTES_MAX {
        let most = limits::ATTACHED_BYTES_MAX;
        return Err(invalid("attachments", format!("may have {most} bytes together; they have {attached}")));
    }
    Ok(())
}

impl chat::Host for State {
    async fn create(&mut self, session: NewSession) -> Result<Session, Error> {
        let call = self.chatting(true)?;
        call.api.chat_create(&call.caller, session).await
    }

    async fn list(&mut self, agent: Option<String>, after: Option<String>, limit: u32) -> Result<SessionPage, Error> {
        let call = self.chatting(false)?;
        call.api.chat_list(&call.caller, agent, after, limit.clamp(1, limits::PAGE_ITEMS_MAX)).await
    }

    async fn read(&mut self, session: String) -> Result<Session, Error> {
        let call = self.chatting(false)?;
        call.api.chat_read(&call.caller, &session).await
    }

    async fn history(&mut self, session: String, after: Option<String>, limit: u32) -> Result<MessagePage, Error> {
        let call = self.chatting(false)?;
        call.api.chat_history(&call.caller, &session, after, limit.clamp(1, limits::PAGE_ITEMS_MAX)).await
    }

    async fn turn(&mut self, turn: NewTurn) -> Result<TurnAnswer, Error> {
        check(&turn)?;
        let (meter, common) = (self.meter.clone(), self.common.clone());
        let call = self.chatting(true)?;
        wait_for(&meter, &common, Duration::MAX, call.api.chat_turn(&call.caller, turn)).await
    }

    async fn stream_turn(&mut self, turn: NewTurn) -> Result<(TurnInfo, Resource<TurnStream>), Error> {
        check(&turn)?;
        let (meter, common) = (self.meter.clone(), self.common.clone());
        let call = self.chatting(true)?;
        if call.turns.len() >= limits::TURNS_MAX {
            return Err(Error::Limit(format!("one call may look at {} turns at once", limits::TURNS_MAX)));
        }
        let begun = wait_for(&meter, &common, Duration::MAX, call.api.chat_stream(&call.caller, turn)).await;
        let (info, frames) = begun?;
        self.turns = self.turns.wrapping_add(1);
        let number = self.turns;
        self.call()?.turns.insert(number, frames);
        Ok((info, Resource::new_own(number)))
    }

    async fn stop(&mut self, session: String) -> Result<bool, Error> {
        let (meter, common) = (self.meter.clone(), self.common.clone());
        let call = self.chatting(true)?;
        wait_for(&meter, &common, Duration::MAX, call.api.chat_stop(&call.caller, &session)).await
    }

    async fn delete(&mut self, session: String) -> Result<(), Error> {
        let call = self.chatting(true)?;
        call.api.chat_delete(&call.caller, &session).await
    }
}

impl chat::HostTurnStream for State {
    async fn next(&mut self, stream: Resource<TurnStream>) -> Result<Option<Frame>, Error> {
        let (meter, common) = (self.meter.clone(), self.common.clone());
        let call = self.chatting(false)?;
        let over = || Error::Conflict("the call that began to look at this turn is over".to_owned());
        let frames = call.turns.get_mut(&stream.rep()).ok_or_else(over)?;
        wait_for(&meter, &common, Duration::MAX, frames.next()).await
    }

    async fn drop(&mut self, stream: Resource<TurnStream>) -> wasmtime::Result<()> {
        if let Some(call) = &mut self.call {
            call.turns.remove(&stream.rep());
        }
        Ok(())
    }
}
