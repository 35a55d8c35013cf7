//! Heads of journals: found where the tools of each file system say that they are, and always read.

use crate::rig::{CHUNK, Given, back_up, newest, overwrite};
use crate::support::vault::{Vault, noise};
use diskvault::backup::{Reading, Reread};
use diskvault::error::Result;
use diskvault::source::RandomAccess;
use diskvault::source::journals::journal_starts;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

const MIB: u64 = 1 << 20;
/// Where the file system begins on a disk with partitions.
const PARTITION: u64 = 4 * MIB;

struct Image(Vec<u8>);

impl RandomAccess for Image {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        buffer.copy_from_slice(&self.0[offset as usize..][..buffer.len()]);
        Ok(())
    }
}

/// What a program prints, on both channels; nothing, with a message, if there is none.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let Ok(output) = Command::new(program).args(arguments).output() else {
        println!("skipped: there is no {program}");
        return None;
    };
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// The number that stands behind the last `word` in `text`, whatever comes before its digits.
fn number_behind(text: &str, word: &str) -> u64 {
    let rest = &text[text.rfind(word).unwrap_or_else(|| panic!("{word}: {text}")) + word.len()..];
    let digits = rest.trim_start_matches(|mark: char| !mark.is_ascii_digit());
    let end = digits.find(|mark: char| !mark.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap()
}

/// A new file system and where its journals begin by the word of its own tools.
fn made(path: &Path, kind: &str, bytes: u64) -> Option<Vec<u64>> {
    let name = path.to_str().unwrap();
    std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
    match kind {
        "ntfs" => {
            run("mkntfs", &["-q", "-F", name])?;
            let facts = run("ntfsinfo", &["-m", name])?;
            let log = run("ntfsinfo", &["-i", "2", "-v", name])?;
            let cluster = number_behind(&facts, "Cluster Size:");
            let table = number_behind(&facts, "LCN of Data Attribute for FILE_MFT:");
            // `VCN LCN Length`, in hexadecimal, on the line below.
            let run = log[log.find("Runlist:")?..].lines().nth(1)?.split_whitespace().nth(1)?;
            let log = u64::from_str_radix(run.trim_start_matches("0x"), 16).unwrap();
            Some(vec![table * cluster, log * cluster])
        }
        "xfs" => {
            run("mkfs.xfs", &["-q", "-f", name])?;
            let facts = run("xfs_db", &["-r", "-c", "sb 0", "-c", "p", name])?;
            let field = |word: &str| number_behind(&facts, &format!("\n{word} ="));
            let (log, shift) = (field("logstart"), field("agblklog"));
            let block = (log >> shift) * field("agblocks") + (log & ((1 << shift) - 1));
            Some(vec![block * field("blocksize")])
        }
        options => {
            let words: Vec<&str> = options.split(' ').collect();
            run("mke2fs", &[&["-q", "-F"], &words[..], &[name]].concat())?;
            let facts = run("debugfs", &["-R", "stats", name])?;
            let first = run("debugfs", &["-R", "bmap <8> 0", name])?;
            let block = first.lines().find_map(|line| line.trim().parse::<u64>().ok()).unwrap();
            Some(vec![block * number_behind(&facts, "Block size:")])
        }
    }
}

#[test]
fn journals_are_where_the_tools_say() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, bytes) in [
        ("-t ext4", 64 * MIB),
        ("-t ext4 -b 4096", 64 * MIB),
        ("-t ext4 -b 1024 -O 64bit -J size=60", 256 * MIB),
        ("-t ext3", 64 * MIB),
        ("-t ext3 -b 2048", 64 * MIB),
        ("xfs", 300 * MIB),
        ("ntfs", 64 * MIB),
    ] {
        let path = folder.path().join("image");
        let Some(expected) = made(&path, kind, bytes) else { continue };
        let image = std::fs::read(&path).unwrap();
        let moved = Image([vec![0; PARTITION as usize], image.clone()].concat());
        assert_eq!(journal_starts(&Image(image), 0).unwrap(), expected, "{kind}");
        let behind: Vec<u64> = expected.iter().map(|start| start + PARTITION).collect();
        assert_eq!(journal_starts(&moved, PARTITION).unwrap(), behind, "{kind}");
    }
    // Without a journal there is none to find.
    let path = folder.path().join("image");
    for kind in ["-t ext2", "-t ext4 -O ^has_journal"] {
        std::fs::File::create(&path).unwrap().set_len(16 * MIB).unwrap();
        let words: Vec<&str> = kind.split(' ').collect();
        let arguments = [&["-q", "-F"], &words[..], &[path.to_str().unwrap()]].concat();
        let Some(_) = run("mke2fs", &arguments) else { return };
        let image = Image(std::fs::read(&path).unwrap());
        assert_eq!(journal_starts(&image, 0).unwrap(), Vec::<u64>::new(), "{kind}");
    }
}

/// Runs of chunks that are zeros.
fn holes_of(data: &[u8]) -> Vec<Range<u64>> {
    let mut holes: Vec<Range<u64>> = Vec::new();
    for (number, chunk) in data.chunks(CHUNK as usize).enumerate() {
        let number = number as u64;
        match holes.last_mut().filter(|hole| hole.end == number) {
            _ if chunk.iter().any(|byte| *byte != 0) => {}
            Some(hole) => hole.end += 1,
            None => holes.push(number..number + 1),
        }
    }
    holes
}

/// A guest that was started wrote to its journal, and the list says that nothing has changed. Of
/// the 16,000 chunks on each disk a fifth is read at random and one in turn, which finds all of these
/// lies by chance once in a hundred million times.
#[test]
fn a_lie_at_a_journals_head_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut vault = Vault::new(30);
    let repository = vault.open("host").unwrap();
    for (kind, bytes) in [("-t ext4", 64 * MIB), ("-t ext3", 64 * MIB), ("xfs", 300 * MIB)] {
        let path = folder.path().join("image");
        let Some(expected) = made(&path, kind, bytes) else { continue };
        let file_system = std::fs::read(&path).unwrap();
        // Alone on its disk, and as its first partition, with much else behind it.
        for begin in [0, PARTITION] {
            let mut data = vec![0; begin as usize];
            data.extend_from_slice(&file_system);
            data.extend_from_slice(&noise(5, 62 << 20));
            if begin > 0 {
                data[450] = 0x83;
                data[454..458].copy_from_slice(&((begin / 512) as u32).to_le_bytes());
                data[458..462].copy_from_slice(&((bytes / 512) as u32).to_le_bytes());
                data[510..512].copy_from_slice(&[0x55, 0xaa]);
            }
            let holes = holes_of(&data);
            back_up(&mut vault, &repository, Given { holes: &holes, ..Given::full(&data) });
            let base = newest(&repository);
            // Not what the head of the file system covers.
            let journal = begin + expected.last().unwrap();
            for at in [(journal + MIB).next_multiple_of(CHUNK) - 8, journal.max(begin + MIB)] {
                let mut other = data.clone();
                overwrite(&mut other, 7, at..at + 8);
                let holes = holes_of(&other);
                let reading = Reading::ByHints(Reread::Part(u64::MAX));
                let hinted = Given::hinted(&other, &base, vec![]);
                let given = Given { holes: &holes, reading, ..hinted };
                let made = back_up(&mut vault, &repository, given);
                let text = format!("the disk is another at {}", at - at % CHUNK);
                let refused = made.tracking().refused;
                assert!(refused.contains(&text), "{kind} at {begin}: {text}, not {refused:?}");
                vault.known.clear();
            }
        }
    }
}
