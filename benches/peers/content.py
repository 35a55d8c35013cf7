"""Seeded content: log lines, random bytes, mail and documents.

The same seed gives the same bytes with every version of Python from 3.9 on: only `getrandbits`,
`random` and `randbytes` of the generator are used, never `choice` or `shuffle`.
"""

import random
import zlib

WORDS = (
    "the disk of a machine is read once and kept for long because nobody knows which day will be "
    "asked for when something was lost so every point stands for itself and comes back whole "
    "while "
    "storage time network memory are counted and what did not change takes no room at all there "
    "report meeting budget project customer invoice draft schedule review contract delivery order "
    "answer question version office house garden letter photo holiday train station evening week"
).split()
PATHS = [
    "/",
    "/index.html",
    "/login",
    "/api/v1/items",
    "/api/v1/orders",
    "/static/app.js",
    "/static/site.css",
    "/img/logo.png",
    "/search",
    "/account/settings",
]
AGENTS = [
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/129.0 Safari/537.36",
    "curl/7.88.1",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15",
]


def generator(*seed):
    """A generator of random numbers for this seed."""
    return random.Random("/".join(str(part) for part in seed))


def write_random(path, size, *seed):
    """A file that does not compress, such as a film or a photo."""
    numbers = generator("random", *seed)
    with open(path, "wb") as file:
        while size > 0:
            piece = min(size, 1 << 20)
            file.write(numbers.randbytes(piece))
            size -= piece


def write_log(path, size, day, *seed):
    """An access log of about the given size, appended to what is there."""
    numbers = generator("log", day, *seed)
    bits = numbers.getrandbits
    second, written = 0, 0
    with open(path, "a", encoding="ascii") as file:
        while written < size:
            lines = []
            for _ in range(2000):
                roll = bits(48)
                second += roll & 1
                lines.append(
                    f"10.{roll >> 8 & 15}.{roll >> 12 & 255}.{roll >> 20 & 255} - - "
                    f"[{day:02}/Nov/2026:{second // 3600 % 24:02}:{second // 60 % 60:02}:"
                    f'{second % 60:02} +0000] "GET {PATHS[(roll >> 28) % 10]}'
                    f"?id={roll >> 30 & 8191} "
                    f'HTTP/1.1" {404 if roll & 0xF0 == 0 else 200} {roll >> 25 & 65535} "-" '
                    f'"{AGENTS[roll >> 44 & 3]}" {roll >> 33 & 1023}\n'
                )
            text = "".join(lines)
            file.write(text)
            written += len(text)


def prose(numbers, size):
    """Words in sentences, about `size` bytes of them."""
    words, length = [], 0
    while length < size:
        word = WORDS[numbers.getrandbits(16) % len(WORDS)]
        if numbers.getrandbits(4) == 0:
            word += ".\n"
        elif numbers.getrandbits(6) == 0:
            word = f"{numbers.getrandbits(20)}"
        words.append(word)
        length += len(word) + 1
    return " ".join(words)


def mail(numbers, number):
    """One message, now and then with an attachment that is compressed and then base64."""
    body = prose(numbers, 500 + numbers.getrandbits(12))
    head = (
        f"From: user{numbers.getrandbits(6)}@example.org\nTo: me@example.org\n"
        f"Message-ID: <{numbers.getrandbits(96):x}.{number}@example.org>\n"
        f"Subject: {prose(numbers, 30)}\nMIME-Version: 1.0\n\n"
    )
    if numbers.getrandbits(4) == 0:
        import base64

        size = 20_000 + numbers.getrandbits(18)
        body += "\n\n" + base64.encodebytes(numbers.randbytes(size)).decode()
    return (head + body).encode()


def document(numbers, size):
    """An office file: compressed text, which one changed word changes from there on."""
    return b"PK\x03\x04" + zlib.compress(prose(numbers, size * 3).encode(), 6)


def photo(numbers):
    """A photo of one to four megabytes: a header and bytes that do not compress."""
    return b"\xff\xd8\xff\xe1Exif" + numbers.randbytes((1 << 20) + numbers.getrandbits(21))
