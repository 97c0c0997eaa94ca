-- What agents are and know: soul, memory, and what their thinking costs.

-- Every text that was in force; the newest one is. Going back to an earlier one is a row, too.
CREATE TABLE soul_version (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    digest     TEXT NOT NULL,                  -- SHA-256 of the text, hex
    text       TEXT NOT NULL,
    origin     INTEGER NOT NULL,               -- 0 comes with aman, 1 API, 2 the file was edited
    principal  TEXT NOT NULL,
    placed     INTEGER NOT NULL,               -- 0 = the file is yet to be written
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
-- Words of its rows, with gaps between characters that are words of their own: no copy of the column, so it keeps its own.
CREATE VIRTUAL TABLE memory_words USING fts5 (text, tags, tokenize = 'unicode61 remove_diacritics 2');
-- What is forgotten is taken out of it at once.
INSERT INTO memory_words (memory_words, rank) VALUES ('secure-delete', 1);

-- Tokens and money by day (UTC) and by whose they are: 'all', 'agent/<id>', 'session/<id>', 'job/<consumer>'.
CREATE TABLE usage (
    scope     TEXT NOT NULL,
    day       TEXT NOT NULL,                   -- 2026-11-22; '' = of all time
    calls     INTEGER NOT NULL,
    input     INTEGER NOT NULL,                -- tokens
    output    INTEGER NOT NULL,
    lost      INTEGER NOT NULL,                -- tokens that were reserved for calls whose end nobody knows
    micros    INTEGER NOT NULL,                -- millionths of the currency of the price table
    refused   INTEGER NOT NULL,                -- calls that would have been too much
    told      INTEGER NOT NULL,                -- limits whose end was told: 1 tokens, 2 money
    PRIMARY KEY (scope, day)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_day ON usage (day, scope);

-- What calls that are under way may cost at most; what a crash left of it counts as spent.
CREATE TABLE reservation (
    key        TEXT PRIMARY KEY,               -- the call's
    scopes     TEXT NOT NULL,                  -- JSON: list
    day        TEXT NOT NULL,                  -- the day that it counts for
    tokens     INTEGER NOT NULL,
    micros     INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
