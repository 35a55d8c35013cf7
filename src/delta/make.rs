//! Writing a delta: what two maps say differs is read on both sides and compared by blocks.

use crate::diff::{Change as Difference, Comparison};
use crate::environment::{Environment, random_array};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::repository::objects::refused;
use crate::repository::secrets::Passphrase;
use crate::restore::Part;
use crate::view::{Vault, View};
use diskvault_format::delta::{
    CHANGE_BYTES_MAX, Change, Description, Frames, Head, Payload, encoded_bytes,
};
use diskvault_format::key_slot::KdfCost;
use diskvault_format::manifest::DiskRecord;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

/// What is compared: the block of nearly every file system.
const BLOCK_BYTES: usize = 4096;
/// Changes of one frame, before they are compressed.
const FRAME_BYTES: usize = 3 << 20;

/// What a delta is made of.
pub struct Make<'a> {
    /// The repository of both points.
    pub vault: &'a Arc<Vault>,
    /// The disk before.
    pub old: &'a DiskRecord,
    /// The disk after.
    pub new: &'a DiskRecord,
    /// Names and digests of both.
    pub description: Description,
    /// What it is sealed with; it is not sealed if `None`.
    pub passphrase: Option<&'a Passphrase>,
    /// Gives the salt.
    pub environment: &'a dyn Environment,
    /// Hears of progress.
    pub monitor: &'a dyn Monitor,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MakeReport {
    /// Ranges that differ.
    pub changes: u64,
    /// Bytes in them.
    pub changed_bytes: u64,
    /// Length of the file.
    pub file_bytes: u64,
}

struct Writer<'a> {
    output: &'a mut dyn Write,
    frames: Frames,
    pending: Vec<Change>,
    pending_bytes: usize,
    report: MakeReport,
}

/// Writes the difference.
///
/// # Errors
/// `Damage` for what cannot be read, and what the output says.
pub fn make(from: &Make<'_>, output: &mut dyn Write) -> Result<MakeReport> {
    let salt = random_array(from.environment)?;
    let cost = from.passphrase.map(|_| KdfCost::PASSPHRASE);
    let head = Head { cost, salt };
    let secret = from.passphrase.map(Passphrase::expose);
    let frames = Frames::new(&head, secret).map_err(|cause| refused("the delta", cause))?;
    let mut writer = Writer {
        output,
        frames,
        pending: Vec::new(),
        pending_bytes: 0,
        report: MakeReport::default(),
    };
    writer.write(&head.encode())?;
    writer.seal(&Payload::Description(from.description.clone()), false)?;
    let old = View::open(from.vault, Part::Disk(from.old))?;
    let new = View::open(from.vault, Part::Disk(from.new))?;
    let (repository, locator) = (from.vault.repository(), from.vault.locator());
    let comparison = Comparison { repository, locator, monitor: from.monitor };
    comparison.disks(Some(from.old), Some(from.new), &mut |extent| {
        if extent.change == Difference::Cut {
            return Ok(());
        }
        let end = (extent.start + extent.bytes).min(new.size());
        let mut start = extent.start;
        while start < end {
            let until = (start + u64::from(CHANGE_BYTES_MAX)).min(end);
            writer.add_piece(&old, &new, start..until)?;
            from.monitor.advance(until - start);
            start = until;
        }
        Ok(())
    })?;
    writer.finish()
}

impl Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.report.file_bytes += bytes.len() as u64;
        self.output.write_all(bytes).map_err(|cause| {
            // The target's own text names it; only the kind is taken over.
            let text = cause.to_string();
            Error::new(Error::io(ErrorKind::Target, "", cause).kind(), text)
        })
    }

    fn seal(&mut self, payload: &Payload, is_last: bool) -> Result<()> {
        let payload = payload.encode().map_err(|cause| refused("the delta", cause))?;
        let frame = self.frames.seal(&payload, is_last);
        self.write(&frame)
    }

    /// Compares a range by blocks and adds those that differ, neighbours as one.
    fn add_piece(&mut self, old: &View, new: &View, range: Range<u64>) -> Result<()> {
        let bytes = (range.end - range.start) as usize;
        let (mut before, mut after) = (vec![0; bytes], vec![0; bytes]);
        let there = (old.size().saturating_sub(range.start) as usize).min(bytes);
        if there > 0 {
            old.read_at(range.start, &mut before[..there])?;
        }
        new.read_at(range.start, &mut after)?;
        let differs = |block: usize| {
            let end = (block + BLOCK_BYTES).min(bytes);
            before[block..end] != after[block..end]
        };
        let mut at = 0;
        while at < bytes {
            if !differs(at) {
                at += BLOCK_BYTES;
                continue;
            }
            let start = at;
            while at < bytes && differs(at) {
                at += BLOCK_BYTES;
            }
            let end = at.min(bytes);
            let data = &after[start..end];
            let is_zero = data.iter().all(|byte| *byte == 0);
            self.add(Change {
                offset: range.start + start as u64,
                bytes: (end - start) as u32,
                data: (!is_zero).then(|| data.to_vec()),
            })?;
        }
        Ok(())
    }

    fn add(&mut self, change: Change) -> Result<()> {
        let bytes = encoded_bytes(&change);
        if self.pending_bytes + bytes > FRAME_BYTES {
            self.flush()?;
        }
        self.report.changes += 1;
        self.report.changed_bytes += u64::from(change.bytes);
        self.pending_bytes += bytes;
        self.pending.push(change);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.pending_bytes = 0;
        let changes = std::mem::take(&mut self.pending);
        if changes.is_empty() { Ok(()) } else { self.seal(&Payload::Changes(changes), false) }
    }

    fn finish(mut self) -> Result<MakeReport> {
        self.flush()?;
        self.seal(&Payload::End(self.report.changes), true)?;
        Ok(self.report)
    }
}
