//! The contracts of the seams as named tests: one function for each promise, expanded for each backend by a macro.
//!
//! They are part of the crate's interface (feature `conformance`), so that adapters elsewhere can be held to the same promises.

pub mod change_log;
pub mod documents;
pub mod queues;
pub mod registry;

/// What the macros of the seams expand to: a module `$name` with a test for each promise.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests {
    ($name:ident, $make:expr, $seam:ident: $($promise:ident,)*) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    $crate::conformance::$seam::$promise(($make)().await).await;
                }
            )*
        }
    };
}
