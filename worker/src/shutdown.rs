//! Signals that ask a process to stop.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancels `token` at the first SIGTERM or Ctrl-C; the second ends the process with 130.
///
/// `note` runs at the first signal and says whether there is something to finish; if not, the process ends at once. Needs a runtime.
pub fn on_signals(token: CancellationToken, note: impl Fn() -> bool + Send + 'static) -> io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        for count in 0.. {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if count > 0 || !note() {
                // Not `exit`, which would destroy libtorch's state under the threads that use it.
                signal_hook::low_level::exit(130);
            }
            token.cancel();
        }
    });
    Ok(())
}
