//! Leases: who does what only one may do at a time, until when.

use std::{sync::LazyLock, time::Duration};

use super::{Arguments, Effect, Redis, Script};
use crate::Result;

static LEASE: LazyLock<Script> = LazyLock::new(|| Script::new(Effect::Repeatable, include_str!("lease.lua")));

impl Redis {
    /// Takes or renews a lease: true when the holder has it from now on for `ttl`.
    pub(crate) async fn hold(&self, name: &str, holder: &str, ttl: Duration) -> Result<bool> {
        let mut arguments = Arguments::default();
        arguments.text(holder).number(ttl.as_millis().max(1));
        let key = self.keys().alone(&format!("lease:{name}"));
        Ok(self.run("hold lease", &LEASE, &[&key], &arguments).await?.number()? == 1)
    }

    /// Gives a lease back, where the holder has it.
    pub(crate) async fn release(&self, name: &str, holder: &str) -> Result<()> {
        let mut arguments = Arguments::default();
        arguments.text(holder).number(0);
        let key = self.keys().alone(&format!("lease:{name}"));
        self.run("release lease", &LEASE, &[&key], &arguments).await.map(drop)
    }
}
