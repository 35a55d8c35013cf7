//! Whether a machine boots: its console, its firmware's log, its guest agent, and whether it goes on
//! running.
//!
//! Invariant: every wait ends at the time limit, or when the user wants it to.

use super::console::Console;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::lock;
use crate::source::qemu::agent_answers;
use std::io::Read;
use std::path::Path;
use std::process::{Child, ChildStdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often everything is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How often the agent is asked.
const ASK: Duration = Duration::from_millis(500);
/// The firmware's log is cut when it is so long.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// What a console or firmware says of a machine that will not boot any more, and what that means.
const HOPELESS: [(&str, &str); 4] = [
    ("Kernel panic - not syncing", "the guest's kernel panicked"),
    ("No bootable option or device was found", "the firmware found nothing to boot"),
    ("UEFI Interactive Shell", "the firmware found nothing to boot"),
    ("No bootable device.", "the firmware found nothing to boot"),
];

/// By what a machine counts as booted: all of it.
#[derive(Clone, Debug)]
pub struct Expectations {
    /// Texts that its console says.
    pub console: Vec<String>,
    /// Its guest agent answers.
    pub agent: bool,
    /// It runs for so long, without a reset or an end.
    pub running: Option<Duration>,
    /// When to give up.
    pub limit: Duration,
}

/// What a boot test found.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// It booted.
    pub is_good: bool,
    /// Why, in words.
    pub because: String,
    /// How long it took.
    pub seconds: f64,
    /// The last lines of its console, as it said them: escape them before a terminal sees them.
    pub last_lines: Vec<String>,
}

/// Reads a console to its end, which is QEMU's.
fn listen(mut output: ChildStdout, console: &Mutex<Console>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = output.read(&mut buffer) {
        lock(console).add(&buffer[..count]);
    }
}

/// Watches a machine until there is a verdict. Its console is its standard output.
///
/// # Errors
/// `Cancelled` if the user wants it to end; `Failed` if QEMU does not start.
pub(super) fn watch(
    child: &mut Child,
    expected: &Expectations,
    agent: &Path,
    firmware_log: &Path,
    monitor: &dyn Monitor,
) -> Result<Verdict> {
    let mut patterns = expected.console.clone();
    patterns.extend(HOPELESS.iter().map(|(text, _)| text.to_string()));
    let console = Arc::new(Mutex::new(Console::new(&patterns)));
    let has_agent = AtomicBool::new(false);
    let is_over = AtomicBool::new(false);
    let listener = child.stdout.take().map(|output| {
        let console = console.clone();
        std::thread::spawn(move || listen(output, &console))
    });
    std::thread::scope(|scope| {
        if expected.agent {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) && !has_agent.load(Ordering::Relaxed) {
                    has_agent.store(agent_answers(agent, ASK), Ordering::Relaxed);
                    std::thread::sleep(LOOK);
                }
            });
        }
        let watcher = Watcher {
            began: Instant::now(),
            expected,
            console: &console,
            has_agent: &has_agent,
            firmware_log,
        };
        let verdict = watcher.wait(child, listener, monitor);
        is_over.store(true, Ordering::Relaxed);
        verdict
    })
}

struct Watcher<'a> {
    began: Instant,
    expected: &'a Expectations,
    console: &'a Mutex<Console>,
    has_agent: &'a AtomicBool,
    firmware_log: &'a Path,
}

impl Watcher<'_> {
    fn wait(
        &self,
        child: &mut Child,
        mut listener: Option<std::thread::JoinHandle<()>>,
        monitor: &dyn Monitor,
    ) -> Result<Verdict> {
        loop {
            monitor.check_cancelled()?;
            let failed = |cause| Error::io(ErrorKind::Failed, "cannot wait for QEMU", cause);
            let ended = child.try_wait().map_err(failed)?;
            if let (Some(_), Some(listener)) = (ended, listener.take_if(|_| ended.is_some())) {
                // What it said last counts, too.
                let _ = listener.join();
            }
            let missing = self.missing();
            if missing.is_none() {
                return Ok(self.verdict(true, &self.reason()));
            }
            if let Some(why) = self.is_hopeless() {
                return Ok(self.verdict(false, why));
            }
            if let Some(status) = ended {
                if !status.success() {
                    let mut text = format!("cannot start the machine: QEMU ended with {status}");
                    let mut said = String::new();
                    if let Some(output) = child.stderr.take() {
                        let _ = output.take(4096).read_to_string(&mut said);
                    }
                    // The last line is why; the ones before may be warnings.
                    if let Some(said) = said.lines().rev().find(|line| !line.trim().is_empty()) {
                        text.push_str(&format!(": {}", said.trim()));
                    }
                    return Err(Error::new(ErrorKind::Failed, text));
                }
                return Ok(self.verdict(false, "the machine was reset or switched off"));
            }
            if let (true, Some(missing)) = (self.began.elapsed() >= self.expected.limit, missing) {
                return Ok(self.verdict(false, &missing));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// What it lacks so far to count as booted.
    fn missing(&self) -> Option<String> {
        let console = lock(self.console);
        for (place, text) in self.expected.console.iter().enumerate() {
            if !console.has(place) {
                return Some(format!("its console did not say {text:?}"));
            }
        }
        if self.expected.agent && !self.has_agent.load(Ordering::Relaxed) {
            return Some("its guest agent did not answer".into());
        }
        let time = self.expected.running.filter(|time| self.began.elapsed() < *time)?;
        Some(format!("the time was over before {} s", time.as_secs()))
    }

    /// What it counts as booted by.
    fn reason(&self) -> String {
        let said = self.expected.console.iter().map(|text| format!("its console said {text:?}"));
        let agent = self.expected.agent.then(|| "its guest agent answered".to_string());
        let running = self.expected.running.map(|_| "it went on running".to_string());
        let reasons: Vec<String> = said.chain(agent).chain(running).collect();
        reasons.join(", ")
    }

    fn is_hopeless(&self) -> Option<&'static str> {
        let console = lock(self.console);
        let first = self.expected.console.len();
        let said = (first..).zip(HOPELESS).find(|(place, _)| console.has(*place));
        if let Some((_, (_, why))) = said {
            return Some(why);
        }
        drop(console);
        let mut log = Vec::new();
        let opened = std::fs::File::options().read(true).write(true).open(self.firmware_log);
        if let Ok(file) = opened {
            let _ = (&file).take(LOG_BYTES_MAX).read_to_end(&mut log);
            // A guest can write to it without end.
            if log.len() as u64 == LOG_BYTES_MAX {
                let _ = file.set_len(0);
            }
        }
        let log = String::from_utf8_lossy(&log);
        HOPELESS.iter().find(|(text, _)| log.contains(text)).map(|(_, why)| *why)
    }

    fn verdict(&self, is_good: bool, because: &str) -> Verdict {
        let last_lines = lock(self.console).last_lines();
        let seconds = self.began.elapsed().as_secs_f64();
        Verdict { is_good, because: because.to_string(), seconds, last_lines }
    }
}
