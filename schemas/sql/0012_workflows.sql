-- Workflows: definitions, instances, what instances did and what they wait for. Times are milliseconds since 1970 UTC.

-- Every definition that was ever in force; an instance keeps the one that it started with.
CREATE TABLE workflow_definition (
    digest     TEXT PRIMARY KEY,               -- SHA-256 of its content, hex
    name       TEXT NOT NULL,
    namespace  TEXT NOT NULL,
    version    TEXT NOT NULL,
    text       TEXT NOT NULL,                  -- as it was written, YAML or JSON
    created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX workflow_definition_name ON workflow_definition (name, created_ms);

-- A name, and the definition that new instances start with.
CREATE TABLE workflow (
    name        TEXT PRIMARY KEY,
    digest      TEXT,                          -- NULL = removed; the row stays so that its file does not bring it back
    origin      INTEGER NOT NULL,              -- 0 API, 1 file, 2 bundled
    file_digest TEXT,                          -- the content of its file that was taken over last
    next_ms     INTEGER,                       -- when a schedule starts the next instance
    partial     TEXT,                          -- JSON: what schedule.on has heard so far
    updated_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE workflow_instance (
    number     INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    workflow   TEXT NOT NULL,
    digest     TEXT NOT NULL,
    status     INTEGER NOT NULL,               -- 0 pending, 1 running, 2 waiting, 3 completed, 4 faulted, 5 cancelled
    hold       INTEGER NOT NULL,               -- 1 = paused: nothing new begins
    state      TEXT,                           -- JSON: where it stands; NULL = not begun, or ended for good
    input      TEXT NOT NULL,
    output     TEXT,
    error      TEXT,
    current    TEXT,                           -- pointer of the task that it is at
    due_ms     INTEGER,                        -- when it goes on by itself
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    trace      TEXT NOT NULL,
    trust      INTEGER NOT NULL,
    principal  TEXT NOT NULL,
    cause      TEXT,                           -- JSON: the event that started it
    parent     INTEGER,                        -- the instance that started it
    parent_key TEXT,                           -- how that one names it
    awaited    INTEGER NOT NULL,               -- 1 = its parent waits for its end
    dedup      TEXT
) STRICT;
CREATE INDEX workflow_instance_ready ON workflow_instance (number) WHERE status < 2 AND hold = 0;
CREATE INDEX workflow_instance_due ON workflow_instance (due_ms) WHERE status = 2 AND hold = 0 AND due_ms IS NOT NULL;
CREATE INDEX workflow_instance_open ON workflow_instance (workflow, digest) WHERE status < 3;
CREATE INDEX workflow_instance_name ON workflow_instance (workflow, number);
CREATE INDEX workflow_instance_parent ON workflow_instance (parent) WHERE parent IS NOT NULL;
CREATE UNIQUE INDEX workflow_instance_dedup ON workflow_instance (workflow, dedup) WHERE dedup IS NOT NULL;

-- The journal: what each task came to.
CREATE TABLE workflow_step (
    instance   INTEGER NOT NULL,
    number     INTEGER NOT NULL,
    task       TEXT NOT NULL,                  -- JSON pointer
    status     TEXT NOT NULL,
    attempt    INTEGER NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms   INTEGER,
    input      TEXT,
    output     TEXT,
    error      TEXT,
    PRIMARY KEY (instance, number)
) STRICT, WITHOUT ROWID;

-- Which types of events an instance waits for.
CREATE TABLE workflow_listener (
    workflow TEXT NOT NULL,
    type     TEXT NOT NULL,                    -- '' = any
    instance INTEGER NOT NULL,
    step     INTEGER NOT NULL,                 -- the row of the journal of the task that listens
    task     INTEGER NOT NULL,                 -- that task's number in the definition
    digest   TEXT NOT NULL,
    since    INTEGER NOT NULL,                 -- only events after this sequence
    expected TEXT NOT NULL,                    -- JSON: what correlations must be
    PRIMARY KEY (workflow, type, instance, step)
) STRICT, WITHOUT ROWID;
CREATE INDEX workflow_listener_instance ON workflow_listener (instance);

-- What came for an instance that it has not looked at.
CREATE TABLE workflow_inbox (
    id       INTEGER PRIMARY KEY,
    instance INTEGER NOT NULL,
    kind     INTEGER NOT NULL,                 -- 0 event, 1 signal, 2 the end of an instance that it started
    body     TEXT NOT NULL                     -- JSON
) STRICT;
CREATE INDEX workflow_inbox_instance ON workflow_inbox (instance, id);
