//! Fronts: where requests come in. The daemon has one; a plugin may have one of its own, on an address of its own, where
//! its routes are at `/`. Such a front is a router made of the same rows, behind the same gate: it decides nothing.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener as Bound};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::listen::Listener;
use super::routes::Table;
use super::{App, Serving, guests};
use crate::config::Config;
use crate::config::plugins::PluginSection;
use crate::error::Error;
use crate::package::Envelope;
use crate::plugins::Wanted;

/// The wait before an address is tried again that could not be listened on; each further one is twice as long.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What one listener serves; replaced as a whole.
pub(super) struct Served {
    /// The routes.
    pub table: Arc<Table>,
    /// How a plugin spells errors; none = as the daemon does.
    envelope: Option<Arc<Envelope>>,
}

/// See the module.
pub struct Front {
    served: ArcSwap<Served>,
    /// The plugin whose it is; none = the daemon's.
    plugin: Option<Arc<str>>,
}

impl Front {
    /// The daemon's.
    pub(super) fn of_daemon(table: Table) -> Front {
        Front { served: ArcSwap::from_pointee(Served { table: Arc::new(table), envelope: None }), plugin: None }
    }

    fn of_plugin(name: Arc<str>, served: Served) -> Front {
        Front { served: ArcSwap::from_pointee(served), plugin: Some(name) }
    }

    /// What is served at present.
    pub(super) fn served(&self) -> Guard<Arc<Served>> {
        self.served.load()
    }

    /// The routes, to be kept for a while.
    pub(super) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.served.load().table)
    }

    /// Replaces the routes of the daemon's front.
    pub(super) fn set_table(&self, table: Table) {
        self.served.store(Arc::new(Served { table: Arc::new(table), envelope: None }));
    }

    /// How errors are spelled here; none = as the daemon does.
    pub(super) fn envelope(&self) -> Option<Arc<Envelope>> {
        self.served.load().envelope.clone()
    }

    /// The plugin whose it is, for the log.
    pub(super) fn name(&self) -> &str {
        self.plugin.as_deref().unwrap_or_default()
    }

    /// True where the pages of the console and of plugins are.
    pub(super) fn has_console(&self) -> bool {
        self.plugin.is_none()
    }
}

/// What a plugin's listener is to serve.
#[derive(Clone)]
struct Offer {
    table: Arc<Table>,
    envelope: Option<Arc<Envelope>>,
}

/// A plugin's address that is configured and has something to serve.
struct Place {
    bind: SocketAddr,
    front: Arc<Front>,
    /// Ends it: no more connections, and those that are open end after their present request.
    closing: CancellationToken,
    /// Where it listens, or why it does not.
    found: Result<SocketAddr, String>,
}

#[derive(Default)]
struct State {
    binds: BTreeMap<String, SocketAddr>,
    offers: BTreeMap<Arc<str>, Offer>,
    places: BTreeMap<String, Place>,
}

/// The fronts of plugins: each is there while its plugin runs and an address is configured for it.
pub(super) struct Fronts {
    state: Mutex<State>,
    /// Other machines may be let in, by the configuration that the gate was made from.
    may_be_remote: bool,
    serving: OnceLock<Serving>,
}

/// What the listeners of plugins would serve; fails when the routes of one of them cannot be told apart there.
pub(super) struct Offers(BTreeMap<Arc<str>, Offer>);

impl Offers {
    /// Of all routes that are wanted; answers count where those of `main` do.
    pub(super) fn of(wanted: &[Wanted], main: &Table) -> Result<Offers, Error> {
        let mut by_plugin: BTreeMap<Arc<str>, Vec<&Wanted>> = BTreeMap::new();
        for one in wanted {
            by_plugin.entry(Arc::clone(&one.plugin)).or_default().push(one);
        }
        let counts = main.counts();
        let offer = |all: Vec<&Wanted>| {
            let envelope = all.first().and_then(|one| one.errors.clone());
            let rows = all.into_iter().map(|one| guests::row(one.clone(), one.route.path.clone())).collect();
            let mounted = |row: &super::routes::Route| {
                let place = guests::place(row.plugin.as_ref()?);
                counts.get(&(&row.method, place.as_str())).cloned()
            };
            Table::counting(rows, mounted).map(|table| Offer { table: Arc::new(table), envelope })
        };
        by_plugin.into_iter().map(|(name, all)| Ok((name, offer(all)?))).collect::<Result<_, Error>>().map(Offers)
    }
}

