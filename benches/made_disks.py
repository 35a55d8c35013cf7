"""Disks for benches: the same bytes for the same generator."""

PIECE = 1 << 20


def fill(path, generator, size):
    """Every other 64 MiB are data, of which a quarter does not compress."""
    with open(path, "wb") as file:
        file.truncate(size)
        for start in range(0, size, 128 << 20):
            file.seek(start)
            for _ in range(min(64 << 20, size - start) // PIECE):
                noise = generator.randbytes(PIECE // 4)
                file.write(noise + noise[:4096] * (3 * PIECE // 4 // 4096))
