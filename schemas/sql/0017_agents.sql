-- Agents, and the turns that they take.

-- Every definition that an agent ever had.
CREATE TABLE agent_definition (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    agent      TEXT NOT NULL,
    digest     TEXT NOT NULL,                  -- SHA-256 of the text, hex
    text       TEXT NOT NULL,                  -- TOML
    principal  TEXT NOT NULL,                  -- who changed it
    created_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX agent_definition_agent ON agent_definition (agent, number);

CREATE TABLE agent (
    id          TEXT PRIMARY KEY,
    digest      TEXT,                          -- NULL = removed; the row stays so that its file does not bring it back
    origin      INTEGER NOT NULL,              -- 0 API, 1 file, 2 bundled
    file_digest TEXT,                          -- the content of its file that was taken over last
    disabled    INTEGER NOT NULL,
    updated_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A turn: from a message to the answer, in steps that are never taken twice.
CREATE TABLE turn (
    number     INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    session    INTEGER NOT NULL,
    agent      TEXT NOT NULL,
    message    INTEGER NOT NULL,               -- the message that it answers
    event      INTEGER NOT NULL,               -- sequence of the event whose delivery it is
    consumer   TEXT NOT NULL,                  -- to whom: agent/<id>, or skill/<name>
    status     INTEGER NOT NULL,               -- 0 pending, 1 running, 2 done, 3 failed, 4 stopped
    error      TEXT,                           -- JSON: code, detail
    trace      TEXT NOT NULL,
    trust      INTEGER NOT NULL,               -- what it began with; what it reads can lower it
    principal  TEXT NOT NULL,
    stopped_by TEXT,                           -- who asked to stop it
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX turn_session ON turn (session, number);
CREATE UNIQUE INDEX turn_delivery ON turn (event, consumer);
CREATE INDEX turn_open ON turn (agent, number) WHERE status < 2;

-- The journal of a turn.
CREATE TABLE turn_step (
    turn       INTEGER NOT NULL,
    number     INTEGER NOT NULL,
    kind       INTEGER NOT NULL,               -- 0 answer of a model, 1 call of a tool
    name       TEXT NOT NULL,                  -- the model, or the tool
    status     INTEGER NOT NULL,               -- 0 begun, 1 done, 2 failed, 3 cut off with an outcome that nobody knows
    body       TEXT NOT NULL,                  -- JSON: what was asked and, once it ended, what came of it
    started_ms INTEGER NOT NULL,
    ended_ms   INTEGER,
    PRIMARY KEY (turn, number)
) STRICT, WITHOUT ROWID;
