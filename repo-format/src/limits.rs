//! Every limit of the format in one place: the table of spec/00-conventions.md.
//!
//! A reader checks them before it allocates; a writer never exceeds them.

/// Version written into every object. What has version 1 or more stays readable for ever.
pub const FORMAT_VERSION: u16 = 1;
/// Oldest version that is read: 0 changed until the sizes were measured, and was never released.
pub const FORMAT_VERSION_MIN: u16 = 1;

/// Largest virtual disk or stream, in bytes.
pub const DISK_BYTES_MAX: u64 = 1 << 60;
/// Smallest chunk of a fixed grid, in bytes.
pub const CHUNK_BYTES_MIN: u32 = 4 << 10;
/// Largest chunk of any kind, in bytes.
pub const CHUNK_BYTES_MAX: u32 = 4 << 20;
/// Chunk of a fixed grid unless `init` says otherwise, in bytes.
pub const CHUNK_BYTES_DEFAULT: u32 = 32 << 10;
/// Uncompressed bytes a segment gathers unless `init` says otherwise.
pub const SEGMENT_BYTES_DEFAULT: u32 = 4 << 20;
/// Most uncompressed bytes of one segment.
pub const SEGMENT_BYTES_MAX: u32 = 4 << 20;
/// Most entries of one segment; an index packs the slot number into 12 bits.
pub const SEGMENT_ENTRIES_MAX: u32 = 4096;
/// Most pieces of a splice.
pub const SPLICE_PIECES_MAX: usize = 16;
/// Size at which a pack is closed unless `init` says otherwise, in bytes.
pub const PACK_BYTES_DEFAULT: u32 = 32 << 20;
/// Largest pack, in bytes.
pub const PACK_BYTES_MAX: u64 = 1 << 30;
/// Most segments of one pack.
pub const PACK_SEGMENTS_MAX: u32 = 1 << 18;
/// A pack's sealed footer starts at a multiple of this many bytes, so that the total length of a
/// pack says little about a small run; the clear frames still show each segment's sealed length.
pub const PACK_PADDING_BYTES: u64 = 64 << 10;
/// A segment's frame starts at a multiple of this many bytes.
pub const SEGMENT_ALIGNMENT_BYTES: u64 = 64;
/// Largest small sealed object (manifest, note, lease, ...), in bytes.
pub const SEALED_BYTES_MAX: u64 = 16 << 20;
/// Largest config object, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 8 << 10;
/// Largest key slot, in bytes.
pub const KEY_SLOT_BYTES_MAX: u64 = 4 << 10;
/// Most key slots of one repository.
pub const KEY_SLOTS_MAX: usize = 64;
/// Slots of a leaf page.
pub const LEAF_SLOTS: usize = 64;
/// Slots of an inner page.
pub const INNER_SLOTS: usize = 128;
/// Most levels of a disk map: 64 * 128^6 chunks of 4 KiB are 2^60 bytes.
pub const MAP_DEPTH_MAX: u32 = 7;
/// Most levels of a stream map.
pub const STREAM_DEPTH_MAX: u8 = 20;
/// Most entries of a stream map page.
pub const STREAM_PAGE_ENTRIES_MAX: usize = 128;
/// Most disks, and most streams, of one point.
pub const PARTS_MAX: usize = 1024;
/// Longest series, disk, stream or tag name, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest other text of a record, in bytes of UTF-8.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Most tags of a point, fields of a note, extensions of a record.
pub const FIELDS_MAX: usize = 256;
/// Most bad extents of one disk.
pub const BAD_EXTENTS_MAX: usize = 1 << 16;
/// Most heads a manifest may follow.
pub const PREVIOUS_MAX: usize = 64;
/// Largest allocation list, in bytes.
pub const ALLOCATION_BYTES_MAX: u64 = 64 << 20;
/// Most parity, in thousandths of a pack's bytes.
pub const PARITY_PER_MILLE_MAX: u32 = 500;
/// Smallest shard of a parity object, in bytes.
pub const PARITY_SHARD_BYTES_MIN: u32 = 64;
/// Shard of packs up to 64 MiB, in bytes.
pub const PARITY_SHARD_BYTES_DEFAULT: u32 = 4 << 10;
/// Largest shard of a parity object, in bytes.
pub const PARITY_SHARD_BYTES_MAX: u32 = 64 << 10;
/// Most data shards of a pack.
pub const PARITY_DATA_SHARDS_MAX: u32 = 1 << 14;
/// Largest parity object, in bytes.
pub const PARITY_BYTES_MAX: u64 = 513 << 20;

/// Least memory of Argon2id for a passphrase slot, in KiB.
pub const KDF_MEMORY_KIB_MIN: u32 = 8 << 10;
/// Most memory of Argon2id for one slot, in KiB.
pub const KDF_MEMORY_KIB_MAX: u32 = 1 << 20;
/// Most passes of Argon2id for one slot.
pub const KDF_PASSES_MAX: u32 = 16;
/// Most lanes of Argon2id for one slot.
pub const KDF_LANES_MAX: u32 = 8;
/// Most memory times passes for one slot, in KiB.
pub const KDF_COST_KIB_MAX: u64 = 4 << 20;
/// Most memory times passes of all slots of one repository together, in KiB.
pub const KDF_TOTAL_COST_KIB_MAX: u64 = 32 << 20;
