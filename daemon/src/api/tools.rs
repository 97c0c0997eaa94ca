//! Tools: what there is, calling one, and the approvals that calls wait for.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::body::{self, Reply};
use super::problem::Problem;
use super::query::Query;
use super::{App, Call, again};
use crate::error::{Error, FieldError};
use crate::event::Trust;
use crate::id::{fresh, hex};
use crate::tools::{self, Answer, Caller, Remember, ToolFailure};

/// `GET /tools`: every tool, by name.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &["limit", "cursor"])?.page("tools", app.tools.list())
}

/// `GET /capabilities`: the tools that the caller could call.
pub(super) async fn capabilities(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let trust = call.principal.as_ref().map_or(Trust::Web, |principal| principal.trust);
    let found = app.tools.list_for(&app.tools.policy(), trust);
    Query::read(&call, &["limit", "cursor"])?.page("tools", found)
}

/// `POST /tools/{name}/execute`: through the same gate as the call of an agent.
pub(super) async fn execute(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let dry_run = Query::read(&call, &["dry_run"])?.flag("dry_run", false)?;
    let mut fields = call.fields().await?;
    let input = fields.value("input").unwrap_or_else(|| json!({}));
    fields.done()?;
    let tool = call.param("name").to_owned();
    let principal = call.principal.as_ref().map_or_else(|| "anonymous".to_owned(), |who| who.name.to_string());
    let key = again::key(&call.headers, &principal, &format!("/tools/{tool}/execute"))?;
    let wanted = tools::Call {
        key: key.map_or_else(fresh, |key| hex(&key)),
        tool: tool.clone(),
        arguments: input,
        caller: Caller {
            principal,
            agent: None,
            session: None,
            trust: call.principal.as_ref().map_or(Trust::Web, |who| who.trust),
            trace: call.trace,
            cause: None,
            policy: app.tools.policy(),
        },
    };
    if dry_run {
        call.draft.skip();
        let (preview, asks) = app.tools.dry_run(wanted).await.map_err(problem)?;
        return body::ok(&json!({ "tool": tool, "dry_run": true, "preview": preview.text, "asks": asks }));
    }
    let operator = call.draft.operator();
    // The gate writes the record of the call.
    call.draft.skip();
    let output = app.tools.call_as(wanted, operator, &CancellationToken::new(), &|_| {}).await.map_err(problem)?;
    let text = output.value.is_none().then(|| json!(output.text));
    body::ok(&json!({ "tool": tool, "output": output.value.or(text), "trust": output.trust }))
}

/// A failure as HTTP says it.
fn problem(failure: ToolFailure) -> Problem {
    match failure {
        ToolFailure::Arguments(pointer, reason) => Error::invalid(format!("input{pointer}"), reason).into(),
        ToolFailure::Refused("tool_unknown", reason) => Problem::new(
            (StatusCode::NOT_FOUND, "not_found"),
            format!("{} GET /tools lists them (`aman tool list`).", sentence(&reason)),
        ),
        ToolFailure::Refused(code, reason) => Problem::new((StatusCode::FORBIDDEN, code), sentence(&reason)),
        ToolFailure::Failed(reason) => Problem::new((StatusCode::BAD_GATEWAY, "tool_failed"), sentence(&reason)),
        ToolFailure::Unknown(reason) => {
            let detail =
                format!("{} Whether it was done is not known: look before you call it again.", sentence(&reason));
            Problem::new((StatusCode::BAD_GATEWAY, "tool_failed"), detail)
        }
    }
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let begun: String = chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect());
    if begun.ends_with(['.', '!', '?']) { begun } else { format!("{begun}.") }
}

/// `GET /tool-auth/pending`: what waits for an answer, oldest first.
pub(super) async fn pending(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["limit", "cursor"])?;
    query.page("approvals", app.tools.pending().await?)
}

/// `POST /tool-auth/respond`: the first answer wins.
pub(super) async fn respond(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    let mut fields = call.fields().await?;
    let (id, approved, remember) = (fields.required_text("auth_id"), fields.value("approved"), fields.text("remember"));
    fields.done()?;
    let mut wrong = Vec::new();
    let approved = approved.and_then(|approved| approved.as_bool()).unwrap_or_else(|| {
        wrong.push(FieldError { field: "approved".to_owned(), reason: "is required: true or false.".to_owned() });
        false
    });
    let remember = remember.map_or(Some(Remember::Once), |name| Remember::of_name(&name)).unwrap_or_else(|| {
        wrong.push(FieldError { field: "remember".to_owned(), reason: "must be once, session or always.".to_owned() });
        Remember::Once
    });
    if !wrong.is_empty() {
        return Err(Error::Invalid { code: "invalid_input", fields: wrong }.into());
    }
    let asked = app.tools.approval(&id).await?;
    let principal = call.principal.as_ref().map_or_else(String::new, |who| who.name.to_string());
    let (draft, target) = (call.draft.clone(), id.clone());
    let detail = json!({
        "tool": asked.tool, "approved": approved, "remember": remember, "pattern": asked.pattern, "agent": asked.agent,
        "session": asked.session, "digest": asked.digest,
    });
    let answer = Answer { id, approved, remember, principal };
    let record = Box::new(move |tx: &mut crate::store::Tx<'_>| draft.record(tx, &target, detail));
    body::ok(&app.tools.respond_with(answer, record).await?)
}

/// `GET /tool-auth/rules`: what was allowed once for all, oldest first.
pub(super) async fn rules(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["limit", "cursor"])?;
    query.page("rules", app.tools.rules().await?)
}

/// `DELETE /tool-auth/rules?id=`: revokes one.
pub(super) async fn revoke(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    let query = Query::read(&call, &["id"])?;
    let id = query.text("id").ok_or_else(|| Error::invalid("id", "is required: the id of the rule, as ?id=."))?;
    let (draft, target) = (call.draft.clone(), id.clone());
    let record = move |tx: &mut crate::store::Tx<'_>, rule: &tools::RuleShown| {
        draft.record(tx, &target, json!({ "pattern": rule.pattern, "agent": rule.agent, "session": rule.session }))
    };
    app.tools.revoke(&id, record).await?;
    body::ok(&json!({ "deleted": true }))
}
