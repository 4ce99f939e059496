"""Verbs that people and monitoring wait for: what they take when the database has grown."""

import os

from measure import change, drop_caches, execute, query

# Executions in a row that are measured as one.
REPEAT = 10
# `status` reports problems by its exit code.
ANY = range(30)


def repeated(execution):
    """Returns the usage of one of several executions."""
    usages = [execution() for _ in range(REPEAT)]
    total = usages[0]
    for usage in usages[1:]:
        total.wall, total.cpu = total.wall + usage.wall, total.cpu + usage.cpu
        total.read, total.written = total.read + usage.read, total.written + usage.written
    return total.divided(REPEAT)


def measure(bench, source):
    """`list` beside an interpreter that does nothing; `status` beside a home with little history."""
    python = lambda: execute(["python3", "-c", "pass"])
    if bench.has("list", "python3"):
        home = bench.home(source, "none")
        ours = lambda: bench.ours(home, "list")
        bench.pair("list", "python3 -c pass", lambda: repeated(ours), lambda: repeated(python), 0.5)
        if os.geteuid() == 0:
            cold = lambda execution: (drop_caches(), execution())[1]
            bench.pair("list cold", "python3 -c pass, cold", lambda: cold(ours), lambda: cold(python), 0.5)
    for what, prepare, count in (("problem paths", add_problems, bench.sizes.problems),
                                 ("runs of history", add_runs, bench.sizes.runs)):
        if not any(bench.wants(f"{verb} with {count:,} {what}") for verb in ("status", "list")):
            continue
        homes = []
        for number in (10, count):
            homes.append(bench.home(source, "none", "--exclude", "*"))
            bench.run(homes[-1])
            prepare(homes[-1], number)
        for verb, limit in (("status", 1.5), ("list", None)):
            beside(bench, f"{verb} with {count:,} {what}", [verb], homes, f"10 {what}", limit)


def beside(bench, title, arguments, homes, peer_name, limit=None):
    """Measures a verb in the second home beside the same in the first one."""
    if not bench.wants(title):
        return
    few, many = (lambda home=home: repeated(lambda: bench.ours(home, *arguments, accepted=ANY)) for home in homes)
    bench.pair(title, peer_name, many, few, limit)


def add_problems(home, count):
    """Gives the newest run of a home this many paths that could not be read."""
    run = query(home, "SELECT max(id) FROM run")[0][0]
    change(home,
           f"UPDATE run SET state = 'incomplete', problems = {count}, losses = {count} WHERE id = {run}",
           f"INSERT INTO run_problem (run_id, sequence, path, kind, reason) {numbers(count)} SELECT {run}, n, "
           "CAST('x/folder/file-' || n AS BLOB), 'unreadable', 'Permission denied (os error 13)' FROM number")


def add_runs(home, count):
    """Gives the schedule of a home this many runs more, whose archives were pruned."""
    change(home,
           "INSERT INTO run (schedule_id, trigger, scheduled_for_ms, state, attempt, tries, not_before_ms, "
           "queued_at_ms, started_at_ms, finished_at_ms, members, files, content_bytes, archive_bytes) "
           f"{numbers(count)} SELECT 1, 'schedule', n * 60000, 'succeeded', 1, 1, 0, n * 60000, n * 60000, "
           "n * 60000 + 1000, 1, 1, 1, 1 FROM number",
           "INSERT INTO attempt (run_id, attempt, worker, pid, started_at_ms, ended_at_ms, outcome) SELECT id, 1, "
           "'w', 1, started_at_ms, finished_at_ms, 'succeeded' FROM run WHERE trigger = 'schedule'")


def numbers(count):
    """Returns the beginning of a query with a table `number` of the numbers up to `count`."""
    return f"WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < {count})"
