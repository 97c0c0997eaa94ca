-- What was changed about a source while the daemon ran; the configuration file has the rest.
CREATE TABLE source_setting (
    id         TEXT PRIMARY KEY,
    paused     INTEGER NOT NULL DEFAULT 0,
    changes    TEXT,                           -- JSON: settings that stand before those of the file; NULL = none
    updated_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What a polled address answered last; commits with the events that came of it.
CREATE TABLE source_poll (
    id            TEXT PRIMARY KEY,
    address       TEXT NOT NULL,               -- SHA-256: an address may hold a key
    etag          TEXT,
    last_modified TEXT,
    digest        TEXT NOT NULL,               -- SHA-256 of the body
    polled_ms     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What became of a sink while the daemon ran; the configuration file has the rest.
CREATE TABLE sink_setting (
    id         TEXT PRIMARY KEY,
    paused     INTEGER NOT NULL DEFAULT 0,
    gone       TEXT,                           -- SHA-256 of the address that wants no more calls (410 Gone); another is called
    updated_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What was given up, or of which nobody knows: rare, and looked for by whoever tries it again.
CREATE INDEX outbox_failed ON outbox (sink, id) WHERE status > 2;
