//! The plugin under measurement: the Rust guest in tests/bench/guest, which scripts/bench builds.

use std::fs::{self, File};
use std::path::PathBuf;

use aman::package::Package;
use aman::package::pack::Content;

use crate::daemon::Aman;
use crate::{Bench, Res};

/// What it is called in its own manifest.
pub const NAME: &str = "guest";

/// The built guest, to be installed under any name.
pub struct Guest {
    folder: PathBuf,
    manifest: String,
    component: Vec<u8>,
}

impl Guest {
    /// Reads the package that scripts/bench has built.
    pub fn read(bench: &Bench) -> Res<Guest> {
        let path = std::env::var_os("AMAN_BENCH_GUEST").filter(|path| !path.is_empty());
        let path = path.ok_or("there is no plugin to measure; scripts/bench builds it with scripts/build-plugins")?;
        let folder = bench.folder("guest")?;
        let opened = folder.join("opened");
        fs::create_dir_all(&opened)?;
        let package = Package::open(File::open(path)?, &opened)?;
        let component = fs::read(package.component())?;
        fs::remove_dir_all(&opened)?;
        Ok(Guest { folder, manifest: package.manifest_text, component })
    }

    /// Installs it as `name`, with routes and events of that name.
    pub fn install(&self, aman: &Aman, name: &str) -> Res<()> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("plugin.toml"), self.manifest.replace(NAME, name))?;
        fs::write(folder.join("plugin.wasm"), named(&self.component, name)?)?;
        let mut packed = Vec::new();
        Content::read(&folder)?.write(&mut packed)?;
        let query = "/plugin/install?allow_unsigned=true&approve=true";
        aman.call("POST", query, "application/gzip", &packed)?;
        Ok(fs::remove_dir_all(&folder)?)
    }
}

/// The component with one more section, which means nothing: each name has code of its own, as different plugins have.
fn named(component: &[u8], name: &str) -> Res<Vec<u8>> {
    let section = "bench";
    let length = u8::try_from(1 + section.len() + name.len()).ok().filter(|length| *length < 128);
    let mut named = component.to_vec();
    named.extend([0, length.ok_or("a name that is too long")?, u8::try_from(section.len())?]);
    named.extend_from_slice(section.as_bytes());
    named.extend_from_slice(name.as_bytes());
    Ok(named)
}
