//! Makes the VMDK files that qemu-img does not write: deltas of ESXi, and streams as export tools
//! write them. Layouts: VMware, Virtual Disk Format 5.0, and what QEMU's block/vmdk.c reads.

use std::io::Write;
use std::ops::Range;

pub(crate) const SECTOR: usize = 512;
/// Grains of a stream, in bytes.
pub(crate) const STREAM_GRAIN: usize = 65_536;

/// What a delta has for a grain.
#[derive(Clone)]
pub(crate) enum Grain {
    /// Nothing: the parent shows.
    Below,
    /// Zeros without room, of the kind 1 (unmapped) or 2; only seSparse has them.
    Zero(u64),
    /// These bytes.
    Data(Vec<u8>),
}

/// A file that is written at places, and grows.
#[derive(Default)]
struct File(Vec<u8>);

impl File {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0.resize(self.0.len().max(at + bytes.len()), 0);
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_u32(&mut self, at: usize, number: u32) {
        self.put(at, &number.to_le_bytes());
    }

    fn put_u64(&mut self, at: usize, number: u64) {
        self.put(at, &number.to_le_bytes());
    }

    /// Bytes at the end, filled up to a sector; their first sector.
    fn append(&mut self, bytes: &[u8]) -> usize {
        let sector = self.0.len().div_ceil(SECTOR);
        self.put(sector * SECTOR, bytes);
        self.0.resize(self.0.len().next_multiple_of(SECTOR), 0);
        sector
    }
}

/// The text of a descriptor; `parent` is its CID and name.
pub(crate) fn descriptor(cid: u32, parent: Option<(u32, &str)>, extents: &[String]) -> String {
    let (parent_cid, name) = parent.unwrap_or((u32::MAX, ""));
    let hint = parent.map(|_| format!("parentFileNameHint=\"{name}\"\n")).unwrap_or_default();
    // createType does not matter to this program; QEMU wants one that it knows.
    let kind = ["VMFSSPARSE", "SESPARSE", "VMFS", "FLAT"]
        .into_iter()
        .find(|kind| extents[0].split(' ').any(|word| word == *kind));
    let kind = match kind {
        Some("VMFSSPARSE") => "vmfsSparse",
        Some("SESPARSE") => "seSparse",
        Some("VMFS") => "vmfs",
        Some(_) => "monolithicFlat",
        None => "twoGbMaxExtentSparse",
    };
    let extents = extents.join("\n");
    format!(
        "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID={cid:08x}\n\
         parentCID={parent_cid:08x}\ncreateType=\"{kind}\"\n{hint}\n# Extent description\n\
         {extents}\n\n# The Disk Data Base\n#DDB\n\nddb.adapterType = \"lsilogic\"\n"
    )
}

/// A delta of VMFS: header, directory, all tables, then the grains, the last one first.
pub(crate) fn cowd(grains: &[Grain], grain_sectors: usize, sectors: usize) -> Vec<u8> {
    const TABLE: usize = 4096;
    let tables = grains.len().div_ceil(TABLE);
    let mut file = File::default();
    file.put(0, b"COWD");
    for (at, number) in [(4, 1), (8, 3), (12, sectors), (16, grain_sectors), (20, 4), (24, tables)]
    {
        file.put_u32(at, number as u32);
    }
    let tables_at = 4 + (tables * 4).div_ceil(SECTOR);
    for table in 0..tables {
        file.put_u32(4 * SECTOR + table * 4, (tables_at + table * TABLE * 4 / SECTOR) as u32);
    }
    file.put(tables_at * SECTOR + tables * TABLE * 4 - 1, &[0]);
    for (number, grain) in grains.iter().enumerate().rev() {
        if let Grain::Data(bytes) = grain {
            let sector = file.append(bytes);
            file.put_u32(tables_at * SECTOR + number * 4, sector as u32);
        }
    }
    file.0
}

/// Where parts of [`sesparse`] are, in sectors.
pub(crate) const SE_VOLATILE: usize = 1;
pub(crate) const SE_DIRECTORY: usize = 2;
pub(crate) const SE_TABLES: usize = 64;

/// A space-efficient delta: two headers, directory, tables, grains in reverse order.
pub(crate) fn sesparse(grains: &[Grain], sectors: usize) -> Vec<u8> {
    const TABLE: usize = 4096;
    let tables = grains.len().div_ceil(TABLE);
    let grains_at = SE_TABLES + tables * 64;
    let mut file = File::default();
    for (number, value) in [
        (0, 0xcafe_babe),
        (1, 0x2_0000_0001),
        (2, sectors),
        (3, 8),
        (4, 64),
        (10, SE_VOLATILE),
        (11, 1),
        (16, SE_DIRECTORY),
        (17, 1),
        (18, SE_TABLES),
        (19, tables * 64),
        (24, grains_at),
        (25, grains.len() * 8),
    ] {
        file.put_u64(number * 8, value as u64);
    }
    file.put_u64(SE_VOLATILE * SECTOR, 0xcafe_cafe);
    file.put(grains_at * SECTOR - 1, &[0]);
    let mut used = 0;
    for (number, grain) in grains.iter().enumerate().rev() {
        let (table, index) = (number / TABLE, number % TABLE);
        let kind = match grain {
            Grain::Below => continue,
            Grain::Zero(kind) => kind << 60,
            Grain::Data(bytes) => {
                file.append(bytes);
                used += 1;
                // The low 12 bits of its number stand above the others.
                let number = used - 1;
                3 << 60 | (number & 0xfff) << 48 | number >> 12
            }
        };
        // Tables stand in another order than the directory.
        let place = tables - 1 - table;
        file.put_u64(SE_DIRECTORY * SECTOR + table * 8, 1 << 60 | place as u64);
        file.put_u64((SE_TABLES + place * 64) * SECTOR + index * 8, kind);
    }
    file.0
}

