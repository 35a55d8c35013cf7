//! The first phase of NBD, the server's side: fixed newstyle negotiation.
//!
//! Invariants: no option makes more than 64 KiB be read; options are counted, so that it ends; with
//! TLS required, nothing but TLS is answered before it.

use super::Export;
use super::protocol::*;
use std::io::{self, Read, Write};

/// Options of one client.
const OPTIONS_MAX: usize = 1000;

/// How far TLS is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Security {
    /// There is none.
    Plain,
    /// It has to come first.
    Required,
    /// It is on.
    Secured,
}

/// What was agreed on.
pub(super) struct Agreement<'a> {
    /// The export.
    pub export: &'a Export,
    /// Replies are structured.
    pub is_structured: bool,
    /// Block status may be asked for.
    pub has_allocation: bool,
}

/// How a negotiation ended.
pub(super) enum Outcome<'a> {
    /// With an export.
    Agreed(Agreement<'a>),
    /// With a wish for TLS, which was granted: its handshake comes next, and a negotiation anew.
    StartTls,
    /// With nothing: the client went, or said what the protocol does not allow.
    Over,
}

/// The greeting and the client's flags; `None` if it is no client of NBD, else whether old answers
/// end with zeros.
pub(super) fn greet(stream: &mut (impl Read + Write)) -> io::Result<Option<bool>> {
    let mut greeting = GREETING.to_be_bytes().to_vec();
    greeting.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    greeting.extend_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    stream.write_all(&greeting)?;
    stream.flush()?;
    let flags = u32::from_be_bytes(read_array(stream)?);
    let known = u32::from(FIXED_NEWSTYLE | NO_ZEROES);
    Ok((flags & !known == 0).then_some(flags & u32::from(NO_ZEROES) == 0))
}

/// Answers options until an export is chosen.
pub(super) fn negotiate<'a, S: Read + Write>(
    stream: &mut S,
    exports: &'a [Export],
    security: Security,
    has_zeroes: bool,
) -> io::Result<Outcome<'a>> {
    let mut talk = Talk { stream, exports, has_zeroes, is_structured: false, allocation_of: None };
    for _ in 0..OPTIONS_MAX {
        if u64::from_be_bytes(read_array(talk.stream)?) != OPTION_MAGIC {
            return Ok(Outcome::Over);
        }
        let option = u32::from_be_bytes(read_array(talk.stream)?);
        let bytes = u32::from_be_bytes(read_array(talk.stream)?);
        if bytes > OPTION_BYTES_MAX {
            return Ok(Outcome::Over);
        }
        let mut data = vec![0; bytes as usize];
        talk.stream.read_exact(&mut data)?;
        if let Some(outcome) = talk.option(option, &data, security)? {
            return Ok(outcome);
        }
    }
    Ok(Outcome::Over)
}

struct Talk<'a, 's, S> {
    stream: &'s mut S,
    exports: &'a [Export],
    has_zeroes: bool,
    is_structured: bool,
    /// The export whose allocation was agreed on, by its place.
    allocation_of: Option<usize>,
}

