//! Eight services and some commands on one database, killed at random: every second of every schedule is in one run,
//! and nobody ever reads of a locked database.
//!
//! `BACKUP_PROVE=full` goes on until 20,000 occurrences have come.

#[path = "prove/mod.rs"]
mod prove;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prove::promises::{Promises, When, column};
use prove::random::Random;

const PROCESSES: usize = 8;
const SCHEDULES: u64 = 12;

/// Processes that end with the test.
struct Crowd(Vec<Child>);

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn program(home: &Path, command: &[&str]) -> Command {
    let said = fs::OpenOptions::new().create(true).append(true).open(home.join("said")).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_backup-manager"));
    program.args(command).env_clear().env("TZ", "UTC").current_dir(home);
    program.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said);
    program
}

fn serve(home: &Path) -> Child {
    program(home, &["serve", "--join", "--threads", "1", "--nice", "0", "--grace", "60"]).spawn().expect("a service")
}

/// Occurrences that are in a run, by schedule; and those that have come, reckoned from the watermark.
fn accounts(home: &Path, begun: &[(i64, i64)]) -> Vec<(i64, i64)> {
    let connection = rusqlite::Connection::open(home.join("backup.db")).unwrap();
    let count = |sql: &str, id: i64| -> i64 { connection.query_row(sql, [id], |row| row.get(0)).unwrap() };
    begun
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

/// Finds whom to kill: anybody, or who carries out a run just then, if somebody does within a second.
fn victim(home: &Path, crowd: &Crowd, random: &mut Random) -> usize {
    let started = Instant::now();
    let connection = rusqlite::Connection::open(home.join("backup.db")).unwrap();
    let busy = "SELECT pid FROM attempt WHERE outcome = 'running' ORDER BY started_at_ms DESC LIMIT 1";
    let wanted = random.one_in(2);
    while wanted && started.elapsed() < Duration::from_secs(1) {
        let pid = connection.query_row(busy, [], |row| row.get::<_, u32>(0)).ok();
        if let Some(at) = crowd.0.iter().position(|child| Some(child.id()) == pid) {
            return at;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    random.below(crowd.0.len())
}

/// Kills, starts again and asks for runs by hand until `done`; returns how many were killed that were still alive.
fn rampage(home: &Path, crowd: &mut Crowd, random: &mut Random, done: impl Fn() -> bool) -> u64 {
    let mut killed = 0;
    while !done() {
        std::thread::sleep(Duration::from_millis(random.between(50, 600)));
        let at = victim(home, crowd, random);
        match crowd.0[at].try_wait().unwrap() {
            Some(status) => assert!(at >= PROCESSES || status.code().is_none(), "a service ended by itself: {status}"),
            None => killed += 1,
        }
        let _ = crowd.0[at].kill();
        let _ = crowd.0[at].wait();
        crowd.0[at] = if at < PROCESSES {
            serve(home)
        } else {
            let name = format!("s{}", random.below(SCHEDULES as usize));
            program(home, &["run", &name, "--no-wait"]).spawn().expect("a command")
        };
    }
    killed
}

#[test]
fn with_eight_processes_that_are_killed_at_random_each_occurrence_is_in_one_run() {
    let seed = prove::number("BACKUP_SEED").unwrap_or(1);
    let (mut random, started) = (Random::seeded(seed), Instant::now());
    let folder = prove::fast_folder();
    let home = folder.path();
    fs::create_dir(home.join("docs")).unwrap();
    // Some time to read, next to nothing to keep.
    fs::write(home.join("docs/file"), vec![b'a'; 500_000]).unwrap();
    for n in 0..SCHEDULES {
        let create = ["create", "docs", "--name", &format!("s{n}"), "--cron", "* * * * * *", "--compress", "zstd"];
        assert!(program(home, &create).status().unwrap().success());
    }
    let begun = watermarks(home);
    let mut crowd = Crowd((0..PROCESSES).map(|_| serve(home)).collect());
    crowd.0.extend((0..2).map(|_| program(home, &["run", "s0", "--no-wait"]).spawn().expect("a command")));
    let wanted = prove::number("BACKUP_OCCURRENCES").unwrap_or(if prove::full() { 20_000 } else { 150 });
    let come = || accounts(home, &begun).iter().map(|(came, _)| *came).sum::<i64>();
    let killed = rampage(home, &mut crowd, &mut random, || {
        assert!(started.elapsed() < Duration::from_secs(120 + wanted / 2), "too slow: {} have come", come());
        come() >= wanted as i64
    });
    for child in &crowd.0 {
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::TERM);
    }
    crowd.0.iter_mut().for_each(|child| drop(child.wait()));
    // Whoever was killed last is put right by the next command.
    let last = program(home, &["run", "s0"]).status().unwrap();
    assert!(last.success(), "the last run: {last}");
    finish(home, &begun, seed, killed, started);
}

fn finish(home: &Path, begun: &[(i64, i64)], seed: u64, killed: u64, started: Instant) {
    let mut broken = Promises::default().broken(home, When::Settled);
    let accounts = accounts(home, begun);
    for (at, (came, in_runs)) in accounts.iter().enumerate() {
        if came != in_runs {
            broken.push(format!("s{at}: {came} occurrences came, {in_runs} are in runs (I2)"));
        }
    }
    let logs = fs::read_dir(home.join("logs")).unwrap().flatten().map(|entry| entry.path());
    for path in logs.chain([home.join("said")]) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        // A command may well find a run under way; a service has nothing to complain of.
        let service = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("backup_service"));
        let is_trouble =
            |line: &&str| line.contains("locked") || line.contains("panicked") || (service && line.contains(" Error "));
        if let Some(line) = text.lines().find(is_trouble) {
            broken.push(format!("{}: {line}", path.display()));
        }
    }
    let connection = rusqlite::Connection::open(home.join("backup.db")).unwrap();
    let taken: u64 = connection
        .query_row("SELECT count(*) FROM attempt WHERE outcome = 'interrupted'", [], |row| row.get(0))
        .unwrap();
    if taken > killed {
        broken.push(format!("{taken} runs were taken from their workers, and {killed} workers were killed (I6)"));
    }
    let states = column(&connection, "SELECT state || ' ' || count(*) FROM run GROUP BY state").join(", ");
    prove::say(&format!(
        "many processes: seed {seed}, {} occurrences, {killed} kills, {taken} of them in a run, runs: {states}; \
         {} violations, {:.1} s",
        accounts.iter().map(|(came, _)| *came).sum::<i64>(),
        broken.len(),
        started.elapsed().as_secs_f64()
    ));
    assert!(broken.is_empty(), "seed {seed}: {}", broken.join("\n"));
}
