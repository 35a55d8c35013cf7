#!/usr/bin/env python3
"""Restores one disk or stream from a diskvault repository directory.

A second reader, written from the pages in ../spec only. Numbers such as P-7 are the rules of those pages. It
refuses what they tell a reader to refuse on the way to the disk, and never writes into the repository.
"""
import argparse, collections, contextlib, functools, hmac, os, re, stat, struct, sys  # noqa: E401
import argon2.low_level, blake3, nacl.bindings, nacl.exceptions, zstandard  # noqa: E401

# ------------------------------------------------------------------------------- constants (pages 00, 10, 20)
FORMAT_VERSION, KIB, MIB, DISK_BYTES_MAX = 0, 1 << 10, 1 << 20, 1 << 60
CHUNK_BYTES_MIN, CHUNK_BYTES_MAX, SEGMENT_BYTES_MAX, SEGMENT_ENTRIES_MAX = 4 * KIB, 4 * MIB, 4 * MIB, 4096
PACK_BYTES_MAX, PACK_SEGMENTS_MAX, PACK_PADDING_BYTES, SEGMENT_ALIGNMENT_BYTES = 1 << 30, 1 << 18, 64 * KIB, 64
SEALED_BYTES_MAX, CONFIG_BYTES_MAX, KEY_SLOT_BYTES_MAX, KEY_SLOTS_MAX = 16 * MIB, 8 * KIB, 4 * KIB, 64
LEAF_SLOTS, INNER_SLOTS, STREAM_DEPTH_MAX, STREAM_PAGE_ENTRIES_MAX = 64, 128, 20, 128
PARTS_MAX, NAME_BYTES_MAX, TEXT_BYTES_MAX, FIELDS_MAX, BAD_EXTENTS_MAX, PREVIOUS_MAX = 1024, 255, 4096, 256, 65536, 64
KDF_MEMORY_KIB_MIN, KDF_MEMORY_KIB_MAX, KDF_PASSES_MAX, KDF_LANES_MAX = 8192, 1048576, 16, 8
KDF_COST_KIB_MAX, KDF_TOTAL_COST_KIB_MAX = 4194304, 33554432
TAG_BYTES, HEAD_BYTES, TAIL_READ_BYTES = 16, 192, 128 * KIB
ENTRY = struct.Struct("<32s3sB")                    # id, bytes, entry kind (32)
CHUNK, PAGE, GRID, CONTENT = 1, 2, 1, 2             # entry kinds (32); chunking kinds (36)
CONFIG_NAME, POINT_NAME = re.compile("[0-9a-f]{8}-[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}(\.ok)?")
PACK_FOLDER, PACK_NAME, CONTROL = re.compile("[0-9a-f]{2}"), re.compile("[0-9a-f]{64}"), re.compile("[\0-\x1f\x7f-\x9f]")

class Refused(Exception):
    """An object that is not used (00, Words): its name, the rule, and whatever else there is to say."""
    def __init__(self, rule, text=None, subject=None):
        self.rule, self.text, self.subject = rule, text, subject
    def __str__(self):
        return ": ".join(filter(None, (self.subject, self.rule and f"refused by {self.rule}", self.text)))

def check(*rules):
    """Pairs of a rule and what must hold; a rule that ends in ! tells of a newer format instead of damage."""
    for rule, holds in zip(rules[::2], rules[1::2]):
        if not holds:
            raise Refused(rule.rstrip("!"), "a newer format" if rule.endswith("!") else None)

def need(condition, text):
    if not condition: raise Refused(None, text)

def warn(text): print(f"restore.py: warning: {text}", file=sys.stderr)
def ascending(items): return all(a < b for a, b in zip(items, items[1:]))
def is_grid(size): return CHUNK_BYTES_MIN <= size <= CHUNK_BYTES_MAX and size & (size - 1) == 0

@contextlib.contextmanager
def about(subject, unless=None, rule=None):
    """Names the object of refusals that do not have one yet; an exception of a library is a refusal by the rule."""
    try:
        yield
    except Refused as refusal:
        refusal.subject = refusal.subject or subject
        raise
    except unless or () as error:
        raise Refused(rule, subject=subject) from error

