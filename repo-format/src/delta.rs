//! The difference between two disks as one file (spec/45-delta.md): a head, then frames, of which
//! each is sealed with a passphrase, or only protected against accidents.
//!
//! Invariants: nothing of a frame is handed out before it was authenticated; frames cannot be
//! left out, swapped or cut off at the end without notice.

use crate::crypto::{Secret, context, open_x, seal_x};
use crate::cursor::Cursor;
use crate::error::{Result, check_version, limit, malformed, unauthentic};
use crate::key_slot::{KdfCost, stretch};
use crate::record;
use serde::{Deserialize, Serialize};

/// Bytes of the head.
pub const HEAD_BYTES: usize = 64;
/// Bytes of a frame's prefix.
pub const PREFIX_BYTES: usize = 4;
/// Most bytes of a frame behind its prefix.
pub const FRAME_BYTES_MAX: u32 = 8 << 20;
/// Most bytes of one change.
pub const CHANGE_BYTES_MAX: u32 = 1 << 20;
/// Most bytes of the changes of one frame before they are compressed.
const CHANGES_BYTES_MAX: usize = 4 << 20;
const MAGIC: &[u8; 8] = b"DVDELTA1";
const VERSION: u16 = 1;
const FLAG_SEALED: u16 = 1;
/// In a prefix, of the last frame.
const LAST: u32 = 1 << 31;
const CHECK_BYTES: usize = 16;
const LEVEL: i32 = 3;

/// The head of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What it costs to get the key; nothing if it is not sealed.
    pub cost: Option<KdfCost>,
    /// Random.
    pub salt: [u8; 32],
}

impl Head {
    /// As it stands in the file.
    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[..8].copy_from_slice(MAGIC);
        head[8..10].copy_from_slice(&VERSION.to_le_bytes());
        if let Some(cost) = self.cost {
            head[10..12].copy_from_slice(&FLAG_SEALED.to_le_bytes());
            head[12..16].copy_from_slice(&cost.memory_kib.to_le_bytes());
            head[16..20].copy_from_slice(&cost.passes.to_le_bytes());
            head[20..24].copy_from_slice(&cost.lanes.to_le_bytes());
        }
        head[32..].copy_from_slice(&self.salt);
        head
    }

    /// Reads a head.
    ///
    /// # Errors
    /// D-1 for another layout, D-2 for another version, K-4 for a cost out of bounds.
    pub fn decode(bytes: &[u8; HEAD_BYTES]) -> Result<Head> {
        let mut cursor = Cursor::new(bytes, "D-1");
        if cursor.bytes(8)? != MAGIC {
            return Err(malformed("D-1", "is no delta"));
        }
        check_version("D-2", VERSION, cursor.u16()?)?;
        let flags = cursor.u16()?;
        let cost =
            KdfCost { memory_kib: cursor.u32()?, passes: cursor.u32()?, lanes: cursor.u32()? };
        cursor.zeros(8, "D-1")?;
        let salt = cursor.array()?;
        let cost = match flags {
            0 if (cost.memory_kib, cost.passes, cost.lanes) == (0, 0, 0) => None,
            FLAG_SEALED => Some(cost),
            _ => return Err(malformed("D-1", format!("has flags {flags}"))),
        };
        cost.map(KdfCost::validate).transpose()?;
        Ok(Head { cost, salt })
    }
}

/// Seals or opens the frames of one file, in their order.
pub struct Frames {
    head: [u8; HEAD_BYTES],
    key: Option<Secret>,
    count: u64,
    is_over: bool,
    /// Of the disk after.
    new_bytes: u64,
    changes: u64,
    /// Where the last change ended.
    end: u64,
}

impl Frames {
    /// For the frames behind a head. Of one that is not sealed the secret is ignored.
    ///
    /// # Errors
    /// K-4 if the key cannot be derived; D-4 without a secret for one that is sealed.
    pub fn new(head: &Head, secret: Option<&[u8]>) -> Result<Frames> {
        let key = match (head.cost, secret) {
            (None, _) => None,
            (Some(cost), Some(secret)) => {
                let output = stretch(secret, &head.salt, cost)?;
                Some(Secret::new(blake3::derive_key(context::DELTA_KEY, &output[..])))
            }
            (Some(_), None) => return Err(unauthentic("D-4", "is sealed")),
        };
        let head = head.encode();
        Ok(Frames { head, key, count: 0, is_over: false, new_bytes: 0, changes: 0, end: 0 })
    }

