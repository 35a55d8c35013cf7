//! Calls into crates that read file systems.
//!
//! Invariant: a panic in one of them is an error of that call, and is not printed.

use super::window::Window;
use crate::error::{Error, ErrorKind, Result};
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// The hook of the process prints panics; those that are caught here are told as errors.
fn keep_caught_panics_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                print(panic);
            }
        }));
    });
}

/// What a crate says about a failure.
pub struct Trouble {
    /// Its words.
    pub text: String,
    /// True if nothing is wrong with the file system, only this program cannot read it.
    pub is_unsupported: bool,
}

impl Trouble {
    /// Something is wrong with the file system.
    pub fn damage(text: impl fmt::Display) -> Trouble {
        Trouble { text: text.to_string(), is_unsupported: false }
    }

    /// It is more than can be read.
    pub fn unsupported(text: impl fmt::Display) -> Trouble {
        Trouble { text: text.to_string(), is_unsupported: true }
    }
}

/// Runs a call that may read `limit` bytes of the window. `verb` and `object` begin the message,
/// such as `list /etc`.
pub fn guarded<T>(
    window: &Window,
    limit: u64,
    what: &dyn Fn() -> String,
    work: impl FnOnce() -> Result<T, Trouble>,
) -> Result<T> {
    keep_caught_panics_quiet();
    window.begin(limit);
    let outer = IS_GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(outer);
    let trouble = match result {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(trouble)) => trouble,
        Err(_) => Trouble::damage("the file system makes no sense"),
    };
    if let Some(failure) = window.take_failure() {
        let text = format!("cannot {}: {}", what(), failure.full_text());
        return Err(Error::new(failure.kind(), text));
    }
    let kind = if trouble.is_unsupported { ErrorKind::Failed } else { ErrorKind::Damage };
    Err(Error::new(kind, format!("cannot {}: {}", what(), trouble.text)))
}