DAMAGE = {}                                         # refusals after which the reader went on, by name

def attempt(name, function, *arguments):
    """What the function returns; none if the object is refused. A newer config ends all (50, open)."""
    try:
        with about(name): return function(*arguments)
    except Refused as refusal:
        if refusal.rule in ("C-3", "C-4"): raise
        if str(refusal) != str(DAMAGE.get(name)): warn(refusal)
        DAMAGE[name] = refusal

# ----------------------------------------------------------------------------------------- records decoder (00)
class Record:
    """Each value has exactly one encoding, so R-3 is checked on the way."""
    def __init__(self, data):
        check("R-1", len(data) <= SEALED_BYTES_MAX)
        self.data, self.at = data, 0
    def take(self, count):
        check("R-2", count <= len(self.data) - self.at)
        self.at += count
        return self.data[self.at - count:self.at]
    def varint(self, bits):
        first = self.u8()
        if first <= 250: return first
        size, least = {0xFB: (2, 251), 0xFC: (4, 1 << 16), 0xFD: (8, 1 << 32)}.get(first, (99, 0))
        check("R-2", size * 8 <= bits)
        value = int.from_bytes(self.take(size), "little")
        check("R-3", value >= least)
        return value
    def u8(self): return self.take(1)[0]
    def u16(self): return self.varint(16)
    def u32(self): return self.varint(32)
    def u64(self): return self.varint(64)
    def id16(self): return self.take(16)
    def id32(self): return self.take(32)
    def bytes(self): return self.take(self.u64())
    def i64(self): return (lambda value: value >> 1 ^ -(value & 1))(self.u64())         # zigzag
    def text(self):
        with about(None, UnicodeDecodeError, "R-2"): return self.bytes().decode("utf-8")
    def list(self, item):
        count = self.u64()
        check("R-2", count <= len(self.data) - self.at)
        return [item() for _ in range(count)]
    def optional(self, item):
        present = self.u8()
        check("R-2", present <= 1)
        return item() if present else None
    def end(self): check("R-3", self.at == len(self.data))

# ------------------------------------------------------------------------------------------------- crypto (20)
xchacha = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt
chacha = nacl.bindings.crypto_aead_chacha20poly1305_ietf_decrypt
SUBKEYS = "chunk id", "page id", "map root", "pack wrap", "manifest", "config"          # those that a restore needs
same = hmac.compare_digest

def digest(data): return blake3.blake3(data).digest()
def keyed_hash(key, data): return blake3.blake3(data, key=key).digest()
def derive_key(use, material): return blake3.blake3(material, derive_key_context="diskvault v1 " + use).digest()
def subkeys(master, repository): return {use: derive_key(use, master + repository) for use in SUBKEYS}
def additional(version, kind, repository, rest): return struct.pack("<4sHBB", b"dvAD", version, kind, 0) + repository + rest

def unseal(rule, algorithm, sealed, additional_data, nonce, key):
    check(rule, len(sealed) >= TAG_BYTES)
    with about(None, nacl.exceptions.CryptoError, rule): return algorithm(sealed, additional_data, nonce, key)

# ----------------------------------------------------------------------------------------------------- objects
class Store:
    """A repository in a local directory. Names that do not fit are ignored, links are not followed (N-1)."""
    def __init__(self, root):
        self.root = root
    def list(self, folder, pattern, folders=False):
        path = os.path.join(self.root, folder)
        if os.path.islink(path) or not os.path.isdir(path):
            return []
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if pattern.fullmatch(entry.name) and
                          (entry.is_dir if folders else entry.is_file)(follow_symlinks=False))
    def part(self, name, at, count):
        """The object's size and some of its bytes, fewer if it ends; a negative `at` counts from the end."""
        try:
            path = os.path.join(self.root, name)
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                status = os.fstat(file.fileno())
                check("N-1", stat.S_ISREG(status.st_mode))
                file.seek(at if at >= 0 else max(0, status.st_size + at))
                return status.st_size, file.read(min(count, status.st_size))
        except OSError as error:
            raise Refused(None, "missing" if isinstance(error, FileNotFoundError) else error.strerror) from None
    def read(self, name, limit, rule):
        size, data = self.part(name, 0, limit + 1)
        check(rule, size <= limit)
        return data

