"""Space after many days at 1 % of the files a day: segmented archives beside a restic repository, and whole archives on
a file system that shares blocks beside plain archives of each day."""

import os
import subprocess
import time

from measure import CODECS, allocated_bytes, archives_of, database_bytes, edit
from second_runs import Peers

KINDS = ("clustered", "scattered")
# Ratio of space to restic: clustered, scattered. The limit of plain archives is beside their own first archive.
SEGMENTED_LIMITS = {"clustered": 1.0, "scattered": 2.2}
SHARED_LIMITS = {"clustered": 0.1, "scattered": 0.45}


def is_wanted(bench, kind, where):
    return any(bench.wants(title_of(bench, extension, kind, where)) for extension in CODECS)


def title_of(bench, extension, kind, where):
    return f"{bench.sizes.days} days {extension} {kind} {where}"


class Days:
    """A folder that changes every day, and homes that archive it every day."""

    def __init__(self, bench, kind, layout, within=None):
        self.bench, self.kind = bench, kind
        source = bench.corpus("small", bench.sizes.days_files)
        self.copy = bench.fresh("days", within)
        subprocess.run(["cp", "-a", source, self.copy], check=True)
        self.homes = {extension: bench.home(self.copy, codec, layout=layout, within=within)
                      for extension, codec in CODECS.items()}
        self.changed_bytes = 0
        self.database_bytes, self.last_growth = {}, {}
        self.first_bytes = {}

    def pass_all(self, run, also=lambda: None):
        """Calls `run` for each home each day, and then `also`."""
        for day in range(self.bench.sizes.days):
            if day:
                self.changed_bytes += edit(self.copy, self.kind, day)
            # What changed within two seconds before a run is read again by the next one.
            time.sleep(3)
            for extension, home in self.homes.items():
                before = database_bytes(home)
                run(extension, home)
                self.last_growth[extension] = database_bytes(home) - before
                if not day:
                    self.first_bytes[extension] = allocated_bytes(os.path.join(home, "backups"))
                    self.database_bytes[extension] = database_bytes(home)
            also()

    def record_growth(self, where):
        """Records by how much the database grew in a day and on the last one, beside its first day."""
        for extension, home in self.homes.items():
            days = max(1, self.bench.sizes.days - 1)
            growth = (database_bytes(home) - self.database_bytes[extension]) / days
            self.bench.share(f"database growth a day {extension} {self.kind} {where}", "its first day", growth,
                             self.database_bytes[extension], 0.05, last_day=self.last_growth[extension])


def measure_segmented(bench):
    for kind in KINDS:
        if not is_wanted(bench, kind, "segmented") or not bench.has_tool("restic", "days"):
            continue
        days = Days(bench, kind, "segmented")
        peers = Peers(bench, days.copy)
        days.pass_all(lambda _, home: bench.run(home), peers.run_restic)
        theirs = allocated_bytes(peers.restic)
        for extension, home in days.homes.items():
            title = title_of(bench, extension, kind, "segmented")
            ours = allocated_bytes(os.path.join(home, "backups"))
            database = database_bytes(home)
            limit = SEGMENTED_LIMITS[kind] if extension != "tar" else None
            bench.share(title, "restic", ours, theirs, limit, database=database)
            if extension == "tar":
                floor = days.first_bytes[extension] + days.changed_bytes
                bench.share(title, "its first archive and the changed bytes", ours, floor, 1.15, database=database)
        days.record_growth("segmented")


def measure_shared(bench, folder):
    """`folder` lies on a file system that shares blocks."""
    for kind in KINDS:
        if not is_wanted(bench, kind, "whole on XFS"):
            continue
        days = Days(bench, kind, "whole", folder)
        used = {extension: 0 for extension in CODECS}

        def run(extension, home):
            before = used_bytes(folder)
            growth = bench.run(home).database_growth
            used[extension] += used_bytes(folder) - before - growth

        days.pass_all(run)
        for extension, home in days.homes.items():
            plain = sum(os.path.getsize(path) for path in archives_of(home))
            bench.share(title_of(bench, extension, kind, "whole on XFS"), f"{bench.sizes.days} plain archives",
                        used[extension], plain, SHARED_LIMITS[kind])


def used_bytes(folder):
    """Returns the bytes that are used in the file system of a folder, blocks that files share counted once."""
    os.sync()
    disk = os.statvfs(folder)
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize
