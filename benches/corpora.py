"""Makes the folders that `benches/run` archives. The same seed makes the same names, sizes, bytes and times."""

import os
import random
import sys

# Share of files, smallest and largest size in bytes: the mix of a home folder, 13 KiB on average.
SIZES = [(0.25, 0, 1_000), (0.50, 1_000, 12_000), (0.22, 12_000, 50_000), (0.03, 50_000, 200_000)]
# Natural times: not whole seconds, and days apart.
FIRST_MODIFIED_NS = 1_700_000_000_123_456_789
POOL_BYTES = 48 << 20


def text_pool(rng):
    """Returns text that compresses to about a quarter, as prose and source code do."""
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgkqjxz", k=rng.randint(2, 11))) for _ in range(30_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    parts, size = [], 0
    while size < POOL_BYTES:
        line = " ".join(rng.choices(words, weights, k=2_000)) + "\n"
        parts.append(line)
        size += len(line)
    return "".join(parts).encode()


def size_of(rng):
    at = rng.random()
    for share, low, high in SIZES:
        if at < share:
            return rng.randint(low, high)
        at -= share
    return rng.randint(*SIZES[-1][1:])


def write_file(path, content, rng):
    with open(path, "wb") as file:
        file.write(content)
    modified = FIRST_MODIFIED_NS + rng.randrange(60_000_000_000_000_000)
    os.utime(path, ns=(modified, modified))


def slice_of(pool, rng, size):
    start = rng.randrange(len(pool) - size)
    return pool[start:start + size]


def small_files(folder, count=50_000):
    """Makes `count` files of text, every tenth of bytes that do not compress, about 13 KiB each, 100 in a folder."""
    rng = random.Random(1)
    pool = text_pool(rng)
    noise = rng.randbytes(4 << 20)
    for index in range(count):
        sub = os.path.join(folder, f"{index // 10_000:02}", f"{index // 100 % 100:02}")
        os.makedirs(sub, exist_ok=True)
        kind, suffix = (noise, "jpg") if rng.random() < 0.1 else (pool, "txt")
        write_file(os.path.join(sub, f"file-{index:06}.{suffix}"), slice_of(kind, rng, size_of(rng)), rng)


def noise_files(folder, megabytes):
    """Makes files of 100 KB that do not compress, so that their archive is as large as they are."""
    rng = random.Random(4)
    for index in range(megabytes * 10):
        sub = os.path.join(folder, f"{index // 100:03}")
        os.makedirs(sub, exist_ok=True)
        write_file(os.path.join(sub, f"noise-{index:05}.jpg"), rng.randbytes(100_000), rng)


def sized_files(folder, gigabytes, file_bytes=10_000_000):
    """Makes files of 10 MB, every third of bytes that do not compress, the others text. No two pieces are equal."""
    rng = random.Random(5)
    pool = text_pool(rng)
    os.makedirs(folder)
    for index in range(max(1, round(gigabytes * 1e9 / file_bytes))):
        path = os.path.join(folder, f"file-{index:05}")
        with open(path, "wb") as file:
            for _ in range(max(1, file_bytes // 1_000_000)):
                file.write(rng.randbytes(1_000_000) if index % 3 == 2 else slice_of(pool, rng, 1_000_000))


def huge_file(folder, gigabytes):
    """Makes one file, such as a disk image."""
    sized_files(folder, gigabytes, round(gigabytes * 1e9))


def large_files(folder):
    """Makes 700 MB in 14 files: 300 MB that do not compress, the rest text."""
    rng = random.Random(2)
    pool = text_pool(rng)
    os.makedirs(folder)
    for index in range(6):
        write_file(os.path.join(folder, f"disk-{index}.img"), rng.randbytes(50_000_000), rng)
    for index in range(8):
        pieces = b"".join(slice_of(pool, rng, 1_000_000) for _ in range(50))
        write_file(os.path.join(folder, f"dump-{index}.sql"), pieces, rng)


def tiny_files(folder, count):
    """Makes `count` files of up to 200 bytes, 500 in a folder."""
    rng = random.Random(3)
    pool = text_pool(rng)
    for index in range(count):
        sub = os.path.join(folder, f"{index // 50_000:02}", f"{index // 500 % 100:02}")
        if index % 500 == 0:
            os.makedirs(sub, exist_ok=True)
        write_file(os.path.join(sub, f"t{index:07}"), slice_of(pool, rng, rng.randrange(200)), rng)


def files_of(folder):
    """Returns the paths of all files below a folder, in the order of an archive."""
    return sorted(os.path.join(base, name) for base, _, names in os.walk(folder) for name in names)


def edit(folder, share, how, seed):
    """Overwrites a share of the files with other bytes of the same kind: `clustered` side by side, or `scattered`.
    Prints their bytes."""
    rng = random.Random(seed)
    files = files_of(folder)
    count = max(1, int(len(files) * share))
    start = rng.randrange(max(1, len(files) - count))
    chosen = files[start:start + count] if how == "clustered" else rng.sample(files, count)
    for path in chosen:
        size = os.path.getsize(path)
        with open(path, "r+b") as file:
            content = bytearray(file.read())
            for _ in range(1 + size // 2_000):
                if size:
                    content[rng.randrange(size)] = rng.randrange(256)
            file.seek(0)
            file.write(content)
    print(sum(os.path.getsize(path) for path in chosen))


def number(word):
    return float(word) if "." in word else int(word)


if __name__ == "__main__":
    makers = {"small": small_files, "large": large_files, "tiny": tiny_files, "noise": noise_files,
              "sized": sized_files, "huge": huge_file}
    what, folder, *rest = sys.argv[1:]
    if what == "edit":
        edit(folder, number(rest[0]), rest[1], number(rest[2]))
    else:
        makers[what](folder, *map(number, rest))
