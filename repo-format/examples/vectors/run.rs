//! Runs one vector through the crate and compares what it says with what the vector says.

mod clear;
mod delta;
mod key_slot;
mod map;
mod pack;
mod sealed;

pub use key_slot::derive as derive_slot;

use super::Result;
use super::form::{Fields, Vector};
use diskvault_format::asymmetric::{open_from, public_key};
use diskvault_format::crypto::{Keys, Secret, context};
use diskvault_format::error::{FormatError, malformed};
use diskvault_format::id::{RepositoryId, to_hex};
use diskvault_format::record;
use diskvault_format::writers::{WriterRecord, Writers};

/// Why a run ended early.
pub enum Stop {
    /// The crate refused the object.
    Refused(FormatError),
    /// The vector itself is wrong.
    Vector(String),
}

impl From<FormatError> for Stop {
    fn from(cause: FormatError) -> Stop {
        Stop::Refused(cause)
    }
}

impl From<String> for Stop {
    fn from(cause: String) -> Stop {
        Stop::Vector(cause)
    }
}

impl From<&str> for Stop {
    fn from(cause: &str) -> Stop {
        Stop::Vector(cause.to_owned())
    }
}

/// What running a vector yields: the decoded essentials and intermediate values.
#[derive(Default)]
pub struct Facts(Vec<(String, String)>);

impl Facts {
    /// Adds a value.
    pub fn add(&mut self, key: &str, value: impl ToString) {
        self.0.push((key.to_owned(), value.to_string()));
    }

    /// Adds bytes.
    pub fn add_bytes(&mut self, key: &str, value: &[u8]) {
        self.add(key, to_hex(value));
    }

    /// Adds a list, which is `none` if it is empty; `item*n` stands for `n` times the item.
    pub fn add_list<T: ToString>(&mut self, key: &str, items: impl IntoIterator<Item = T>) {
        let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
        let show = |run: &[String]| match run {
            [only] => only.clone(),
            _ => format!("{}*{}", run[0], run.len()),
        };
        let items: Vec<String> = items.chunk_by(|a, b| a == b).map(show).collect();
        self.add(key, if items.is_empty() { "none".to_owned() } else { items.join(" ") });
    }
}

/// A refusal by a rule of the specification that needs more than the object's own bytes.
fn refuse(rule: &'static str, detail: &str) -> Stop {
    Stop::Refused(malformed(rule, detail))
}

/// Refuses an object whose name, if the vector states one, is not the hash of its bytes (N-3).
fn check_name(fields: &Fields<'_>, body: &[u8]) -> std::result::Result<(), Stop> {
    match fields.optional("name") {
        Some(name) if name != blake3::hash(body).to_hex().as_str() => {
            Err(refuse("N-3", "the name is not the hash of the bytes"))
        }
        _ => Ok(()),
    }
}

type Run = std::result::Result<Facts, Stop>;

fn run(vector: &Vector, fields: &Fields<'_>) -> Run {
    let body = vector.body();
    match vector.object() {
        "config" => clear::config(fields, body),
        "instance" => clear::instance(body),
        "name" => clear::name(fields, body),
        "record" => clear::record(fields, body),
        "allocation" => clear::allocation(fields, body),
        "parity" => clear::parity(fields, body),
        "delta" => delta::delta(fields, body),
        "key-slot" => key_slot::key_slot(fields, body),
        "pack" => pack::pack(fields, body),
        "segment" => pack::segment(body),
        "footer" => pack::footer(fields, body),
        "splice" => pack::splice(body),
        "manifest" => sealed::manifest(body),
        "map-leaf" => map::leaf(fields, body),
        "map-inner" => map::inner(fields, body),
        "stream-page" => map::stream_page(fields, body),
        "digest" => map::digest(fields, body),
        other => match other.strip_prefix("sealed-") {
            Some(kind) => sealed::sealed(fields, kind, body),
            None => Err(format!("there is no object {other}").into()),
        },
    }
}

/// Gives an `ok` vector all values that running it yields.
///
/// # Errors
/// What the crate says if it refuses the vector, and what is wrong with the vector itself.
pub fn complete(vector: Vector) -> Result<Vector> {
    if vector.expect() != "ok" {
        return Ok(vector);
    }
    let facts = match run(&vector, &vector.fields()) {
        Ok(facts) => facts,
        Err(Stop::Refused(cause)) => return Err(format!("expected ok, found {cause}").into()),
        Err(Stop::Vector(cause)) => return Err(cause.into()),
    };
    Ok(facts.0.into_iter().fold(vector, |vector, (key, value)| vector.with(&key, value)))
}

