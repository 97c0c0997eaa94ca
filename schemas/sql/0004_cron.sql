-- Cron: the jobs, and the ledger of their slots.

-- A job, from wherever it is defined, and where it stands.
CREATE TABLE cron_job (
    id         TEXT PRIMARY KEY,
    origin     INTEGER NOT NULL,               -- 0 API, 1 configuration file, 2 skill
    definition TEXT NOT NULL,                  -- JSON
    enabled    INTEGER NOT NULL,
    note       TEXT,                           -- why it was switched off
    failures   INTEGER NOT NULL,               -- failed runs in a row
    cursor_ms  INTEGER NOT NULL,               -- every slot up to here is dealt with
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What became of each slot. A row commits with the event of its run, so a slot never fires twice; its key is the id of
-- that event. One row may stand for a run of slots that were left out together.
CREATE TABLE cron_slot (
    id         INTEGER PRIMARY KEY,
    key        TEXT NOT NULL UNIQUE,           -- job@scheduled_time
    job        TEXT NOT NULL,
    slot_ms    INTEGER NOT NULL,
    until_ms   INTEGER,                        -- the last slot that the row stands for, when it stands for several
    manual     INTEGER NOT NULL,
    status     INTEGER NOT NULL,               -- 0 queued, 1 running, 2 done, 3 failed, 4 skipped
    reason     TEXT,                           -- why it was skipped
    made_ms    INTEGER NOT NULL,
    started_ms INTEGER,
    ended_ms   INTEGER,
    error      TEXT
) STRICT;
CREATE INDEX cron_slot_job ON cron_slot (job, id);
CREATE INDEX cron_slot_open ON cron_slot (job, id) WHERE status < 2;
