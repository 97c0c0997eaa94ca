-- Settings that were changed over HTTP. A removed one stays as a row without value, so that versions only grow.
CREATE TABLE config_override (
    key     TEXT    PRIMARY KEY,
    value   TEXT,               -- JSON; NULL = removed
    version INTEGER NOT NULL,   -- of the configuration, when it was changed
    at_ms   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
