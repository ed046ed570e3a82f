//! Progress of long work, on stderr and only if that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(120);

/// A spinner while the command waits.
pub fn spinner(what: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(TICK);
    spinner
}

/// A progress bar for reading `total` bytes.
pub fn bytes(total: u64, what: &str) -> ProgressBar {
    let plain = ProgressStyle::default_bar();
    let template = "{msg} {bar:40} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or(plain);
    ProgressBar::new(total).with_style(style).with_message(what.to_owned())
}

/// A progress bar for `total` items.
pub fn bar(total: u64, what: &str) -> ProgressBar {
    let plain = ProgressStyle::default_bar();
    let style = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len}, {per_sec}, {eta} left").unwrap_or(plain);
    ProgressBar::new(total).with_style(style).with_message(what.to_owned())
}
