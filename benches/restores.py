"""Restores beside GNU tar."""

import os

import corpora
from measure import CODECS, archives_of, drop_caches, execute

DECODERS = {"tar": "", "tar.gz": "-I pigz", "tar.zst": "--zstd"}
TOOLS = {"tar": ["tar"], "tar.gz": ["tar", "pigz"], "tar.zst": ["tar", "zstd"]}


def measure(bench, source):
    """Full restores: with the archive in the cache and, for root, with nothing in the cache."""
    is_root = os.geteuid() == 0
    for extension in ("tar.gz", "tar.zst"):
        title = f"restore {extension}"
        if not bench.has(title, *TOOLS[extension]):
            continue
        home = bench.home(source, CODECS[extension])
        bench.run(home)
        full(bench, title, home, extension, os.sync, 0.8 if extension == "tar.gz" else None)
        if is_root:
            full(bench, f"{title} cold", home, extension, drop_caches, None)


def full(bench, title, home, extension, prepare, limit):
    archive = archives_of(home)[-1]

    def ours():
        target = bench.fresh("restored")
        prepare()
        return bench.ours(home, "restore", "x", "--to", target)

    def peer():
        target = bench.fresh("extracted")
        os.makedirs(target)
        prepare()
        return execute(f"tar {DECODERS[extension]} -C '{target}' -xpf '{archive}'; sync -f '{target}'")

    bench.pair(title, f"tar {DECODERS[extension]} -x", ours, peer, limit, cpu_limit=limit and 1.0)


def measure_one_file(bench, megabytes):
    """Restores one file out of a large archive, from the middle of it."""
    title = f"restore one file of a {megabytes} MB tar.gz"
    if not bench.has(title, "tar"):
        return
    source = bench.corpus("noise", megabytes)
    home = bench.home(source, "gzip", "--no-verify")
    bench.run(home)
    archive = archives_of(home)[-1]
    files = corpora.files_of(source)
    wanted = os.path.relpath(files[len(files) // 2], os.path.dirname(source))
    ours = lambda: bench.ours(home, "restore", "x", wanted, "--to", bench.fresh("restored"))
    for peer, option, limit in (("tar -x FILE", "", 0.01), ("tar -x --occurrence FILE", "--occurrence", None)):
        def theirs():
            folder = bench.fresh("extracted")
            return execute(f"mkdir {folder}; tar -C {folder} {option} -xzpf '{archive}' '{wanted}'")

        bench.pair(title, peer, ours, theirs, limit)
