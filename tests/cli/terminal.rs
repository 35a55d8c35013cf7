//! A terminal of its own for a run of the program, by util-linux's `script`: what it shows, and
//! typing at it.

use crate::support::{PATIENCE, Vault};
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A shell line that runs on a terminal.
pub struct Terminal {
    child: Child,
    keyboard: ChildStdin,
    screen: Arc<Mutex<String>>,
    reader: std::thread::JoinHandle<()>,
}

impl Terminal {
    /// Starts `line`, in which `$0` is the program; without the password in its environment
    /// unless `with_password`. `None`, with a message, where `script` is missing.
    pub fn start(vault: &Vault, line: &str, with_password: bool) -> Option<Terminal> {
        let plain = vault.command::<&str>(&[]);
        let program = plain.get_program().to_str().unwrap();
        let line = line.replace("$0", &format!("'{program}'"));
        let mut command = Command::new("script");
        command.args(["-qef", "-E", "always", "-c", &line, "/dev/null"]);
        command.current_dir(vault.path("")).env_clear();
        for (name, value) in plain.get_envs() {
            if with_password || name != "DISKVAULT_PASSWORD" {
                command.env(name, value.unwrap_or_default());
            }
        }
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let Ok(mut child) = piped.spawn() else {
            eprintln!("skipped: there is no program `script`");
            return None;
        };
        let (keyboard, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let screen = Arc::new(Mutex::new(String::new()));
        let shown = screen.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Some(Terminal { child, keyboard, screen, reader })
    }

    /// Waits until the screen shows `text`.
    pub fn wait_for(&self, text: &str) {
        let began = Instant::now();
        while !self.screen.lock().unwrap().contains(text) {
            let shown = self.screen.lock().unwrap().clone();
            assert!(began.elapsed() < PATIENCE, "no {text:?} in {shown:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Types once the screen shows `prompt`.
    pub fn answer(&mut self, prompt: &str, typed: &str) {
        self.wait_for(prompt);
        self.keyboard.write_all(typed.as_bytes()).unwrap();
    }

    /// Waits for the end: all that was shown, and the exit code.
    pub fn finish(mut self) -> (String, i32) {
        let began = Instant::now();
        let code = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status.code().unwrap();
            }
            if began.elapsed() > PATIENCE {
                self.child.kill().unwrap();
                panic!("it does not end: {:?}", self.screen.lock().unwrap());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        self.reader.join().unwrap();
        let shown = self.screen.lock().unwrap().clone();
        (shown, code)
    }
}

/// Runs `line` to its end, with the password in the environment.
pub fn on_terminal(vault: &Vault, line: &str) -> Option<(String, i32)> {
    Some(Terminal::start(vault, line, true)?.finish())
}
