//! What waits to be written to the line: short messages in front of the pieces of objects.
//!
//! Invariants: a short message waits for no more than the piece that is being written; pieces wait
//! in bounded memory, and who has more of them waits.

use super::lock;
use crate::storage::throttle::Throttle;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Bytes of pieces that wait at most, and one piece more.
const BULK_BYTES_MAX: usize = 512 << 10;

/// Bytes of short messages that are written at once.
const BATCH_BYTES: usize = 64 << 10;

/// Messages in the order in which they go.
#[derive(Default)]
pub struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    urgent: VecDeque<Vec<u8>>,
    bulk: VecDeque<Vec<u8>>,
    bulk_bytes: usize,
    /// Nothing is taken any more; what is there is still written.
    is_closed: bool,
    /// Nothing is written any more.
    is_broken: bool,
}

/// What became of a piece.
pub enum Pushed {
    /// It will be written.
    Taken,
    /// There is no room; it comes back.
    Full(Vec<u8>),
    /// Nothing goes any more.
    Closed,
}

impl Outbox {
    /// Adds a short message.
    pub fn urgent(&self, message: Vec<u8>) {
        let mut state = lock(&self.state);
        if !state.is_closed {
            state.urgent.push_back(message);
            self.changed.notify_all();
        }
    }

    /// Adds a piece, or waits for room, at most so long.
    pub fn bulk(&self, piece: Vec<u8>, longest: Duration) -> Pushed {
        let state = lock(&self.state);
        let is_full = |state: &mut State| !state.is_closed && state.bulk_bytes >= BULK_BYTES_MAX;
        let waited = self.changed.wait_timeout_while(state, longest, is_full);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.is_closed {
            return Pushed::Closed;
        }
        if state.bulk_bytes >= BULK_BYTES_MAX {
            return Pushed::Full(piece);
        }
        state.bulk_bytes += piece.len();
        state.bulk.push_back(piece);
        self.changed.notify_all();
        Pushed::Taken
    }

    /// Adds a piece, however long that takes. False if nothing goes any more.
    pub fn bulk_wait(&self, mut piece: Vec<u8>) -> bool {
        loop {
            match self.bulk(piece, Duration::from_secs(60)) {
                Pushed::Taken => return true,
                Pushed::Closed => return false,
                Pushed::Full(back) => piece = back,
            }
        }
    }

    /// Takes nothing more; what waits is still written.
    pub fn close(&self) {
        lock(&self.state).is_closed = true;
        self.changed.notify_all();
    }

    /// Takes and writes nothing more.
    pub fn abandon(&self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        state.is_broken = true;
        self.changed.notify_all();
    }

    /// True once nothing is taken any more.
    pub fn is_closed(&self) -> bool {
        lock(&self.state).is_closed
    }

    /// Writes what comes until it is closed, or the line fails.
    ///
    /// # Errors
    /// Those of the line.
    pub fn write_all(&self, output: &mut dyn Write, throttle: Option<&Throttle>) -> io::Result<()> {
        while let Some(message) = self.next() {
            let piece_bytes = throttle.map_or(usize::MAX, Throttle::piece_bytes);
            for piece in message.chunks(piece_bytes) {
                if let Some(throttle) = throttle {
                    throttle.pace(piece.len());
                }
                output.write_all(piece).inspect_err(|_| self.abandon())?;
            }
            output.flush().inspect_err(|_| self.abandon())?;
        }
        Ok(())
    }

    /// What to write next; `None` at the end.
    fn next(&self) -> Option<Vec<u8>> {
        let state = lock(&self.state);
        let is_idle = |state: &mut State| {
            !state.is_closed && state.urgent.is_empty() && state.bulk.is_empty()
        };
        let waited = self.changed.wait_while(state, is_idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.is_broken {
            return None;
        }
        if let Some(mut batch) = state.urgent.pop_front() {
            while let Some(more) = state.urgent.front() {
                if batch.len() + more.len() > BATCH_BYTES {
                    break;
                }
                batch.extend(more);
                state.urgent.pop_front();
            }
            return Some(batch);
        }
        let piece = state.bulk.pop_front()?;
        state.bulk_bytes -= piece.len();
        self.changed.notify_all();
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_messages_overtake_pieces_and_pieces_wait_in_bounded_memory() {
        let outbox = Outbox::default();
        let mut taken = 0;
        while let Pushed::Taken = outbox.bulk(vec![b'p'; 64 << 10], Duration::ZERO) {
            taken += 1;
        }
        assert_eq!(taken, BULK_BYTES_MAX / (64 << 10));
        outbox.urgent(b"first".to_vec());
        outbox.urgent(b"second".to_vec());
        outbox.close();
        assert!(matches!(outbox.bulk(vec![1], Duration::ZERO), Pushed::Closed));
        let mut written = Vec::new();
        outbox.write_all(&mut written, None).unwrap();
        assert!(written.starts_with(b"firstsecondppp"));
        assert_eq!(written.len(), 11 + BULK_BYTES_MAX);
    }

    #[test]
    fn what_is_abandoned_is_not_written() {
        let outbox = Outbox::default();
        outbox.urgent(b"message".to_vec());
        outbox.abandon();
        let mut written = Vec::new();
        outbox.write_all(&mut written, None).unwrap();
        assert!(written.is_empty() && !outbox.bulk_wait(vec![1]));
    }
}
