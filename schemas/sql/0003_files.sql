-- What the file sources know of their folders: events are the difference between these rows and the disk.

CREATE TABLE file_source (
    id           INTEGER PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    root         BLOB NOT NULL,                -- the watched folder, as bytes: names need not be UTF-8
    filter       TEXT NOT NULL,                -- JSON: the patterns that the rows were gathered with
    device       INTEGER,                      -- the root's file system when everything was last compared
    baselined_ms INTEGER                       -- NULL until the first sight of the folder is complete
) STRICT;

-- A file as it was when its last event was stored, or as the baseline found it.
CREATE TABLE file_seen (
    source   INTEGER NOT NULL,
    folder   BLOB NOT NULL,                    -- relative to the root, '' = the root itself
    name     BLOB NOT NULL,
    size     INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode    INTEGER NOT NULL,
    device   INTEGER NOT NULL,                 -- 0 = the root's own, whose number may change with every boot
    born_ns  INTEGER,                          -- NULL where the file system does not tell
    PRIMARY KEY (source, folder, name)
) STRICT, WITHOUT ROWID;
