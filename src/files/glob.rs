//! Patterns for names: `*`, `?`, `[a-z]` and `[!a-z]`, with `\` before what is meant as it is.
//!
//! Invariant: matching takes at most the product of both lengths, whatever the pattern.

use crate::error::{Error, ErrorKind, Result};

enum Part {
    Any,
    One,
    Exactly(char),
    Set { ranges: Vec<(char, char)>, is_negated: bool },
}

/// A pattern.
pub struct Glob {
    parts: Vec<Part>,
    ignores_case: bool,
}

impl Glob {
    /// Reads a pattern.
    ///
    /// # Errors
    /// `Usage` for a set without an end.
    pub fn parse(text: &str, ignores_case: bool) -> Result<Glob> {
        let folded: Vec<char> = if ignores_case { fold(text) } else { text.chars().collect() };
        let mut parts = Vec::new();
        let mut rest = folded.iter().copied();
        while let Some(character) = rest.next() {
            parts.push(match character {
                '*' => Part::Any,
                '?' => Part::One,
                '[' => set(&mut rest).ok_or_else(|| {
                    let text = format!("cannot read the pattern {text:?}: a [ without its ]");
                    Error::new(ErrorKind::Usage, text)
                })?,
                '\\' => Part::Exactly(rest.next().unwrap_or('\\')),
                other => Part::Exactly(other),
            });
        }
        Ok(Glob { parts, ignores_case })
    }

    /// True if all of `name` fits. A byte that is no UTF-8 fits where a character fits.
    pub fn fits(&self, name: &[u8]) -> bool {
        let text = String::from_utf8_lossy(name);
        let name: Vec<char> = if self.ignores_case { fold(&text) } else { text.chars().collect() };
        // Where to go on after the last `*`, should what follows it not fit.
        let (mut part, mut at, mut again) = (0, 0, None);
        loop {
            match (self.parts.get(part), name.get(at)) {
                (Some(Part::Any), _) => {
                    again = Some((part + 1, at + 1));
                    part += 1;
                }
                (None, None) => return true,
                (Some(pattern), Some(character)) if pattern.fits(*character) => {
                    (part, at) = (part + 1, at + 1);
                }
                _ => match again {
                    Some((after, next)) if next <= name.len() => {
                        (part, at) = (after, next);
                        again = Some((after, next + 1));
                    }
                    _ => return false,
                },
            }
        }
    }
}

impl Part {
    fn fits(&self, character: char) -> bool {
        match self {
            Part::Any | Part::One => true,
            Part::Exactly(wanted) => *wanted == character,
            Part::Set { ranges, is_negated } => {
                let is_in =
                    ranges.iter().any(|(first, last)| (*first..=*last).contains(&character));
                is_in != *is_negated
            }
        }
    }
}

fn fold(text: &str) -> Vec<char> {
    text.chars().flat_map(char::to_lowercase).collect()
}

/// The set behind a `[`; `None` without its end. A `]` right at the start is one of the set.
fn set(rest: &mut impl Iterator<Item = char>) -> Option<Part> {
    let mut characters = Vec::new();
    loop {
        match rest.next()? {
            ']' if !matches!(characters[..], [] | ['!'] | ['^']) => break,
            character => characters.push(character),
        }
    }
    let is_negated = matches!(characters.first(), Some('!' | '^'));
    let mut left = &characters[usize::from(is_negated)..];
    let mut ranges = Vec::new();
    while let [first, behind @ ..] = left {
        if let ['-', last, behind @ ..] = behind {
            ranges.push((*first, *last));
            left = behind;
        } else {
            ranges.push((*first, *first));
            left = behind;
        }
    }
    Some(Part::Set { ranges, is_negated })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(pattern: &str, name: &str) -> bool {
        Glob::parse(pattern, false).unwrap().fits(name.as_bytes())
    }

    #[test]
    fn patterns_fit_as_in_a_shell() {
        for (pattern, yes, no) in [
            ("*.conf", &["a.conf", ".conf"][..], &["a.confx", "conf"][..]),
            ("a?c", &["abc", "a☃c"], &["ac", "abbc"]),
            ("[a-c]*[!0-9]", &["bx", "ab"], &["b1", "dx", "b"]),
            ("[]x]", &["]", "x"], &["y"]),
            (r"\*", &["*"], &["a"]),
            ("*a*b*", &["xaxbx", "ab"], &["ba"]),
            ("", &[""], &["a"]),
        ] {
            yes.iter().for_each(|name| assert!(fits(pattern, name), "{pattern} {name}"));
            no.iter().for_each(|name| assert!(!fits(pattern, name), "{pattern} {name}"));
        }
        assert!(Glob::parse("*.TXT", true).unwrap().fits(b"Notes.txt"));
        assert!(Glob::parse("a*", false).unwrap().fits(b"a\xff"));
        assert!(Glob::parse("[a", false).is_err());
    }

    #[test]
    fn many_stars_take_no_time() {
        assert!(!fits(&"*a".repeat(100), &"a".repeat(99)));
        assert!(!fits(&format!("{}b", "*a".repeat(200)), &"a".repeat(5000)));
    }
}
