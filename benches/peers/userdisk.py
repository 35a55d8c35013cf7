"""The disk of a person: mail, photos, documents and notes on one ext4 without partitions; and the
sparse disk. Both are made from seeds alone, without a guest.
"""

import os

import content

NOTES = 200
PIECE = 64 * 1024


def home_1(root, scale):
    """The disk as it is found on the first day."""
    for folder in (
        "mail/inbox",
        "mail/archive",
        "photos/2025",
        "photos/2026",
        "documents",
        "notes",
    ):
        os.makedirs(os.path.join(root, folder))
    add_mail(root, scale.mails, 1)
    add_photos(root, "photos/2025", scale.photos, 1)
    numbers = content.generator("documents", 1)
    for number in range(scale.photos):
        write_document(root, number, numbers)
    numbers = content.generator("notes", 1)
    for number in range(NOTES):
        write(root, f"notes/note{number:03}.txt", content.prose(numbers, 20_000).encode())
    write_mailbox(root, range(scale.mails), scale)


def home_2(root, scale):
    """New mail and photos, some documents saved again, words changed in notes."""
    add_mail(root, scale.mails // 20, 2)
    add_photos(root, "photos/2026", scale.photos // 10, 2)
    numbers = content.generator("documents", 2)
    for number in range(0, scale.photos, 8):
        write_document(root, number, numbers)
    edit_notes(root, 2)


def home_3(root, scale):
    """Read mail moves to the archive, a folder gets another name, old photos go."""
    inbox = os.path.join(root, "mail/inbox")
    for name in sorted(os.listdir(inbox))[::3]:
        os.rename(os.path.join(inbox, name), os.path.join(root, "mail/archive", name))
    os.rename(os.path.join(root, "photos/2025"), os.path.join(root, "photos/old"))
    old = os.path.join(root, "photos/old")
    for name in sorted(os.listdir(old))[::12]:
        os.remove(os.path.join(old, name))
    add_mail(root, scale.mails // 20, 3)
    edit_notes(root, 3)


def home_4(root, scale):
    """The mailbox is compacted: what follows a deleted message moves by its length."""
    kept = [number for number in range(scale.mails) if number % 37 != 5]
    write_mailbox(root, kept, scale)
    add_photos(root, "photos/2026", scale.photos // 6, 4)
    edit_notes(root, 4)


def write(root, name, data):
    """Writes a file."""
    with open(os.path.join(root, name), "wb") as file:
        file.write(data)


def add_mail(root, count, day):
    """One file for each message, as maildir has it."""
    numbers = content.generator("mail", day)
    for number in range(count):
        write(root, f"mail/inbox/{day}-{number:06}.eml", content.mail(numbers, number))


def write_mailbox(root, kept, scale):
    """All kept messages one after another in a single file, as mbox has it."""
    kept = set(kept)
    numbers = content.generator("mailbox")
    with open(os.path.join(root, "mail/old.mbox"), "wb") as file:
        for number in range(scale.mails):
            message = content.mail(numbers, number)
            if number in kept:
                file.write(b"From me\n" + message + b"\n")


def add_photos(root, folder, count, day):
    """Photos, which do not compress."""
    numbers = content.generator("photos", day)
    for number in range(count):
        write(root, f"{folder}/{day}-{number:04}.jpg", content.photo(numbers))


def write_document(root, number, numbers):
    """An office file."""
    write(
        root,
        f"documents/{number:04}.odt",
        content.document(numbers, 20_000 + numbers.getrandbits(17)),
    )


def edit_notes(root, day):
    """Inserts a sentence into every fourth note."""
    numbers = content.generator("edits", day)
    for number in range(day % 4, NOTES, 4):
        path = os.path.join(root, f"notes/note{number:03}.txt")
        with open(path, "rb") as file:
            text = file.read()
        place = numbers.getrandbits(20) % len(text)
        write(root, f"notes/note{number:03}.txt", text[:place] + b" changed today " + text[place:])


def write_pieces(path, size, pieces, spread):
    """A disk with random pieces: at random places if spread, else one behind the other."""
    numbers = content.generator("sparse")
    places = set()
    while len(places) < pieces:
        places.add(numbers.getrandbits(48) % (size // PIECE))
    with open(path, "wb") as file:
        file.truncate(size if spread else pieces * PIECE)
        for number, place in enumerate(sorted(places)):
            at = place if spread else number
            os.pwrite(file.fileno(), numbers.randbytes(PIECE), at * PIECE)
        os.fsync(file.fileno())


HOME = [("home1", home_1), ("home2", home_2), ("home3", home_3), ("home4", home_4)]
