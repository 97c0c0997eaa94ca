//! What each route is for, its query, its request body and its answers; one line a route of the table.
//!
//! A name in the query ends with `!` when it is required, a request when it must have a body. Answers are
//! `status:Schema`, or a bare status for a problem beyond those that any such route can give.

use super::Route;

/// One line.
pub(super) struct Operation {
    route: &'static str,
    /// What it is for.
    pub summary: &'static str,
    /// Names of query parameters.
    pub query: &'static str,
    /// Schema of the request's body.
    pub request: &'static str,
    /// Its answers.
    pub answers: &'static str,
}

const fn op(
    route: &'static str,
    query: &'static str,
    request: &'static str,
    answers: &'static str,
    summary: &'static str,
) -> Operation {
    Operation { route, summary, query, request, answers }
}

const PUSHED: &str = "Push|application/cloudevents+json=CloudEvent|application/cloudevents-batch+json=CloudEvents!";

/// Stands for a route that has no line yet.
const UNKNOWN: Operation = op("", "", "", "200:Object", "Not described yet.");

#[rustfmt::skip]
const OPERATIONS: &[Operation] = &[
    op("GET /health", "", "", "200:Health 503:Health", "Whether the daemon is ready and well."),
    op("GET /health/live", "", "", "200:Health", "Whether the process answers."),
    op("GET /health/ready", "", "", "200:Health 503:Health", "Whether it takes work."),
    op("GET /health/llm", "", "", "200:Health 503:Health", "Whether a configured model answers."),
    op("GET /models", "limit cursor", "", "200:Items", "Language models that are known by name."),
    op("POST /models/test", "", "ModelTest", "200:Object", "Asks one model once, and tells how that went."),
    op("GET /metrics", "", "", "200:text/plain", "Counters as Prometheus text."),
    op("GET /openapi.json", "", "", "200:Object", "This document."),
    op("GET /debug/metrics", "", "", "200:Object", "Counters and gauges as JSON."),
    op("POST /agent/start", "", "Empty", "200:Status", "Says how the daemon stands; it runs already."),
    op("POST /agent/shutdown", "", "Empty", "202:Status", "Ends the daemon once running work is done."),
    op("GET /runtime/status", "", "", "200:RuntimeStatus", "Where the daemon stands, and its parts."),
    op("GET /runtime/config", "", "", "200:RuntimeConfig", "The configuration in force, each key with its origin."),
    op("POST /config/set", "dry_run", "ConfigSet!", "200:ConfigChanged 409", "Sets keys above every other layer, live where possible."),
    op("POST /config/reload", "dry_run", "Empty", "200:ConfigReloaded 409", "Reads the configuration file again."),
    op("POST /events/push", "dry_run", PUSHED, "200:Object 202:AcceptedOrBatch 422", "Stores events; answered once they are durable."),
    op("POST /inject-event", "dry_run", PUSHED, "200:Object 202:AcceptedOrBatch 422", "As push, for tests."),
    op("GET /events/stream", "types agent_id trace_id since named metrics ticket", "", "200:text/event-stream", "Events as they are stored, with replay."),
    op("GET /events/recent", "limit types source cursor", "", "200:Events", "Events, newest first."),
    op("GET /events/types", "limit cursor", "", "200:SeenTypes", "Types that were seen or have a schema."),
    op("GET /events/dump/{id}", "source", "", "200:EventDump 409", "One event, named by id, sequence, delivery or a beginning of these, and its deliveries."),
    op("GET /events/trace/{trace_id}", "", "", "200:Trace", "The events of a trace, and who caused whom."),
    op("GET /events/{id}/why", "source all consumer", "", "200:Why 409", "What was decided for an event, named by id, sequence, delivery or a beginning of these, and why."),
    op("GET /dlq", "reason source type consumer fingerprint limit cursor", "", "200:DeadLetters", "Dead letters, newest failure first."),
    op("GET /dlq/depth", "", "", "200:DeadLetterDepth", "How many there are."),
    op("GET /dlq/groups", "limit cursor", "", "200:DeadLetterGroups", "Dead letters by cause."),
    op("POST /dlq/retry", "dry_run", "Fingerprint!", "200:RetriedGroup 404", "Tries every letter of one cause again."),
    op("POST /dlq/{id}/retry", "dry_run", "Reason", "200:Retrying", "Tries a letter again, under the same id."),
    op("POST /dlq/{id}/discard", "", "Reason", "200:Discarded 409", "Gives a letter up; a tombstone stays."),
    op("GET /audit-log", "action operator principal outcome since until limit cursor", "", "200:AuditRecords", "Who changed what, newest first."),
    op("GET /audit-log/verify", "head", "", "200:AuditVerdict", "Whether the chain of records is whole."),
    op("GET /sinks", "limit cursor", "", "200:Items", "Where events go, and how each stands."),
    op("GET /sink/{id}", "", "", "200:Object", "One sink with its settings and what waits."),
    op("POST /sink/{id}/pause", "", "Empty", "200:Object 409", "Switches a sink off, also over restarts; what is for it waits."),
    op("POST /sink/{id}/resume", "", "Empty", "200:Object 409", "Switches a sink on again, also after 410 Gone."),
    op("GET /sink/{id}/failures", "limit cursor", "", "200:Items", "What could not be sent for good, newest first."),
    op("POST /sink/{id}/failure/{key}/retry", "", "Empty", "200:Object 409", "Sends again what failed, under the same key."),
    op("POST /sink/{id}/discard", "", "Empty", "200:Object", "Gives up what waits to be sent, also by a sink that was removed."),
    op("POST /sink/{id}/test", "dry_run", "SinkTest", "200:SinkTested", "Sends one event that is made for it, and tells how that ended."),
    op("GET /soul/info", "", "", "200:Soul", "Who the assistant is, and what it does not do."),
    op("GET /soul/raw", "", "", "200:SoulText", "The text that is in force."),
    op("GET /soul/versions", "limit cursor", "", "200:SoulVersions", "Texts that were in force, newest first."),
    op("GET /soul/system-prompt", "agent_id", "", "200:SystemPrompt 404", "What a model is told before everything else."),
    op("POST /soul/update", "dry_run", "SoulUpdate!", "200:Soul 409", "Puts a text in force, once it is checked; a dry run checks only."),
    op("POST /soul/rollback", "", "SoulRollback!", "200:Soul 404 409", "Puts an earlier text in force; that is a new entry of the history."),
    op("GET /memory", "agent_id shared q limit cursor", "", "200:Memories", "What agents remember, newest first; with words, best first."),
    op("POST /memory", "", "NewMemory!", "200:Memory 201:Memory 403 409 422", "Remembers a fact; one that is remembered already stays one."),
    op("DELETE /memory", "id!", "Empty", "200:Deleted 403 404", "Forgets a fact, as DELETE /memory/{id}."),
    op("GET /memory/export", "agent_id shared format", "", "200:MemoryExport|text/markdown", "Everything that is remembered, to take along."),
    op("GET /memory/{id}", "", "", "200:Memory", "One fact."),
    op("POST /memory/{id}", "", "MemoryChange!", "200:Memory 403 409", "Corrects a fact; whoever does it is its source from then on."),
    op("DELETE /memory/{id}", "", "Empty", "200:Deleted 403", "Forgets a fact."),
    op("GET /usage", "day scope limit cursor", "", "200:UsageList", "What models cost, by day and by whose it is."),
    op("GET /skills", "limit cursor", "", "200:Skills", "All skills."),
    op("GET /llm-skills", "limit cursor", "", "200:SkillsForModels", "Skills as a model is told of them."),
    op("GET /skills/search", "q! limit", "", "200:SkillHits", "Skills by words."),
    op("POST /skills/reload", "", "Empty", "200:SkillsReloaded", "Reads the skill folders again."),
    op("GET /skill/{name}", "", "", "200:Skill", "One skill."),
    op("GET /skill/{name}/content", "", "", "200:SkillText", "Its text and files."),
    op("GET /skill/{name}/versions", "limit cursor", "", "200:SkillVersions", "Its history."),
    op("GET /skill/{name}/diff", "from to", "", "200:SkillDiff 409", "What differs between two contents of a skill; by default the last change."),
    op("POST /skill/{name}/rollback", "dry_run", "SkillRollback!", "200:Object 409", "Brings an earlier content back; that is a new entry of the history."),
    op("POST /skill/{name}/enable", "", "Digest", "200:Skill 409", "Lets it react; trusts the digest that is given."),
    op("POST /skill/{name}/disable", "", "Empty", "200:Skill", "Keeps it from reacting."),
    op("GET /db/stats", "", "", "200:Object", "Tables, room, and how much comes in a day."),
    op("GET /db/check", "", "", "200:Object 409", "Whether the database is whole."),
    op("POST /db/prune", "dry_run", "Empty", "200:Object 409", "Removes what is kept long enough, as retention does by itself."),
    op("POST /db/vacuum", "", "Empty", "200:Object 409", "Gives free room in the database's file back to the disk."),
    op("GET /", "", "", "200:text/html", "A small page: live events and dead letters."),
    op("GET /auth/open", "code!", "", "200:text/html 401 405 429", "Turns the code of a login URL into a session."),
    op(
        "POST /auth/open",
        "",
        "Empty",
        "201:Login",
        "Makes a login URL that is good once. It is never stored, so an Idempotency-Key has no effect: each call makes one.",
    ),
    op("POST /auth/logout", "", "Empty", "200:LoggedOut", "Ends the browser's session that the cookie and its header prove."),
    op(
        "POST /auth/ticket",
        "",
        "Empty",
        "201:Ticket",
        "Makes a ticket for one stream, good for 30 seconds. It is never stored, so an Idempotency-Key has no effect.",
    ),
    op("GET /auth/token", "limit cursor", "", "200:Items", "Tokens that were minted."),
    op("POST /auth/token", "", "MintToken!", "201:Object 409 422", "Mints a token; it is shown once."),
    op("DELETE /auth/token", "id!", "", "200:Deleted 404", "Revokes a token."),
    op("GET /plugins", "limit cursor", "", "200:Items", "What was installed, and how each plugin stands."),
    op("POST /plugin/install", "approve allow_unsigned allow_downgrade dry_run", "application/gzip|multipart/form-data!", "200:Installed 201:Installed 409 422", "Installs a package, or a new version of what is there."),
    op("GET /plugin/{name}", "", "", "200:Plugin", "One plugin: its manifest, what it may do, how it is, what it uses."),
    op("POST /plugin/{name}/approve", "", "Agreed!", "200:Plugin 409", "Agrees to what the waiting version asks for."),
    op("POST /plugin/{name}/enable", "", "Empty", "200:Plugin 409", "Switches a plugin on."),
    op("POST /plugin/{name}/disable", "", "Empty", "200:Plugin", "Switches a plugin off; deliveries that wait for it wait on."),
    op("POST /plugin/{name}/rollback", "", "Empty", "200:Plugin 409", "Goes back to the version before."),
    op("POST /plugin/{name}/uninstall", "", "Uninstall", "200:Deleted", "Removes a plugin; its data stay unless purged."),
    op("GET /capabilities", "limit cursor", "", "200:Items", "The tools that the caller could call, with the schemas of their input."),
    op("GET /tools", "limit cursor", "", "200:Items", "Every tool: what it does, the schema of its input, whose it is, what a call can do."),
    op("POST /tools/{name}/execute", "dry_run", "ToolInput", "200:Object 403 404 502", "Calls a tool, by the policy in [tools]; waits for an approval where one is needed."),
    op("GET /tool-auth/pending", "limit cursor", "", "200:Items", "The calls that wait for an approval, oldest first."),
    op("POST /tool-auth/respond", "", "ToolAnswer!", "200:Object 404 409", "Approves or denies a call; the first answer wins."),
    op("GET /tool-auth/rules", "limit cursor", "", "200:Items", "What was allowed once for all, oldest first."),
    op("DELETE /tool-auth/rules", "id!", "", "200:Deleted 404", "Revokes a rule."),
    op("GET /v1/models", "", "", "200:Object 403", "The agents, as OpenAI lists models. Off by default."),
    op("GET /v1/models/{id}", "", "", "200:Object 403 404", "One of them."),
    op("POST /v1/chat/completions", "", "Object!", "200:Object 403 404 409 502 503", "Has an agent answer, as OpenAI's chat completions do; whole, or streamed."),
    op("POST /mcp", "", "Object!", "200:Object 202:text/plain 400:Object 406:text/plain", "The Model Context Protocol, in every version: one message of a client. Off by default."),
    op("GET /mcp-servers", "limit cursor", "", "200:Items", "MCP servers whose tools are offered, and how each stands."),
    op("GET /mcp-server/{name}", "", "", "200:Object", "One of them."),
    op("POST /mcp-server/{name}/reconnect", "", "Empty", "200:Object 409", "Connects to one anew, in the background."),
    op("GET /ui/pages", "", "", "200:Pages", "Pages of plugins."),
    op("GET /ui/plugin/{name}/{*path}", "", "", "200:text/html", "A file of a plugin's pages, on an origin of its own."),
    op("GET /notifications", "active_only severity category limit offset cursor", "", "200:Notifications", "What the person is told, newest first."),
    op("GET /notifications/unread-count", "", "", "200:Count", "How many nobody acknowledged or dismissed."),
    op("GET /notifications/{id}", "", "", "200:Notification", "One notification."),
    op("POST /notifications/{id}/ack", "", "Empty", "200:Notification 409", "Takes note of it; what is like it is counted there."),
    op("POST /notifications/{id}/dismiss", "", "Empty", "200:Notification", "Puts it away; what is like it is told anew."),
    op("POST /notifications/dismiss-all", "", "DismissAll", "200:DismissedAll", "Puts all away, or those of a severity or category."),
    op("POST /notifications/test", "", "NotificationTest", "200:Notification", "Tells what the body says; for trials."),
    op("GET /cron", "limit cursor", "", "200:Items", "All jobs."),
    op("POST /cron/add", "dry_run", "CronJob!", "200:Object 201:Object 409 422", "Adds a job."),
    op("GET /cron/{id}", "", "", "200:Object", "One job."),
    op("GET /cron/{id}/runs", "status limit cursor", "", "200:Items", "Its slots, newest first."),
    op("GET /cron/{id}/next", "count", "", "200:Object", "When it is due next."),
    op("POST /cron/{id}/update", "dry_run", "CronPatch!", "200:Object 409", "Changes a job by a merge patch."),
    op("POST /cron/{id}/remove", "", "Empty", "200:Deleted", "Removes a job."),
    op("POST /cron/{id}/run", "", "Empty", "200:Object 202:Object 409 422", "Runs a job now."),
    op("GET /event-sources", "limit cursor", "", "200:Items", "All sources and how they are."),
    op("GET /event-source/{id}", "", "", "200:Object", "One source."),
    op("POST /event-source/{id}/pause", "", "Empty", "200:Object 409", "Lets a source rest."),
    op("POST /event-source/{id}/resume", "", "Empty", "200:Object 409", "Lets a source go on."),
    op("PUT /event-source/{id}/config", "", "Object!", "200:Object 409", "Changes a source's settings, at once and for good."),
    op("GET /sources", "limit cursor", "", "200:Items", "As /event-sources."),
    op("GET /source/{id}", "", "", "200:Object", "As /event-source/{id}."),
    op("POST /source/{id}/pause", "", "Empty", "200:Object 409", "As /event-source/{id}/pause."),
    op("POST /source/{id}/resume", "", "Empty", "200:Object 409", "As /event-source/{id}/resume."),
    op("PUT /source/{id}/config", "", "Object!", "200:Object 409", "As /event-source/{id}/config."),
    op("POST /hooks/{id}", "", "*/*", "200:Object 202:AcceptedOrBatch 401", "Takes a call of another system; verified by its signature."),
    op("POST /im-channel/{platform}/{instance}/reload", "", "Empty", "200:Object", "Starts a channel anew."),
    op("GET /agents", "limit cursor", "", "200:Items", "Agents, by id: what each does, and what it used today."),
    op("GET /agent/{id}", "", "", "200:Object", "An agent and its definition."),
    op("PUT /agent/{id}", "dry_run", "AgentDefinition|application/toml", "200:Object 201:Object 409", "Checks and stores a definition, as JSON or TOML."),
    op("DELETE /agent/{id}", "", "", "200:Deleted", "Removes an agent; its sessions and its history stay."),
    op("POST /agent/{id}/status", "", "AgentStatus!", "200:Object", "Switches an agent on or off; what is for it waits."),
    op("POST /agent/{id}/reload", "", "Empty", "200:Object 409", "Reads the file of an agent again."),
    op("GET /agent/{id}/versions", "limit cursor", "", "200:Items", "The definitions that an agent had, newest first."),
    op("POST /agent/{id}/rollback", "", "SkillRollback!", "200:Object 404", "Puts a definition that an agent had in force again."),
    op("GET /chat/sessions", "agent_id kind state limit cursor", "", "200:ChatSessions", "Sessions, those that changed last first; without admin one's own."),
    op("GET /chat/search", "q! agent_id limit", "", "200:ChatHits", "What was said, by words, best first."),
    op("POST /chat/session/create", "", "ChatCreate", "201:ChatSession 404 409 422", "Begins a session with an agent."),
    op("GET /chat/session/{id}/state", "", "", "200:ChatState", "How a session stands, with its newest messages, its usage and what waits for an answer."),
    op("GET /chat/session/{id}/history", "branches limit cursor", "", "200:ChatHistory", "What was said, oldest first: the branch that is shown, or all."),
    op("GET /chat/session/{id}/export", "format", "", "200:Object|text/markdown", "The conversation written out, as Markdown or JSON."),
    op("GET /chat/session/{id}/stream", "", "", "200:text/event-stream 409", "The turn that is under way, from its begin."),
    op("POST /chat/session/{id}/send", "", "ChatSend!", "200:text/event-stream 202:ChatBegun 403 409 422", "Says something; with Accept: text/event-stream the answer is the turn."),
    op("POST /chat/session/{id}/edit", "", "ChatEdit!", "200:text/event-stream 202:ChatBegun 403 409 422", "Says something in the place of an earlier message, on a branch of its own."),
    op("POST /chat/session/{id}/retry", "", "ChatRetry", "200:text/event-stream 202:ChatBegun 409 422", "Has the last message answered once more, on a branch of its own."),
    op("POST /chat/session/{id}/stop", "", "Empty", "200:Object", "Stops the turn that is under way; what came of it stays."),
    op("POST /chat/session/{id}/rename", "", "ChatTitle!", "200:ChatSession", "Gives a session a title."),
    op("POST /chat/session/{id}/close", "", "Empty", "200:ChatSession 409", "Lets a session take no messages any more."),
    op("DELETE /chat/session/{id}", "", "", "200:Deleted 409", "Removes a session with all that was said in it."),
    op("GET /agents/idle-availability", "", "", "200:Object", "For which kinds of idle work each agent has time and a skill."),
    op("POST /explore/start", "", "Explore", "202:Object 404 409 422 503", "Looks through the configured sources for what is new, and says it in a session."),
    op("POST /idle-run", "", "IdleRun!", "202:Object 404 409 422", "Has an idle agent do a skill that is made for idle time."),
    op("GET /workflows", "limit cursor", "", "200:Items", "Workflows, by name."),
    op("GET /workflow/{name}", "format", "", "200:Object", "A workflow: definition, digest, versions; or a flowchart."),
    op("PUT /workflow/{name}", "dry_run", "Definition!", "200:Object 201:Object", "Checks and stores a definition, as JSON or YAML."),
    op("DELETE /workflow/{name}", "", "", "200:Object", "Removes a workflow; its instances go on."),
    op("POST /workflow/{name}/create", "dry_run", "WorkflowStart", "200:Object 201:Object 422", "Starts an instance."),
    op("GET /workflow-instances", "workflow status limit cursor", "", "200:Items", "Instances, newest first."),
    op("GET /workflow-instance/{id}", "format", "", "200:Object", "An instance and what its tasks came to; or a flowchart."),
    op("POST /workflow-instance/{id}/retry", "", "Empty", "200:Object 409", "Takes a faulted instance up at the task that failed."),
    op("POST /workflow-instance/{id}/cancel", "", "Empty", "200:Object 409", "Ends an instance and what it runs."),
    op("POST /workflow-instance/{id}/event", "", "Signal!", "200:Object 409", "Sends an event to one instance that waits for it."),
    op("POST /workflow-instance/{id}/pause", "", "Empty", "200:Object 409", "Lets an instance begin nothing new."),
    op("POST /workflow-instance/{id}/resume", "", "Empty", "200:Object 409", "Lets a paused instance go on."),
];

/// Method and path.
pub(super) fn key(route: &Route) -> String {
    format!("{} {}", route.method, route.path)
}

/// The keys of all lines.
pub(super) fn keys() -> impl Iterator<Item = String> {
    OPERATIONS.iter().map(|operation| operation.route.to_owned())
}

/// The line of a route.
pub(super) fn of(route: &Route) -> &'static Operation {
    let wanted = key(route);
    OPERATIONS.iter().find(|operation| operation.route == wanted).unwrap_or(&UNKNOWN)
}
