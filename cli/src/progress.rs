//! Signs of life on long work. They go to stderr, and only where that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(120);

/// A sign that something is being waited for.
pub fn spinner(what: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(TICK);
    spinner
}

/// How much of `total` bytes is read.
pub fn bytes(total: u64, what: &str) -> ProgressBar {
    let plain = ProgressStyle::default_bar();
    let template = "{msg} {bar:40} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or(plain);
    ProgressBar::new(total).with_style(style).with_message(what.to_owned())
}

/// How much of `total` is done.
pub fn bar(total: u64, what: &str) -> ProgressBar {
    let plain = ProgressStyle::default_bar();
    let style = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len}, {per_sec}, {eta} left").unwrap_or(plain);
    ProgressBar::new(total).with_style(style).with_message(what.to_owned())
}
