//! NBD servers of an attacker: talking to one ends, in bounded memory, with answers to what was
//! asked or an error. The input is what the server says, whatever it is asked.
#![no_main]

use diskvault::source::nbd::{Answer, Client, Request};
use libfuzzer_sys::fuzz_target;
use std::io::{self, Read, Write};

struct Said<'a>(&'a [u8]);

impl Read for Said<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Said<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A greeting, and answers that agree on structured replies, two contexts and an export.
fn agreed(input: &[u8]) -> Vec<u8> {
    let mut said = b"NBDMAGICIHAVEOPT\x00\x03".to_vec();
    let mut answer = |option: u32, kind: u32, data: &[u8]| {
        said.extend(0x0003_e889_0455_65a9_u64.to_be_bytes());
        for number in [option, kind, data.len() as u32] {
            said.extend(number.to_be_bytes());
        }
        said.extend(data);
    };
    answer(8, 1, &[]);
    answer(9, 4, b"\0\0\0\0qemu:dirty-bitmap:b");
    answer(9, 1, &[]);
    answer(10, 4, b"\0\0\0\x01base:allocation");
    answer(10, 4, b"\0\0\0\x02qemu:dirty-bitmap:b");
    answer(10, 1, &[]);
    answer(7, 3, &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]);
    answer(7, 1, &[]);
    said.extend(input);
    said
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = input.split_first() else { return };
    let said = if choice & 1 == 0 { rest.to_vec() } else { agreed(rest) };
    let Ok(mut client) = Client::negotiate(Said(&said), "disk") else { return };
    let asked = [Request::Read(0, 64), Request::Status(0, 1 << 20), Request::Read(4096, 512)];
    for request in asked {
        client.ask(request).unwrap();
    }
    while client.waiting() > 0 {
        let Ok((number, answer)) = client.answer() else { return };
        match (asked[number as usize], answer) {
            (Request::Read(_, bytes), Answer::Data(data)) => assert_eq!(data.len(), bytes as usize),
            (Request::Status(..), Answer::Status(status)) => assert!(!status.is_empty()),
            (_, Answer::Failed(number, _)) => assert_ne!(number, 0),
            (request, answer) => panic!("{request:?}: {answer:?}"),
        }
    }
});
