-- The contents that skills had, so that any of them can be looked at and brought back.

-- Files by what they hold: what did not change from one content to the next is kept once.
CREATE TABLE skill_blob (
    digest TEXT PRIMARY KEY,                   -- SHA-256 of the bytes, hex
    bytes  BLOB NOT NULL
) STRICT;

CREATE TABLE skill_file (
    content TEXT NOT NULL,                     -- digest of the whole content, as in skill_version
    path    TEXT NOT NULL,                     -- from the skill's folder, with slashes
    mode    INTEGER NOT NULL,                  -- permission bits
    blob    TEXT NOT NULL,
    PRIMARY KEY (content, path)
) STRICT, WITHOUT ROWID;
CREATE INDEX skill_file_blob ON skill_file (blob);

-- How a skill has been doing, as far as its runs were settled; kept while its folder is away.
CREATE TABLE skill_stats (
    name        TEXT PRIMARY KEY,
    runs        INTEGER NOT NULL,              -- attempts that ended
    failures    INTEGER NOT NULL,              -- of these
    last_run_ms INTEGER NOT NULL,
    last_error  TEXT,
    took_ms     TEXT NOT NULL                  -- JSON array of the last durations, oldest first
) STRICT, WITHOUT ROWID;

-- What the index of words below holds: one row for each skill that is loaded.
CREATE TABLE skill_indexed (
    id     INTEGER PRIMARY KEY,                -- rowid in skill_words
    name   TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL
) STRICT;

-- Words of skills. Scripts that put no spaces between words have a zero-width space around each character here.
CREATE VIRTUAL TABLE skill_words USING fts5 (
    name, tags, description, body, tokenize = "unicode61 remove_diacritics 2", prefix = '1 2 3'
);
