"""Second runs of a schedule beside restic and borg, whole and segmented, with each codec: all of them follow the same
folder, in turn after each of its changes."""

import os
import subprocess
import time

from measure import CODECS, archives_of, edit, execute

# Name, ratio of wall times to restic to reach for the layouts whole and segmented.
CASES = [("unchanged", 0.25, 0.25), ("1 % clustered", 0.3, 0.25), ("1 % scattered", 0.6, 0.4),
         ("one new file first", None, None)]
ONE_BYTE = "one byte of a large file"


def layouts():
    """Returns the pairs of file name extension and layout."""
    return [(extension, layout) for layout in ("whole", "segmented") for extension in CODECS]


def title_of(extension, layout, case, suffix):
    return f"second {extension} {layout} {case}{suffix}"


class Peers:
    """A repository of restic and one of borg."""

    def __init__(self, bench, source, within=None):
        self.source = source
        self.restic, self.borg = bench.fresh("restic", within), bench.fresh("borg", within)
        self.env = {"RESTIC_PASSWORD": "benchmark", "RESTIC_CACHE_DIR": bench.fresh("restic-cache", within),
                    "BORG_BASE_DIR": bench.fresh("borg-base", within)}
        self.has_borg = bench.has_tool("borg", "second runs beside borg")
        execute(["restic", "-q", "init", "-r", self.restic], env=self.env)
        if self.has_borg:
            execute(["borg", "init", "-e", "none", self.borg], env=self.env)

    def run_restic(self):
        os.sync()
        return execute(["restic", "-q", "backup", "-r", self.restic, self.source], env=self.env)

    def run_borg(self):
        os.sync()
        # The compression of restic's kind and level.
        return execute(["borg", "create", "-C", "zstd,3", f"{self.borg}::{{now}}-{os.urandom(4).hex()}", self.source],
                       env=self.env)


class Followers:
    """Homes with one schedule each of the same folder, and repositories of the peers, after their first runs."""

    def __init__(self, bench, source, wanted, within=None):
        self.bench = bench
        self.copy = bench.fresh("edited", within)
        subprocess.run(["cp", "-a", source, self.copy], check=True)
        # What changed within two seconds before a run is read again by the next one.
        time.sleep(3)
        self.homes = {}
        for extension, layout in wanted:
            # restic does not read back what it wrote, either. Runs that refer to the base's bytes verify it first if
            # it was not verified when it was written, so that nothing would be saved there.
            options = ["--no-verify"] if layout == "whole" and not within else []
            home = bench.home(self.copy, CODECS[extension], *options, layout=layout, within=within)
            self.homes[extension, layout] = home
        self.peers = Peers(bench, self.copy, within)
        for home in self.homes.values():
            bench.run(home)
        self.peers.run_restic()
        if self.peers.has_borg:
            self.peers.run_borg()

    def commands(self):
        def ours(layout, home):
            # Only the newest archive is of use; those before it would fill the disk.
            for archive in archives_of(home)[:-1] if layout == "whole" else []:
                os.remove(archive)
            os.sync()
            return self.bench.run(home)

        commands = {key: (lambda key=key, home=home: ours(key[1], home)) for key, home in self.homes.items()}
        commands["restic"] = self.peers.run_restic
        if self.peers.has_borg:
            commands["borg"] = self.peers.run_borg
        return commands

    def record(self, case, suffix, usages, limits):
        for (extension, layout) in self.homes:
            title = title_of(extension, layout, case, suffix)
            limit = limits[layout == "segmented"] if extension != "tar" or case == "unchanged" else None
            for peer, wanted in (("restic", limit), ("borg", None)):
                if peer in usages:
                    self.bench.compare(title, peer, usages[extension, layout], usages[peer], wanted)
            if "find -printf" in usages:
                self.bench.compare(title, "find -printf", usages[extension, layout], usages["find -printf"], 4)


def measure(bench, source, wanted, suffix="", within=None):
    """Measures the cases of which any name is wanted. `within`: the folder, else the scratch folder."""
    is_wanted = lambda case: any(bench.wants(title_of(*key, case, suffix)) for key in wanted)
    cases = [case for case in CASES if is_wanted(case[0])]
    if not cases or not bench.has_tool("restic", "second runs"):
        return
    followers = Followers(bench, source, wanted, within)
    state = {"seed": 100}

    def change(case):
        state["seed"] += 1
        if case == "one new file first":
            with open(os.path.join(followers.copy, f"!new-{state['seed']}"), "w") as file:
                file.write("A file that sorts before all others.\n" * 100)
        elif case != "unchanged":
            edit(followers.copy, case.removeprefix("1 % "), state["seed"])
        time.sleep(0 if case == "unchanged" else 3)

    for case, *limits in cases:
        commands = followers.commands()
        if case == "unchanged":
            listing = bench.fresh("listing")
            commands["find -printf"] = lambda: execute(
                f"find '{followers.copy}' -printf '%p %s %T@ %C@ %i\\n' > {listing}")
        followers.record(case, suffix, bench.in_turn(commands, lambda case=case: change(case)), limits)


def measure_large_file(bench, gigabytes):
    """Measures a run after one byte of a large file changed."""
    wanted = [("tar.zst", "whole"), ("tar.zst", "segmented")]
    wanted = [key for key in wanted if bench.has(title_of(*key, ONE_BYTE, ""), "restic")]
    if not wanted:
        return
    followers = Followers(bench, bench.corpus("huge", gigabytes), wanted)
    path = os.path.join(followers.copy, os.listdir(followers.copy)[0])
    position = [os.path.getsize(path) // 3]

    def change():
        position[0] += 100_000_000 if position[0] > 200_000_000 else 1_000
        with open(path, "r+b") as file:
            file.seek(position[0])
            byte = file.read(1)[0]
            file.seek(position[0])
            file.write(bytes([byte ^ 1]))
        time.sleep(3)

    followers.record(ONE_BYTE, f" ({gigabytes} GB)", bench.in_turn(followers.commands(), change), (None, None))
