-- The bus: events, the consumers that knew of them, their deliveries, what leaves the machine, and the audit chain.
-- Times are milliseconds since 1970 UTC. A released file is never edited; changes come as the next number.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- One row per event. An id, trace or correlation that can be computed from the row itself is NULL: the hot table pays
-- for no index but its own order. `delivery_first`/`delivery_count` name the rows of `delivery`, made with the event.
CREATE TABLE event (
    sequence       INTEGER PRIMARY KEY,
    received_ms    INTEGER NOT NULL,
    source         TEXT NOT NULL,
    type           TEXT NOT NULL,
    priority       INTEGER NOT NULL,
    mode           INTEGER NOT NULL,
    trust          INTEGER NOT NULL,
    depth          INTEGER NOT NULL,
    data_kind      INTEGER NOT NULL,           -- 0 none, 1 JSON, 2 text, 3 bytes
    data           BLOB,
    id             TEXT,                       -- only when the producer gave one
    subject        TEXT,
    attributes     TEXT,                       -- JSON object: every other attribute that was sent
    expires_ms     INTEGER,
    trace          BLOB,                       -- only when it differs from the made id
    correlation    TEXT,
    causation      TEXT,
    cause          INTEGER,                    -- sequence of the causing event
    cause_delivery INTEGER,                    -- delivery whose effect it is
    principal      TEXT,                       -- NULL = owner
    delivery_first INTEGER,
    delivery_count INTEGER,
    decision       TEXT                        -- JSON: what was decided for consumers whose type pattern matched
) STRICT;
CREATE INDEX event_id ON event (id) WHERE id IS NOT NULL;
CREATE INDEX event_trace ON event (trace) WHERE trace IS NOT NULL;
CREATE INDEX event_cause ON event (cause) WHERE cause IS NOT NULL;

