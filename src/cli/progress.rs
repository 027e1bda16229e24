//! Progress bars on stderr, where that is a terminal: what a program reads stays clean.

use indicatif::{ProgressBar, ProgressStyle};

/// How much of so many bytes is done.
pub(super) fn bytes(what: &'static str, length: u64) -> ProgressBar {
    bar(what, length, "{msg:10} {wide_bar} {bytes} of {total_bytes}  {bytes_per_sec}  {eta}")
}

/// How many things are done; how many there are is not known.
pub(super) fn things(what: &'static str) -> ProgressBar {
    bar(what, 0, "{msg:10} {spinner} {human_pos} lines  {per_sec}  {elapsed}")
}

fn bar(what: &'static str, length: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(length);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}
