-- Keys and values of plugins. With rows of their own: values are up to 1 MiB.
CREATE TABLE plugin_kv (
    plugin TEXT NOT NULL,
    key    TEXT NOT NULL,
    value  BLOB NOT NULL,
    PRIMARY KEY (plugin, key)
) STRICT;

-- Bytes of the keys and values of each plugin, kept with every change.
CREATE TABLE plugin_kv_size (
    plugin TEXT PRIMARY KEY,
    bytes  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
