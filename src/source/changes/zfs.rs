//! What `zstream dump -v` prints of the stream of `zfs send -i` of a volume (OpenZFS,
//! cmd/zstream/zstream_dump.c).
//!
//! Invariant: a list counts only if it has the records of one whole stream, from one snapshot of a volume
//! to another, as many as its summary counts.

use super::{OPEN_END, Parsed, number, range};
use std::ops::Range;

/// The object of a volume that has its data.
const DATA: u64 = 1;
/// The type of the datasets that are volumes, and of streams that are no packages of streams.
const VOLUME: &str = "3";
const SINGLE: &str = "1";

/// True for text that these records begin.
pub(super) fn is_dump(text: &str) -> bool {
    text.trim_start().starts_with("BEGIN record")
}

/// What was seen of a stream.
#[derive(Default)]
struct Seen {
    records: u64,
    is_single: bool,
    is_volume: bool,
    is_incremental: bool,
    ended: bool,
    /// Records that its summary counts.
    counted: Option<u64>,
}

/// Reads them.
pub(super) fn read(text: &str) -> Parsed {
    let (mut ranges, mut seen) = (Vec::new(), Seen::default());
    for (place, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let found = one_line(&words, &mut seen);
        ranges.extend(found.map_err(|what| format!("line {}: {what}", place + 1))?);
    }
    let problem = match &seen {
        Seen { is_single: false, .. } => "it is a package of several streams",
        Seen { is_volume: false, .. } => "it is of no volume",
        Seen { is_incremental: false, .. } => "it is of a whole snapshot, without `-i OLD`",
        Seen { ended: false, .. } => "the stream has no end",
        Seen { counted: None, .. } => "it has no summary",
        Seen { counted: Some(counted), records, .. } if counted != records => {
            "it has not all records, which `zstream dump` prints with -v only"
        }
        _ => return Ok(ranges),
    };
    Err(problem.into())
}

