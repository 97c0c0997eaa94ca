//! The private databases of plugins inside a backup: each in a table of the copy, in pieces, and as files again in the
//! folder that is restored.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rusqlite::{Connection, params};

use super::{Partial, check, copy, failed};
use crate::error::Error;

const TABLE: &str = "CREATE TABLE plugin_database (name TEXT NOT NULL, part INTEGER NOT NULL, content BLOB NOT NULL, \
    PRIMARY KEY (name, part)) STRICT";
/// Bytes of a piece.
const PART_BYTES: u64 = 1 << 20;

fn unread(error: std::io::Error) -> Error {
    Error::internal("reading the private database of a plugin")(error)
}

/// True for a name that a private database can have.
fn is_name(name: &str) -> bool {
    name.strip_suffix(".db").is_some_and(|plugin| {
        !plugin.is_empty() && plugin.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    })
}

fn whole(conn: &Connection, name: &str) -> Result<(), Error> {
    let found = check::structure(conn);
    let Some(fault) = found.faults.first() else { return Ok(()) };
    let plugin = name.trim_end_matches(".db");
    let reason = format!(
        "The private database of the plugin '{plugin}' is damaged ({fault}), so there is no backup. Look at the plugin, \
         or give its data up with `aman plugin uninstall {plugin} --purge-data`."
    );
    Err(Error::conflict("damaged", reason))
}

/// Copies each database in `folder` into the backup `into`, which becomes the file `to`. Gives their names.
pub(super) fn take(folder: &Path, into: &mut Connection, to: &Path) -> Result<Vec<String>, Error> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unread)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(unread)?.file_name();
        names.extend(name.to_str().filter(|name| is_name(name)).map(str::to_owned));
    }
    names.sort();
    if names.is_empty() {
        return Ok(names);
    }
    let tx = into.transaction().map_err(failed("adding to the copy"))?;
    tx.execute_batch(TABLE).map_err(failed("adding to the copy"))?;
    for name in &names {
        // Beside the backup, and called other than it whatever it is called.
        let mut beside = to.as_os_str().to_owned();
        beside.push(format!(".{name}"));
        let partial = Partial::new(Path::new(&beside))?;
        let copied = copy(&check::open(&folder.join(name))?, &partial.path)?;
        whole(&copied, name)?;
        copied.close().map_err(|(_, error)| failed("closing a copy")(error))?;
        let mut file = File::open(&partial.path).map_err(unread)?;
        for part in 0_i64.. {
            let mut content = Vec::new();
            if (&mut file).take(PART_BYTES).read_to_end(&mut content).map_err(unread)? == 0 {
                break;
            }
            tx.execute("INSERT INTO plugin_database VALUES (?1, ?2, ?3)", params![name, part, content])
                .map_err(failed("adding to the copy"))?;
        }
    }
    tx.commit().map_err(failed("adding to the copy"))?;
    Ok(names)
}

/// Makes files in `folder` of what [`take`] put into a backup, and takes it out of its copy. Gives their names.
pub(super) fn put(copied: &Connection, folder: &Path) -> Result<Vec<String>, Error> {
    let what = "restoring the private databases of plugins";
    if !copied.table_exists(None, "plugin_database").map_err(failed(what))? {
        return Ok(Vec::new());
    }
    let names: Vec<String> = copied
        .prepare("SELECT DISTINCT name FROM plugin_database ORDER BY name")
        .and_then(|mut s| s.query_map([], |row| row.get(0))?.collect())
        .map_err(failed(what))?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(Error::internal(what))?;
    for name in &names {
        if !is_name(name) {
            return Err(Error::conflict("damaged", format!("The backup holds a plugin's database named {name:?}.")));
        }
        let partial = Partial::new(&folder.join(name))?;
        let mut file = OpenOptions::new().write(true).open(&partial.path).map_err(Error::internal(what))?;
        let mut parts = copied
            .prepare("SELECT content FROM plugin_database WHERE name = ?1 ORDER BY part")
            .map_err(failed(what))?;
        let mut rows = parts.query([name]).map_err(failed(what))?;
        while let Some(row) = rows.next().map_err(failed(what))? {
            let content = row.get_ref(0).and_then(|content| Ok(content.as_blob()?)).map_err(failed(what))?;
            file.write_all(content).map_err(Error::internal(what))?;
        }
        whole(&check::open(&partial.path)?, name)?;
        partial.finish(&folder.join(name), false)?;
    }
    copied.execute_batch("DROP TABLE plugin_database").map_err(failed(what))?;
    Ok(names)
}