-- How often each type came, and where its newest event stands.
CREATE TABLE event_type (
    type         TEXT PRIMARY KEY,
    count        INTEGER NOT NULL,
    last_ms      INTEGER NOT NULL,
    last_sequence INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Keys that name an event which is already there: (source, id), (source, dedupkey).
CREATE TABLE dedup (
    key        BLOB PRIMARY KEY,
    sequence   INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX dedup_expiry ON dedup (expires_ms);

-- Answers that are given again for the same Idempotency-Key.
CREATE TABLE idempotency (
    key        BLOB PRIMARY KEY,               -- hash of principal, route and key
    body       BLOB NOT NULL,                  -- hash of the request body
    status     INTEGER NOT NULL,
    answer     TEXT NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_expiry ON idempotency (expires_ms);

-- Everything that ever consumed. `since` is the sequence after which it could match.
CREATE TABLE consumer (
    id    INTEGER PRIMARY KEY,
    name  TEXT NOT NULL UNIQUE,
    kind  TEXT NOT NULL,
    since INTEGER NOT NULL
) STRICT;

-- Every rule that a consumer ever had: events refer to the rule that was in force.
CREATE TABLE rule (
    id        INTEGER PRIMARY KEY,
    consumer  INTEGER NOT NULL REFERENCES consumer (id),
    pattern   TEXT NOT NULL,
    condition TEXT NOT NULL,                   -- '' = none
    UNIQUE (consumer, pattern, condition)
) STRICT;

-- status: 0 pending, 1 running, 2 retrying, 3 done, 4 expired, 5 dead, 6 discarded
CREATE TABLE delivery (
    id        INTEGER PRIMARY KEY,
    event     INTEGER NOT NULL,
    consumer  INTEGER NOT NULL,
    status    INTEGER NOT NULL,
    rank      INTEGER NOT NULL,                -- 0 high, 1 normal, 2 low
    partition TEXT,
    attempt   INTEGER NOT NULL,                -- attempts that were begun
    next_ms   INTEGER,                         -- retrying: when to try again
    lease_ms  INTEGER,                         -- running: when the attempt ends at the latest
    outside   INTEGER,                         -- running: 1 = the attempt can act outside the transaction
    ended_ms  INTEGER,
    result    TEXT
) STRICT;
CREATE INDEX delivery_open ON delivery (consumer, status, rank, id) WHERE status < 3;
CREATE INDEX delivery_retry ON delivery (consumer, next_ms) WHERE status = 2;
CREATE INDEX delivery_key ON delivery (consumer, partition, id) WHERE partition IS NOT NULL AND status < 3;

-- Every failed attempt.
CREATE TABLE failure (
    id       INTEGER PRIMARY KEY,
    delivery INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    at_ms    INTEGER NOT NULL,
    chain    TEXT NOT NULL                     -- JSON array, outermost first
) STRICT;
CREATE INDEX failure_delivery ON failure (delivery);

-- Deliveries that ended dead. A discarded one keeps its row as a tombstone, as does one that is tried again.
CREATE TABLE dead_letter (
    delivery        INTEGER PRIMARY KEY,
    event           INTEGER NOT NULL,
    consumer        INTEGER NOT NULL,
    source          TEXT NOT NULL,
    type            TEXT NOT NULL,
    reason          TEXT NOT NULL,
    fingerprint     TEXT NOT NULL,
    chain           TEXT NOT NULL,
    attempts        INTEGER NOT NULL,
    first_failed_ms INTEGER NOT NULL,
    last_failed_ms  INTEGER NOT NULL,
    state           INTEGER NOT NULL,          -- 0 dead, 1 retrying, 2 resolved, 3 discarded
    note            TEXT
) STRICT;
CREATE INDEX dead_letter_open ON dead_letter (consumer, fingerprint) WHERE state = 0;
CREATE INDEX dead_letter_recent ON dead_letter (last_failed_ms, delivery) WHERE state = 0;
CREATE INDEX dead_letter_group ON dead_letter (fingerprint, delivery) WHERE state = 0;

-- What is to leave the machine: intent, then sending, then sent, unknown or failed.
CREATE TABLE outbox (
    id         INTEGER PRIMARY KEY,
    key        TEXT NOT NULL UNIQUE,           -- idempotency key
    sink       TEXT NOT NULL,
    status     INTEGER NOT NULL,               -- 0 intent, 1 sending, 2 sent, 3 unknown, 4 failed
    payload    TEXT NOT NULL,
    delivery   INTEGER,
    event      INTEGER,
    attempt    INTEGER NOT NULL,
    next_ms    INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    ended_ms   INTEGER,
    error      TEXT
) STRICT;
CREATE INDEX outbox_open ON outbox (sink, next_ms) WHERE status < 2;
CREATE INDEX outbox_delivery ON outbox (delivery) WHERE delivery IS NOT NULL;

CREATE TABLE notification (
    id         INTEGER PRIMARY KEY,
    at_ms      INTEGER NOT NULL,
    severity   TEXT NOT NULL,
    title      TEXT NOT NULL,
    message    TEXT NOT NULL,
    event      INTEGER,
    delivery   INTEGER
) STRICT;
CREATE INDEX notification_delivery ON notification (delivery) WHERE delivery IS NOT NULL;

-- Who changed what. Each row holds the hash of the one before: a row that was altered or removed shows.
CREATE TABLE audit (
    seq              INTEGER PRIMARY KEY,
    at_ms            INTEGER NOT NULL,
    principal        TEXT NOT NULL,
    claimed_operator TEXT,
    action           TEXT NOT NULL,
    target           TEXT NOT NULL,
    outcome          TEXT NOT NULL,            -- begun, done, refused, failed, unknown
    status           INTEGER NOT NULL,
    trace            TEXT,
    detail           TEXT NOT NULL,            -- JSON
    before_digest    TEXT,
    after_digest     TEXT,
    prev_hash        TEXT NOT NULL,
    hash             TEXT NOT NULL
) STRICT;
CREATE INDEX audit_begun ON audit (seq) WHERE outcome = 'begun';
