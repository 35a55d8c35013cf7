//! The XML of S3's answers, one element after the other.
//!
//! Invariant: time and memory are linear in the text; no document type and no entity but the
//! five of XML and numbers.

use super::trouble::Answer;
use quick_xml::Reader;
use quick_xml::events::Event;

/// Most elements inside each other.
const DEPTH_MAX: usize = 16;

/// Calls `visit` at the end of each element, with its path of local names and its own text.
pub(super) fn elements(text: &str, mut visit: impl FnMut(&str, &str)) -> Result<(), String> {
    let mut reader = Reader::from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut path = String::new();
    let mut words: Vec<String> = Vec::new();
    loop {
        match reader.read_event().map_err(|cause| format!("it is no XML: {cause}"))? {
            Event::Eof if words.is_empty() => return Ok(()),
            Event::Eof => return Err("it breaks off".into()),
            Event::DocType(_) => return Err("it has a document type".into()),
            Event::Start(element) => {
                if words.len() == DEPTH_MAX {
                    return Err("its elements are nested too deeply".into());
                }
                path.push('/');
                path.push_str(element.local_name().as_ref());
                words.push(String::new());
            }
            Event::Empty(element) => {
                visit(&format!("{path}/{}", element.local_name().as_ref()), "");
            }
            Event::Text(piece) => {
                if let Some(word) = words.last_mut() {
                    word.push_str(&piece);
                }
            }
            Event::CData(piece) => {
                if let Some(word) = words.last_mut() {
                    word.push_str(&piece);
                }
            }
            Event::GeneralRef(name) => {
                let mark = entity(&name).ok_or("it has an unknown entity")?;
                if let Some(word) = words.last_mut() {
                    word.push(mark);
                }
            }
            Event::End(_) => {
                let word = words.pop().unwrap_or_default();
                visit(&path, &word);
                path.truncate(path.rfind('/').unwrap_or(0));
            }
            _ => {}
        }
    }
}

/// What stands between `&` and `;`.
fn entity(name: &str) -> Option<char> {
    Some(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix('x') {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)?
        }
    })
}

/// Reads an answer that is no success. What cannot be read is left out.
pub(super) fn answer(status: u16, body: &[u8]) -> Answer {
    let mut answer = Answer { status, ..Answer::default() };
    let text = String::from_utf8_lossy(body);
    // A page of a server that speaks no S3 is not worth showing.
    let _ = elements(&text, |path, word| match path {
        "/Error/Code" => answer.code = word.into(),
        "/Error/Message" => answer.message = word.into(),
        "/Error/Region" => answer.region = Some(word.into()),
        _ => {}
    });
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_come_with_their_path_and_text() {
        let mut seen = Vec::new();
        let text = "<?xml version=\"1.0\"?>\n<a xmlns='x'><b>1 &amp; &#x41;</b><c/><b>2</b></a>";
        elements(text, |path, word| seen.push(format!("{path}={word}"))).unwrap();
        assert_eq!(seen, ["/a/b=1 & A", "/a/c=", "/a/b=2", "/a="]);
        for bad in ["<a><b></a>", "<a>", "<!DOCTYPE a><a/>", "<a>&b;</a>", &"<a>".repeat(20)] {
            assert!(elements(bad, |_, _| {}).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_answer_is_read_as_far_as_it_can_be() {
        let body =
            b"<Error><Code>NoSuchKey</Code><Message>gone</Message><Region>eu</Region></Error>";
        let read = answer(404, body);
        assert_eq!((read.code.as_str(), read.message.as_str()), ("NoSuchKey", "gone"));
        assert_eq!(read.region.as_deref(), Some("eu"));
        assert_eq!(answer(502, b"<html>bad gateway").code, "");
    }
}