fn one_line(words: &[&str], seen: &mut Seen) -> Result<Option<Range<u64>>, String> {
    // Names and values are `NAME = VALUE`.
    let value = |name: &str| {
        words.windows(3).find(|three| three[0] == name && three[1] == "=").map(|three| three[2])
    };
    let field = |name: &str| value(name).and_then(number).ok_or(format!("it has no {name}"));
    let is_data = || field("object").map(|object| object == DATA);
    let extent = |length: &str| match is_data()? {
        false => Ok(None),
        // All there is to the end, as a signed number.
        true if value(length) == Some("-1") => Ok(Some(field("offset")?..OPEN_END)),
        true => range(field("offset")?, field(length)?).map(Some),
    };
    let Some(kind) = words.first() else { return Ok(None) };
    if seen.counted.is_some() {
        return if *kind == "Total" { Ok(None) } else { Err("it goes on behind its end".into()) };
    }
    if words.get(1) == Some(&"=") {
        match *kind {
            "hdrtype" => seen.is_single = value(kind) == Some(SINGLE),
            "type" => seen.is_volume = value(kind) == Some(VOLUME),
            "fromguid" => seen.is_incremental = value(kind).is_some_and(|guid| guid != "0"),
            _ => {}
        }
        return Ok(None);
    }
    if *kind == "SUMMARY:" || (*kind == "Total" && words.get(1) != Some(&"records")) {
        return Ok(None);
    }
    if *kind == "Total" {
        seen.counted = Some(field("records")?);
        return Ok(None);
    }
    if seen.ended || (*kind == "BEGIN") != (seen.records == 0) {
        return Err(format!("{kind:?} is not expected here"));
    }
    seen.records += 1;
    match *kind {
        "BEGIN" | "OBJECT" | "SPILL" | "OBJECT_RANGE" => Ok(None),
        "END" => {
            seen.ended = true;
            Ok(None)
        }
        "WRITE" => extent("logical_size"),
        "WRITE_BYREF" | "WRITE_EMBEDDED" | "FREE" => extent("length"),
        "FREEOBJECTS" => {
            let first = field("firstobj")?;
            let objects = first..first.saturating_add(field("numobjs")?);
            Ok(objects.contains(&DATA).then_some(0..OPEN_END))
        }
        other => Err(format!("{other:?} is no record that is known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by the formats that the program prints with.
    const DUMP: &str = "\
BEGIN record
\thdrtype = 1
\tfeatures = 4
\tmagic = 2f5bacbac
\tcreation_time = 692a7d13
\ttype = 3
\tflags = 0x0
\ttoguid = 5f1c0e2b9d3a4471
\tfromguid = 8d11f06b2c9e7733
\ttoname = tank/vm@new

FREEOBJECTS firstobj = 0 numobjs = 1
OBJECT object = 1 type = 23 bonustype = 0 blksz = 16384 bonuslen = 0 dn_slots = 1 raw_bonuslen = 0 flags = 0 maxblkid = 0 indblkshift = 0 nlevels = 0 nblkptr = 0
FREE object = 1 offset = 0 length = 16384
WRITE object = 1 type = 23 checksum type = 7 compression type = 0 flags = 0 offset = 65536 logical_size = 16384 compressed_size = 0 payload_size = 16384 props = 200000000 salt = 00 iv = 00 mac = 00
WRITE_EMBEDDED object = 1 offset = 131072 length = 16384 toguid = 5f1c0e2b9d3a4471 comp = 15 etype = 0 lsize = 16384 psize = 50
WRITE_BYREF object = 1 checksum type = 7 props = 0 offset = 262144 length = 16384 toguid = 1 refguid = 2 refobject = 1 refoffset = 0
WRITE object = 2 type = 24 checksum type = 7 compression type = 0 flags = 0 offset = 0 logical_size = 512 compressed_size = 0 payload_size = 512 props = 200000000 salt = 00 iv = 00 mac = 00
FREE object = 1 offset = 1073741824 length = -1
FREEOBJECTS firstobj = 3 numobjs = 18446744073709551612
END checksum = 1/2/3/4
SUMMARY:
\tTotal DRR_BEGIN records = 1 (0 bytes)
\tTotal DRR_END records = 1 (0 bytes)
\tTotal records = 11
\tTotal payload size = 33384 (0x8268)
\tTotal header overhead = 3432 (0xd68)
\tTotal stream length = 36816 (0x8fd0)
";

    #[test]
    fn the_records_of_a_stream_of_a_volume() {
        assert!(is_dump(DUMP));
        let expected = [
            0..16_384,
            65_536..81_920,
            131_072..147_456,
            262_144..278_528,
            1_073_741_824..OPEN_END,
        ];
        assert_eq!(read(DUMP).unwrap(), expected);
        // With -v twice each record has a line of its checksum.
        let checksums = DUMP.replace("\nFREE ", "\n    checksum = 1/2/3/4\nFREE ");
        assert_eq!(read(&checksums).unwrap(), expected);
        let freed = DUMP.replace("firstobj = 0 numobjs = 1", "firstobj = 1 numobjs = 1");
        assert_eq!(read(&freed).unwrap()[0], 0..OPEN_END);
    }

    #[test]
    fn what_is_no_whole_stream_from_one_snapshot_of_a_volume_to_another_is_refused() {
        let write = DUMP.lines().find(|line| line.starts_with("WRITE object = 1")).unwrap();
        for (from, to, text) in [
            ("hdrtype = 1", "hdrtype = 2", "a package of several streams"),
            ("type = 3", "type = 2", "it is of no volume"),
            ("fromguid = 8d11f06b2c9e7733", "fromguid = 0", "without `-i OLD`"),
            (write, "", "it has not all records"),
            ("END checksum = 1/2/3/4\n", "", "the stream has no end"),
            ("\tTotal records = 11\n", "", "it has no summary"),
            (
                "END checksum",
                "Expected checksum differs from checksum in stream.\nEND checksum",
                "no record",
            ),
            ("FREE object", "REDACT object", "\"REDACT\" is no record that is known"),
            ("OBJECT object", "BEGIN record\nOBJECT object", "\"BEGIN\" is not expected here"),
            ("offset = 65536", "at = 65536", "line 15: it has no offset"),
            ("SUMMARY:", "FREE object = 1 offset = 0 length = 1\nSUMMARY:", "is not expected here"),
        ] {
            assert!(DUMP.contains(from), "{from}");
            let error = read(&DUMP.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(text), "{to}: {error}");
        }
        let twice = format!("{DUMP}{DUMP}");
        assert!(read(&twice).unwrap_err().contains("behind its end"));
    }
}
