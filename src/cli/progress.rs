//! The monitor of the command line: a bar on a terminal, a line now and then without one, JSON
//! lines with `--json`; it also counts warnings and hears Ctrl-C, SIGTERM and
//! SIGHUP.

use super::output::{escape, remark};
use super::sizes::{format_bytes, format_seconds};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::lock;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    None,
    Bar,
    Lines,
    Json,
}

/// Time between two lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(30);
/// Time between two JSON lines.
const JSON_INTERVAL: Duration = Duration::from_secs(1);

struct Stage {
    name: String,
    total: Option<u64>,
    done: u64,
    began: Instant,
    told: Instant,
}

/// The monitor of one run.
pub struct Progress {
    style: Style,
    json: bool,
    notes: bool,
    bar: ProgressBar,
    stage: Mutex<Option<Stage>>,
    warnings: AtomicUsize,
    cancelled: Arc<AtomicBool>,
}

/// True for a program that was started to go on without its terminal, as by `nohup`.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask >> (SIGHUP - 1) & 1 == 1)
}

impl Progress {
    /// A monitor that listens to signals.
    ///
    /// # Errors
    /// Fails if the signals cannot be handled.
    pub fn new(json: bool, quiet: bool, forced: bool, forbidden: bool) -> Result<Progress> {
        let terminal = std::io::stderr().is_terminal();
        let style = match (forbidden || (quiet && !forced), json, terminal) {
            (true, ..) => Style::None,
            (_, true, _) => Style::Json,
            (_, _, true) => Style::Bar,
            _ => Style::Lines,
        };
        let cancelled = Arc::new(AtomicBool::new(false));
        let cannot = |cause| Error::io(ErrorKind::Failed, "cannot handle signals", cause);
        for signal in [SIGINT, SIGTERM] {
            // The second one of a kind ends the program at once; storage is safe at any moment.
            let code = i32::from(ErrorKind::Cancelled.exit_code());
            signal_hook::flag::register_conditional_shutdown(signal, code, cancelled.clone())
                .map_err(cannot)?;
            signal_hook::flag::register(signal, cancelled.clone()).map_err(cannot)?;
        }
        // When a terminal goes, it may come from both the shell and the kernel.
        if !is_hangup_ignored() {
            signal_hook::flag::register(SIGHUP, cancelled.clone()).map_err(cannot)?;
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Ok(Progress {
            style,
            json,
            notes: !quiet,
            bar,
            stage: Mutex::new(None),
            warnings: AtomicUsize::new(0),
            cancelled,
        })
    }

    /// Number of warnings so far.
    pub fn warning_count(&self) -> usize {
        self.warnings.load(Ordering::Relaxed)
    }

    fn tell(&self, stage: &mut Stage) {
        let seconds = stage.began.elapsed().as_secs_f64();
        stage.told = Instant::now();
        let share = stage.total.map(|total| (stage.done as f64 / total.max(1) as f64).min(1.0));
        let left = share.filter(|share| *share > 0.01).map(|share| seconds / share - seconds);
        if self.style == Style::Json {
            let status = json!({
                "message_type": "status",
                "stage": stage.name,
                "percent_done": share,
                "bytes_done": stage.done,
                "total_bytes": stage.total,
                "seconds_elapsed": seconds,
                "seconds_remaining": left,
            });
            // Progress that nobody reads is no failure.
            let _ = writeln!(std::io::stderr().lock(), "{status}");
            return;
        }
        let mut text = format!("{}: {}", stage.name, format_bytes(stage.done));
        if let (Some(total), Some(share)) = (stage.total, share) {
            text = format!("{text} of {} ({:.0} %)", format_bytes(total), share * 100.0);
        }
        let rate = format_bytes((stage.done as f64 / seconds.max(0.001)) as u64);
        text = format!("{text}, {rate}/s");
        if let Some(left) = left {
            text = format!("{text}, {} left", format_seconds(left));
        }
        remark(&text);
    }

    fn print(&self, text: &str) {
        self.bar.suspend(|| remark(text));
    }
}

impl Monitor for Progress {
    fn start(&self, stage: &str, total_bytes: Option<u64>) {
        let now = Instant::now();
        let name = escape(stage);
        if self.style == Style::Bar {
            self.bar.reset();
            self.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(8));
            let template = match total_bytes {
                Some(total) => {
                    self.bar.set_length(total);
                    "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} \
                     {binary_bytes_per_sec} {eta} left"
                }
                None => "{msg} {spinner} {binary_bytes} {binary_bytes_per_sec}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.bar.set_style(style);
            }
            self.bar.set_message(name.clone());
        }
        let stage = Stage { name, total: total_bytes, done: 0, began: now, told: now };
        *lock(&self.stage) = Some(stage);
    }

    fn advance(&self, bytes: u64) {
        if self.style == Style::Bar {
            self.bar.inc(bytes);
            return;
        }
        if let Some(stage) = lock(&self.stage).as_mut() {
            stage.done += bytes;
            let interval = if self.style == Style::Json { JSON_INTERVAL } else { LINE_INTERVAL };
            if self.style != Style::None && stage.told.elapsed() >= interval {
                self.tell(stage);
            }
        }
    }

    fn finish(&self) {
        if self.style == Style::Bar {
            self.bar.finish_and_clear();
        }
        *lock(&self.stage) = None;
    }

    fn note(&self, text: &str) {
        if self.json && self.notes {
            let line = json!({"message_type": "note", "message": escape(text)});
            // As above.
            let _ = writeln!(std::io::stderr().lock(), "{line}");
        } else if self.notes {
            self.print(text);
        }
    }

    fn warn(&self, text: &str) {
        self.warnings.fetch_add(1, Ordering::Relaxed);
        if self.json {
            let line = json!({"message_type": "warning", "message": escape(text)});
            // As above.
            let _ = writeln!(std::io::stderr().lock(), "{line}");
        } else {
            self.print(&format!("warning: {text}"));
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}
