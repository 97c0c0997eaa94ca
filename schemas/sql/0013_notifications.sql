-- What the person is told. Times are milliseconds since 1970 UTC.

ALTER TABLE notification RENAME TO notification_before;

CREATE TABLE notification (
    number       INTEGER PRIMARY KEY,
    id           TEXT NOT NULL UNIQUE,         -- UUIDv7
    at_ms        INTEGER NOT NULL,             -- when it was first told
    last_ms      INTEGER NOT NULL,             -- when it was last told again
    count        INTEGER NOT NULL,             -- how often that was
    severity     INTEGER NOT NULL,             -- 0 info, 1 warning, 2 error, 3 critical
    category     TEXT NOT NULL,
    consumer     TEXT NOT NULL,                -- who told it
    title        TEXT NOT NULL,
    message      TEXT NOT NULL,
    action       TEXT,                         -- JSON: label, url
    fingerprint  TEXT NOT NULL,                -- what is alike is told once
    event        TEXT,                         -- id of the event it is about, and its trace
    trace        TEXT,
    acked_ms     INTEGER,
    dismissed_ms INTEGER
) STRICT;

INSERT INTO notification (number, id, at_ms, last_ms, count, severity, category, consumer, title, message, fingerprint)
    SELECT id,
        lower(printf('%08x-%04x-7%s-8%s-%s', at_ms >> 16, at_ms & 65535,
            substr(hex(randomblob(2)), 2), substr(hex(randomblob(2)), 2), hex(randomblob(6)))),
        at_ms, at_ms, 1, CASE severity WHEN 'warning' THEN 1 WHEN 'error' THEN 2 WHEN 'critical' THEN 3 ELSE 0 END,
        'other', 'aman', title, message, ''
    FROM notification_before;

-- Which deliveries told of it: one row each, so that /why finds what was told already, too.
CREATE TABLE notification_cause (
    delivery     INTEGER NOT NULL,
    notification TEXT NOT NULL,                -- its id
    PRIMARY KEY (delivery, notification)
) STRICT, WITHOUT ROWID;

INSERT INTO notification_cause (delivery, notification)
    SELECT b.delivery, n.id FROM notification_before b JOIN notification n ON n.number = b.id
    WHERE b.delivery IS NOT NULL;

DROP TABLE notification_before;

CREATE INDEX notification_active ON notification (number) WHERE dismissed_ms IS NULL;
CREATE INDEX notification_unread ON notification (number) WHERE dismissed_ms IS NULL AND acked_ms IS NULL;
CREATE INDEX notification_alike ON notification (fingerprint, last_ms) WHERE dismissed_ms IS NULL;
CREATE INDEX notification_budget ON notification (consumer, at_ms);
CREATE INDEX notification_last ON notification (last_ms);
