//! `keyring:SERVICE/ACCOUNT`: secrets in the Secret Service of the person's session (GNOME Keyring, KWallet, KeePassXC …).
//!
//! libsecret's `secret-tool` is asked, as a program of its own: the D-Bus and cipher libraries that this takes stay out of
//! the daemon, which needs them for a moment only, at its start and when its configuration changes.

use std::io::{ErrorKind, Read};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, RuntimeFlavor};

use super::secrets::Missing;

/// How long the keyring may take; it may ask the person to unlock it.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How often the end of the program is looked for.
const LOOK: Duration = Duration::from_millis(5);
/// Longest secret, in bytes.
const BYTES_MAX: u64 = 64 * 1024;

/// True once the keyring did not answer in time: the other references of the same configuration need not wait as well.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Lets the keyring be asked again, also if it did not answer before.
pub(super) fn ask_again() {
    SILENT.store(false, Ordering::Release);
}

/// The secret of `SERVICE/ACCOUNT`. Waits at most ten seconds, and for the first of several only; the error never holds a
/// secret.
pub(super) fn look_up(place: &str) -> Result<String, Missing> {
    let wrong = || Missing::for_good("must be keyring:SERVICE/ACCOUNT, such as keyring:aman/github.");
    let (service, account) = place.split_once('/').ok_or_else(wrong)?;
    let is_name = |name: &str| !name.is_empty() && !name.starts_with('-') && !name.chars().any(char::is_control);
    if !(is_name(service) && is_name(account)) {
        return Err(wrong());
    }
    if SILENT.load(Ordering::Acquire) {
        return Err(silent());
    }
    let many = Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if many { tokio::task::block_in_place(|| ask(service, account)) } else { ask(service, account) }
}

fn ask(service: &str, account: &str) -> Result<String, Missing> {
    let said = run(&["lookup", "service", service, "account", account])?;
    if said.well && !said.out.is_empty() {
        let place = format!("{service}/{account}");
        let no_text = |_| Missing::for_good(format!("names '{place}' in the keyring, which is no text."));
        return String::from_utf8(said.out).map_err(no_text);
    }
    if !said.error.is_empty() {
        return Err(explain(&said.error, service, account));
    }
    // Nothing is said both when there is no such secret and when nobody opened the keyring for it; a search, which does not
    // ask anybody to open it, finds it in the second case only.
    let found = run(&["search", "service", service, "account", account])?;
    let error = if found.out.is_empty() { found.error } else { "locked".to_owned() };
    Err(explain(&error, service, account))
}

/// What the program said.
struct Said {
    well: bool,
    out: Vec<u8>,
    error: String,
}

fn run(arguments: &[&str]) -> Result<Said, Missing> {
    let mut command = Command::new("secret-tool");
    // Its messages are told apart by their words.
    command.args(arguments).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => Missing::for_good(
            "names the keyring, which is read with secret-tool; install libsecret-tools (Debian, Ubuntu), libsecret (Fedora, \
             Arch), or use env:NAME or file:PATH.",
        ),
        _ => Missing::for_good(format!("names the keyring, and secret-tool cannot be started: {error}.")),
    })?;
    let until = Instant::now() + WAIT_MAX;
    let (out, error) = (reading(child.stdout.take()), reading(child.stderr.take()));
    let within = || until.saturating_duration_since(Instant::now());
    let heard = (ended(&mut child, until), out.recv_timeout(within()), error.recv_timeout(within()));
    let (Some(well), Ok(out), Ok(error)) = heard else {
        let _gone = child.kill();
        let _ended = child.wait();
        SILENT.store(true, Ordering::Release);
        return Err(silent());
    };
    if u64::try_from(out.len()).is_ok_and(|bytes| bytes > BYTES_MAX) {
        return Err(Missing::for_good(format!("names a text in the keyring of more than {BYTES_MAX} bytes.")));
    }
    Ok(Said { well, out, error: String::from_utf8_lossy(&error).trim().to_owned() })
}

/// Reads on a thread of its own, so that nothing that holds the pipe open can hold the caller.
fn reading(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe
            && pipe.take(BYTES_MAX + 1).read_to_end(&mut bytes).is_ok()
        {
            // Nobody listens any more when the time is over.
            let _late = tell.send(bytes);
        }
    });
    told
}

fn ended(child: &mut Child, until: Instant) -> Option<bool> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) if Instant::now() < until => std::thread::sleep(LOOK),
            Ok(None) | Err(_) => return None,
        }
    }
}

fn silent() -> Missing {
    Missing::for_now(format!(
        "names the keyring, which did not answer within {} s; it may wait to be unlocked. Log in to your desktop or unlock \
         it, then try again.",
        WAIT_MAX.as_secs()
    ))
}

/// What the program's message means, and what to do.
fn explain(error: &str, service: &str, account: &str) -> Missing {
    let store = format!("secret-tool store --label=aman service '{service}' account '{account}'");
    if error.is_empty() {
        let reason = format!("names '{service}/{account}', which the keyring does not hold. Store it with: {store}");
        return Missing::for_good(reason);
    }
    if error.contains("locked") {
        return Missing::for_now(format!(
            "names '{service}/{account}' in the keyring, which is locked. Log in to your desktop or unlock it, then try \
             again."
        ));
    }
    let nobody = ["org.freedesktop.secrets", "autolaunch", "connect", "DBUS_SESSION_BUS_ADDRESS"];
    if nobody.iter().any(|sign| error.contains(sign)) {
        return Missing::for_now(format!(
            "names the keyring, and none runs here ({error}). Start one such as gnome-keyring in your session, or use \
             env:NAME or file:PATH."
        ));
    }
    Missing::for_good(format!("names '{service}/{account}' in the keyring, which cannot be read: {error}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_messages_explained() {
        for place in ["", "aman", "/token", "aman/", "-x/token", "aman/-x", "a\nb/c"] {
            assert!(look_up(place).is_err_and(|why| why.reason.contains("SERVICE/ACCOUNT")), "{place}");
        }
        for (said, wanted, for_now) in [
            ("", "does not hold", false),
            ("secret-tool: Cannot get secret of a locked object", "is locked", true),
            ("secret-tool: The name org.freedesktop.secrets was not provided by any .service files", "none runs", true),
            ("secret-tool: Cannot autolaunch D-Bus without X11 $DISPLAY", "none runs", true),
            ("secret-tool: it is raining", "it is raining", false),
        ] {
            let why = explain(said, "aman", "token");
            assert!(why.reason.contains(wanted) && why.for_now == for_now, "{why:?}");
        }
    }
}
