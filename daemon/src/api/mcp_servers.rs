//! Servers of the Model Context Protocol whose tools are offered: shown, and connected to anew.

use std::sync::Arc;

use serde_json::json;

use super::body::{self, Reply};
use super::problem::Problem;
use super::query::Query;
use super::{App, Call};

/// `GET /mcp-servers`, by name.
pub(super) async fn list(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &["limit", "cursor"])?.page("mcp-servers", app.mcp.list())
}

/// `GET /mcp-server/{name}`
pub(super) async fn show(app: Arc<App>, call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    body::ok(&app.mcp.show(call.param("name"))?)
}

/// `POST /mcp-server/{name}/reconnect`: 200 with how it stands; the connection is made in the background.
pub(super) async fn reconnect(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    let answer = app.mcp.reconnect(call.param("name"))?;
    let (draft, name) = (call.draft.clone(), call.param("name").to_owned());
    app.store.write(move |tx| draft.record(tx, &name, json!({}))).await?;
    body::ok(&answer)
}
