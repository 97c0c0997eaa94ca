-- Conversations: sessions and their messages. A transcript is only ever added to. Times are milliseconds since 1970 UTC.

CREATE TABLE session (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    agent      TEXT NOT NULL,                  -- whose it is
    title      TEXT,                           -- NULL = none yet
    titled     INTEGER NOT NULL,               -- 1 = the title was given, not made
    kind       INTEGER NOT NULL,               -- 0 a person's, 1 an event's or a schedule's, 2 asked by an agent or a workflow, 3 a plugin's
    principal  TEXT NOT NULL,                  -- who began it
    trust      INTEGER NOT NULL,               -- the lowest of what is in it
    version    INTEGER NOT NULL,               -- goes up with every change that a client could miss
    head       INTEGER,                        -- the newest message of the branch that is shown
    messages   INTEGER NOT NULL,               -- how many there are, on all branches
    closed     INTEGER NOT NULL,               -- 1 = takes no messages, 2 = removed: nobody sees it, and its rows go
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX session_agent ON session (agent, updated_ms);
CREATE INDEX session_updated ON session (updated_ms);
CREATE INDEX session_principal ON session (principal, updated_ms);

CREATE TABLE message (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    session    INTEGER NOT NULL,
    parent     INTEGER,                        -- the message before it; several with the same one are branches
    turn       INTEGER,                        -- the turn that it came from, or that answers it
    role       INTEGER NOT NULL,               -- 0 user, 1 assistant, 2 tool
    text       TEXT NOT NULL,
    body       TEXT,                           -- JSON: tool_calls, call_id, tool, attachments, model, usage, is_error
    trust      INTEGER NOT NULL,               -- how far its content is believed
    created_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX message_session ON message (session, number);
CREATE INDEX message_turn ON message (turn) WHERE turn IS NOT NULL;

-- The words of what was said by user and assistant. It keeps its own text, so that what is removed can be taken out of it,
-- and takes it out at once.
CREATE VIRTUAL TABLE message_words USING fts5 (text, tokenize = 'unicode61 remove_diacritics 2');
INSERT INTO message_words (message_words, rank) VALUES ('secure-delete', 1);
