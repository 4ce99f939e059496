"""First runs beside GNU tar and a compressor, without and with verification."""

import os

from measure import CODECS, archives_of, execute

PEERS = {"tar": "cat", "tar.gz": "pigz -6", "tar.zst": "zstd -q -3 -T0"}
PEER_TOOLS = {"tar": ["tar"], "tar.gz": ["tar", "pigz"], "tar.zst": ["tar", "zstd"]}
# Ratio of wall times to reach, without and with verification, and of sizes.
LIMITS = {"tar": (0.65, 1.2), "tar.gz": (0.45, 0.6), "tar.zst": (0.75, 0.9)}


def measure(bench, label, source, extension, limits=(None, None)):
    """Measures both runs in turn with one execution of the peer."""
    cases = [("", ["--no-verify"], limits[0]), (" verified", [], limits[1])]
    cases = [(f"first {extension} {label}{suffix}", *rest) for suffix, *rest in cases]
    cases = [case for case in cases if bench.has(case[0], *PEER_TOOLS[extension])]
    if not cases:
        return
    sizes = {}
    commands = {title: (lambda options=options: our_run(bench, source, extension, options, sizes))
                for title, options, _ in cases}
    commands["peer"] = lambda: peer_run(bench, source, extension, sizes)
    usages = bench.in_turn(commands)
    peer_name = f"tar | {PEERS[extension]}" if extension != "tar" else "tar"
    for title, _, limit in cases:
        bench.compare(title, peer_name, usages[title], usages["peer"], limit,
                      sizes=lambda: (sizes["ours"], sizes["peer"]))


def our_run(bench, source, extension, options, sizes):
    home = bench.home(source, CODECS[extension])
    os.sync()
    usage = bench.run(home, *options)
    archive = archives_of(home)[-1]
    sizes["ours"] = os.path.getsize(archive)
    # One large file: its removal does not slow down what follows.
    os.remove(archive)
    return usage


def peer_run(bench, source, extension, sizes):
    parent, name = os.path.split(source)
    archive = bench.fresh("peer")
    os.sync()
    # With the format that keeps the times of files as they are, as our archives do.
    usage = execute(f"tar --format=posix -C '{parent}' -cf - '{name}' | {PEERS[extension]} > {archive}; sync {archive}")
    sizes["peer"] = os.path.getsize(archive)
    os.remove(archive)
    return usage
