//! The first phase of NBD: fixed newstyle negotiation, as in the protocol document of the NBD project.
//!
//! Invariants: nothing that a server says makes more than 64 KiB be read into memory at once; every
//! loop ends, because each step reads an answer to a request of ours and answers are counted.

use super::numbers::Numbers;
use super::trouble::{Outcome, Trouble, wrong};
use std::io::{Read, Write};

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTIONS_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const EXPORT_NAME: u32 = 1;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const LIST_META_CONTEXT: u32 = 9;
const SET_META_CONTEXT: u32 = 10;

const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFO: u32 = 3;
const META_CONTEXT: u32 = 4;
const IS_ERROR: u32 = 1 << 31;
const UNSUPPORTED: u32 = IS_ERROR + 1;
const POLICY: u32 = IS_ERROR + 2;
const TLS_REQUIRED: u32 = IS_ERROR + 5;
const UNKNOWN: u32 = IS_ERROR + 6;
const SHUTDOWN: u32 = IS_ERROR + 7;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// Bytes of one answer to an option.
const ANSWER_BYTES_MAX: u32 = 64 << 10;
/// Answers to one option: exports of a list, contexts.
const ANSWERS_MAX: usize = 10_000;
/// Dirty bitmaps that are agreed on, the first ones that the server lists.
const BITMAPS_MAX: usize = 64;
/// What is allocated and what reads as zeros.
pub(super) const ALLOCATION: &str = "base:allocation";
/// A bitmap of QEMU, by its name.
pub(super) const DIRTY: &str = "qemu:dirty-bitmap:";
/// The longest string of the protocol, in bytes.
pub(super) const STRING_BYTES_MAX: usize = 4096;

/// Transmission flags.
pub(super) const HAS_FLAGS: u16 = 1;
pub(super) const CAN_MULTI_CONN: u16 = 1 << 8;

/// What a server said of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Export {
    /// Its size in bytes.
    pub size: u64,
    /// Its transmission flags.
    pub flags: u16,
    /// Whether holes and block status come in structured replies.
    pub is_structured: bool,
    /// Smallest and largest number of bytes of a request.
    pub blocks: (u32, u32),
    /// The contexts of block status that were agreed on: the server's number, and the name.
    pub contexts: Vec<(u32, String)>,
}

/// Sends options and reads what is answered.
struct Talk<'a, S> {
    stream: &'a mut S,
}

/// One answer to an option.
struct Answer {
    kind: u32,
    data: Vec<u8>,
}

impl<S: Read + Write> Talk<'_, S> {
    fn ask(&mut self, option: u32, data: &[u8]) -> Outcome<()> {
        let mut request = OPTIONS_MAGIC.to_be_bytes().to_vec();
        request.extend_from_slice(&option.to_be_bytes());
        request.extend_from_slice(&(data.len() as u32).to_be_bytes());
        request.extend_from_slice(data);
        self.stream.write_all(&request)?;
        Ok(self.stream.flush()?)
    }

    fn answer(&mut self, option: u32) -> Outcome<Answer> {
        if self.stream.u64()? != REPLY_MAGIC {
            return wrong("an answer to an option without its magic number");
        }
        let (about, kind, bytes) = (self.stream.u32()?, self.stream.u32()?, self.stream.u32()?);
        if about != option {
            return wrong(format!("an answer to option {about} instead of {option}"));
        }
        if bytes > ANSWER_BYTES_MAX {
            return wrong(format!("an answer of {bytes} bytes to an option"));
        }
        let mut data = vec![0; bytes as usize];
        self.stream.read_exact(&mut data)?;
        Ok(Answer { kind, data })
    }

    /// All answers in front of the last one, which says yes or no.
    fn answers(&mut self, option: u32) -> Outcome<(Vec<Answer>, Answer)> {
        let mut answers = Vec::new();
        loop {
            let answer = self.answer(option)?;
            if answer.kind == ACK || answer.kind & IS_ERROR != 0 {
                return Ok((answers, answer));
            }
            answers.push(answer);
            if answers.len() > ANSWERS_MAX {
                return wrong(format!("more than {ANSWERS_MAX} answers to one option"));
            }
        }
    }
}

