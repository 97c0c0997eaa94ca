-- Tokens that were minted. A token is good only while its row is here, not revoked and not expired.

CREATE TABLE token (
    id         INTEGER PRIMARY KEY,
    jti        TEXT NOT NULL UNIQUE,
    sub        TEXT NOT NULL,                  -- the principal
    scope      TEXT NOT NULL,                  -- names, separated by spaces
    minted_by  TEXT NOT NULL,
    issued_ms  INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    revoked_ms INTEGER
) STRICT;
