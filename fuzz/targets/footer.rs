//! Pack footers: what decodes encodes to the same bytes.
#![no_main]

use diskvault_format::footer::Footer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u32, &[u8])| {
    let (end, plaintext) = input;
    let Ok(footer) = Footer::decode(plaintext, 192, end.into()) else { return };
    assert_eq!(footer.encode(), plaintext);
});
