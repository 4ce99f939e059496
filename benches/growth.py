"""How time and memory grow with the number of files and with their size, as a table and as a plot."""

import os
import shutil
import sys
import time

import plot
import verbs
from measure import archives_of, database_bytes, edit, execute

RUNS = ("first run", "run with nothing changed", "run after 1 % changed")


def measure(bench):
    files = [measure_point(bench, "tiny", count, f"{count:,} files") for count in bench.sizes.growth_files]
    sizes = [measure_point(bench, "sized", size, f"{size} GB") for size in bench.sizes.growth_gigabytes]
    if all(files) and all(sizes) and bench.options.plot:
        draw(bench, files, sizes)
    if all(files):
        homes = [files[0]["home"], files[-1]["home"]]
        many, few = f"{bench.sizes.growth_files[-1]:,} members", f"{bench.sizes.growth_files[0]:,} members"
        for verb in (["status"], ["list"], ["find", "t0005000"]):
            verbs.beside(bench, f"{verb[0]} with {many}", verb, homes, few, 1.5 if verb[0] == "status" else None)


def measure_point(bench, kind, size, label):
    """Measures three runs of one folder. Returns what they took, or None if they are not wanted."""
    title = f"growth {label}"
    if not bench.wants(title):
        return None
    # The files and, about half as large each, two archives.
    needed = 2 * (size if kind == "sized" else 0) * 1e9
    if shutil.disk_usage(bench.scratch).free < needed:
        print(f"{title}: skipped: the disk has less than {needed / 1e9:.0f} GB free", file=sys.stderr)
        return None
    source = bench.corpus(kind, size)
    # Into the cache, as far as it has room.
    execute(f"tar -cf - '{source}' | cat > /dev/null")
    home = bench.home(source, "zstd")
    row = {"name": title, "size": size}
    for run in RUNS:
        if run == RUNS[2]:
            edit(source, "scattered", size)
            time.sleep(3)
        os.sync()
        usage = bench.run(home)
        row[run] = {"wall": usage.wall, "cpu": usage.cpu, "peak_mib": usage.peak_kib / 1024,
                    "database_growth": usage.database_growth}
    row["database"] = database_bytes(home)
    if kind == "sized":
        for archive in archives_of(home):
            os.remove(archive)
    bench.record(row, "\n".join([title] + [
        f"  {run:26} wall {row[run]['wall']:7.2f} s  cpu {row[run]['cpu']:7.2f} s  peak {row[run]['peak_mib']:4.0f} MiB"
        f"  database +{row[run]['database_growth'] / 1e6:.1f} MB" for run in RUNS]))
    return {"home": home, **row}


def draw(bench, files, sizes):
    """Writes the plot: time and memory by files, and by size."""
    panels = []
    for rows, axis in ((files, "files"), (sizes, "GB")):
        for field, unit in (("wall", "s"), ("peak_mib", "MiB, peak")):
            lines = {run: [(row["size"], row[run][field]) for row in rows] for run in RUNS}
            panels.append(plot.Panel(axis, unit, lines))
    with open(bench.options.plot, "w") as file:
        file.write(plot.figure(panels))