impl Fronts {
    /// Fronts for what the configuration says; nothing is listened on before [`Fronts::serve`].
    pub(super) fn new(config: &Config) -> Fronts {
        let state = State { binds: binds(&config.plugins), ..State::default() };
        let may_be_remote = config.http.may_be_remote;
        Fronts { state: Mutex::new(state), may_be_remote, serving: OnceLock::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to listen.
    pub(super) fn serve(&self, app: &Arc<App>, serving: Serving) {
        // A second server of one app would be a bug of its maker; the first one stands.
        let _first = self.serving.set(serving);
        self.settle(app, &mut self.state());
    }

    /// Puts in force what the configuration says by now.
    pub(super) fn configure(&self, app: &Arc<App>, sections: &[PluginSection]) {
        let mut state = self.state();
        state.binds = binds(sections);
        self.settle(app, &mut state);
    }

    /// Puts in force what runs by now.
    pub(super) fn offer(&self, app: &Arc<App>, offers: Offers) {
        let mut state = self.state();
        state.offers = offers.0;
        self.settle(app, &mut state);
    }

    /// How the listener of a plugin stands; null when none is configured.
    pub(super) fn show(&self, name: &str, is_secure: bool) -> Value {
        let state = self.state();
        let Some(bind) = state.binds.get(name) else { return Value::Null };
        let scheme = if is_secure { "https" } else { "http" };
        let (word, url, error) = match state.places.get(name).map(|place| &place.found) {
            None => ("off", None, None),
            Some(Ok(address)) => ("listening", Some(format!("{scheme}://{address}")), None),
            Some(Err(why)) => ("failing", None, Some(why.clone())),
        };
        json!({ "bind": bind, "state": word, "url": url, "error": error })
    }

    /// Opens, changes and ends listeners until they are as they should be.
    fn settle(&self, app: &Arc<App>, state: &mut State) {
        let Some(serving) = self.serving.get() else { return };
        let State { binds, offers, places } = state;
        places.retain(|name, place| {
            let stays = binds.get(name) == Some(&place.bind) && offers.contains_key(name.as_str());
            if !stays {
                tracing::info!(plugin = name, address = %place.bind, "The listener of a plugin ends.");
                place.closing.cancel();
            }
            stays
        });
        for (name, bind) in binds.iter() {
            let Some((plugin, offer)) = offers.get_key_value(name.as_str()) else { continue };
            let served = Served { table: Arc::clone(&offer.table), envelope: offer.envelope.clone() };
            if let Some(place) = places.get(name) {
                place.front.served.store(Arc::new(served));
                continue;
            }
            let front = Arc::new(Front::of_plugin(Arc::clone(plugin), served));
            let closing = serving.closing.child_token();
            let mut place = Place { bind: *bind, front, closing, found: Err(String::new()) };
            if !place.open(app, serving, name) {
                tokio::spawn(again(Arc::downgrade(app), name.clone(), place.closing.clone()));
            }
            places.insert(name.clone(), place);
        }
    }

    /// Tries once more; true when there is nothing more to try.
    fn try_again(&self, app: &Arc<App>, name: &str, closing: &CancellationToken) -> bool {
        let mut state = self.state();
        // Cancelled under the same lock.
        let place = state.places.get_mut(name).filter(|_| !closing.is_cancelled());
        let (Some(place), Some(serving)) = (place, self.serving.get()) else { return true };
        place.open(app, serving, name)
    }
}

impl Place {
    /// Listens, if that is possible by now; false when it is worth another try.
    fn open(&mut self, app: &Arc<App>, serving: &Serving, name: &str) -> bool {
        if !self.bind.ip().is_loopback() && !app.fronts.may_be_remote {
            let why = format!("{} is no loopback address: http.allow_remote holds after a restart only.", self.bind);
            tracing::warn!(plugin = name, why, "A plugin's own address is not served.");
            self.found = Err(why);
            return true;
        }
        match listen(self.bind) {
            Ok((listener, address)) => {
                let listener = match &serving.tls {
                    Some(acceptor) => Listener::Tls(listener, acceptor.clone()),
                    None => Listener::Tcp(listener),
                };
                tracing::info!(plugin = name, %address, "A plugin serves at an address of its own.");
                serving.accept(app, &self.front, listener, self.closing.clone());
                self.found = Ok(address);
                true
            }
            Err(error) => {
                let why = format!(
                    "{} cannot be listened on: {error}. It is tried again by itself; another address is \
                     [plugin.{name}] bind in the configuration file.",
                    self.bind
                );
                if self.found.as_ref().err() != Some(&why) {
                    tracing::warn!(plugin = name, why, "A plugin's own address cannot be served.");
                }
                self.found = Err(why);
                false
            }
        }
    }
}

fn binds(sections: &[PluginSection]) -> BTreeMap<String, SocketAddr> {
    sections.iter().filter_map(|section| Some((section.name.clone(), section.bind?))).collect()
}

fn listen(bind: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let bound = Bound::bind(bind)?;
    bound.set_nonblocking(true)?;
    let address = bound.local_addr()?;
    Ok((TcpListener::from_std(bound)?, address))
}

/// Tries an address again and again, until it can be listened on or nobody wants it any more.
async fn again(app: Weak<App>, name: String, closing: CancellationToken) {
    let mut wait = RETRY_FIRST;
    loop {
        tokio::select! {
            () = closing.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        let Some(app) = app.upgrade() else { return };
        if app.fronts.try_again(&app, &name, &closing) {
            return;
        }
        wait = (wait * 2).min(RETRY_MAX);
    }
}