/// Judges a vector file: the outcome, the rule, every value, and no field that is not known.
///
/// # Errors
/// What the crate or the vector does otherwise.
pub fn check(file: &[u8]) -> Result<Vector> {
    let vector = Vector::parse(file)?;
    let fields = vector.fields();
    let facts = match run(&vector, &fields) {
        Ok(_) if vector.expect() != "ok" => {
            return Err(format!("expected {}, found ok", vector.expect()).into());
        }
        Ok(facts) => facts.0,
        Err(Stop::Vector(cause)) => return Err(cause.into()),
        Err(Stop::Refused(cause)) if cause.rule != vector.expect() => {
            return Err(format!("expected {}, found {cause}", vector.expect()).into());
        }
        Err(Stop::Refused(_)) => Vec::new(),
    };
    let stated: Vec<_> = fields.unused().collect();
    if let Some((key, value)) = stated.iter().find(|field| !facts.contains(field)) {
        let found = facts.iter().find(|fact| fact.0 == *key).map(|fact| fact.1.as_str());
        let found = found.unwrap_or("no such field");
        return Err(format!("{key}: expected {value}, found {found}").into());
    }
    match facts.iter().find(|fact| !stated.contains(fact)) {
        Some((key, _)) => Err(format!("does not state {key}").into()),
        None => Ok(vector),
    }
}

/// The field `writers`: records of writers in the order of their names.
fn writers(text: &str) -> std::result::Result<Vec<WriterRecord>, Stop> {
    let read = |text| {
        let record: WriterRecord = record::decode(&unhex(text)?)?;
        record.validate()?;
        Ok(record)
    };
    text.split(' ').map(read).collect()
}

/// Bytes of any number.
fn unhex(text: &str) -> std::result::Result<Vec<u8>, String> {
    let digit = |at: usize| {
        let pair = text.get(at..at + 2).ok_or_else(|| format!("{text} is cut off"))?;
        u8::from_str_radix(pair, 16).map_err(|cause| format!("{text}: {cause}"))
    };
    (0..text.len()).step_by(2).map(digit).collect()
}

/// The fields `master`, `repository` and `writers`, and the keys they make.
struct Opened {
    master: [u8; 32],
    repository: RepositoryId,
    keys: Keys,
}

impl Opened {
    fn new(fields: &Fields<'_>) -> std::result::Result<Opened, Stop> {
        let master = fields.bytes("master")?;
        let repository = RepositoryId(fields.bytes("repository")?);
        let writers = fields.optional("writers").map_or(Ok(Vec::new()), writers)?;
        let keys = Keys::derive(&Secret::new(master), repository);
        let keys = keys.with_writers(Writers::new(writers));
        Ok(Opened { master, repository, keys })
    }

    fn subkey(&self, context: &str) -> Secret {
        super::fixed::subkey(context, &self.master, self.repository)
    }

    /// Opens what is sealed to the repository's public key, and tells the keys.
    fn open_sealed_to_public_key(
        &self,
        encapsulated: &[u8],
        additional: &[u8],
        sealed: &[u8],
        facts: &mut Facts,
    ) -> std::result::Result<Vec<u8>, Stop> {
        let key = self.subkey(context::OPENING);
        let mut enc = [0; 32];
        enc.copy_from_slice(encapsulated);
        facts.add_bytes("subkey", key.expose());
        facts.add_bytes("public-key", &public_key(&key));
        facts.add_bytes("enc", &enc);
        Ok(open_from(&key, &enc, additional, sealed, "O-5")?.to_vec())
    }
}

/// Every subkey, for one vector that lists them.
pub const SUBKEYS: [(&str, &str); 11] = [
    ("subkey-chunk-id", context::CHUNK_ID),
    ("subkey-page-id", context::PAGE_ID),
    ("subkey-map-root", context::MAP_ROOT),
    ("subkey-gear", context::GEAR),
    ("subkey-pack-wrap", context::PACK_WRAP),
    ("subkey-manifest", context::MANIFEST),
    ("subkey-note", context::NOTE),
    ("subkey-lost", context::LOST),
    ("subkey-protocol", context::PROTOCOL),
    ("subkey-config", context::CONFIG),
    ("subkey-key-label", context::KEY_LABEL),
];
