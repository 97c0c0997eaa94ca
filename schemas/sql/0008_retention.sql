-- Retention: what was removed when, and what has to outlive it. Times are milliseconds since 1970 UTC.

-- Sequences that were removed, both ends included. What was kept back lies between two rows.
CREATE TABLE pruned (
    first INTEGER PRIMARY KEY,
    last  INTEGER NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT;

-- JSON: what the answer for a duplicate needs of an event that was removed before its key expired.
ALTER TABLE dedup ADD COLUMN gone TEXT;

CREATE INDEX notification_at ON notification (at_ms);
CREATE INDEX cron_slot_made ON cron_slot (made_ms) WHERE status > 1;
