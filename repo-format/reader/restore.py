#!/usr/bin/env python3
"""Restores one disk or stream from a diskvault repository directory: a second reader, written from ../spec only.
Numbers such as P-7 are the rules of those pages. It never writes into the repository. Page 21 is in writers.py; what
both files need is in basics.py."""
import argparse, collections, contextlib, functools, os, re, stat, struct, sys  # noqa: E401
import blake3, zstandard  # noqa: E401
from argon2.low_level import Type, hash_secret_raw
sys.dont_write_bytecode = True                      # beside this file either
import writers  # noqa: E402
from basics import (DAMAGE, FORMAT_VERSION, SEALED_BYTES_MAX, Record, Refused, about, ascending, attempt, chacha, check,
                    derive_key, digest, first_damage, is_name, keyed_hash, need, same, unseal, warn, xchacha)

# ------------------------------------------------------------------------------- constants (pages 00, 10, 20)
KIB, MIB, DISK_BYTES_MAX = 1 << 10, 1 << 20, 1 << 60
CHUNK_BYTES_MIN, CHUNK_BYTES_MAX, SEGMENT_BYTES_MAX = 4 * KIB, 4 * MIB, 4 * MIB
SEGMENT_ENTRIES_MAX, SEALED_BYTES_LONG = 4096, 4210712
PACK_BYTES_MAX, PACK_SEGMENTS_MAX, PACK_PADDING_BYTES, SEGMENT_ALIGNMENT_BYTES = 1 << 30, 1 << 18, 64 * KIB, 64
CONFIG_BYTES_MAX, KEY_SLOT_BYTES_MAX, KEY_SLOTS_MAX = 8 * KIB, 4 * KIB, 64
LEAF_SLOTS, INNER_SLOTS, STREAM_DEPTH_MAX, STREAM_PAGE_ENTRIES_MAX, SPLICE_PIECES_MAX = 64, 128, 20, 128, 16
PARTS_MAX, TEXT_BYTES_MAX, FIELDS_MAX, BAD_EXTENTS_MAX, PREVIOUS_MAX = 1024, 4096, 256, 65536, 64
KDF_MEMORY_KIB_MIN, KDF_MEMORY_KIB_MAX, KDF_PASSES_MAX, KDF_LANES_MAX = 8192, 1048576, 16, 8
KDF_COST_KIB_MAX, KDF_TOTAL_COST_KIB_MAX = 4194304, 33554432
HEAD_BYTES, TAIL_READ_BYTES, CACHED_SEGMENTS = 192, 128 * KIB, 16
NO_LINKS = os.O_NOFOLLOW | os.O_NONBLOCK            # a pipe or device must not hang either
# In footers: id, bytes, entry kind (segments lack the id); slot, value. In splices: chunk id, offset, bytes (32)
ENTRY, ANCHOR, PIECE = map(struct.Struct, ("<32s3sB", "<IQ", "<32sII"))
CHUNK, PAGE, SPLICE, GRID, CONTENT = 1, 2, 3, 1, 2  # entry kinds (32); chunking kinds (36)
CONFIG_NAME, POINT_NAME, PACK_FOLDER, PACK_NAME = map(re.compile, (
    "[0-9a-f]{8}-[0-9a-f]{32}", r"[0-9a-f]{64}(\.ok)?", "[0-9a-f]{2}", "[0-9a-f]{64}"))
def is_grid(size): return CHUNK_BYTES_MIN <= size <= CHUNK_BYTES_MAX and size & (size - 1) == 0

# ----------------------------------------------------------------------------------------------------- objects
class Repository:
    """A local directory, and the keys once it is open. Names that do not fit are ignored, links not followed (N-1)."""
    def __init__(self, root): self.root = root
    def set_keys(self, master, repository_id):
        self.id = repository_id
        self.key = {use: derive_key(use, master + repository_id) for use in
                    ("chunk id", "page id", "map root", "pack wrap", "manifest", "config", "writer list", "opening")}
    def additional(self, version, kind, rest): return b"dvAD" + version + bytes([kind, 0]) + self.id + rest
    def list(self, folder, pattern, folders=False):
        path = os.path.join(self.root, folder)
        if os.path.islink(path) or not os.path.isdir(path): return []
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if pattern.fullmatch(entry.name) and
                          (entry.is_dir if folders else entry.is_file)(follow_symlinks=False))
    def part(self, name, at, count):
        """The object's size and some of its bytes, fewer if it ends; a negative `at` counts from the end."""
        try:
            with open(os.open(os.path.join(self.root, name), os.O_RDONLY | os.O_CLOEXEC | NO_LINKS), "rb") as file:
                status = os.fstat(file.fileno())
                check("N-1", stat.S_ISREG(status.st_mode))
                file.seek(at if at >= 0 else max(0, status.st_size + at))
                return status.st_size, file.read(min(count, status.st_size))
        except OSError as error:
            raise Refused(None, "missing" if isinstance(error, FileNotFoundError) else error.strerror) from error
    def read(self, name, limit, rule):
        size, data = self.part(name, 0, limit)
        check(rule, size <= limit)
        return data

