//! Deltas, whole files.

use super::{Facts, Run, refuse};
use crate::vectors::form::Fields;
use diskvault_format::delta::{Frames, HEAD_BYTES, Head, PREFIX_BYTES, Payload};
use diskvault_format::id::to_hex;

/// A delta, opened with `secret` if it is told.
pub fn delta(fields: &Fields<'_>, body: &[u8]) -> Run {
    let secret = fields.optional("secret").map(str::as_bytes);
    let (head, mut rest) = body
        .split_first_chunk::<HEAD_BYTES>()
        .ok_or_else(|| refuse("D-1", "the head is too short"))?;
    let head = Head::decode(head)?;
    let mut frames = Frames::new(&head, secret)?;
    let mut facts = Facts::default();
    let mut changes = Vec::new();
    facts.add("is-sealed", head.cost.is_some());
    loop {
        let cut = || refuse("D-3", "the file ends inside of a frame");
        let (prefix, behind) = rest.split_first_chunk::<PREFIX_BYTES>().ok_or_else(cut)?;
        let (bytes, is_last) = Frames::read_prefix(*prefix)?;
        let (frame, behind) = behind.split_at_checked(bytes).ok_or_else(cut)?;
        rest = behind;
        match frames.open(frame, is_last)? {
            Payload::Description(description) => {
                facts.add("disk", description.disk);
                facts.add("old-bytes", description.old_bytes);
                facts.add("new-bytes", description.new_bytes);
                facts.add_bytes("old-digest", &description.old_digest);
                facts.add_bytes("new-digest", &description.new_digest);
            }
            Payload::Changes(found) => changes.extend(found.into_iter().map(|change| {
                let data = change.data.map_or("zeros".into(), |data| to_hex(&data));
                format!("{}+{}:{data}", change.offset, change.bytes)
            })),
            Payload::End(_) if rest.is_empty() => break,
            Payload::End(_) => return Err(refuse("D-5", "bytes follow the last frame")),
        }
    }
    facts.add_list("changes", changes);
    Ok(facts)
}