Config = collections.namedtuple("Config", "name data version repository slots")
Slot = collections.namedtuple("Slot", "name data version kind memory passes lanes n")

def read_config(store, name):
    """Page 30. What makes a config newer comes first, as that ends the search."""
    data = store.read(name, CONFIG_BYTES_MAX, "C-1")
    check("C-1", len(data) >= 72)
    (magic, version, zero, generation, repository, _, _, features, grid, segment, pack, n) = struct.unpack_from(
        "<8sHHI16sQQQIIII", data)
    check("C-2", magic == b"DVCONFIG", "C-3!", version <= FORMAT_VERSION)
    if features:
        raise Refused("C-4", f"a newer format, feature bits {[bit for bit in range(64) if features >> bit & 1]}")
    check("C-2", zero == 0, "C-6", 1 <= n <= KEY_SLOTS_MAX, "C-1", len(data) == 104 + 32 * n,
          "C-5", is_grid(grid) and 1 <= segment <= SEGMENT_BYTES_MAX and 1 <= pack <= PACK_BYTES_MAX // 2)
    slots = [data[at:at + 32] for at in range(72, 72 + 32 * n, 32)]
    check("C-6", ascending(slots), "C-8", generation > 0 and name.startswith(f"config/{generation:08x}-"))
    return Config(name, data, version, repository, slots)

def read_slot(store, name, repository):
    """Page 31, what is checked before anything is derived."""
    data = store.read(name, KEY_SLOT_BYTES_MAX, "K-1")
    check("K-6", name == "keys/" + digest(data).hex(), "K-1", len(data) >= 132)
    magic, version, kind, algorithm, memory, passes, lanes, owner = struct.unpack_from("<8sHBBIII16s", data)
    n = int.from_bytes(data[128:132], "little")
    check("K-2", magic == b"DVKEYSLT", "K-2!", version <= FORMAT_VERSION and kind in (1, 2) and algorithm == 1,
          "K-1", len(data) >= 156 + n, "K-4", KDF_MEMORY_KIB_MIN <= memory <= KDF_MEMORY_KIB_MAX,
          "K-4", 1 <= passes <= KDF_PASSES_MAX and 1 <= lanes <= KDF_LANES_MAX,
          "K-4", memory * passes <= KDF_COST_KIB_MAX, "K-10", owner == repository)
    return Slot(name, data, version, kind, memory, passes, lanes, n)

def try_slot(slot, secret, repository):
    """Page 31, Opening: the master key, or none if the secret is not this slot's."""
    data = slot.data
    if slot.kind == 1:
        secret = re.sub(rb"\r?\n\Z", b"", secret)
    else:
        secret = re.sub(rb"[- \t\r\n]", b"", secret.upper()).translate(bytes.maketrans(b"OIL", b"011"))
    output = argon2.low_level.hash_secret_raw(secret, data[40:72], slot.passes, slot.memory, slot.lanes, 32,
                                              argon2.low_level.Type.ID, version=0x13)
    if not same(derive_key("slot commitment", output), data[72:104]):
        return None
    record = Record(unseal("K-7", xchacha, data[132:132 + slot.n], additional(slot.version, 2, repository, data[:104]),
                           data[104:128], derive_key("slot key", output)))
    entries = record.list(lambda: (record.u8(), record.u32(), record.id32()))
    record.end()
    check("K-8", any(entry[:2] == (1, 0) for entry in entries))
    return next(key for purpose, epoch, key in entries if (purpose, epoch) == (1, 0))

def open_repository(store, secret):
    """Page 50, open: the keys, by the newest config that authenticates."""
    names = ["config/" + leaf for leaf in reversed(store.list("config", CONFIG_NAME))]
    for config in filter(None, [attempt(name, read_config, store, name) for name in names]):
        names = ["keys/" + slot.hex() for slot in config.slots]
        slots = list(filter(None, [attempt(name, read_slot, store, name, config.repository) for name in names]))
        with about(config.name):
            check("K-5", sum(slot.memory * slot.passes for slot in slots) <= KDF_TOTAL_COST_KIB_MAX)
        masters = (attempt(slot.name, try_slot, slot, secret, config.repository) for slot in slots)
        master = next(filter(None, masters), None)
        if not master:
            raise Refused(None, "wrong secret" + "".join(f", or {refusal}" for refusal in list(DAMAGE.values())[:1]))
        keys, leaf = Keys(master, config.repository), config.name.split("/")[1].encode()
        own = keyed_hash(keys.config, additional(config.version, 1, config.repository, leaf + config.data[:-32]))
        if attempt(config.name, lambda: check("C-7", same(own, config.data[-32:])) or True):
            return keys
    raise Refused(None, "no config that can be used" + "".join(f": {refusal}" for refusal in list(DAMAGE.values())[:1]))

# ----------------------------------------------------------------------------------------------- manifests (36)
Chunking = collections.namedtuple("Chunking", "kind first second third")
Content = collections.namedtuple("Content", "size chunking root top")       # of a disk, stream or allocation list
Part = collections.namedtuple("Part", "name content digest bad_extents")
Point = collections.namedtuple("Point", "id series time sequence previous republishes parts")

class Manifest(Record):
    """The record of a point, with F-1 to F-8 and F-10."""
    def short_text(self, value=None):
        value = self.text()
        check("F-1", len(value.encode()) <= TEXT_BYTES_MAX)
        return value
    def limited(self, item, most):
        values = self.list(item)
        check("F-1", len(values) <= most)
        return values
    def name(self, forbidden):
        value = self.text()
        check("F-2", 1 <= len(value.encode()) <= NAME_BYTES_MAX and value not in (".", "..") and
              not CONTROL.search(value) and not set(value) & set(forbidden))
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
    def ranges(self, size):
        values, end = self.limited(lambda: (self.u64(), self.u64()), BAD_EXTENTS_MAX), 0
        for start, count in values:
            check("F-6", count > 0 and start >= end and start + count <= size)
            end = start + count
        return values
    def extensions(self):
        numbers = self.limited(lambda: (self.u16(), self.bytes())[0], FIELDS_MAX)
        check("F-8!", max(numbers, default=0) < 0x8000)
    def rest(self):
        """The end of disks and streams: other digests, statistics, extensions."""
        self.limited(lambda: (self.short_text(), self.bytes()), FIELDS_MAX)
        [self.u64() for _ in range(10)]
        self.extensions()
    def disk(self):
        name, size, chunking = self.name("/:"), self.u64(), self.chunking(GRID, CONTENT)
        check("F-5!", self.u32() == 0)                              # grid offset
        self.short_text()
        content, whole = self.content(size, chunking), self.optional(self.id32)
        check("F-10", (whole is not None) == (chunking.kind == CONTENT or size <= chunking.first))
        self.optional(self.reference)                               # the allocation list is not needed for bytes
        bad_extents = self.ranges(size)
        check("F-1", len(self.bytes()) <= TEXT_BYTES_MAX)           # token
        self.ranges(size)
        check("F-5!", self.u8() == 0)                               # free-space mode
        self.rest()
        return Part(name, content, whole, bad_extents)
    def stream(self):
        part = Part(self.name("/:"), self.reference(), self.id32(), [])
        self.rest()
        return part
    def point(self, point_id):
        self.take(32)                                               # backup id, lease
        series, time = self.name("/@~:"), self.i64()
        self.i64(), self.u64(), self.short_text(), self.id16(), self.short_text()
        sequence, previous = self.u64(), self.limited(self.id32, PREVIOUS_MAX)
        check("F-5!", sequence > 0, "F-6", ascending(previous))
        republishes = self.optional(self.id32)
        self.limited(lambda: (self.short_text(), self.short_text()), FIELDS_MAX)
        parts = self.limited(self.disk, PARTS_MAX) + self.limited(self.stream, PARTS_MAX)
        check("F-2", len({part.name for part in parts}) == len(parts), "F-5!", self.u8() == 0)     # signature kind
        self.extensions()
        self.end()
        return Point(point_id, series, time, sequence, previous, republishes, parts)

def read_point(store, keys, point_id):
    """Page 20, Small objects, for a manifest."""
    data = store.read("points/" + point_id, SEALED_BYTES_MAX, "O-1")
    check("N-3", digest(data).hex() == point_id, "O-1", len(data) >= 40)
    magic, version, kind, algorithm, epoch, nonce = struct.unpack_from("<8sHBBI24s", data)
    check("O-2", magic == b"DVSEALED", "O-3", kind == 7, "O-4!", version <= FORMAT_VERSION and algorithm == 1 and epoch == 0)
    clear = additional(version, 7, keys.repository, data[:16])
    return Manifest(unseal("O-5", xchacha, data[40:], clear, nonce, keys.manifest)).point(point_id)

def find_point(store, keys, series, prefix):
    """Page 50, list points; 36, order of a series. A refused manifest that no point follows may be the newest."""
    names = set(store.list("points", POINT_NAME))
    visible = {leaf: attempt("points/" + leaf, read_point, store, keys, leaf) for leaf in sorted(names) if leaf + ".ok" in names}
    points = [point for point in visible.values() if point]
    followed = {previous.hex() for point in points for previous in point.previous}
    for leaf in (leaf for leaf, point in visible.items() if not point):
        if leaf.startswith(prefix) if prefix else leaf not in followed:
            raise Refused(None, f"{DAMAGE['points/' + leaf]}; perhaps the newest point, choose one with --point")
    points = [point for point in points if point.series == series]
    if prefix:
        points = ([point for point in points if point.id.startswith(prefix)] or
                  [point for point in points if point.republishes and point.republishes.hex().startswith(prefix)])
    if not points or prefix and len(points) > 1:
        raise Refused(None, f"series {ascii(series)} has {len(points)} points that begin with {ascii(prefix or '')}")
    return max(points, key=lambda point: (point.sequence, point.time, point.id))

# --------------------------------------------------------------------------------------------------- packs (32)
Segment = collections.namedtuple("Segment", "offset sealed table")

def entries_of(n, table):
    """Entries of a segment, from itself or from the footer: (kind, id, bytes)."""
    check("S-5", 1 <= n <= SEGMENT_ENTRIES_MAX)
    entries = [(kind, entry_id, int.from_bytes(size, "little")) for entry_id, size, kind in ENTRY.iter_unpack(table)]
    check("S-4", all(kind in (CHUNK, PAGE) and 1 <= size <= CHUNK_BYTES_MAX for kind, _, size in entries),
          "S-5", sum(size for _, _, size in entries) <= SEGMENT_BYTES_MAX)
    return entries

class Pack:
    """A pack, opened from its tail."""
    def __init__(self, store, keys, name):
        self.store, self.keys, self.name = store, keys, name
        check("N-4", name[6:8] == name[9:11])
        size, tail = store.part(name, -TAIL_READ_BYTES, TAIL_READ_BYTES)
        check("P-1", size <= PACK_BYTES_MAX, "P-2", len(tail) >= HEAD_BYTES)
        wrap, at, count, *common, zeros, magic = struct.unpack("<128sIIHB5s16s24s8s", tail[-HEAD_BYTES:])
        self.check_common(common, magic == b"DVPKTAIL" and not any(zeros))
        check("P-4", at > 0 and at % PACK_PADDING_BYTES == 0 and at + count + HEAD_BYTES == size)
        self.version, self.kind = common[:2]
        other = attempt(name + " (header)", self.header_wrap, common)
        self.key = attempt(name + " (trailer)", self.unwrap, wrap) or self.unwrap(other or wrap)
        if other not in (None, wrap):
            warn(f"{name}: P-13: the wraps of header and trailer differ, one of them opens")
        start = at - size + len(tail)
        sealed = tail[start:start + count] if start >= 0 else store.part(name, at, count)[1]
        self.segments = list(self.footer(self.open("P-8", 6, 0xFFFFFFFF, at, sealed), at))
    def header_wrap(self, trailer):
        """The way from the tail needs the header only if the trailer's wrap is refused; else it is told, no more."""
        header = self.store.part(self.name, 0, HEAD_BYTES)[1]
        check("P-2", len(header) == HEAD_BYTES)
        magic, *common, _, wrap, zeros = struct.unpack("<8sHB5s16s16s128s16s", header)
        self.check_common(common, magic == b"DVPKHEAD" and not any(zeros))
        check("P-13", common == trailer)
        return wrap
    def check_common(self, common, fits):
        version, kind, zeros, repository = common
        check("P-2", fits, "P-3!", version <= FORMAT_VERSION, "P-2", not any(zeros), "P-3", kind in (1, 2),
              "P-7", repository == self.keys.repository)
    def unwrap(self, wrap):
        check("P-5!", wrap[:2] != b"\1\1", "P-5", wrap[0] == 1 and not any(wrap[1:24]))
        clear = additional(self.version, 4, self.keys.repository, bytes([self.kind]) + wrap[:56])
        key = unseal("P-6", xchacha, wrap[80:], clear, wrap[56:80], self.keys.pack_wrap)
        check("P-6", same(derive_key("pack commitment", key), wrap[24:56]))
        return key
    def open(self, rule, kind, ordinal, place, sealed):
        """Opens a segment or the footer; `place` is what its additional data says."""
        clear = additional(self.version, kind, self.keys.repository, struct.pack("<BI", self.kind, place))
        return unseal(rule, chacha, sealed, clear, struct.pack("<IQ", ordinal, 0), self.key)
    def footer(self, data, limit):
        check("P-10", len(data) >= 4 and 1 <= int.from_bytes(data[:4], "little") <= PACK_SEGMENTS_MAX)
        at, end = 4, HEAD_BYTES
        for _ in range(int.from_bytes(data[:4], "little")):
            check("P-10", len(data) >= at + 12)
            offset, sealed, n = struct.unpack_from("<III", data, at)
            table = data[at + 12:at + 12 + ENTRY.size * n]
            check("P-10", len(table) == ENTRY.size * n, "P-11", offset % SEGMENT_ALIGNMENT_BYTES == 0,
                  "P-11", end <= offset and offset + 16 + sealed <= limit)
            entries_of(n, table)
            at, end = at + 12 + len(table), offset + 16 + sealed
            yield Segment(offset, sealed, table)
        check("P-10", at == len(data))
    @functools.lru_cache(16)
    def segment(self, ordinal):
        """Entries and uncompressed bytes of a segment."""
        offset, sealed, table = self.segments[ordinal]
        stored = self.store.part(self.name, offset, 16 + sealed)[1]
        check("S-1", len(stored) >= 16 and stored[:4] == b"DVSG" and not any(stored[12:16]),
              "S-2", stored[4:12] == struct.pack("<II", ordinal, sealed) and len(stored) == 16 + sealed)
        plain = self.open("P-9", 5, ordinal, ordinal, stored[16:])
        check("S-3", len(plain) >= 8 and not any(plain[1:4]))
        n = int.from_bytes(plain[4:8], "little")
        own, payload = plain[8:8 + ENTRY.size * n], plain[8 + ENTRY.size * n:]
        check("S-3", len(own) == ENTRY.size * n)
        entries = entries_of(n, own)
        total = sum(size for _, _, size in entries)
        check("S-10", own == table, "S-7!", plain[0] != 2, "S-7", plain[0] < 2, "S-6", plain[0] == 1 or len(payload) == total)
        return entries, decompress(payload, total) if plain[0] == 1 else payload

def decompress(payload, total):
    """One Zstandard frame of exactly `total` bytes; a length that it declares itself is compared first."""
    with about(None, zstandard.ZstdError, "S-8"):
        check("S-8", zstandard.get_frame_parameters(payload).content_size in (total, zstandard.CONTENTSIZE_UNKNOWN))
        data = zstandard.ZstdDecompressor().decompress(payload, max_output_size=total, allow_extra_data=False)
    check("S-8", len(data) == total)
    return data

class Index:
    """Page 50: where each id is, from all footers. What it says is not believed: S-9 and M-7 verify it."""
    def __init__(self, store, keys, again=False):
        self.store, self.keys, self.again, self.places = store, keys, again, collections.defaultdict(list)
        for folder in store.list("packs", PACK_FOLDER, folders=True):
            for name in (f"packs/{folder}/{leaf}" for leaf in store.list("packs/" + folder, PACK_NAME)):
                pack = attempt(name, Pack, store, keys, name)
                for ordinal, segment in enumerate(pack.segments if pack else ()):
                    for slot, (entry_id, _, kind) in enumerate(ENTRY.iter_unpack(segment.table)):
                        self.places[kind, entry_id].append((pack, ordinal, slot))
    def read(self, place, kind, entry_id):
        pack, ordinal, slot = place
        entries, data = pack.segment(ordinal)
        start = sum(size for _, _, size in entries[:slot])
        data = data[start:start + entries[slot][2]]
        rule, key = ("S-9", self.keys.chunk_id) if kind == CHUNK else ("M-7", self.keys.page_id)
        check(rule, entries[slot][:2] == (kind, entry_id) and same(keyed_hash(key, data), entry_id))
        return data
    def entry(self, kind, entry_id):
        """The bytes of a chunk or page, from any copy that verifies."""
        for place in self.places.get((kind, entry_id), ()):
            data = attempt(f"{place[0].name} segment {place[1]}", self.read, place, kind, entry_id)
            if data:
                return data
        if not self.again and any(refusal.text == "missing" for refusal in DAMAGE.values()):
            self.__init__(self.store, self.keys, again=True)        # a pack has vanished: look once more (40, Readers)
            return self.entry(kind, entry_id)
        reasons = [str(refusal) for name, refusal in DAMAGE.items() if name.startswith("packs/")] or ["no pack has it"]
        raise Refused(None, f"{'chunk' if kind == CHUNK else 'page'} {entry_id.hex()} is lost: {reasons[-1]}")

# ----------------------------------------------------------------------------------------------- maps (33, 34)
def verify_root(content, keys):
    data = struct.pack("<QBIIIB", content.size, *content.chunking, bool(content.top)) + (content.top or bytes(32))
    check("F-9", same(keyed_hash(keys.map_root, data), content.root))

def restore_disk(index, content, output):
    """Page 33: walks the map of a disk on a grid, ascending."""
    c = content.chunking.first
    pages = [-(-content.size // c)]                                 # slots, then the pages of each level
    while len(pages) == 1 or pages[-1] > 1:
        pages.append(-(-pages[-1] // (INNER_SLOTS if len(pages) > 1 else LEAF_SLOTS)))
    def walk(level, place, page_id):
        page, slots = index.entry(PAGE, page_id), INNER_SLOTS if level else LEAF_SLOTS
        with about(f"page {page_id.hex()}"):
            at, lengths = 4 + slots // 4, {0: 0, 1: 64, 2: 32} if level else {0: 0, 1: 64}
            check("M-2", len(page) >= at and page[0] == (2 if level else 1) and not any(page[2:4]), "M-3", page[1] == level)
            kinds = [page[4 + s // 4] >> 2 * (s % 4) & 3 for s in range(slots)]
            check("M-4!", set(kinds) <= lengths.keys(), "M-5", any(kinds), "M-6", not any(kinds[pages[level] - slots * place:]))
            check("M-2", len(page) == at + sum(lengths[kind] for kind in kinds))
        for s, kind in enumerate(kinds, slots * place):
            below, at = page[at:at + 32], at + lengths[kind]
            if kind and level:
                walk(level - 1, s, below)
            elif kind:
                chunk = index.entry(CHUNK, below)
                check("M-8", len(chunk) == min(c, content.size - s * c))
                output.zeros(s * c - output.at)
                output.data(chunk)
    if content.top:
        walk(len(pages) - 2, 0, content.top)
    output.zeros(content.size - output.at)

def restore_stream(index, content, output):
    """Page 34: walks the map of a byte string that was cut by content."""
    def visit(page_id, expected, parent):
        page = index.entry(PAGE, page_id)
        with about(f"page {page_id.hex()}"):
            check("T-1", len(page) >= 4)
            kind, level, n = struct.unpack_from("<BBH", page)
            check("T-1", kind == 3 and level == 0 or kind == 4 and 1 <= level <= STREAM_DEPTH_MAX,
                  "T-6", parent in (None, level + 1), "T-2", 1 <= n <= STREAM_PAGE_ENTRIES_MAX)
            form = struct.Struct("<Q32s" if level else "<BQ32s")
            check("T-1", len(page) == 4 + form.size * n)
            entries = [entry if len(entry) == 3 else (1, *entry) for entry in form.iter_unpack(page[4:])]
            for before, (kind, count, below) in zip([(1, 0, b"")] + entries, entries):
                most = CHUNK_BYTES_MAX if kind and not level else DISK_BYTES_MAX
                check("T-3", kind <= 1 and 1 <= count <= most and (kind or not any(below)), "T-5", kind or before[0])
            check("T-4", sum(count for _, count, _ in entries) == expected)
        for kind, count, below in entries:
            if level:
                visit(below, count, level)
            elif kind:
                chunk = index.entry(CHUNK, below)
                check("T-7", len(chunk) == count)
                output.data(chunk)
            else:
                output.zeros(count)
    if content.top:
        visit(content.top, content.size, None)

# -------------------------------------------------------------------------------------------------------- main
class Output:
    """Bytes in ascending order, to a sparse file or to a pipe; hashed if there is a digest to compare."""
    def __init__(self, file, sparse, hasher):
        self.file, self.sparse, self.hasher, self.at = file, sparse, hasher, 0
    def data(self, data):
        if self.hasher:
            self.hasher.update(data)
        if self.sparse and data.count(0) == len(data):
            self.file.seek(len(data), os.SEEK_CUR)
        else:
            self.file.write(data)
        self.at += len(data)
    def zeros(self, count, block=bytes(MIB)):
        if self.sparse and not self.hasher:
            self.file.seek(count, os.SEEK_CUR)
            self.at, count = self.at + count, 0
        for start in range(0, count, MIB):
            self.data(block[:count - start])

def restore(index, part, file, sparse):
    """Page 50: the root first, the digest last (F-11)."""
    with about(f"part {ascii(part.name)}"):
        verify_root(part.content, index.keys)
        output = Output(file, sparse, blake3.blake3() if part.digest else None)
        (restore_disk if part.content.chunking.kind == GRID else restore_stream)(index, part.content, output)
        check("F-11", not part.digest or same(output.hasher.digest(), part.digest))
        if sparse:
            file.truncate(part.content.size)
        file.flush()

def run(repository, series, disk, target, prefix):
    secret, store = os.environb.get(b"DISKVAULT_PASSWORD"), Store(repository)
    if secret is None or not os.path.isdir(repository):
        raise Refused(None, "no directory REPO" if secret else "no secret in the environment, DISKVAULT_PASSWORD")
    keys = open_repository(store, secret)
    point = find_point(store, keys, series, prefix)
    part = next((part for part in point.parts if part.name == disk), None)
    if part is None:
        raise Refused(None, f"point {point.id} has no disk or stream {ascii(disk)}")
    if part.bad_extents:
        warn(f"{len(part.bad_extents)} ranges could not be read at the time of the backup and stand as zeros")
    index = Index(store, keys)
    if target == "-":
        return restore(index, part, sys.stdout.buffer, False)
    target = os.path.realpath(target)
    if os.path.lexists(target) and not os.path.isfile(target):
        raise Refused(None, f"{ascii(target)} is not a regular file")
    partial = f"{target}.partial-{os.getpid()}"
    try:
        with open(partial, "xb") as file:
            restore(index, part, file, True)
            os.fsync(file.fileno())
        os.rename(partial, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)

def main():
    parser = argparse.ArgumentParser(description="Restore a disk or stream of a diskvault repository. The passphrase "
                                     "or recovery key is taken from the environment, DISKVAULT_PASSWORD.")
    for name, text in (("repository", "REPO"), ("series", "SERIES"), ("disk", "DISK"), ("target", "OUTPUT")):
        parser.add_argument(name, metavar=text)
    parser.add_argument("--point", metavar="ID_PREFIX", dest="prefix", help="a point; the newest if not given")
    arguments = parser.parse_args()
    try:
        run(**vars(arguments))
    except (Exception, KeyboardInterrupt) as error:
        text = error if isinstance(error, Refused) else f"{type(error).__name__}: {ascii(str(error))}"
        sys.exit(f"restore.py: {text}")

if __name__ == "__main__":
    main()