/// Reads the greeting and says what both understand; whether the last answer of an old option has
/// 124 bytes of zeros behind it.
pub(super) fn greet(stream: &mut (impl Read + Write)) -> Outcome<bool> {
    let talk = Talk { stream };
    if talk.stream.u64()? != MAGIC {
        return wrong("a greeting that is not NBD's");
    }
    match talk.stream.u64()? {
        OPTIONS_MAGIC => {}
        OLDSTYLE_MAGIC => return wrong("oldstyle negotiation, which has no exports"),
        _ => return wrong("a greeting that is not NBD's"),
    }
    let flags = talk.stream.u16()?;
    if flags & FIXED_NEWSTYLE == 0 {
        return wrong("newstyle negotiation that is not the fixed one");
    }
    let shared = flags & (FIXED_NEWSTYLE | NO_ZEROES);
    talk.stream.write_all(&u32::from(shared).to_be_bytes())?;
    talk.stream.flush()?;
    Ok(shared & NO_ZEROES == 0)
}

/// Asks for TLS; what follows on the stream is its handshake.
pub(super) fn start_tls(stream: &mut (impl Read + Write)) -> Outcome<()> {
    let mut talk = Talk { stream };
    talk.ask(STARTTLS, &[])?;
    let answer = talk.answer(STARTTLS)?;
    match answer.kind {
        ACK => Ok(()),
        _ => Err(refusal("TLS", &answer, Some("use nbd:// if the way to it is yours"))),
    }
}

fn string(text: &str) -> Outcome<Vec<u8>> {
    if text.len() > STRING_BYTES_MAX {
        return Err(Trouble::Refused("a name is longer than 4096 bytes".into(), None));
    }
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    Ok(bytes)
}

/// What the server says to it in words, or what its code means.
fn refusal(what: &str, answer: &Answer, hint: Option<&'static str>) -> Trouble {
    let said = String::from_utf8_lossy(&answer.data);
    let said = said.trim().escape_debug().to_string();
    let code = match answer.kind {
        UNSUPPORTED => "not supported",
        POLICY => "not allowed",
        TLS_REQUIRED => "only with TLS",
        UNKNOWN => "not known",
        SHUTDOWN => "the server is shutting down",
        _ => "refused",
    };
    let said = if said.is_empty() { code.to_string() } else { format!("{code}, {said}") };
    Trouble::Refused(format!("the server has no {what} for us: {said}"), hint)
}

/// Chooses an export, with its allocation and its dirty bitmaps if the server has them.
pub(super) fn choose(
    stream: &mut (impl Read + Write),
    name: &str,
    has_zeroes: bool,
) -> Outcome<Export> {
    let mut talk = Talk { stream };
    let mut export = Export { blocks: (1, 32 << 20), ..Export::default() };
    talk.ask(STRUCTURED_REPLY, &[])?;
    let (_, last) = talk.answers(STRUCTURED_REPLY)?;
    match last.kind {
        ACK => export.is_structured = true,
        TLS_REQUIRED => {
            return Err(refusal("export", &last, Some("use nbds:// instead of nbd://")));
        }
        _ => {}
    }
    if export.is_structured {
        export.contexts = set_contexts(&mut talk, name)?;
    }
    let mut data = string(name)?;
    data.extend_from_slice(&1_u16.to_be_bytes());
    data.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
    talk.ask(GO, &data)?;
    let (answers, last) = talk.answers(GO)?;
    match last.kind {
        ACK => {
            read_infos(&answers, &mut export)?;
            Ok(export)
        }
        UNSUPPORTED => choose_by_name(&mut talk, name, has_zeroes, export),
        TLS_REQUIRED => Err(refusal("export", &last, Some("use nbds:// instead of nbd://"))),
        _ => {
            let mut what = format!("export {:?}", name);
            if let Some(names) = list(&mut talk)? {
                what.push_str(&format!(" (but {names})"));
            }
            Err(refusal(&what, &last, None))
        }
    }
}