    fn nonce(&self, is_last: bool) -> [u8; 24] {
        let mut nonce = [0; 24];
        nonce[..8].copy_from_slice(&self.count.to_le_bytes());
        nonce[8] = u8::from(is_last);
        nonce
    }

    fn check(&self, nonce: &[u8; 24], payload: &[u8]) -> [u8; CHECK_BYTES] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.head).update(nonce).update(payload);
        let mut check = [0; CHECK_BYTES];
        check.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK_BYTES]);
        check
    }

    /// The next frame with its prefix.
    pub fn seal(&mut self, payload: &[u8], is_last: bool) -> Vec<u8> {
        let nonce = self.nonce(is_last);
        let body = match &self.key {
            Some(key) => seal_x(key, &nonce, &self.head, payload),
            None => [payload, &self.check(&nonce, payload)].concat(),
        };
        self.count += 1;
        let prefix = body.len() as u32 | if is_last { LAST } else { 0 };
        [&prefix.to_le_bytes()[..], &body].concat()
    }

    /// How many bytes stand behind a prefix, and whether the frame is the last.
    ///
    /// # Errors
    /// D-3 for a length out of bounds.
    pub fn read_prefix(prefix: [u8; PREFIX_BYTES]) -> Result<(usize, bool)> {
        let prefix = u32::from_le_bytes(prefix);
        let bytes = prefix & !LAST;
        if bytes > FRAME_BYTES_MAX {
            let most = u64::from(FRAME_BYTES_MAX);
            return Err(limit("D-3", "the length of a frame", most, u64::from(bytes)));
        }
        Ok((bytes as usize, prefix & LAST != 0))
    }

    /// Opens the next frame.
    ///
    /// # Errors
    /// D-4 if it is not what was sealed there; D-5 for what cannot stand there; D-6 for changes that
    /// cannot be.
    pub fn open(&mut self, body: &[u8], is_last: bool) -> Result<Payload> {
        if self.is_over {
            return Err(malformed("D-5", "goes on behind its last frame"));
        }
        let nonce = self.nonce(is_last);
        let payload = match &self.key {
            Some(key) => open_x(key, &nonce, &self.head, body, "D-4")?.to_vec(),
            None => {
                let (payload, found) = body
                    .split_last_chunk::<CHECK_BYTES>()
                    .ok_or_else(|| unauthentic("D-4", "a frame is too short"))?;
                if self.check(&nonce, payload) != *found {
                    return Err(unauthentic("D-4", "a frame is damaged"));
                }
                payload.to_vec()
            }
        };
        let payload = Payload::decode(&payload)?;
        let is_first = matches!(payload, Payload::Description(_));
        let is_end = matches!(payload, Payload::End(_));
        if is_first != (self.count == 0) || is_end != is_last {
            return Err(malformed("D-5", "its frames are not in their order"));
        }
        self.follow(&payload)?;
        self.count += 1;
        self.is_over = is_last;
        Ok(payload)
    }
}

impl Frames {
    fn follow(&mut self, payload: &Payload) -> Result<()> {
        match payload {
            Payload::Description(description) => self.new_bytes = description.new_bytes,
            Payload::Changes(changes) => {
                for change in changes {
                    let end = change.offset.checked_add(u64::from(change.bytes));
                    match end.filter(|end| *end <= self.new_bytes) {
                        Some(end) if change.offset >= self.end => self.end = end,
                        _ => {
                            return Err(malformed(
                                "D-5",
                                "has changes that overlap or are too far",
                            ));
                        }
                    }
                }
                self.changes += changes.len() as u64;
            }
            Payload::End(count) if *count == self.changes => {}
            Payload::End(_) => return Err(malformed("D-5", "has another number of changes")),
        }
        Ok(())
    }
}

/// Which two disks a file is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The point of the disk before, as text.
    pub old_point: String,
    /// The point of the disk after.
    pub new_point: String,
    /// The disk's name after.
    pub disk: String,
    /// Its size before, in bytes.
    pub old_bytes: u64,
    /// Its size after.
    pub new_bytes: u64,
    /// BLAKE3 of all of it before.
    pub old_digest: [u8; 32],
    /// BLAKE3 of all of it after.
    pub new_digest: [u8; 32],
}

