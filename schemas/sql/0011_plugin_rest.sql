-- Rests of plugins that failed too often: a restart does not end them. A row stays when its rest is over, so that the next
-- one is longer. Times are milliseconds since 1970 UTC.
CREATE TABLE plugin_rest (
    plugin   TEXT PRIMARY KEY,
    digest   TEXT NOT NULL,                    -- the version that rests; another one does not
    rests    INTEGER NOT NULL,                 -- how many there were in a row; each is twice as long as the one before
    until_ms INTEGER NOT NULL,
    message  TEXT NOT NULL,                    -- the fault that was one too many
    at_ms    INTEGER NOT NULL                  -- when that was
) STRICT, WITHOUT ROWID;
