"""Page 21, writers that may not read: what they seal to the repository's public key, their records, and whose signature
counts. Small objects (20) are opened here, as some are signed."""
import collections, hmac, re, struct  # noqa: E401
import nacl.bindings, nacl.exceptions  # noqa: E401
from basics import (FORMAT_VERSION, NAME_BYTES_MAX, SEALED_BYTES_MAX, Record, Refused, about, ascending, attempt, check,
                    derive_key, digest, is_name, unseal, xchacha)

FEATURE, PURPOSES = 1, set(range(2, 9))             # the bit in features, read (30); of a write-only key (31)
SIGNED_HEAD_BYTES, FIELDS_MAX, MANIFEST, WRITER, WRITER_NAME = 80, 256, 7, 13, re.compile("[0-9a-f]{32}")
RETIRED = "its writer is retired, and it is none of the points that count"
KEM, SUITE, INFO = b"KEM\0\x20", b"HPKE\0\x20\0\1\0\3", b"diskvault v1 sealed to public key"

# --------------------------------------------------------------------------------- HPKE, base mode (RFC 9180)
def extract(suite, salt, label, data): return hmac.digest(salt, b"HPKE-v1" + suite + label + data, "sha256")
def expand(suite, key, label, data, count):
    """HKDF-Expand; one block of it, as no more than 32 bytes are wanted."""
    return hmac.digest(key, struct.pack(">H", count) + b"HPKE-v1" + suite + label + data + b"\1", "sha256")[:count]
def hpke(sealed, additional_data, enc, private_key):
    """SingleShot Open: the one message of an encapsulation. libsodium refuses a secret that is all zeros."""
    secret = nacl.bindings.crypto_scalarmult(private_key, enc)
    context = enc + nacl.bindings.crypto_scalarmult_base(private_key)
    secret = expand(KEM, extract(KEM, b"", b"eae_prk", secret), b"shared_secret", context, 32)
    context = b"\0" + extract(SUITE, b"", b"psk_id_hash", b"") + extract(SUITE, b"", b"info_hash", INFO)
    secret = extract(SUITE, secret, b"secret", b"")
    key, nonce = (expand(SUITE, secret, label, context, size) for label, size in ((b"key", 32), (b"base_nonce", 12)))
    return nacl.bindings.crypto_aead_chacha20poly1305_ietf_decrypt(sealed, additional_data, nonce, key)

# ------------------------------------------------------------------------------------------ records and signatures
class Writer(collections.namedtuple("Writer", "verifying_key slot name series time points")):
    """A record, or what all records of one writer say together; points is none unless the writer is retired."""
    @property
    def id(self): return derive_key("writer id", self.verifying_key)[:16]
    def may_write_to(self, series):
        return not self.series or any(series.startswith(name[:-1]) if name.endswith("*") else series == name
                                      for name in self.series)
    def verify(self):
        """What stands for any rest may be empty or dots, as names go on from there."""
        starts = [(name[:-1], True) if name.endswith("*") else (name, False) for name in self.series]
        check("W-1", len(self.name.encode()) <= NAME_BYTES_MAX and len(self.series) <= FIELDS_MAX,
              "W-1", all(is_name(start) or goes_on and start in ("", ".", "..") for start, goes_on in starts),
              "W-2", ascending(self.points or []))
        return self

class Writers:
    """Those whose signature counts, from all records in the order of their names."""
    def __init__(self, records):
        self.known = {}
        for writer in records:
            before = self.known.get(writer.id, writer)
            points = [one.points for one in (before, writer) if one.points is not None]
            latest = writer if writer.time >= before.time else before
            self.known[writer.id] = latest._replace(points=set().union(*points) if points else None)
    def open(self, rule, before, plain):
        """The writer, and what it signed. libsodium verifies strictly."""
        writer, content = self.known.get(plain[:16]), plain[SIGNED_HEAD_BYTES:]
        check(rule, len(plain) >= SIGNED_HEAD_BYTES, rule, writer)
        signed = plain[16:SIGNED_HEAD_BYTES] + derive_key("writer signature", before + content)
        with about(None, nacl.exceptions.CryptoError, rule):
            nacl.bindings.crypto_sign_open(signed, writer.verifying_key)
        return writer, content

# ------------------------------------------------------------------------------------------------ small objects (20)
def open_small(repository, name, kind, use):
    """Page 20, Small objects, and 21, Manifests: the record, and the writer if it is signed."""
    data, leaf = repository.read(name, SEALED_BYTES_MAX, "O-1"), name.split("/")[1]
    bound = data[:16] + (b"" if kind == MANIFEST else leaf.encode())
    check("N-3", kind != MANIFEST or digest(data).hex() == leaf, "O-1", len(data) >= 40, "O-2", data[:8] == b"DVSEALED")
    version, own, algorithm, epoch, nonce = struct.unpack_from("<8xHBBI24s", data)
    check("O-3", own == kind, "O-4!", 0 < version <= FORMAT_VERSION and epoch == 0,
          "O-4!", algorithm == 1 or algorithm == 2 and kind == MANIFEST)
    clear = repository.additional(data[8:10], kind, bound)
    if algorithm == 1: return unseal("O-5", xchacha, data[40:], clear, nonce, repository.key[use]), None
    check("O-1", len(data) >= 48)
    plain = unseal("O-5", hpke, data[48:], clear, data[16:48], repository.key["opening"])
    writer, record = repository.writers.open("O-6", clear, plain)
    if writer.points is not None and digest(data) not in writer.points: raise Refused("O-6", RETIRED)
    return record, writer

def read_writer(repository, name):
    record = Record(open_small(repository, name, WRITER, "writer list")[0])
    writer = Writer(record.id32(), record.id32(), record.text(), record.list(record.text), record.i64(),
                    record.optional(lambda: record.list(record.id32)))
    record.end()
    return writer.verify()
def read_all(repository):
    names = ["writers/" + leaf for leaf in repository.list("writers", WRITER_NAME)]
    return Writers(filter(None, [attempt(name, read_writer, repository, name) for name in names]))
