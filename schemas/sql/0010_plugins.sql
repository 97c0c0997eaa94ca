-- Plugins: what is installed, which version runs, and what its operator agreed to. Times are milliseconds since 1970 UTC.

-- A name. It stays when a plugin is uninstalled without its data, so that nobody else can take the name and the data.
CREATE TABLE plugin (
    name       TEXT PRIMARY KEY,
    enabled    INTEGER NOT NULL,               -- switched on by the operator
    digest     TEXT,                           -- the version that may run; NULL = none
    previous   TEXT,                           -- the version before, for a rollback
    pending    TEXT,                           -- the version that waits for consent
    publisher  TEXT,                           -- the public key that was trusted at first; NULL = unsigned
    granted    TEXT NOT NULL,                  -- JSON: what was agreed to
    updated_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A version whose files are there.
CREATE TABLE plugin_version (
    name             TEXT NOT NULL,
    digest           TEXT NOT NULL,            -- SHA-256 over its SHA256SUMS, hex: names its whole content
    version          TEXT NOT NULL,
    manifest         TEXT NOT NULL,            -- its plugin.toml, as it was checked
    signed_by        TEXT,                     -- key id; NULL = unsigned
    component_sha256 TEXT NOT NULL,
    code_sha256      TEXT NOT NULL,            -- of the code that was compiled; checked before it is loaded
    code_bytes       INTEGER NOT NULL,
    installed_ms     INTEGER NOT NULL,
    PRIMARY KEY (name, digest)
) STRICT, WITHOUT ROWID;

-- How far the sources of plugins have come; a row commits with the events of a poll.
CREATE TABLE plugin_cursor (
    plugin TEXT NOT NULL,
    source TEXT NOT NULL,
    cursor TEXT,
    polls  INTEGER NOT NULL,                   -- how many polls were stored; numbers the next one
    due_ms INTEGER NOT NULL,                   -- when to poll next
    polled_ms INTEGER,                         -- when it was polled last
    event_ms  INTEGER,                         -- when a poll last found events
    PRIMARY KEY (plugin, source)
) STRICT, WITHOUT ROWID;
