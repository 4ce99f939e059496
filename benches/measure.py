"""Executes commands in turn and keeps what they took. The base of all measurements of `benches/run`."""

import atexit
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CODECS = {"tar": "none", "tar.gz": "gzip", "tar.zst": "zstd"}


class Usage:
    """What one execution of a command took: seconds of wall and processor time, the peak memory in KiB, and the bytes
    that it and its children read by system calls (from the cache or not) and wrote to the disk."""

    def __init__(self, wall, cpu, peak_kib, read=0, written=0):
        self.wall, self.cpu, self.peak_kib, self.read, self.written = wall, cpu, peak_kib, read, written
        # Bytes of chunks that were encoded, and by which the database grew: set by who knows them.
        self.encoded = self.database_growth = None

    def divided(self, count):
        """Returns the usage of one of `count` executions."""
        return Usage(self.wall / count, self.cpu / count, self.peak_kib, self.read / count, self.written / count)


def io_counters(pid):
    """Returns the bytes that a process that ended, and the children for which it waited, read and wrote."""
    with open(f"/proc/{pid}/io") as file:
        counters = dict(line.split(": ") for line in file.read().splitlines())
    return int(counters["rchar"]), int(counters["write_bytes"])


def execute(command, cwd=None, env=None, accepted=(0,)):
    """Runs a command (a list, or a line for bash) and returns its usage. An unexpected exit code ends the benchmark."""
    arguments = command if isinstance(command, list) else ["bash", "-c", f"set -e -o pipefail; {command}"]
    started = time.monotonic()
    process = subprocess.Popen(arguments, cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = process.stdout.read()
    # Its counters of input and output can be read as long as nobody has waited for it.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    wall = time.monotonic() - started
    read, written = io_counters(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code
    process.stdout.close()
    if code not in accepted:
        sys.exit(f"{command}\nended with {code}:\n{output.decode(errors='replace')[-2000:]}")
    return Usage(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, read, written)


def drop_caches():
    """Empties the page cache, which only root can do."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def query(home, question):
    """Returns the rows that the database of a home answers."""
    connection = sqlite3.connect(os.path.join(home, "backup.db"))
    rows = connection.execute(question).fetchall()
    connection.close()
    return rows


def change(home, *statements):
    """Executes statements on the database of a home, in one transaction."""
    connection = sqlite3.connect(os.path.join(home, "backup.db"))
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def database_bytes(home):
    """Returns the bytes of the database that are in use."""
    return query(home, "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count(), "
                       "pragma_freelist_count(), pragma_page_size()")[0][0]


def archives_of(home):
    """Returns the paths of the files of the archives of a home, the newest last."""
    folder = os.path.join(home, "backups", "x")
    return sorted((os.path.join(folder, name) for name in os.listdir(folder)), key=os.path.getmtime)


def allocated_bytes(*folders):
    """Returns the bytes that files occupy, those with several names once. Blocks that files share count in each."""
    blocks = {}
    for folder in folders:
        for base, _, names in os.walk(folder):
            for name in names:
                stat = os.lstat(os.path.join(base, name))
                blocks[stat.st_dev, stat.st_ino] = stat.st_blocks
    return sum(blocks.values()) * 512


class Bench:
    """The settings of one execution of the benchmark, and its results."""

    def __init__(self, options, sizes):
        self.options, self.sizes = options, sizes
        self.scratch = os.path.abspath(options.scratch)
        self.binary = os.path.abspath(options.binary or os.path.join(PROJECT, "target/release/backup-manager"))
        self.results = []
        self.folders = 0
        os.makedirs(self.scratch, exist_ok=True)

    def wants(self, name):
        return not self.options.name or any(part in name for part in self.options.name)

    def has(self, name, *tools):
        """Returns whether the measurement is wanted and its tools exist."""
        return self.wants(name) and all(self.has_tool(tool, name) for tool in tools)

    def has_tool(self, tool, name):
        """Returns whether a tool exists, and notes what is skipped if it does not."""
        if not shutil.which(tool):
            print(f"{name}: skipped: no {tool}", file=sys.stderr)
        return bool(shutil.which(tool))

    def fresh(self, label, within=None):
        """Returns a path that did not exist before."""
        self.folders += 1
        return os.path.join(within or self.scratch, f"{label}-{os.getpid()}-{self.folders}")

    def corpus(self, *kind):
        """Returns the folder of a generated corpus, made once."""
        folder = os.path.join(self.scratch, "-".join(map(str, kind)))
        if not os.path.exists(folder):
            print(f"making {folder}", file=sys.stderr)
            corpora(kind[0], folder + ".part", *kind[1:])
            os.rename(folder + ".part", folder)
            os.sync()
        return folder

    def mount_xfs(self, gigabytes):
        """Mounts a new XFS file system in a file, until the end of the benchmark, and returns its folder."""
        image, folder = self.fresh("xfs-image"), self.fresh("xfs")
        with open(image, "wb") as file:
            file.truncate(gigabytes << 30)
        os.mkdir(folder)
        subprocess.run(["mkfs.xfs", "-q", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True)
        atexit.register(lambda: (subprocess.run(["umount", folder]), os.remove(image)))
        return folder

    def ours(self, home, *arguments, accepted=(0,)):
        return execute([self.binary, "--db", os.path.join(home, "backup.db"), *arguments], cwd=home, accepted=accepted)

    def home(self, source, codec, *options, layout="whole", within=None):
        """Makes a new home with one schedule, `x`, of the source."""
        home = self.fresh("home", within)
        os.makedirs(home)
        self.ours(home, "create", source, "--name", "x", "--at", "03:00", "--compress", codec, "--layout", layout,
                  *options)
        return home

    def run(self, home, *options):
        """Runs the schedule of a home; the usage has the bytes that were encoded and that the database grew by."""
        before, last = database_bytes(home), query(home, "SELECT ifnull(max(id), 0) FROM chunk")[0][0]
        usage = self.ours(home, "run", "x", *options)
        usage.database_growth = database_bytes(home) - before
        usage.encoded = query(home, f"SELECT ifnull(sum(stored_length), 0) FROM chunk WHERE id > {last}")[0][0]
        return usage

    def in_turn(self, commands, before=lambda: None):
        """Calls the functions of a dictionary in turn, as often as there are rounds (A B C A B C ...), each round after
        `before`. Returns their usages."""
        usages = {label: [] for label in commands}
        for _ in range(self.options.rounds):
            before()
            for label, command in commands.items():
                usages[label].append(command())
        return usages

    def pair(self, name, peer_name, ours, peer, limit=None, **more):
        """Measures two functions in turn and records them."""
        usages = self.in_turn({"ours": ours, "peer": peer})
        self.compare(name, peer_name, usages["ours"], usages["peer"], limit, **more)

    def compare(self, name, peer_name, mine, theirs, limit=None, cpu_limit=None, sizes=None):
        """Records the medians of usages beside those of a peer. `limit` is the ratio of wall times to reach, `sizes` a
        function that returns the bytes of both results."""
        row = {"name": name, "peer": peer_name, "limit": limit, **medians(mine, "")}
        row.update(medians(theirs, "peer_"))
        row["ratio"] = statistics.median(a.wall / b.wall for a, b in zip(mine, theirs))
        row["cpu_ratio"], row["cpu_limit"] = row["cpu"] / max(row["peer_cpu"], 0.001), cpu_limit
        if sizes:
            row["bytes"], row["peer_bytes"] = sizes()
            row["size_ratio"] = row["bytes"] / row["peer_bytes"]
        self.record(row, describe(row))

    def share(self, name, peer_name, value, peer_value, limit=None, **more):
        """Records a number (bytes, if nothing else is said) beside that of a peer."""
        ratio = value / max(peer_value, 1e-9)
        row = {"name": name, "peer": peer_name, "value": value, "peer_value": peer_value, "ratio": ratio,
               "limit": limit, **more}
        details = "  ".join(f"{label} {more[label]:,.0f}" for label in more)
        self.record(row, f"{headline(row)}\n{'':42} {value:,.0f} / {peer_value:,.0f}  {details}")

    def record(self, row, text):
        self.results.append(row)
        print(text, file=sys.stderr if self.options.json else sys.stdout, flush=True)

    def print_json(self):
        versions = {tool: first_line([tool, "--version" if tool != "restic" else "version"])
                    for tool in ("tar", "pigz", "zstd", "restic", "borg") if shutil.which(tool)}
        print(json.dumps({"cores": os.cpu_count(), "rounds": self.options.rounds, "kernel": os.uname().release,
                          "versions": versions, "results": self.results}, indent=2))


def corpora(*arguments):
    """Makes or changes files in a process of its own, and returns what it prints: the peak memory that the system
    reports for a command is not below that of the process that started it, so this one has to stay small."""
    maker = [sys.executable, os.path.join(PROJECT, "benches/corpora.py"), *map(str, arguments)]
    return subprocess.run(maker, check=True, stdout=subprocess.PIPE, text=True).stdout


def edit(folder, how, seed):
    """Changes 1 % of the files of a folder, `clustered` or `scattered`, and returns how many bytes they have."""
    return int(corpora("edit", folder, 0.01, how, seed))


def first_line(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.splitlines()[0]


def medians(usages, prefix):
    """Returns what a row says of some usages of one command."""
    middle = lambda field: statistics.median(getattr(usage, field) for usage in usages)
    row = {prefix + field: middle(field) for field in ("wall", "cpu", "read", "written")}
    row[prefix + "peak_mib"] = max(usage.peak_kib for usage in usages) / 1024
    if usages[0].encoded is not None:
        row.update({prefix + field: middle(field) for field in ("encoded", "database_growth")})
    return row


def headline(row):
    limit = ""
    if row["limit"]:
        limit = f" (wanted {row['limit']}: {'yes' if row['ratio'] <= row['limit'] else 'NO'})"
    return f"{row['name']:42} {row['ratio']:6.3f} of {row['peer']}{limit}"


def describe(row):
    """Returns the lines for a row with times."""
    mb = lambda field: f"{row[field] / 1e6:.1f}"
    cpu_limit = f", wanted {row['cpu_limit']}" if row["cpu_limit"] else ""
    cpu = f"cpu {row['cpu']:.3f} / {row['peer_cpu']:.3f} s ({row['cpu_ratio']:.2f}{cpu_limit})"
    size = f"  size {row['size_ratio']:.3f}" if "size_ratio" in row else ""
    more = f"  encoded {mb('encoded')} MB  database +{mb('database_growth')} MB" if "encoded" in row else ""
    indent = " " * 42
    return (f"{headline(row)}\n"
            f"{indent} wall {row['wall']:.3f} / {row['peer_wall']:.3f} s  {cpu}  "
            f"peak {row['peak_mib']:.0f} / {row['peer_peak_mib']:.0f} MiB{size}\n"
            f"{indent} read {mb('read')} / {mb('peer_read')} MB  "
            f"written {mb('written')} / {mb('peer_written')} MB{more}")