/// A range that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its first byte.
    pub offset: u64,
    /// Its length, 1 to [`CHANGE_BYTES_MAX`].
    pub bytes: u32,
    /// What is there after; zeros if `None`.
    pub data: Option<Vec<u8>>,
}

/// What a frame holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The first.
    Description(Description),
    /// Ranges that differ, ascending.
    Changes(Vec<Change>),
    /// The last: how many changes there were.
    End(u64),
}

impl Payload {
    /// As it is sealed.
    ///
    /// # Errors
    /// R-1 for texts that are too long; D-6 for changes that are too many for one frame, or that
    /// cannot be compressed.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut payload = Vec::new();
        match self {
            Payload::Description(description) => {
                payload.push(1);
                payload.extend(record::encode(description)?);
            }
            Payload::Changes(changes) => {
                let plain = encode_changes(changes);
                if plain.len() > CHANGES_BYTES_MAX {
                    let most = CHANGES_BYTES_MAX as u64;
                    return Err(limit("D-6", "the changes of a frame", most, plain.len() as u64));
                }
                payload.push(2);
                payload.extend((plain.len() as u32).to_le_bytes());
                let compressed = zstd::bulk::compress(&plain, LEVEL)
                    .map_err(|cause| malformed("D-6", format!("cannot compress: {cause}")))?;
                payload.extend(compressed);
            }
            Payload::End(count) => {
                payload.push(3);
                payload.extend(count.to_le_bytes());
            }
        }
        Ok(payload)
    }

    fn decode(payload: &[u8]) -> Result<Payload> {
        let mut cursor = Cursor::new(payload, "D-5");
        match cursor.u8()? {
            1 => Ok(Payload::Description(record::decode(cursor.rest())?)),
            2 => {
                let bytes = cursor.u32()? as usize;
                if bytes > CHANGES_BYTES_MAX {
                    let most = CHANGES_BYTES_MAX as u64;
                    return Err(limit("D-6", "the changes of a frame", most, bytes as u64));
                }
                let plain = zstd::bulk::decompress(cursor.rest(), bytes)
                    .map_err(|cause| malformed("D-6", format!("cannot decompress: {cause}")))?;
                if plain.len() != bytes {
                    return Err(malformed("D-6", "its changes have another length"));
                }
                decode_changes(&plain).map(Payload::Changes)
            }
            3 => {
                let count = cursor.u64()?;
                cursor.finish()?;
                Ok(Payload::End(count))
            }
            kind => Err(malformed("D-5", format!("has a frame of kind {kind}"))),
        }
    }
}

/// Bytes that a change takes in a frame before it is compressed.
pub fn encoded_bytes(change: &Change) -> usize {
    8 + 4 + 1 + change.data.as_ref().map_or(0, Vec::len)
}

fn encode_changes(changes: &[Change]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(changes.iter().map(encoded_bytes).sum());
    for change in changes {
        plain.extend(change.offset.to_le_bytes());
        plain.extend(change.bytes.to_le_bytes());
        plain.push(u8::from(change.data.is_some()));
        plain.extend(change.data.iter().flatten());
    }
    plain
}

