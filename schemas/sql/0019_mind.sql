-- What agents are and know: soul, memory, and what their thinking costs.

CREATE TABLE soul_version (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    digest     TEXT NOT NULL,                  -- SHA-256 of the text, hex
    text       TEXT NOT NULL,
    principal  TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE memory (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    agent      TEXT,                           -- NULL = shared by all
    text       TEXT NOT NULL,
    tags       TEXT NOT NULL,                  -- words, space separated
    source     TEXT NOT NULL,                  -- who says so: a principal, an agent, a session
    trust      INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX memory_agent ON memory (agent, number);
CREATE VIRTUAL TABLE memory_words USING fts5 (text, tags, content = 'memory', content_rowid = 'number', tokenize = 'unicode61 remove_diacritics 2');

-- Tokens and money by day (UTC) and by whose they are: 'day', 'agent/<id>', 'session/<id>', 'job/<consumer>'.
CREATE TABLE usage (
    scope     TEXT NOT NULL,
    day       TEXT NOT NULL,                   -- 2026-11-22; '' = of all time
    calls     INTEGER NOT NULL,
    input     INTEGER NOT NULL,                -- tokens
    output    INTEGER NOT NULL,
    micros    INTEGER NOT NULL,                -- millionths of the currency of the price table
    PRIMARY KEY (scope, day)
) STRICT, WITHOUT ROWID;

-- What calls that are under way may cost at most; what a crash left of it counts as spent.
CREATE TABLE reservation (
    key        TEXT PRIMARY KEY,               -- the call's
    scopes     TEXT NOT NULL,                  -- space separated
    tokens     INTEGER NOT NULL,
    micros     INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