impl<'a, S: Read + Write> Talk<'a, '_, S> {
    /// Answers one option; the outcome if it was the last.
    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        security: Security,
    ) -> io::Result<Option<Outcome<'a>>> {
        match option {
            ABORT => {
                self.reply(option, REPLY_ACK, &[])?;
                return Ok(Some(Outcome::Over));
            }
            STARTTLS if security == Security::Required && data.is_empty() => {
                self.reply(option, REPLY_ACK, &[])?;
                return Ok(Some(Outcome::StartTls));
            }
            // It has no error in its answer.
            EXPORT_NAME if security == Security::Required => return Ok(Some(Outcome::Over)),
            _ if security == Security::Required && option != STARTTLS => {
                self.refuse(option, ERROR_TLS_REQUIRED, "TLS comes first")?;
            }
            EXPORT_NAME => return self.by_name(data).map(Some),
            LIST if data.is_empty() => self.list()?,
            INFO | GO => return self.describe(option, data),
            STRUCTURED_REPLY if data.is_empty() => {
                self.is_structured = true;
                self.reply(option, REPLY_ACK, &[])?;
            }
            LIST_META_CONTEXT | SET_META_CONTEXT => self.contexts(option, data)?,
            STARTTLS if security == Security::Plain => {
                self.refuse(option, ERROR_UNSUPPORTED, "there is no TLS here")?;
            }
            LIST | STRUCTURED_REPLY | STARTTLS => {
                self.refuse(option, ERROR_INVALID, "not now, or not with data")?;
            }
            _ => self.refuse(option, ERROR_UNSUPPORTED, "unknown option")?,
        }
        Ok(None)
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let mut reply = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        for number in [option, kind, data.len() as u32] {
            reply.extend_from_slice(&number.to_be_bytes());
        }
        reply.extend_from_slice(data);
        self.stream.write_all(&reply)?;
        self.stream.flush()
    }

    fn refuse(&mut self, option: u32, error: u32, text: &str) -> io::Result<()> {
        self.reply(option, error, text.as_bytes())
    }

    /// The place of an export; without a name it is the first.
    fn find(&self, name: &str) -> Option<usize> {
        let named = self.exports.iter().position(|export| export.name() == name);
        named.or((name.is_empty() && !self.exports.is_empty()).then_some(0))
    }

    fn by_name(&mut self, data: &[u8]) -> io::Result<Outcome<'a>> {
        let name = std::str::from_utf8(data).ok();
        let Some(place) = name.and_then(|name| self.find(name)) else { return Ok(Outcome::Over) };
        let export = &self.exports[place];
        let mut answer = export.size().to_be_bytes().to_vec();
        answer.extend_from_slice(&export.flags(self.is_structured).to_be_bytes());
        if self.has_zeroes {
            answer.extend_from_slice(&[0; 124]);
        }
        self.stream.write_all(&answer)?;
        self.stream.flush()?;
        Ok(Outcome::Agreed(self.agree(place)))
    }

    fn agree(&self, place: usize) -> Agreement<'a> {
        Agreement {
            export: &self.exports[place],
            is_structured: self.is_structured,
            has_allocation: self.is_structured && self.allocation_of == Some(place),
        }
    }

    fn list(&mut self) -> io::Result<()> {
        for export in self.exports {
            let name = export.name().as_bytes();
            let mut data = (name.len() as u32).to_be_bytes().to_vec();
            data.extend_from_slice(name);
            self.reply(LIST, REPLY_SERVER, &data)?;
        }
        self.reply(LIST, REPLY_ACK, &[])
    }

    /// `INFO` and `GO`.
    fn describe(&mut self, option: u32, data: &[u8]) -> io::Result<Option<Outcome<'a>>> {
        let Some((name, wanted)) = info_request(data) else {
            self.refuse(option, ERROR_INVALID, "malformed request")?;
            return Ok(None);
        };
        let Some(place) = self.find(name) else {
            self.refuse(option, ERROR_UNKNOWN, "no such export")?;
            return Ok(None);
        };
        let export = &self.exports[place];
        let mut info = INFO_EXPORT.to_be_bytes().to_vec();
        info.extend_from_slice(&export.size().to_be_bytes());
        info.extend_from_slice(&export.flags(self.is_structured).to_be_bytes());
        self.reply(option, REPLY_INFO, &info)?;
        for (kind, text) in [(INFO_NAME, export.name()), (INFO_DESCRIPTION, export.description())] {
            if wanted.contains(&kind) {
                let mut info = kind.to_be_bytes().to_vec();
                info.extend_from_slice(text.as_bytes());
                self.reply(option, REPLY_INFO, &info)?;
            }
        }
        let mut info = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for bytes in [1, export.preferred_bytes(), REQUEST_BYTES_MAX] {
            info.extend_from_slice(&bytes.to_be_bytes());
        }
        self.reply(option, REPLY_INFO, &info)?;
        self.reply(option, REPLY_ACK, &[])?;
        Ok((option == GO).then(|| Outcome::Agreed(self.agree(place))))
    }

    /// `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
    fn contexts(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let is_set = option == SET_META_CONTEXT;
        if is_set {
            self.allocation_of = None;
        }
        let Some((name, queries)) = contexts_request(data) else {
            return self.refuse(option, ERROR_INVALID, "malformed request");
        };
        if is_set && !self.is_structured {
            return self.refuse(option, ERROR_INVALID, "structured replies come first");
        }
        let Some(place) = self.find(name) else {
            return self.refuse(option, ERROR_UNKNOWN, "no such export");
        };
        let mut asked = queries.iter();
        let is_wanted = match is_set {
            true => asked.any(|query| *query == ALLOCATION),
            false => queries.is_empty() || asked.any(|query| ["base:", ALLOCATION].contains(query)),
        };
        if is_wanted {
            // Only agreed contexts have a number.
            let id = if is_set { ALLOCATION_ID } else { 0 };
            self.allocation_of = if is_set { Some(place) } else { self.allocation_of };
            let mut context = id.to_be_bytes().to_vec();
            context.extend_from_slice(ALLOCATION.as_bytes());
            self.reply(option, REPLY_META_CONTEXT, &context)?;
        }
        self.reply(option, REPLY_ACK, &[])
    }
}

/// The export and the kinds of information that are wanted.
fn info_request(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    if fields.0.len() != usize::from(count) * 2 {
        return None;
    }
    Some((name, std::iter::from_fn(|| fields.u16()).collect()))
}

/// The export and the queries.
fn contexts_request(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    let queries: Vec<&str> = std::iter::from_fn(|| fields.string()).collect();
    (fields.0.is_empty() && queries.len() == count as usize).then_some((name, queries))
}