fn decode_changes(plain: &[u8]) -> Result<Vec<Change>> {
    let mut cursor = Cursor::new(plain, "D-6");
    let mut changes = Vec::new();
    while !cursor.rest().is_empty() {
        let (offset, bytes) = (cursor.u64()?, cursor.u32()?);
        let kind = cursor.u8()?;
        if bytes == 0 || bytes > CHANGE_BYTES_MAX || kind > 1 {
            return Err(malformed("D-6", "has a change of no possible length or kind"));
        }
        let data = (kind == 1).then(|| cursor.bytes(bytes as usize)).transpose()?;
        changes.push(Change { offset, bytes, data: data.map(<[u8]>::to_vec) });
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Fault;

    fn description() -> Description {
        Description {
            old_point: "a".into(),
            new_point: "b".into(),
            disk: "sda".into(),
            old_bytes: 1 << 40,
            new_bytes: 1 << 41,
            old_digest: [1; 32],
            new_digest: [2; 32],
        }
    }

    fn payloads() -> Vec<Payload> {
        let changes = vec![
            Change { offset: 0, bytes: 3, data: Some(vec![1, 2, 3]) },
            Change { offset: 1 << 39, bytes: CHANGE_BYTES_MAX, data: None },
        ];
        vec![Payload::Description(description()), Payload::Changes(changes), Payload::End(2)]
    }

    fn frames(head: &Head) -> Vec<Vec<u8>> {
        let mut frames = Frames::new(head, Some(b"secret")).unwrap();
        let payloads = payloads();
        let last = payloads.len() - 1;
        let seal = |(number, payload): (usize, &Payload)| {
            frames.seal(&payload.encode().unwrap(), number == last)
        };
        payloads.iter().enumerate().map(seal).collect()
    }

    fn open(frames: &mut Frames, frame: &[u8]) -> Result<Payload> {
        let (prefix, body) = frame.split_first_chunk().unwrap();
        let (bytes, is_last) = Frames::read_prefix(*prefix)?;
        assert_eq!(bytes, body.len());
        frames.open(body, is_last)
    }

    #[test]
    fn frames_come_back_and_only_as_they_were() {
        for cost in [None, Some(KdfCost::RECOVERY)] {
            let head = Head { cost, salt: [9; 32] };
            assert_eq!(Head::decode(&head.encode()).unwrap(), head);
            let sealed = frames(&head);
            let mut opener = Frames::new(&head, Some(b"secret")).unwrap();
            for (frame, payload) in sealed.iter().zip(payloads()) {
                assert_eq!(open(&mut opener, frame).unwrap(), payload);
            }
            assert_eq!(open(&mut opener, &sealed[2]).unwrap_err().rule, "D-5");
            // Every bit of the middle one counts, and so does its place.
            for bit in 0..sealed[1].len() * 8 {
                let mut opener = Frames::new(&head, Some(b"secret")).unwrap();
                open(&mut opener, &sealed[0]).unwrap();
                let mut frame = sealed[1].clone();
                frame[bit / 8] ^= 1 << (bit % 8);
                let (prefix, body) = frame.split_first_chunk().unwrap();
                let Ok((bytes, is_last)) = Frames::read_prefix(*prefix) else { continue };
                let cut = &body[..bytes.min(body.len())];
                let other = bytes != body.len() && cut == body;
                assert!(opener.open(cut, is_last).is_err() || other, "bit {bit}");
            }
            let mut opener = Frames::new(&head, Some(b"secret")).unwrap();
            open(&mut opener, &sealed[0]).unwrap();
            assert_eq!(open(&mut opener, &sealed[2]).unwrap_err().fault, Fault::Unauthentic);
        }
    }

    #[test]
    fn another_secret_opens_nothing() {
        let head = Head { cost: Some(KdfCost::RECOVERY), salt: [9; 32] };
        let sealed = frames(&head);
        let mut opener = Frames::new(&head, Some(b"other")).unwrap();
        assert_eq!(open(&mut opener, &sealed[0]).unwrap_err().rule, "D-4");
        assert_eq!(Frames::new(&head, None).map(|_| ()).unwrap_err().rule, "D-4");
    }

    #[test]
    fn heads_that_cannot_be_are_refused() {
        let head = Head { cost: Some(KdfCost::RECOVERY), salt: [9; 32] }.encode();
        for (at, value, rule) in
            [(0, 0, "D-1"), (8, 2, "D-2"), (10, 4, "D-1"), (15, 0xff, "K-4"), (24, 1, "D-1")]
        {
            let mut bytes = head;
            bytes[at] = value;
            assert_eq!(Head::decode(&bytes).unwrap_err().rule, rule, "byte {at}");
        }
        assert_eq!(Frames::read_prefix([0xff; 4]).unwrap_err().rule, "D-3");
    }

    #[test]
    fn changes_that_cannot_be_are_refused() {
        let change = |bytes: u32, kind: u8| {
            let mut plain = vec![0; 8];
            plain.extend(bytes.to_le_bytes());
            plain.push(kind);
            plain
        };
        for plain in
            [change(0, 0), change(CHANGE_BYTES_MAX + 1, 0), change(1, 2), change(1, 1), vec![0; 12]]
        {
            assert_eq!(decode_changes(&plain).unwrap_err().rule, "D-6");
        }
        assert_eq!(decode_changes(&change(1, 0)).unwrap().len(), 1);
        let bomb = [&[2][..], &u32::MAX.to_le_bytes(), &[0; 20]].concat();
        assert_eq!(Payload::decode(&bomb).unwrap_err().fault, Fault::Limit);
    }
}
