//! `nexxus export` and `nexxus import`: applications with all that they have, as JSON Lines, from one server to another.
//!
//! A file begins with a line that names the format and ends with one that says that it is whole. In between, each line is one thing:
//! `{"application":…}`, then its `user`, `device`, `subscription` and `document` lines; users before devices, and those before
//! subscriptions. A file whose name ends in `.zst` is compressed with zstd. While it is written it is called `FILE.part`: an export that
//! broke off is found there, and goes on from there.

mod export;
mod import;
mod lines;
mod place;

pub(super) use self::{export::Export, import::Import};
