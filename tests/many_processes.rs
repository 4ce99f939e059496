//! Eight services and some commands on one database, killed at random: every due second of every schedule is counted by
//! exactly one run, and no process ever reports a locked database.
//!
//! `BACKUP_STRESS=full` continues until 20,000 occurrences were due.

#[path = "stress/mod.rs"]
mod stress;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use stress::promises::{Promises, When, column};
use stress::random::Random;

const PROCESSES: usize = 8;
const SCHEDULES: u64 = 12;

/// Processes that are killed at the end of the test.
struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn program(home: &Path, command: &[&str]) -> Command {
    let output = fs::OpenOptions::new().create(true).append(true).open(home.join("output")).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_backup-manager"));
    program.args(command).env_clear().env("TZ", "UTC").current_dir(home);
    program.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
    program
}

fn serve(home: &Path) -> Child {
    program(home, &["serve", "--join", "--threads", "1", "--nice", "0", "--grace", "60"]).spawn().expect("a service")
}

/// Returns for each schedule how many occurrences were due, computed from the watermark, and how many its runs count.
fn occurrences(home: &Path, initial: &[(i64, i64)]) -> Vec<(i64, i64)> {
    let connection = rusqlite::Connection::open(home.join("backup.db")).unwrap();
    let count = |sql: &str, id: i64| -> i64 { connection.query_row(sql, [id], |row| row.get(0)).unwrap() };
    initial
        .iter()
        .map(|&(id, from)| {
            let to = count("SELECT handled_until_ms FROM schedule WHERE id = ?1", id);
            let in_runs = count(
                "SELECT coalesce(sum(1 + coalesced), 0) FROM run \
                 WHERE schedule_id = ?1 AND trigger = 'schedule' AND superseded_by IS NULL",
                id,
            );
            (to.div_euclid(1_000) - from.div_euclid(1_000), in_runs)
        })
        .collect()
}

fn watermarks(home: &Path) -> Vec<(i64, i64)> {
    let connection = rusqlite::Connection::open(home.join("backup.db")).unwrap();
    let mut statement = connection.prepare("SELECT id, handled_until_ms FROM schedule").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(|row| row.unwrap()).collect()
}

/// Chooses a process to kill: any, or one that carries out a run just then, if there is one within a second.
fn victim(home: &Path, processes: &Processes, random: &mut Random) -> usize {
    let started = Instant::now();
    let connection = rusqlite::Connection::open(home.join("backup.db")).unwrap();
    let busy = "SELECT pid FROM attempt WHERE outcome = 'running' ORDER BY started_at_ms DESC LIMIT 1";
    let wanted = random.one_in(2);
    while wanted && started.elapsed() < Duration::from_secs(1) {
        let pid = connection.query_row(busy, [], |row| row.get::<_, u32>(0)).ok();
        if let Some(at) = processes.0.iter().position(|child| Some(child.id()) == pid) {
            return at;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    random.below(processes.0.len())
}

/// Kills processes, starts others and requests runs until `done`; returns how many were still alive when killed.
fn kill_at_random(home: &Path, processes: &mut Processes, random: &mut Random, done: impl Fn() -> bool) -> u64 {
    let mut killed = 0;
    while !done() {
        std::thread::sleep(Duration::from_millis(random.between(50, 600)));
        let at = victim(home, processes, random);
        match processes.0[at].try_wait().unwrap() {
            Some(status) => assert!(at >= PROCESSES || status.code().is_none(), "a service exited by itself: {status}"),
            None => killed += 1,
        }
        let _ = processes.0[at].kill();
        let _ = processes.0[at].wait();
        processes.0[at] = if at < PROCESSES {
            serve(home)
        } else {
            let name = format!("s{}", random.below(SCHEDULES as usize));
            program(home, &["run", &name, "--no-wait"]).spawn().expect("a command")
        };
    }
    killed
}

#[test]
fn with_eight_processes_killed_at_random_each_occurrence_is_in_one_run() {
    let seed = stress::number("BACKUP_SEED").unwrap_or(1);
    let (mut random, started) = (Random::seeded(seed), Instant::now());
    let folder = stress::fast_folder();
    let home = folder.path();
    fs::create_dir(home.join("docs")).unwrap();
    // Takes some time to read and nearly no room to store.
    fs::write(home.join("docs/file"), vec![b'a'; 500_000]).unwrap();
    for n in 0..SCHEDULES {
        let create = ["create", "docs", "--name", &format!("s{n}"), "--cron", "* * * * * *", "--compress", "zstd"];
        assert!(program(home, &create).status().unwrap().success());
    }
    let initial = watermarks(home);
    let mut processes = Processes((0..PROCESSES).map(|_| serve(home)).collect());
    processes.0.extend((0..2).map(|_| program(home, &["run", "s0", "--no-wait"]).spawn().expect("a command")));
    let wanted = stress::number("BACKUP_OCCURRENCES").unwrap_or(if stress::full() { 20_000 } else { 150 });
    let due = || occurrences(home, &initial).iter().map(|(due, _)| *due).sum::<i64>();
    let killed = kill_at_random(home, &mut processes, &mut random, || {
        assert!(
            started.elapsed() < Duration::from_secs(120 + wanted / 2),
            "too slow: only {} occurrences were due",
            due()
        );
        due() >= wanted as i64
    });
    for child in &processes.0 {
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::TERM);
    }
    processes.0.iter_mut().for_each(|child| drop(child.wait()));
    // The next command recovers the run of the process that was killed last.
    let last = program(home, &["run", "s0"]).status().unwrap();
    assert!(last.success(), "the last run: {last}");
    check(home, &initial, seed, killed, started);
}

fn check(home: &Path, initial: &[(i64, i64)], seed: u64, killed: u64, started: Instant) {
    let mut violations = Promises::default().violations(home, When::Settled);
    let occurrences = occurrences(home, initial);
    for (at, (due, in_runs)) in occurrences.iter().enumerate() {
        if due != in_runs {
            violations.push(format!("s{at}: {due} occurrences were due, runs count {in_runs} (I2)"));
        }
    }
    let logs = fs::read_dir(home.join("logs")).unwrap().flatten().map(|entry| entry.path());
    for path in logs.chain([home.join("output")]) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        // A command may find that a run is under way, which is an error; a service must log none but of a run of which
        // every try was killed.
        let service = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("backup_service"));
        let is_error = |line: &str| line.contains(" Error ") && !line.ends_with(" failed: its process ended");
        let is_violation =
            |line: &&str| line.contains("locked") || line.contains("panicked") || (service && is_error(line));
        if let Some(line) = text.lines().find(is_violation) {
            violations.push(format!("{}: {line}", path.display()));
        }
    }
    let connection = rusqlite::Connection::open(home.join("backup.db")).unwrap();
    let taken: u64 = connection
        .query_row("SELECT count(*) FROM attempt WHERE outcome = 'interrupted'", [], |row| row.get(0))
        .unwrap();
    if taken > killed {
        violations.push(format!("{taken} runs were recovered, but only {killed} workers were killed (I6)"));
    }
    let states = column(&connection, "SELECT state || ' ' || count(*) FROM run GROUP BY state").join(", ");
    stress::print(&format!(
        "many processes: seed {seed}, {} occurrences, {killed} kills, {taken} of them during a run, runs: {states}; \
         {} violations, {:.1} s",
        occurrences.iter().map(|(due, _)| *due).sum::<i64>(),
        violations.len(),
        started.elapsed().as_secs_f64()
    ));
    assert!(violations.is_empty(), "seed {seed}: {}", violations.join("\n"));
}
