//! `nexxus completions`: what a shell needs to complete the commands.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Exit, output};

/// Print completions for a shell, e.g. `nexxus completions bash > /etc/bash_completion.d/nexxus`.
#[derive(Debug, Args)]
pub(super) struct Completions {
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<(), Exit> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "nexxus", &mut script);
        output::say(String::from_utf8_lossy(&script).trim_end())
    }
}
