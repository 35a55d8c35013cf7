//! The form of a vector file: lines of `key: value`, an empty line, then the object's bytes.
//!
//! Long runs of zeros are left out of the bytes and named by the key `zeros`, so that a pack,
//! which is padded to 64 KiB, stays a small file.

use super::Result;
use diskvault_format::id::{from_hex, to_hex};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Runs of zeros of at least this many bytes are left out of the file.
const ZEROS_MIN: usize = 256;

/// One vector.
#[derive(Clone, Debug)]
pub struct Vector {
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Vector {
    /// A vector of `object` that must be read.
    pub fn ok(object: &str, comment: &str, body: impl Into<Vec<u8>>) -> Vector {
        Vector::refused(object, "ok", comment, body)
    }

    /// A vector of `object` that must be refused by `rule`.
    pub fn refused(object: &str, rule: &str, comment: &str, body: impl Into<Vec<u8>>) -> Vector {
        let vector = Vector { fields: Vec::new(), body: body.into() };
        vector.with("object", object).with("expect", rule).with("comment", comment)
    }

    /// Adds a field.
    pub fn with(mut self, key: &str, value: impl ToString) -> Vector {
        self.fields.push((key.to_owned(), value.to_string()));
        self
    }

    /// Adds a field of bytes.
    pub fn with_bytes(self, key: &str, value: &[u8]) -> Vector {
        self.with(key, to_hex(value))
    }

    fn field(&self, key: &str) -> &str {
        self.fields.iter().find(|field| field.0 == key).map_or("", |field| &field.1)
    }

    /// `ok` or a rule.
    pub fn expect(&self) -> &str {
        self.field("expect")
    }

    /// What the vector shows.
    pub fn comment(&self) -> &str {
        self.field("comment")
    }

    /// What kind of object it is.
    pub fn object(&self) -> &str {
        self.field("object")
    }

    /// The object's bytes.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The fields, to be consumed by whoever runs the vector.
    pub fn fields(&self) -> Fields<'_> {
        let used = ["object", "expect", "comment"].map(str::to_owned);
        Fields { all: &self.fields, used: RefCell::new(used.into()) }
    }

    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let (zeros, rest) = squeeze(&self.body);
        let mut file = Vec::new();
        for (key, value) in &self.fields {
            file.extend_from_slice(format!("{key}: {value}\n").as_bytes());
        }
        if !zeros.is_empty() {
            file.extend_from_slice(format!("zeros: {}\n", zeros.join(" ")).as_bytes());
        }
        file.push(b'\n');
        file.extend_from_slice(&rest);
        file
    }

    /// Reads a file.
    pub fn parse(file: &[u8]) -> Result<Vector> {
        let end = file.windows(2).position(|pair| pair == b"\n\n").ok_or("has no empty line")?;
        let mut vector = Vector { fields: Vec::new(), body: file[end + 2..].to_vec() };
        for line in std::str::from_utf8(&file[..end])?.lines() {
            let (key, value) = line.split_once(": ").ok_or(format!("{line:?} is no field"))?;
            if key == "zeros" {
                vector.body = stretch(value, &vector.body)?;
            } else if vector.fields.iter().any(|field| field.0 == key) {
                return Err(format!("has the field {key} twice").into());
            } else {
                vector = vector.with(key, value);
            }
        }
        for key in ["object", "expect", "comment"] {
            if vector.field(key).is_empty() {
                return Err(format!("has no field {key}").into());
            }
        }
        Ok(vector)
    }
}

/// Takes long runs of zeros out of `body`: their places, and what is left.
fn squeeze(body: &[u8]) -> (Vec<String>, Vec<u8>) {
    let (mut places, mut rest) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < body.len() {
        let run = body[at..].iter().take_while(|byte| **byte == 0).count();
        if run >= ZEROS_MIN {
            places.push(format!("{at}+{run}"));
        } else {
            rest.extend_from_slice(&body[at..at + run.max(1)]);
        }
        at += run.max(1);
    }
    (places, rest)
}

fn stretch(places: &str, mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    for place in places.split(' ') {
        let (offset, length) = place.split_once('+').ok_or("zeros have no length")?;
        let (offset, length): (usize, usize) = (offset.parse()?, length.parse()?);
        let before = offset.checked_sub(body.len()).ok_or("zeros are out of order")?;
        let (head, tail) = rest.split_at_checked(before).ok_or("zeros lie behind the bytes")?;
        rest = tail;
        body.extend_from_slice(head);
        body.resize(body.len() + length, 0);
    }
    body.extend_from_slice(rest);
    Ok(body)
}

/// The fields of a vector, which notes what was asked for.
pub struct Fields<'a> {
    all: &'a [(String, String)],
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Fields<'a> {
    /// A field that may be absent.
    pub fn optional(&self, key: &str) -> Option<&'a str> {
        self.used.borrow_mut().insert(key.to_owned());
        self.all.iter().find(|field| field.0 == key).map(|field| field.1.as_str())
    }

    /// A field that must be there.
    pub fn text(&self, key: &str) -> std::result::Result<&'a str, String> {
        self.optional(key).ok_or_else(|| format!("has no field {key}"))
    }

    /// A field that is a number.
    pub fn number(&self, key: &str) -> std::result::Result<u64, String> {
        self.text(key)?.parse().map_err(|cause| format!("{key}: {cause}"))
    }

    /// A field of exactly `N` bytes.
    pub fn bytes<const N: usize>(&self, key: &str) -> std::result::Result<[u8; N], String> {
        from_hex(self.text(key)?).ok_or_else(|| format!("{key} is not {N} bytes in hexadecimal"))
    }

    /// The fields that nobody asked for.
    pub fn unused(&self) -> impl Iterator<Item = &'a (String, String)> {
        self.all.iter().filter(|field| !self.used.borrow().contains(&field.0))
    }
}
