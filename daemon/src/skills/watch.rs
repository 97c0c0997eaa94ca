//! Skills are read again as soon as their files change. The kernel only says when to look; what is there decides.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use serde_json::json;
use tokio::sync::Notify;

use super::load::{self, Failed, SearchPath};
use super::{Reloaded, Skills};
use crate::bus::Origin;
use crate::error::Error;
use crate::event::NewEvent;
use crate::tasks::Supervisor;

/// Changes come in groups: they are read once nothing has changed for so long, or at the latest after so long.
const QUIET: Duration = Duration::from_millis(300);
const LONGEST: Duration = Duration::from_secs(3);
/// Folders that are watched at the most.
const WATCHES_MAX: usize = 8192;

impl Skills {
    /// Begins what takes its time, which nobody waits for: finds out what the sandbox can enforce here, and reads the skills
    /// again whenever something changes below a search path, until the supervisor ends its tasks; never when they are not to
    /// be `watched`.
    pub fn run(&self, supervisor: &Supervisor, watched: bool) {
        let probing = self.inner.sandbox.clone();
        tokio::spawn(async move {
            if let Err(error) = probing.probe().await {
                tracing::warn!(%error, "The sandbox for scripts does not work here.");
            }
        });
        if !watched {
            return;
        }
        let (skills, stop) = (self.clone(), supervisor.stop_token());
        supervisor.spawn("skills", move || {
            let (skills, stop) = (skills.clone(), stop.clone());
            async move {
                tokio::select! {
                    () = stop.cancelled() => Ok(()),
                    ended = follow(&skills) => ended,
                }
            }
        });
    }
}

async fn follow(skills: &Skills) -> Result<(), Error> {
    let (mut told, mut trouble) = (Vec::new(), None);
    loop {
        // Watched before it is read, so that nothing slips between the two; and anew each time, as folders that were replaced
        // have lost their watch.
        let (paths, wake) = (skills.inner.settings.search_paths(), Arc::new(Notify::new()));
        let hints = Arc::clone(&wake);
        let watching = tokio::task::spawn_blocking(move || Watching::begin(&paths, hints));
        let watching = watching.await.map_err(Error::internal("watching the skills"))?;
        if watching.trouble.is_some() && watching.trouble != trouble {
            let why = watching.trouble.as_deref().unwrap_or_default();
            tracing::warn!(why, "Not all changes of skills are seen at once; `aman skill reload` finds the others.");
        }
        trouble.clone_from(&watching.trouble);
        let report = skills.reload(|_| Ok(())).await?;
        tell(skills, &report, &told).await;
        told = report.failed;
        wake.notified().await;
        let first = Instant::now();
        while first.elapsed() < LONGEST && tokio::time::timeout(QUIET, wake.notified()).await.is_ok() {}
    }
}

/// Publishes what a reading found: `aman.skills.changed`, and `aman.skill.broken` for each that is newly so.
async fn tell(skills: &Skills, report: &Reloaded, told: &[Failed]) {
    let Reloaded { added, changed, removed, failed, .. } = report;
    let mut events = Vec::new();
    if !(added.is_empty() && changed.is_empty() && removed.is_empty()) {
        let data = json!({ "added": added, "changed": changed, "removed": removed });
        events.push(NewEvent::new("aman/skills", "aman.skills.changed", &data));
    }
    for broken in failed.iter().filter(|failed| failed.unfinished.is_none() && !told.contains(failed)) {
        let data = json!({ "path": broken.path, "error": broken.error });
        events.push(NewEvent::new("aman/skills", "aman.skill.broken", &data));
    }
    for event in events {
        skills.inner.bus.announce(event, Origin::own("aman/skills")).await;
    }
}

/// The watches on all search paths; they end when it is dropped.
struct Watching {
    _watcher: Option<RecommendedWatcher>,
    /// Why not everything is watched.
    trouble: Option<String>,
}

impl Watching {
    fn begin(paths: &[SearchPath], wake: Arc<Notify>) -> Watching {
        let roots: Vec<PathBuf> = paths.iter().map(|search| search.path.clone()).collect();
        let known: Arc<OnceLock<Vec<PathBuf>>> = Arc::default();
        let skills = Arc::clone(&known);
        let heard = move |event: notify::Result<Event>| {
            // What the kernel could not tell may have been anything.
            if event.map_or(true, |event| event.need_rescan() || matters(&event, &roots, skills.get())) {
                wake.notify_one();
            }
        };
        let config = notify::Config::default().with_follow_symlinks(false);
        let mut watcher = match RecommendedWatcher::new(heard, config) {
            Ok(watcher) => watcher,
            Err(error) => return Watching { _watcher: None, trouble: Some(error.to_string()) },
        };
        let (mut trouble, mut count) = (None, 0);
        let mut found = Vec::new();
        let mut watch = |folder: &Path| {
            count += 1;
            if count > WATCHES_MAX {
                trouble = Some(format!("more than {WATCHES_MAX} folders hold skills"));
            } else if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive)
                && folder.symlink_metadata().is_ok()
            {
                trouble = Some(error.to_string());
            }
        };
        for search in paths {
            // The folder above tells when the path itself appears. Only then: above the data folder's skills lies the database.
            if !search.path.is_dir()
                && let Some(above) = search.path.ancestors().skip(1).find(|above| above.is_dir())
            {
                watch(above);
            }
            let walk = load::walk(&search.path, &mut watch);
            walk.skills.iter().for_each(|skill| load::folders(skill, &mut watch));
            found.extend(walk.skills);
        }
        let _first = known.set(found);
        Watching { _watcher: Some(watcher), trouble }
    }
}

/// Whether an event can mean that a skill is another one: in a skill anything but reading; elsewhere below a search path, or on
/// the way to one, what comes, goes or gets another name. `skills` are the folders that are known to be such, once they are.
fn matters(event: &Event, roots: &[PathBuf], skills: Option<&Vec<PathBuf>>) -> bool {
    let moves = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => return false,
        EventKind::Create(CreateKind::File) | EventKind::Remove(RemoveKind::File) => false,
        EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => true,
        _ => false,
    };
    let concerns = |path: &PathBuf| {
        let below = roots.iter().any(|root| path.starts_with(root));
        let in_a_skill = skills.is_none_or(|skills| skills.iter().any(|skill| path.starts_with(skill)));
        let is_text = path.file_name().is_some_and(|name| name == load::SKILL_FILE);
        (below && (moves || in_a_skill || is_text)) || (moves && roots.iter().any(|root| root.starts_with(path)))
    };
    event.paths.iter().any(concerns)
}
