//! Headers and trailers of packs, and the key wrap inside them.
#![no_main]

use diskvault_format::crypto::{Keys, Secret};
use diskvault_format::pack::{PackOpener, decode_header, decode_trailer, verify_ends};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u32, &[u8])| {
    let (length, data) = input;
    let header = decode_header(data);
    let trailer = decode_trailer(data, length.into());
    if let (Ok(header), Ok(trailer)) = (&header, &trailer) {
        let _ = verify_ends(header, trailer);
    }
    if let Ok(header) = header {
        let keys = Keys::derive(&Secret::new([7; 32]), header.identity.repository);
        assert!(PackOpener::new(&keys, &header.identity, &header.wrap).is_err());
    }
});
