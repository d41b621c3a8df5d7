//! `completions` and `man`: made from the definition of the command line, so they cannot lag behind.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;

const PROGRAM: &str = "cinder-docker-driver";

/// The shells that completions are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CompletionShell {
    /// Bash
    Bash,
    /// Zsh
    Zsh,
    /// Fish
    Fish,
}

/// Prints the completions for a shell.
///
/// # Errors
/// When they cannot be written.
pub fn completions(shell: CompletionShell, out: &mut impl Write) -> io::Result<()> {
    let shell = match shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), PROGRAM, &mut text);
    out.write_all(&text)
}

/// Writes the manual pages, section 8: one of the program and one of each command.
///
/// # Errors
/// When a file cannot be written.
pub fn man_pages(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    write_page(directory, PROGRAM, root.clone())?;
    for command in root.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name: &'static str = format!("{PROGRAM}-{}", command.get_name()).leak();
        write_page(directory, name, command.clone().name(name))?;
    }
    Ok(())
}

fn write_page(directory: &Path, name: &str, command: clap::Command) -> io::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).section("8").render(&mut page)?;
    fs::write(directory.join(format!("{name}.8")), page)
}