/// What a delta of these grains shows of a parent.
pub(crate) fn shown(grains: &[Grain], grain_bytes: usize, parent: &[u8]) -> Vec<u8> {
    let mut view = parent.to_vec();
    for (grain, place) in grains.iter().zip(view.chunks_mut(grain_bytes)) {
        match grain {
            Grain::Below => {}
            Grain::Zero(_) => place.fill(0),
            Grain::Data(bytes) => place.copy_from_slice(&bytes[..place.len()]),
        }
    }
    view
}

/// Sets for each sector whether it is data, where a delta says so.
pub(crate) fn allocate(grains: &[Grain], grain_sectors: usize, sectors: &mut [bool]) {
    for (grain, place) in grains.iter().zip(sectors.chunks_mut(grain_sectors)) {
        match grain {
            Grain::Below => {}
            Grain::Zero(_) => place.fill(false),
            Grain::Data(_) => place.fill(true),
        }
    }
}

/// The ranges of the sectors that are data, in bytes.
pub(crate) fn ranges(sectors: &[bool]) -> Vec<Range<u64>> {
    let mut at = 0;
    let mut ranges = Vec::new();
    for run in sectors.chunk_by(|one, next| one == next) {
        let end = at + (run.len() * SECTOR) as u64;
        if run[0] {
            ranges.push(at..end);
        }
        at = end;
    }
    ranges
}

/// Deflated with a zlib header.
pub(crate) fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The header of a sparse extent: sizes in sectors, places of descriptor, copy and directory.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) flags: u32,
    pub(crate) capacity: usize,
    pub(crate) descriptor_sectors: usize,
    pub(crate) redundant_at: u64,
    pub(crate) directory_at: u64,
}

impl Header {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = File::default();
        file.put(0, b"KDMV");
        file.put_u32(4, self.version);
        file.put_u32(8, self.flags);
        for (at, number) in [(12, self.capacity), (20, STREAM_GRAIN / SECTOR), (28, 1)] {
            file.put_u64(at, number as u64);
        }
        file.put_u64(36, self.descriptor_sectors as u64);
        file.put_u32(44, 512);
        file.put_u64(48, self.redundant_at);
        file.put_u64(56, self.directory_at);
        file.put_u64(64, 128);
        file.put(73, b"\n \r\n");
        file.put(77, &u16::from(self.flags & 1 << 16 != 0).to_le_bytes());
        file.append(&[]);
        file.0
    }
}

fn marker(sectors: usize, kind: u32) -> Vec<u8> {
    let mut file = File::default();
    file.put_u64(0, sectors as u64);
    file.put_u32(12, kind);
    file.append(&[]);
    file.0
}

/// A stream as export tools write it: what is not zero, compressed behind markers, each table
/// behind its grains, the directory behind all, and its place only in a footer.
pub(crate) fn stream(name: &str, disk: &[u8], capacity: usize) -> Vec<u8> {
    let extent = format!("RDONLY {} SPARSE \"{name}\"", disk.len() / SECTOR);
    let text = descriptor(7, None, &[extent]).replace("twoGbMaxExtentSparse", "streamOptimized");
    let mut header = Header {
        version: 3,
        flags: 0x3_0001,
        capacity,
        descriptor_sectors: 127,
        redundant_at: 0,
        directory_at: u64::MAX,
    };
    let mut file = File(header.bytes());
    file.append(text.as_bytes());
    file.put(128 * SECTOR - 1, &[0]);
    let mut directory = Vec::new();
    for (table, part) in disk.chunks(512 * STREAM_GRAIN).enumerate() {
        let mut entries = vec![0_u8; 512 * 4];
        for (index, grain) in part.chunks(STREAM_GRAIN).enumerate() {
            if grain.iter().all(|byte| *byte == 0) {
                continue;
            }
            let mut whole = grain.to_vec();
            whole.resize(STREAM_GRAIN, 0);
            let packed = packed(&whole);
            let mut bytes = (((table * 512 + index) * 128) as u64).to_le_bytes().to_vec();
            bytes.extend((packed.len() as u32).to_le_bytes());
            bytes.extend(packed);
            let sector = file.append(&bytes) as u32;
            entries[index * 4..index * 4 + 4].copy_from_slice(&sector.to_le_bytes());
        }
        let is_empty = entries.iter().all(|byte| *byte == 0);
        file.append(&marker(if is_empty { 0 } else { 4 }, 1));
        let sector = if is_empty { 0 } else { file.append(&entries) as u32 };
        directory.extend(sector.to_le_bytes());
    }
    file.append(&marker(directory.len().div_ceil(SECTOR), 2));
    header.directory_at = file.append(&directory) as u64;
    file.append(&marker(1, 3));
    file.append(&header.bytes());
    file.append(&marker(0, 0));
    file.0
}
