-- Skills: what was decided about them, and every content they ever had. Times are milliseconds since 1970 UTC.

-- What holds for a name, whether its folder is there now or not: a folder that goes and comes back is no news.
CREATE TABLE skill (
    name       TEXT PRIMARY KEY,
    enabled    INTEGER,                        -- NULL = nobody decided: the default of where it lies
    trusted    TEXT,                           -- digest of the content that may run; NULL = none
    updated_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The history of a name: a row each time its content became another one; going back to an older content is a row, too.
-- The digest names the content, so that a table of contents by digest can stand beside this one.
CREATE TABLE skill_version (
    id            INTEGER PRIMARY KEY,
    name          TEXT NOT NULL,
    digest        TEXT NOT NULL,               -- SHA-256 over all files, hex
    version       TEXT NOT NULL,               -- what its SKILL.md says
    origin        TEXT NOT NULL,               -- bundled, data, configured, agents
    path          TEXT NOT NULL,
    first_seen_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX skill_version_name ON skill_version (name, id);
CREATE INDEX skill_version_digest ON skill_version (digest);