fn read_infos(answers: &[Answer], export: &mut Export) -> Outcome<()> {
    let mut has_size = false;
    for answer in answers.iter().filter(|answer| answer.kind == INFO) {
        let data = &answer.data;
        let kind = data.first_chunk().map(|kind| u16::from_be_bytes(*kind));
        match (kind, data.get(2..)) {
            (Some(INFO_EXPORT), Some(rest)) if rest.len() == 10 => {
                let (size, flags) = rest.split_at(8);
                export.size = size.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                export.flags = flags.iter().fold(0, |sum, byte| sum << 8 | u16::from(*byte));
                has_size = true;
            }
            (Some(INFO_BLOCK_SIZE), Some(rest)) if rest.len() == 12 => {
                let number = |at: usize| {
                    rest[at..at + 4].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
                };
                let (least, most) = (number(0), number(8));
                if !least.is_power_of_two() || least > 64 << 10 || most < least.max(512) {
                    return wrong(format!("requests of {least} to {most} bytes"));
                }
                export.blocks = (least, most);
            }
            _ => {}
        }
    }
    if has_size { check(export) } else { wrong("an export without a size") }
}

fn check(export: &Export) -> Outcome<()> {
    if export.flags & HAS_FLAGS == 0 {
        return wrong("an export without flags");
    }
    if export.size > i64::MAX as u64 {
        return wrong(format!("an export of {} bytes", export.size));
    }
    Ok(())
}

/// As servers before 2016 want it: there is no answer but the export, or the end of the connection.
fn choose_by_name<S: Read + Write>(
    talk: &mut Talk<'_, S>,
    name: &str,
    has_zeroes: bool,
    mut export: Export,
) -> Outcome<Export> {
    talk.ask(EXPORT_NAME, name.as_bytes())?;
    (export.size, export.flags) = (talk.stream.u64()?, talk.stream.u16()?);
    if has_zeroes {
        talk.stream.read_exact(&mut [0; 124])?;
    }
    check(&export)?;
    Ok(export)
}

fn contexts_request(name: &str, contexts: &[String]) -> Outcome<Vec<u8>> {
    let mut data = string(name)?;
    data.extend_from_slice(&(contexts.len() as u32).to_be_bytes());
    for context in contexts {
        data.extend_from_slice(&string(context)?);
    }
    Ok(data)
}

fn read_contexts(answers: &[Answer]) -> Outcome<Vec<(u32, String)>> {
    let mut contexts = Vec::new();
    for answer in answers.iter().filter(|answer| answer.kind == META_CONTEXT) {
        let Some((id, name)) = answer.data.split_first_chunk() else {
            return wrong("a context without a number");
        };
        let name = String::from_utf8_lossy(name).into_owned();
        contexts.push((u32::from_be_bytes(*id), name));
    }
    Ok(contexts)
}

/// Agrees on contexts on this one connection: servers that take no second one have bitmaps, too.
fn set_contexts<S: Read + Write>(
    talk: &mut Talk<'_, S>,
    name: &str,
) -> Outcome<Vec<(u32, String)>> {
    let mut wanted = vec![ALLOCATION.to_string()];
    talk.ask(LIST_META_CONTEXT, &contexts_request(name, &[DIRTY.to_string()])?)?;
    let (answers, last) = talk.answers(LIST_META_CONTEXT)?;
    if last.kind == ACK {
        let listed = read_contexts(&answers)?.into_iter().map(|(_, name)| name);
        wanted.extend(listed.filter(|name| name.starts_with(DIRTY)).take(BITMAPS_MAX));
    }
    talk.ask(SET_META_CONTEXT, &contexts_request(name, &wanted)?)?;
    let (answers, last) = talk.answers(SET_META_CONTEXT)?;
    // A server without contexts, or without the export, which the next option says better.
    if last.kind != ACK { Ok(Vec::new()) } else { read_contexts(&answers) }
}

/// The first exports of the server, in words; nothing if it does not tell.
fn list<S: Read + Write>(talk: &mut Talk<'_, S>) -> Outcome<Option<String>> {
    talk.ask(LIST, &[])?;
    let (answers, last) = talk.answers(LIST)?;
    if last.kind != ACK {
        return Ok(None);
    }
    let mut names = Vec::new();
    for answer in answers.iter().filter(|answer| answer.kind == SERVER).take(8) {
        let name = answer.data.split_first_chunk::<4>().map(|(bytes, rest)| {
            let bytes = (u32::from_be_bytes(*bytes) as usize).min(rest.len());
            String::from_utf8_lossy(&rest[..bytes]).into_owned()
        });
        names.push(format!("{:?}", name.unwrap_or_default()));
    }
    Ok((!names.is_empty()).then(|| names.join(", ")))
}
