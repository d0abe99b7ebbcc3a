//! What the services say about themselves: logs, so far.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Sends log events to standard error: as text, or as JSON where `BASIN_LOG_FORMAT=json`. `BASIN_LOG` chooses what is shown,
/// as `info`, `debug` or `coordinator=debug,info`.
///
/// `default` is shown where it says nothing.
pub fn init(default: &str) {
    let filter = EnvFilter::try_from_env("BASIN_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::env::var("BASIN_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).init();
    }
}
