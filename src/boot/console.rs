//! What a guest says on its serial console.
//!
//! Invariant: only the end of it is kept.

use std::collections::VecDeque;

/// Bytes at the end that are kept for people.
const KEPT_BYTES: usize = 16 << 10;
/// Lines at the end that are shown.
const LINES_SHOWN: usize = 12;
/// Characters of a line that are shown.
const LINE_CHARACTERS_MAX: usize = 200;

/// A text that is looked for.
struct Pattern {
    text: Vec<u8>,
    is_found: bool,
}

/// The end of a console, and which texts have been on it.
pub(super) struct Console {
    kept: VecDeque<u8>,
    patterns: Vec<Pattern>,
    /// The last bytes, which may be the begin of a pattern.
    seam: Vec<u8>,
}

impl Console {
    pub fn new(patterns: &[String]) -> Console {
        let pattern = |text: &String| Pattern { text: text.clone().into_bytes(), is_found: false };
        let patterns = patterns.iter().map(pattern).collect();
        Console { kept: VecDeque::new(), patterns, seam: Vec::new() }
    }

    /// More was said.
    pub fn add(&mut self, bytes: &[u8]) {
        self.seam.extend_from_slice(bytes);
        let longest = self.patterns.iter().map(|pattern| pattern.text.len()).max().unwrap_or(0);
        for pattern in self.patterns.iter_mut().filter(|pattern| !pattern.is_found) {
            let length = pattern.text.len();
            pattern.is_found =
                length == 0 || self.seam.windows(length).any(|window| window == pattern.text);
        }
        let needed = longest.saturating_sub(1).min(self.seam.len());
        self.seam.drain(..self.seam.len() - needed);
        self.kept.extend(bytes);
        let surplus = self.kept.len().saturating_sub(KEPT_BYTES);
        self.kept.drain(..surplus);
    }

    /// Whether a pattern was there, by its place.
    pub fn has(&self, place: usize) -> bool {
        self.patterns.get(place).is_some_and(|pattern| pattern.is_found)
    }

    /// The last lines, without what only a terminal understands.
    pub fn last_lines(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.kept.iter().copied().collect();
        let text = without_sequences(&String::from_utf8_lossy(&bytes));
        let lines = text.split(['\n', '\r']).map(str::trim_end).filter(|line| !line.is_empty());
        let lines: Vec<&str> = lines.collect();
        let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
        shown.iter().map(|line| line.chars().take(LINE_CHARACTERS_MAX).collect()).collect()
    }
}

/// Text without the escape sequences of terminals.
fn without_sequences(text: &str) -> String {
    let mut plain = String::new();
    let mut marks = text.chars();
    while let Some(mark) = marks.next() {
        if mark != '\u{1b}' {
            plain.push(mark);
            continue;
        }
        if marks.next() == Some('[') {
            // Up to the letter that ends it.
            let _ = marks.find(|mark| ('@'..='~').contains(mark));
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_found_across_pieces() {
        let patterns = ["login:".to_string(), "ok".into(), "never".into()];
        let mut console = Console::new(&patterns);
        for byte in b"booting... o\x1b[1mk\nweb01 login: " {
            console.add(&[*byte]);
        }
        assert!(console.has(0) && !console.has(1) && !console.has(2));
        console.add(b"neve");
        console.add(b"r");
        assert!(console.has(2));
        assert_eq!(console.last_lines(), ["booting... ok", "web01 login: never"]);
    }

    #[test]
    fn only_the_end_is_kept() {
        let mut console = Console::new(&["x".into()]);
        for number in 0..100_000 {
            console.add(format!("line {number}\n").as_bytes());
        }
        assert_eq!(console.kept.len(), KEPT_BYTES);
        assert!(console.seam.is_empty());
        assert_eq!(console.last_lines().last().unwrap(), "line 99999");
        assert_eq!(console.last_lines().len(), LINES_SHOWN);
    }
}
