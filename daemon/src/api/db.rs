//! The database: how it stands, what retention removes, giving room back.

use std::sync::Arc;

use serde_json::{Value, json};

use super::body::{self, Reply};
use super::problem::Problem;
use super::query::Query;
use super::{App, Call};
use crate::store::Tx;
use crate::upkeep::Recorder;

/// Records what was done as the change of this request.
fn recorder(call: &Call) -> Recorder {
    let draft = call.draft.clone();
    Box::new(move |tx: &Tx<'_>, detail: Value| draft.record(tx, "database", detail))
}

/// `POST /db/prune`: removes now what is due by `bus.retention`.
pub(super) async fn prune(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    let dry_run = Query::read(&call, &["dry_run"])?.flag("dry_run", false)?;
    if dry_run {
        call.draft.skip();
    }
    call.fields().await?.done()?;
    if dry_run {
        let mut answer = json!(app.upkeep.due().await?);
        answer["dry_run"] = true.into();
        return body::ok(&answer);
    }
    body::ok(&app.upkeep.prune(recorder(&call)).await?)
}

/// `POST /db/vacuum`: gives all free pages back to the disk.
pub(super) async fn vacuum(app: Arc<App>, mut call: Call) -> Result<Reply, Problem> {
    Query::read(&call, &[])?;
    call.fields().await?.done()?;
    body::ok(&app.upkeep.vacuum(recorder(&call)).await?)
}
