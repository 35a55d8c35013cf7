//! Reading ahead for who reads a view from front to back.
//!
//! Invariant: nothing that is read depends on it.

use super::View;
use crate::error::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// So much is loaded ahead of the reader: two segments of the default size.
const AHEAD_BYTES: u64 = 8 << 20;
/// A read that begins at most so far from the end of the last one goes on with it: clients with
/// several requests under way do not ask quite in order.
const SLACK_BYTES: u64 = 4 << 20;

/// One client of a view: what it read last foretells what it reads next.
pub struct Reader {
    view: Arc<View>,
    expected: u64,
    loaded: u64,
    is_loading: Arc<AtomicBool>,
}

impl Reader {
    /// Begins anywhere.
    pub fn new(view: Arc<View>) -> Reader {
        Reader { view, expected: u64::MAX, loaded: 0, is_loading: Arc::default() }
    }

    /// The view it reads.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// As [`View::read_at`].
    ///
    /// # Errors
    /// As [`View::read_at`].
    pub fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.foresee(offset, buffer.len() as u64);
        self.view.read_at(offset, buffer)
    }

    /// Hears of a read that somebody makes by the view itself, and loads what comes next, in the
    /// background, if the last reads led up to this one.
    pub fn foresee(&mut self, offset: u64, bytes: u64) {
        let end = offset.saturating_add(bytes);
        let follows = offset.abs_diff(self.expected) <= SLACK_BYTES;
        if !follows {
            self.loaded = 0;
        }
        self.expected = end;
        let start = self.loaded.max(end);
        let until = end.saturating_add(AHEAD_BYTES).min(self.view.size());
        // Half of it at least, or each read would start a small load.
        let is_due = start < until && (until - start >= AHEAD_BYTES / 2 || self.loaded == 0);
        if !follows || !is_due || self.is_loading.swap(true, Ordering::Acquire) {
            return;
        }
        self.loaded = until;
        let (view, is_loading) = (self.view.clone(), self.is_loading.clone());
        self.view.vault.pool.spawn(move || {
            view.prefetch(start..until);
            is_loading.store(false, Ordering::Release);
        });
    }
}
