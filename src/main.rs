//! The one binary: server and command line.

use std::process::ExitCode;

/// What one thread makes another frees here all the time (records read ahead, documents, frames), which glibc's allocator does
/// slowly and keeps in pieces: a start with a million subscriptions took half as long again with it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    nexxus::cli::main()
}