def read_config(repository, name):
    """Page 30: the config's bytes and its slots. What makes it newer comes first, as that ends the search."""
    data = repository.read(name, CONFIG_BYTES_MAX, "C-1")
    check("C-1", len(data) >= 72)
    magic, version, zero, generation, features, *sizes, n = struct.unpack_from("<8sHHI32xQIIII", data)
    check("C-2", magic == b"DVCONFIG", "C-3!", version <= FORMAT_VERSION, "C-3", version > 0)
    features &= ~writers.FEATURE
    if features: raise Refused("C-4", f"a newer format, feature bits {[b for b in range(64) if features >> b & 1]}")
    check("C-2", zero == 0, "C-6", 1 <= n <= KEY_SLOTS_MAX, "C-1", len(data) == 104 + 32 * n, "C-5", is_grid(sizes[0]),
          "C-5", 1 <= sizes[1] <= SEGMENT_BYTES_MAX and 1 <= sizes[2] <= PACK_BYTES_MAX // 2)
    slots = [data[at:at + 32] for at in range(72, 72 + 32 * n, 32)]
    check("C-6", ascending(slots), "C-8", generation > 0 and name.startswith(f"config/{generation:08x}-"))
    return name, data, slots

def read_slot(repository, name, config):
    """Page 31, what is checked before anything is derived: name, bytes and cost."""
    data = repository.read(name, KEY_SLOT_BYTES_MAX, "K-1")
    check("K-6", name == "keys/" + digest(data).hex(), "K-1", len(data) >= 132)
    magic, version, kind, algorithm, memory, passes, lanes, owner, n = struct.unpack_from("<8sHBBIII16s88xI", data)
    check("K-2", magic == b"DVKEYSLT", "K-2!", 0 < version <= FORMAT_VERSION and kind in (1, 2) and algorithm == 1,
          "K-1", len(data) >= 156 + n, "K-4", KDF_MEMORY_KIB_MIN <= memory <= KDF_MEMORY_KIB_MAX,
          "K-4", 1 <= passes <= KDF_PASSES_MAX and 1 <= lanes <= KDF_LANES_MAX,
          "K-4", memory * passes <= KDF_COST_KIB_MAX, "K-10", owner == config[16:32])
    return name, data, memory * passes

def try_slot(repository, data, secret):
    """Page 31, Opening: the master key, or none if the secret is not this slot's."""
    kind, memory, passes, lanes, repository.id, n = struct.unpack_from("<10xBxIII16s88xI", data)
    secret = re.sub(rb"\r?\n\Z", b"", secret)
    if kind == 2: secret = re.sub(rb"[- \t\r\n]", b"", secret.upper()).translate(bytes.maketrans(b"OIL", b"011"))
    output = hash_secret_raw(secret, data[40:72], passes, memory, lanes, 32, Type.ID, version=0x13)
    if not same(derive_key("slot commitment", output), data[72:104]): return None
    record = Record(unseal("K-7", xchacha, data[132:132 + n], repository.additional(data[8:10], 2, data[:104]),
                           data[104:128], derive_key("slot key", output)))
    entries = record.list(lambda: (record.u8(), record.u32(), record.id32()))
    keys = {purpose: key for purpose, epoch, key in reversed(entries) if epoch == 0}
    check("K-8", 1 in keys or keys.keys() >= writers.PURPOSES)
    if 1 not in keys: record.list(record.text)                      # the series that it may write to (21)
    record.end()
    need(1 in keys, "the secret of a write-only key, with which nothing can be restored")
    return keys[1]

def open_repository(repository, secret):
    """Page 50, open: takes the keys by the newest config that authenticates."""
    names = ["config/" + leaf for leaf in reversed(repository.list("config", CONFIG_NAME))]
    for name, data, ids in filter(None, [attempt(name, read_config, repository, name) for name in names]):
        slots = ["keys/" + key.hex() for key in ids]
        slots = list(filter(None, [attempt(slot, read_slot, repository, slot, data) for slot in slots]))
        with about(name): check("K-5", sum(cost for _, _, cost in slots) <= KDF_TOTAL_COST_KIB_MAX)
        master = next(filter(None, (attempt(slot, try_slot, repository, own, secret) for slot, own, _ in slots)), None)
        need(master, "wrong secret" + first_damage(", or "))
        repository.set_keys(master, data[16:32])
        clear = repository.additional(data[8:10], 1, name.split("/")[1].encode() + data[:-32])
        if same(keyed_hash(repository.key["config"], clear), data[-32:]):
            repository.writers = writers.read_all(repository)
            return
        attempt(name, check, "C-7", False)
    need(False, "no config that can be used" + first_damage(": "))

# ----------------------------------------------------------------------------------------------- manifests (36)
Chunking = collections.namedtuple("Chunking", "kind first second third")
Content = collections.namedtuple("Content", "size chunking root top")       # of a disk, stream or allocation list
Part = collections.namedtuple("Part", "name content digest bad_extents")
Point = collections.namedtuple("Point", "id series time writer sequence previous republishes parts")
class Manifest(Record):
    """The record of a point, with F-1 to F-8 and F-10."""
    def name(self, forbidden):
        value = self.text()
        check("F-2", is_name(value, forbidden))
        return value
    def chunking(self, *kinds):
        value = kind, first, second, third = Chunking(self.u8(), self.u32(), self.u32(), self.u32())
        check("F-4!", kind in (GRID, CONTENT), "F-4", kind in kinds, "F-4", is_grid(first) and second == third == 0
              if kind == GRID else 1 <= first <= second <= third <= CHUNK_BYTES_MAX)
        return value
    def content(self, size, chunking):
        value = Content(size, chunking, self.id32(), self.optional(self.id32))
        check("F-3", size <= DISK_BYTES_MAX, "F-7", value.top or chunking.kind == GRID if size else not value.top)
        return value
    def reference(self): return self.content(self.u64(), self.chunking(CONTENT))
    def short_text(self): check("F-1", len(self.text().encode()) <= TEXT_BYTES_MAX)
    def extension(self): check("F-8!", (self.u16(), self.bytes())[0] < 0x8000)
    def ranges(self, size):
        values = self.list(lambda: (self.u64(), self.u64()), BAD_EXTENTS_MAX)
        ends = [0] + [start + count for start, count in values]
        check("F-6", all(count and end <= start for end, (start, count) in zip(ends, values)), "F-6", ends[-1] <= size)
        return values
    def rest(self, part):
        """Disks and streams end with other digests, statistics and extensions."""
        self.list(lambda: (self.short_text(), self.bytes()), FIELDS_MAX)
        [self.u64() for _ in range(10)], self.list(self.extension, FIELDS_MAX)
        return part
    def disk(self):
        name, size, chunking, grid_offset = self.name("/:"), self.u64(), self.chunking(GRID, CONTENT), self.u32()
        self.short_text()
        content, whole = self.content(size, chunking), self.optional(self.id32)
        self.optional(self.reference)                               # the allocation list is not needed for bytes
        bad_extents, token, _, free_space_mode = self.ranges(size), self.bytes(), self.ranges(size), self.u8()
        check("F-10", (whole is not None) == (chunking.kind == CONTENT or size <= chunking.first),
              "F-1", len(token) <= TEXT_BYTES_MAX, "F-5!", grid_offset == free_space_mode == 0)
        return self.rest(Part(name, content, whole, bad_extents))
    def stream(self): return self.rest(Part(self.name("/:"), self.reference(), self.id32(), []))
    def point(self, point_id):
        self.take(32)                                               # backup id, lease
        series, time = self.name("/@~:"), self.i64()
        self.i64(), self.u64(), self.short_text()
        writer, _, sequence, previous = self.take(16), self.short_text(), self.u64(), self.list(self.id32, PREVIOUS_MAX)
        check("F-5!", sequence > 0, "F-6", ascending(previous))
        republishes = self.optional(self.id32)
        self.list(lambda: (self.short_text(), self.short_text()), FIELDS_MAX)
        parts = self.list(self.disk, PARTS_MAX) + self.list(self.stream, PARTS_MAX)
        check("F-2", len({part.name for part in parts}) == len(parts), "F-5!", self.u8() == 0)     # signature kind
        self.list(self.extension, FIELDS_MAX), self.end()
        return Point(point_id, series, time, writer, sequence, previous, republishes, parts)

def read_point(repository, point_id):
    record, writer = writers.open_small(repository, "points/" + point_id, writers.MANIFEST, "manifest")
    point = Manifest(record).point(point_id)
    check("F-12", not writer or writer.id == point.writer and writer.may_write_to(point.series),
          "F-12", not writer or point.republishes is None and point.sequence < 1 << 63)
    return point

def find_point(repository, series, prefix):
    """Page 50, list points; 36, order of a series. A refused manifest that no point follows may be the newest."""
    names = set(repository.list("points", POINT_NAME))
    visible = {leaf: attempt("points/" + leaf, read_point, repository, leaf) for leaf in names if leaf + ".ok" in names}
    points = [point for point in visible.values() if point]
    followed = {previous.hex() for point in points for previous in point.previous}
    for leaf, point in visible.items():
        refusal = DAMAGE.get("points/" + leaf)
        if refusal and (refusal.rule == "F-12" or refusal.text == writers.RETIRED): continue        # nobody's point
        need(point or (not leaf.startswith(prefix) if prefix else leaf in followed),
             f"{refusal}; perhaps the newest point, choose one with --point")
    points = [point for point in points if point.series == series]
    if prefix: points = ([point for point in points if point.id.startswith(prefix)] or
                         [point for point in points if (point.republishes or b"").hex().startswith(prefix)])
    need(len(points) == 1 or points and not prefix, f"series {ascii(series)} has {len(points)} such points")
    return max(points, key=lambda point: (point.sequence, point.time, point.id))

# --------------------------------------------------------------------------------------------------- packs (32)
def entries_of(n, table):
    """Entries of a segment, from the footer: (kind, id, bytes)."""
    check("S-5", 1 <= n <= SEGMENT_ENTRIES_MAX)
    entries = [(kind, entry_id, int.from_bytes(size, "little")) for entry_id, size, kind in ENTRY.iter_unpack(table)]
    check("S-4", all(kind in (CHUNK, PAGE, SPLICE) and 1 <= size <= CHUNK_BYTES_MAX for kind, _, size in entries),
          "S-5", sum(size for _, _, size in entries) <= SEGMENT_BYTES_MAX)
    return entries

class Pack:
    """A pack, opened from its tail."""
    def __init__(self, repository, name):
        self.repository, self.name = repository, name
        size, tail = repository.part(name, -TAIL_READ_BYTES, TAIL_READ_BYTES)
        check("N-4", name[6:8] == name[9:11], "P-1", size <= PACK_BYTES_MAX, "P-2", len(tail) >= HEAD_BYTES)
        wrap, at, count, *common, zeros, magic = struct.unpack("<128sII2s1s5s16s24s8s", tail[-HEAD_BYTES:])
        self.check_common(*common, magic == b"DVPKTAIL" and not any(zeros))
        check("P-4", at > 0 and at % PACK_PADDING_BYTES == 0 and at + count + HEAD_BYTES == size)
        self.version, self.kind = common[:2]
        other = attempt(name + " (header)", self.header_wrap, common)
        self.key = attempt(name + " (trailer)", self.unwrap, wrap) or self.unwrap(other or wrap)
        if other not in (None, wrap): warn(f"{name}: P-13: the wraps of header and trailer differ, one of them opens")
        start = at - size + len(tail)
        sealed = tail[start:start + count] if start >= 0 else repository.part(name, at, count)[1]
        footer = self.open("P-8", 6, 0xFFFFFFFF, at, sealed)
        if self.signed: footer = repository.writers.open("P-15", self.clear(6, at) + self.signed, footer)[1]
        self.segments = list(self.footer(footer, at))
    def header_wrap(self, trailer):
        """The way from the tail needs the header only if the trailer's wrap is refused; else it is told, no more."""
        header = self.repository.part(self.name, 0, HEAD_BYTES)[1]
        check("P-2", len(header) == HEAD_BYTES)
        magic, *common, wrap, zeros = struct.unpack("<8s2s1s5s16s16x128s16s", header)
        self.check_common(*common, magic == b"DVPKHEAD" and not any(zeros))
        check("P-13", common == trailer)
        return wrap
    def check_common(self, version, kind, zeros, repository_id, fits):
        check("P-2", fits, "P-3!", 0 < int.from_bytes(version, "little") <= FORMAT_VERSION, "P-2", not any(zeros),
              "P-3", kind in (b"\1", b"\2"), "P-7", repository_id == self.repository.id)
    def unwrap(self, wrap):
        at, algorithm, use = (48, writers.hpke, "opening") if wrap[1] == 1 else (56, xchacha, "pack wrap")
        check("P-5!", wrap[1] <= 1, "P-5", wrap[0] == 1 and not any(wrap[2:at - 32]))
        clear = self.repository.additional(self.version, 4, self.kind + wrap[:at])
        key = unseal("P-6", algorithm, wrap[80:], clear, wrap[at:80], self.repository.key[use])
        check("P-6", same(derive_key("pack commitment", key), wrap[at - 32:at]))
        self.signed = wrap[at - 32:at] if wrap[1] == 1 else None
        return key
    def clear(self, kind, place):
        return self.repository.additional(self.version, kind, self.kind + struct.pack("<I", place))
    def open(self, rule, kind, ordinal, place, sealed):
        return unseal(rule, chacha, sealed, self.clear(kind, place), struct.pack("<IQ", ordinal, 0), self.key)
    def footer(self, data, limit):
        count = int.from_bytes(data[:4], "little")
        check("P-10", len(data) >= 4 and 1 <= count <= PACK_SEGMENTS_MAX)
        at, end = 4, HEAD_BYTES
        for _ in range(count):
            check("P-10", len(data) >= at + 16)
            offset, sealed, n, m = struct.unpack_from("<IIII", data, at)
            table, at = data[at + 16:at + 16 + ENTRY.size * n], at + 16 + ENTRY.size * n
            anchors, at = data[at:at + ANCHOR.size * m], at + ANCHOR.size * m
            check("P-14", m <= n, "P-10", at <= len(data), "P-11", offset % SEGMENT_ALIGNMENT_BYTES == 0,
                  "P-11", end <= offset and offset + 16 + sealed <= limit and 17 <= sealed <= SEALED_BYTES_LONG)
            entries_of(n, table), check("P-14", ascending([slot for slot, _ in ANCHOR.iter_unpack(anchors)] + [n]))
            end = offset + 16 + sealed
            yield offset, sealed, table
        check("P-10", at == len(data))
    @functools.lru_cache(CACHED_SEGMENTS)
    def segment(self, ordinal):
        """Entries and uncompressed bytes of a segment."""
        offset, sealed, table = self.segments[ordinal]
        stored = self.repository.part(self.name, offset, 16 + sealed)[1]
        check("S-1", len(stored) >= 16 and stored[:4] == b"DVSG" and not any(stored[12:16]),
              "S-2", stored[4:12] == struct.pack("<II", ordinal, sealed) and len(stored) == 16 + sealed)
        plain = self.open("P-9", 5, ordinal, ordinal, stored[16:])
        check("S-3", len(plain) >= 8 and not any(plain[1:4]))
        codec, n = struct.unpack_from("<B3xI", plain)
        own, payload = plain[8:8 + 4 * n], plain[8 + 4 * n:]
        shapes = b"".join(table[at + 32:at + ENTRY.size] for at in range(0, len(table), ENTRY.size))
        check("S-3", len(own) == 4 * n, "S-10", own == shapes, "S-7!", codec != 2, "S-7", codec < 2)
        entries = entries_of(n, table)          # what is the same as in the footer keeps S-4 and S-5 as well
        total = sum(size for _, _, size in entries)
        if codec == 1:                          # one frame; a length that it declares itself is compared first
            with about(None, zstandard.ZstdError, "S-8"):
                declared = zstandard.get_frame_parameters(payload).content_size
                check("S-8", declared in (total, zstandard.CONTENTSIZE_UNKNOWN))
                payload = zstandard.ZstdDecompressor().decompress(payload, total, allow_extra_data=False)
        check("S-8" if codec else "S-6", len(payload) == total)
        return entries, payload

class Index:
    """Page 50: where each id is, from all footers. What it says is not believed: S-9 and M-7 verify it."""
    def __init__(self, repository, again=False):
        self.repository, self.again, self.places = repository, again, collections.defaultdict(list)
        for folder in repository.list("packs", PACK_FOLDER, folders=True):
            for name in (f"packs/{folder}/{leaf}" for leaf in repository.list("packs/" + folder, PACK_NAME)):
                pack = attempt(name, Pack, repository, name)
                for ordinal, (_, _, table) in enumerate(pack.segments if pack else ()):
                    for slot, (entry_id, _, kind) in enumerate(ENTRY.iter_unpack(table)):
                        self.places[kind, entry_id].append((pack, ordinal, slot))
    def read(self, kind, entry_id, pack, ordinal, slot):
        entries, data = pack.segment(ordinal)
        start = sum(size for _, _, size in entries[:slot])
        data = data[start:start + entries[slot][2]]
        if kind == SPLICE: data = self.assemble(data)
        rule, use = ("M-7", "page id") if kind == PAGE else ("S-9", "chunk id")
        check(rule, same(keyed_hash(self.repository.key[use], data), entry_id))
        return data
    def assemble(self, splice):
        """The chunk that a splice stands for. Chunks of its pieces are not looked up among splices (32)."""
        check("S-11", len(splice) in range(PIECE.size, PIECE.size * SPLICE_PIECES_MAX + 1, PIECE.size))
        pieces = list(PIECE.iter_unpack(splice))
        check("S-11", all(count and at + count <= CHUNK_BYTES_MAX for _, at, count in pieces),
              "S-11", sum(count for _, _, count in pieces) <= CHUNK_BYTES_MAX)
        parts = [self.entry(chunk_id, CHUNK)[at:at + count] for chunk_id, at, count in pieces]
        check("S-12", all(len(part) == count for part, (_, _, count) in zip(parts, pieces)))
        return b"".join(parts)
    def entry(self, entry_id, *kinds):
        """The bytes of a chunk or page, from any copy that verifies; the first of these kinds is tried first."""
        for kind, place in [(kind, place) for kind in kinds for place in self.places.get((kind, entry_id), ())]:
            data = attempt(f"{place[0].name} segment {place[1]}", self.read, kind, entry_id, *place)
            if data: return data
        if not self.again and any(refusal.text == "missing" for refusal in DAMAGE.values()):
            self.__init__(self.repository, again=True)              # a pack has vanished: look once more (40, Readers)
            return self.entry(entry_id, *kinds)
        need(False, f"{'page' if PAGE in kinds else 'chunk'} {entry_id.hex()} is lost{first_damage(': ', 'packs/')}")
    def chunk(self, rule, chunk_id, size):
        data = self.entry(chunk_id, CHUNK, SPLICE)
        with about(f"chunk {chunk_id.hex()}"): check(rule, len(data) == size)
        return data

# ----------------------------------------------------------------------------------------------- maps (33, 34)
def restore_disk(index, content, output):
    """Page 33: walks the map of a disk on a grid, ascending."""
    c = content.chunking.first
    pages = [-(-content.size // c)]                                 # slots, then the pages of each level
    while len(pages) == 1 or pages[-1] > 1:
        pages.append(-(-pages[-1] // (INNER_SLOTS if len(pages) > 1 else LEAF_SLOTS)))
    def walk(level, place, page_id):
        page, slots = index.entry(page_id, PAGE), INNER_SLOTS if level else LEAF_SLOTS
        at, lengths = 4 + slots // 4, {0: 0, 1: 64, 2: 32} if level else {0: 0, 1: 64}
        with about(f"page {page_id.hex()}"):
            check("M-2", len(page) >= at and page[0] == (2 if level else 1) and not any(page[2:4]))
            kinds = [page[4 + s // 4] >> 2 * (s % 4) & 3 for s in range(slots)]
            check("M-3", page[1] == level, "M-4!", set(kinds) <= lengths.keys(), "M-5", any(kinds))
            check("M-6", not any(kinds[pages[level] - slots * place:]),
                  "M-2", len(page) == at + sum(lengths[kind] for kind in kinds))
        for s, kind in enumerate(kinds, slots * place):
            below, at = page[at:at + 32], at + lengths[kind]
            if kind and level: walk(level - 1, s, below)
            elif kind:
                output.zeros(s * c - output.at)
                output.data(index.chunk("M-8", below, min(c, content.size - s * c)))
    if content.top: walk(len(pages) - 2, 0, content.top)
    output.zeros(content.size - output.at)

def restore_stream(index, content, output):
    """Page 34: walks the map of a byte string that was cut by content."""
    def visit(page_id, expected, parent):
        page = index.entry(page_id, PAGE)
        with about(f"page {page_id.hex()}"):
            check("T-1", len(page) >= 4)
            kind, level, n = struct.unpack_from("<BBH", page)
            check("T-1", kind == 3 and level == 0 or kind == 4 and 1 <= level <= STREAM_DEPTH_MAX,
                  "T-6", parent in (None, level + 1), "T-2", 1 <= n <= STREAM_PAGE_ENTRIES_MAX)
            form = struct.Struct("<Q32s" if level else "<BQ32s")
            check("T-1", len(page) == 4 + form.size * n)
            entries = [(1, *entry) if level else entry for entry in form.iter_unpack(page[4:])]
            for before, (kind, count, below) in zip([(1, 0, b"")] + entries, entries):
                most = CHUNK_BYTES_MAX if kind and not level else DISK_BYTES_MAX
                check("T-3", kind <= 1 and 1 <= count <= most and (kind or not any(below)), "T-5", kind or before[0])
            check("T-4", sum(count for _, count, _ in entries) == expected)
        for kind, count, below in entries:
            if level: visit(below, count, level)
            elif kind: output.data(index.chunk("T-7", below, count))
            else: output.zeros(count)
    if content.top: visit(content.top, content.size, None)

# -------------------------------------------------------------------------------------------------------- main
class Output:
    """Bytes in ascending order, to a sparse file or to a pipe; hashed if there is a digest to compare."""
    def __init__(self, file, sparse, hasher):
        self.file, self.sparse, self.hasher, self.at = file, sparse, hasher, 0
    def data(self, data):
        if self.hasher: self.hasher.update(data)
        self.at += len(data)
        if not self.sparse: self.file.write(data)
        elif data.count(0) < len(data): self.file.seek(self.at - len(data)), self.file.write(data)
    def zeros(self, count, block=bytes(MIB)):
        if self.sparse and not self.hasher: self.at, count = self.at + count, 0
        for start in range(0, count, MIB): self.data(block[:count - start])

def restore(index, part, file, sparse):
    """Pages 33 and 50: the root first (F-9), the digest last (F-11)."""
    size, chunking, root, top = part.content
    with about(f"part {ascii(part.name)}"):
        data = struct.pack("<QBIIIB32s", size, *chunking, bool(top), top or bytes(32))
        check("F-9", same(keyed_hash(index.repository.key["map root"], data), root))
        output = Output(file, sparse, blake3.blake3() if part.digest else None)
        (restore_disk if chunking.kind == GRID else restore_stream)(index, part.content, output)
        check("F-11", not part.digest or same(output.hasher.digest(), part.digest))
        if sparse: file.truncate(size)

def run(root, series, disk, target, prefix):
    secret, repository = os.environb.get(b"DISKVAULT_PASSWORD"), Repository(root)
    need(secret is not None, "no passphrase or recovery key in the environment, DISKVAULT_PASSWORD")
    open_repository(repository, secret)
    point = find_point(repository, series, prefix)
    part = next((part for part in point.parts if part.name == disk), None)
    need(part, f"point {point.id} has no disk or stream {ascii(disk)}")
    if part.bad_extents: warn(f"{len(part.bad_extents)} ranges could not be read when backed up and stand as zeros")
    index = Index(repository)
    if target == "-":
        with open(1, "wb", closefd=False) as file: return restore(index, part, file, False)
    target = os.path.realpath(target)
    need(os.path.isfile(target) or not os.path.lexists(target), f"{ascii(target)} is not a regular file")
    partial = f"{target}.partial-{os.getpid()}"
    with open(partial, "xb") as file, contextlib.ExitStack() as undo:
        undo.callback(os.unlink, partial)
        restore(index, part, file, True)
        file.flush(), os.fsync(file.fileno())
        os.rename(partial, target)
        undo.pop_all()

def main():
    parser = argparse.ArgumentParser(description="Restores a disk or stream; secret in DISKVAULT_PASSWORD")
    for name in ("REPO", "SERIES", "DISK", "OUTPUT"): parser.add_argument(name)
    parser.add_argument("--point", metavar="ID_PREFIX", help="a point of the series; the newest if not given")
    given = parser.parse_args()
    try: run(given.REPO, given.SERIES, given.DISK, given.OUTPUT, given.point)
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(f"restore.py: {error if isinstance(error, Refused) else ascii(error)}")

if __name__ == "__main__": main()
