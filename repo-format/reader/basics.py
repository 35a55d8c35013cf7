"""What restore.py and writers.py have in common: refusals, names, the decoder of records, cryptography (00, 10, 20)."""
import contextlib, hmac, re, sys  # noqa: E401
import blake3, nacl.bindings, nacl.exceptions  # noqa: E401

FORMAT_VERSION, SEALED_BYTES_MAX, TAG_BYTES, NAME_BYTES_MAX = 1, 16 << 20, 16, 255
CONTROL = re.compile("[\0-\x1f\x7f-\x9f]")

class Refused(Exception):
    """An object that is not used (00, Words): its name, the rule, and whatever else there is to say."""
    def __init__(self, rule, text=None, subject=None):
        self.rule, self.text, self.subject = rule, text, subject
    def __str__(self):
        return ": ".join(filter(None, (self.subject, self.rule and f"refused by {self.rule}", self.text)))

def check(*rules):
    """Pairs of a rule and what must hold; a rule that ends in ! tells of a newer format instead of damage."""
    for rule, holds in zip(rules[::2], rules[1::2]):
        if not holds: raise Refused(rule.rstrip("!"), "a newer format" if rule.endswith("!") else None)
def need(condition, text):
    if not condition: raise Refused(None, text)
def warn(text): print(f"restore.py: warning: {text}", file=sys.stderr)
def ascending(items): return all(a < b for a, b in zip(items, items[1:]))
def is_name(value, forbidden="/@~:"):
    return (1 <= len(value.encode()) <= NAME_BYTES_MAX and value not in (".", "..") and not CONTROL.search(value) and
            not set(value) & set(forbidden))

@contextlib.contextmanager
def about(subject, unless=None, rule=None):
    """Names the object of refusals that do not have one yet; an exception of a library is a refusal by the rule."""
    try: yield
    except Refused as refusal:
        refusal.subject = refusal.subject or subject
        raise
    except unless or (): raise Refused(rule, subject=subject) from None

DAMAGE = {}                                         # refusals after which the reader went on, by name
def first_damage(before, folder=""):
    return next((f"{before}{refusal}" for name, refusal in DAMAGE.items() if name.startswith(folder)), "")
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
    def id32(self): return self.take(32)
    def bytes(self): return self.take(self.u64())
    def i64(self): return (lambda value: value >> 1 ^ -(value & 1))(self.u64())         # zigzag
    def text(self):
        with about(None, UnicodeDecodeError, "R-2"): return self.bytes().decode("utf-8")
    def list(self, item, most=SEALED_BYTES_MAX):
        count = self.u64()
        check("R-2", count <= len(self.data) - self.at, "F-1", count <= most)
        return [item() for _ in range(count)]
    def optional(self, item):
        check("R-2", self.data[self.at:self.at + 1] in (b"\0", b"\1"))
        return item() if self.u8() else None
    def end(self): check("R-3", self.at == len(self.data))

# ------------------------------------------------------------------------------------------------- crypto (20)
xchacha = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt
chacha = nacl.bindings.crypto_aead_chacha20poly1305_ietf_decrypt
same = hmac.compare_digest
def digest(data): return blake3.blake3(data).digest()
def keyed_hash(key, data): return blake3.blake3(data, key=key).digest()
def derive_key(use, material): return blake3.blake3(material, derive_key_context="diskvault v1 " + use).digest()
def unseal(rule, algorithm, sealed, additional_data, nonce, key):
    check(rule, len(sealed) >= TAG_BYTES)
    with about(None, nacl.exceptions.CryptoError, rule): return algorithm(sealed, additional_data, nonce, key)
