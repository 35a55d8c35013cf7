//! The real program, run as a user runs it: its own folder, password and cache.

#![allow(dead_code, reason = "no test uses all of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The password of every repository here.
pub const PASSWORD: &str = "a password for tests";

/// A folder in which the program runs, with a repository called `repository`.
pub struct Shell {
    pub folder: PathBuf,
    /// The recovery key, once there is one: it opens the repository as the password does, and runs
    /// need not stretch it, which takes longer than all else that they do here.
    pub password: String,
}

impl Shell {
    /// Makes the repository.
    pub fn init(folder: &Path, options: &[&str]) -> Shell {
        let mut shell = Shell { folder: folder.to_owned(), password: PASSWORD.into() };
        shell.ok(&[&["init", "--recovery-key-file", "recovery-key"], options].concat());
        let key = std::fs::read_to_string(folder.join("recovery-key")).unwrap();
        shell.password = key.trim().to_owned();
        shell
    }

    /// Runs the program.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The program, to be run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_diskvault"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("DISKVAULT_") {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env("DISKVAULT_REPOSITORY", "repository")
            .env("DISKVAULT_PASSWORD", &self.password)
            .env("DISKVAULT_CACHE_DIR", "cache");
        command
    }

    /// Runs the program, which must succeed without a warning, and gives its output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "diskvault {arguments:?}: {}: {error}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Makes a point and gives the summary.
    pub fn backup(&self, arguments: &[&str]) -> serde_json::Value {
        let text = self.ok(&[&["--json", "backup"], arguments].concat());
        let mut lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        lines
            .find(|line: &serde_json::Value| line["message_type"] == "summary")
            .unwrap_or_else(|| panic!("no summary in {text}"))
    }
}

/// A number of a summary.
pub fn number(summary: &serde_json::Value, name: &str) -> u64 {
    summary[name].as_u64().unwrap_or_else(|| panic!("{name} in {summary}"))
}
