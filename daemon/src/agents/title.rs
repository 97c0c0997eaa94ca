//! A title by a model: once, behind the first answer, and only of the model that `models.cheap` names. It is in nobody's way:
//! whatever does not work leaves the title that was made of the first words.

use std::sync::Arc;

use super::frames::{Kind, Viewer};
use super::sessions::made_title;
use super::{Definition, Inner};
use crate::budget::Scopes;
use crate::models::{Message, Request, Usage, estimate};
use crate::store::chat as rows;

/// Bytes of question and answer that it is made of, each.
const SHOWN_BYTES_MAX: usize = 2000;
/// Tokens of a title.
const TOKENS_MAX: u32 = 40;
const SYSTEM: &str =
    "Give the conversation a title of at most six words, in its own language. Answer with the title alone.";

impl Inner {
    /// Has a title made once the turn that `viewer` looks at has its answer; at once when there is no cheap model.
    pub(super) fn entitle(self: &Arc<Self>, definition: Arc<Definition>, said: &str, session: i64, viewer: Viewer) {
        let Some(cheap) = self.parts.models.cheaper(&definition.model) else { return };
        let said = said[..said.floor_char_boundary(SHOWN_BYTES_MAX)].to_owned();
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let stopping = inner.bus.stopping().clone();
            tokio::select! {
                () = stopping.cancelled() => {}
                _made = inner.make_title(&definition, cheap, said, session, viewer) => {}
            }
        });
    }

    /// None when it comes to nothing.
    async fn make_title(
        &self,
        definition: &Definition,
        cheap: String,
        said: String,
        session: i64,
        mut viewer: Viewer,
    ) -> Option<()> {
        let answer = answer(&mut viewer).await?;
        let about = viewer.about();
        let request = Request {
            model: cheap,
            system: SYSTEM.to_owned(),
            messages: vec![Message::User { text: format!("{said}\n\n{answer}"), images: Vec::new() }],
            max_tokens: Some(TOKENS_MAX),
            ..Request::default()
        };
        let parts = &self.parts;
        let price = parts.models.price(&request.model);
        let cost = |usage: Usage| price.map_or(0, |price| usage.cost(&price));
        let input = estimate(SYSTEM) + estimate(&said) + estimate(&answer);
        let most = Usage { input, output: u64::from(TOKENS_MAX), ..Usage::default() };
        let scopes = Scopes {
            agent: about.agent.clone(),
            session: Some(about.session.clone()),
            job: None,
            limits: definition.budget.clone(),
        };
        let key = format!("title/{}", about.turn);
        // Where the budget runs low, a title is the first thing to do without.
        let reserved = parts.budget.reserve(&key, &scopes, most.input + most.output, cost(most)).await.ok()?.ok()?;
        let asked = match reserved.soft {
            true => None,
            false => parts.models.try_one(request, &mut |_| ()).await.ok(),
        };
        let Some(asked) = asked else {
            parts.budget.release(&key).await.ok()?;
            return None;
        };
        parts.budget.settle(&key, asked.usage, cost(asked.usage)).await.ok()?;
        let line = asked.text.lines().map(str::trim).find(|line| !line.is_empty())?;
        let title = made_title(line.trim_matches(|c: char| c.is_whitespace() || "\"'*#`“”„«»".contains(c)))?;
        self.bus.store().write(move |tx| rows::retitle(tx, session, &title)).await.ok()
    }
}

/// The begin of the answer of a turn; none when it has none.
async fn answer(viewer: &mut Viewer) -> Option<String> {
    viewer.ended().await;
    let mut answer = String::new();
    while let Some(frame) = viewer.next().await {
        match frame.kind {
            Kind::Token if answer.len() < SHOWN_BYTES_MAX => {
                answer.push_str(frame.data["text"].as_str().unwrap_or_default());
            }
            Kind::Start | Kind::Restart => answer.clear(),
            Kind::Done if frame.data["status"] == "done" => {
                answer.truncate(answer.floor_char_boundary(SHOWN_BYTES_MAX));
                return Some(answer);
            }
            Kind::Done | Kind::Error => return None,
            _ => {}
        }
    }
    None
}
