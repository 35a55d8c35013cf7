//! NBD clients of an attacker: serving one ends, in bounded memory, whatever it says. The input is
//! what the client says; what it is answered is thrown away.
#![no_main]

use diskvault::error::Result;
use diskvault::monitor::Silent;
use diskvault::serve::{Base, Export, Foreseer, Identity, Overlay, converse};
use diskvault::view::Extent;
use diskvault_format::id::{MapRoot, PointId, RepositoryId};
use libfuzzer_sys::fuzz_target;
use std::io;
use std::ops::Range;
use std::sync::LazyLock;

const SIZE: u64 = (1 << 20) + 700;
const BLOCK: u64 = 4096;

/// Every second block is zeros.
struct Blocks;

impl Base for Blocks {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        assert!(offset + buffer.len() as u64 <= SIZE);
        for (byte, at) in buffer.iter_mut().zip(offset..) {
            *byte = (at / BLOCK % 2) as u8;
        }
        Ok(())
    }

    fn extents(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        assert!(range.start < range.end && range.end <= SIZE);
        let mut start = range.start;
        while start < range.end {
            let end = ((start / BLOCK + 1) * BLOCK).min(range.end);
            let is_zero = start / BLOCK % 2 == 0;
            each(Extent { start, end, is_zero, is_allocated: !is_zero })?;
            start = end;
        }
        Ok(())
    }

    fn foreseer(&self) -> Foreseer {
        Box::new(|offset, bytes| assert!(offset + bytes <= SIZE))
    }
}

static EXPORTS: LazyLock<Vec<Export>> = LazyLock::new(|| {
    let identity = Identity {
        repository: RepositoryId([1; 16]),
        point: PointId([2; 32]),
        republishes: None,
        disk: "w".into(),
        root: MapRoot([3; 32]),
        size: SIZE,
    };
    let overlay = Overlay::temporary(&identity).expect("a temporary file");
    let export = |name: &str, overlay| {
        Export::new(name.into(), String::new(), 4096, Box::new(Blocks), overlay)
    };
    vec![export("r", None), export("w", Some(overlay))]
});

/// Flags, structured replies, a context and an export.
fn agreed(name: u8, input: &[u8]) -> Vec<u8> {
    let mut said = vec![0, 0, 0, 3];
    let mut option = |number: u32, data: &[u8]| {
        said.extend(b"IHAVEOPT");
        said.extend(number.to_be_bytes());
        said.extend((data.len() as u32).to_be_bytes());
        said.extend(data);
    };
    let export = [&[0, 0, 0, 1, name][..]].concat();
    option(8, &[]);
    option(10, &[&export[..], b"\0\0\0\x01\0\0\0\x0fbase:allocation"].concat());
    option(7, &[&export[..], &[0, 0]].concat());
    said.extend(input);
    said
}

/// Requests from the input: eight bytes each, so that most of them have a meaning.
fn requests(input: &[u8]) -> Vec<u8> {
    let mut said = Vec::new();
    for bytes in input.chunks_exact(8) {
        said.extend(0x2560_9513_u32.to_be_bytes());
        said.extend([0, bytes[0], 0, bytes[1] % 9]);
        said.extend([0; 8]);
        let offset = u64::from(u32::from_be_bytes([0, bytes[2], bytes[3], bytes[4]]));
        said.extend(offset.to_be_bytes());
        said.extend([0, bytes[5] & 3, bytes[6], bytes[7]]);
        if bytes[1] % 9 == 1 {
            let length = usize::from(bytes[5] & 3) << 16 | usize::from(bytes[6]) << 8;
            said.extend(vec![bytes[7]; length + usize::from(bytes[7])]);
        }
    }
    said
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = input.split_first() else { return };
    let name = if choice & 4 == 0 { b'r' } else { b'w' };
    let said = match choice & 3 {
        0 => rest.to_vec(),
        1 => agreed(name, rest),
        _ => agreed(name, &requests(rest)),
    };
    // A client that goes is no error of ours.
    let _ = converse(&EXPORTS, &mut said.as_slice(), io::sink(), &Silent);
});
