-- Calls of tools: what needs an answer of the person, and what the person allowed once for all.

CREATE TABLE approval (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT NOT NULL UNIQUE,
    key         TEXT NOT NULL UNIQUE,          -- the call's; the same call again finds its answer
    digest      TEXT NOT NULL,                 -- SHA-256 of exactly what would run, hex
    tool        TEXT NOT NULL,
    source      TEXT NOT NULL,                 -- who offers the tool: builtin, plugin/<name>, mcp/<server>
    arguments   TEXT NOT NULL,                 -- JSON, without secrets
    preview     TEXT,                          -- what it would touch, in words, without secrets
    pattern     TEXT NOT NULL,                 -- what an always-rule would allow, in words that a rule has
    reason      TEXT NOT NULL,                 -- why it is asked
    once        INTEGER NOT NULL,              -- 1 = no rule may be made of it
    agent       TEXT,
    session     TEXT,
    principal   TEXT NOT NULL,
    trust       INTEGER NOT NULL,
    trace       TEXT NOT NULL,
    status      INTEGER NOT NULL,              -- 0 pending, 1 approved, 2 denied, 3 expired, 4 withdrawn
    remember    INTEGER NOT NULL,              -- 0 once, 1 session, 2 always
    answered_by TEXT,
    created_ms  INTEGER NOT NULL,
    expires_ms  INTEGER NOT NULL,
    answered_ms INTEGER,
    begun_ms    INTEGER                        -- when the call began to run behind a yes; NULL = it did not
) STRICT;
CREATE INDEX approval_pending ON approval (expires_ms) WHERE status = 0;

CREATE TABLE approval_rule (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    agent      TEXT,                           -- NULL = calls that no agent makes
    session    TEXT,                           -- NULL = every session
    tool       TEXT NOT NULL,
    source     TEXT NOT NULL,                  -- whose: one of the same name that another offers is another tool
    pattern    TEXT NOT NULL,                  -- which calls
    principal  TEXT NOT NULL,                  -- who allowed it
    uses       INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX approval_rule_tool ON approval_rule (tool, agent);
