//! Costs of the engine: claims compared with the rate of syncs of the disk, the time from due to claimed, a tick with
//! nothing due, and an idle service; and of its innermost steps: the next occurrence of a cadence, a member added to
//! the catalog, a chunk encoded.
//!
//! `cargo bench --bench engine [claims|due|tick|idle|cadence|catalog|encode]...` measures these, or all by default, in
//! four minutes; the last three take some seconds. The database lies in `target`, or in the folder that `BENCH_SCRATCH`
//! names, on the disk to be measured.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use backup_manager::archive::buffer::Buffer;
use backup_manager::archive::codec::Encoder;
use backup_manager::archive::padding::Padding;
use backup_manager::backup::Runner;
use backup_manager::chunk::{CatalogChunk, Chunk, ChunkRecord, MemberRecord};
use backup_manager::clock::{Clock, SystemClock, Timestamp};
use backup_manager::home::{Home, HomeOptions};
use backup_manager::hooks::Starter;
use backup_manager::liveness::Worker;
use backup_manager::member::{CatalogMember, FileTime, Member, MemberKind, MemberPath, Xattrs};
use backup_manager::schedule::{Cadence, Compression, Schedule, ScheduleName};
use backup_manager::service::{Options, Service};
use backup_manager::store::{Access, Bootstrap, ClaimNow, Role, RunRequest, RunState, Store, Watermark, WorkerRow};
use chrono_tz::Tz;
use rusqlite::Connection;

/// Pairs of claim and end in each measurement.
const PAIRS: usize = 2_000;
/// Every claim commits once, and every end.
const COMMITS_PER_PAIR: f64 = 2.0;
/// Pages that such a commit writes: rows of run, attempt and archive, and their indexes.
const PAGES_PER_COMMIT: usize = 10;
const ROUNDS: usize = 3;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let [claimer, home] = arguments.as_slice()
        && claimer == "claimer"
    {
        return claim_all(Path::new(home));
    }
    let parts: [(&str, fn()); 7] = [
        ("claims", claims),
        ("due", due),
        ("tick", tick),
        ("idle", idle),
        ("cadence", cadence),
        ("catalog", catalog),
        ("encode", encode),
    ];
    for (name, measure) in parts {
        if arguments.is_empty() || arguments.iter().any(|wanted| wanted == name) {
            measure();
        }
    }
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(std::env::var_os("BENCH_SCRATCH").unwrap_or("target".into())).expect("a folder")
}

fn open(folder: &Path) -> (Arc<Home>, Store) {
    let places = HomeOptions { home: Some(folder.to_owned()), ..HomeOptions::default() };
    let home = Arc::new(Home::locate(&places, folder).expect("a home"));
    let bootstrap = Bootstrap { access: Access::Create, file_mode: 0o600, folder_mode: 0o700, notice: |_| () };
    let store = Store::open(home.db(), &bootstrap).expect("a database");
    (home, store)
}

fn runner(folder: &Path, role: Role) -> Runner {
    let (home, store) = open(folder);
    let clock = Arc::new(SystemClock::new());
    let now = clock.now();
    let worker = Worker::register(&home.workers(), 0o700, now).expect("a worker");
    let (uuid, host, pid) = (worker.uuid(), "here".to_owned(), std::process::id());
    let row = WorkerRow { uuid, role, pid, host, started_at: now, stop_requested: None };
    if role == Role::Command {
        store.add_worker(row.uuid, row.role, row.pid, &row.host, now).expect("a worker's row");
    }
    Runner {
        home,
        store,
        clock,
        worker: Arc::new(worker),
        row: Arc::new(row),
        threads: 1,
        children: Starter::new().expect("threads"),
    }
}

/// Creates schedules of which none is due for hours.
fn add_schedules(store: &Store, count: usize) {
    let now = SystemClock::new().now();
    let next_due = Some(now.plus(Duration::from_secs(40_000)));
    let schedules: Vec<_> = (0..count)
        .map(|n| {
            let name = ScheduleName::parse(&format!("s{n}")).expect("a name");
            let cadence = Cadence::parse_daily("02:00").expect("a cadence");
            (Schedule::new(name, b"source".to_vec(), cadence), Watermark { handled_until: now, next_due })
        })
        .collect();
    store.create_schedules(&schedules, now).expect("schedules");
}

/// Claims and ends runs as fast as possible, in 1, 2 and 4 processes.
fn claims() {
    println!("claim and end of a run, {PAIRS} pairs, median of {ROUNDS}, and syncs of one page and of as many pages");
    println!("{:>10} {:>10} {:>12} {:>10} {:>13} {:>10}", "processes", "pairs/s", "syncs/s", "of limit", "syncs/s", "");
    for processes in [1, 2, 4] {
        let mut rounds: Vec<[f64; 3]> = (0..ROUNDS)
            .map(|_| [pairs_per_second(processes), syncs_per_second(1), syncs_per_second(PAGES_PER_COMMIT)])
            .collect();
        rounds.sort_by(|a, b| (a[0] / a[1]).total_cmp(&(b[0] / b[1])));
        let [pairs, bare, whole] = rounds[ROUNDS / 2];
        let of = |syncs: f64| pairs * COMMITS_PER_PAIR / syncs;
        println!("{processes:>10} {pairs:>10.0} {bare:>12.0} {:>10.2} {whole:>13.0} {:>10.2}", of(bare), of(whole));
    }
}

fn pairs_per_second(processes: usize) -> f64 {
    let scratch = scratch();
    let (_, store) = open(scratch.path());
    add_schedules(&store, PAIRS);
    let connection = Connection::open(scratch.path().join("backup.db")).expect("the database");
    connection
        .execute(
            "INSERT INTO run (schedule_id, trigger, state, not_before_ms, queued_at_ms) \
             SELECT id, 'manual', 'queued', 0, 0 FROM schedule",
            [],
        )
        .expect("queued runs");
    let mut claimers: Vec<Child> = (0..processes)
        .map(|_| {
            let mut command = Command::new(std::env::current_exe().expect("this program"));
            command.arg("claimer").arg(scratch.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
            command.spawn().expect("a process")
        })
        .collect();
    let read = |claimer: &mut Child| {
        let mut line = String::new();
        BufReader::new(claimer.stdout.as_mut().expect("a pipe")).read_line(&mut line).expect("a line");
    };
    claimers.iter_mut().for_each(read);
    let clock = SystemClock::new();
    for claimer in &mut claimers {
        claimer.stdin.as_mut().expect("a pipe").write_all(b"go\n").expect("a start");
    }
    for claimer in &mut claimers {
        assert!(claimer.wait().expect("a process").success());
    }
    let took = clock.monotonic();
    let ended: usize = connection
        .query_row("SELECT count(*) FROM run WHERE state = 'failed' AND attempt = 1", [], |row| row.get(0))
        .expect("a count");
    assert_eq!(ended, PAIRS, "every run is claimed and ended once");
    PAIRS as f64 / took.as_secs_f64()
}

/// One of the processes: waits for the start, then claims until no run is queued.
fn claim_all(home: &Path) {
    let runner = runner(home, Role::Command);
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).expect("a start");
    while let Some((claim, _)) = runner.store.claim_next(&runner.row, runner.clock.now()).expect("a claim or none") {
        runner
            .store
            .end_without_archive(claim, RunState::Failed, "measured", runner.clock.now())
            .unwrap_or_else(|failure| panic!("{}", failure.error));
    }
}

/// Returns the rate of a minimal commit: as SQLite does for each page, writes the header of a frame of the log and the
/// page, then syncs.
fn syncs_per_second(pages: usize) -> f64 {
    const FILE_PAGES: usize = 1_000;
    const HEADER: [u8; 24] = [7; 24];
    const PAGE: [u8; 4096] = [7; 4096];
    let scratch = scratch();
    let file = File::create(scratch.path().join("file")).expect("a file");
    let write = |at: usize| {
        let frame = (at % FILE_PAGES * (HEADER.len() + PAGE.len())) as u64;
        file.write_all_at(&HEADER, frame).expect("room");
        file.write_all_at(&PAGE, frame + HEADER.len() as u64).expect("room");
    };
    (0..FILE_PAGES).for_each(write);
    file.sync_all().expect("a sync");
    let clock = SystemClock::new();
    for commit in 0..PAIRS {
        (commit * pages..(commit + 1) * pages).for_each(write);
        file.sync_all().expect("a sync");
    }
    PAIRS as f64 / clock.monotonic().as_secs_f64()
}

fn program(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backup-manager"));
    command.args(arguments).env_clear().env("TZ", "UTC").current_dir(home).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Runs a service for `home`; returns the processor time in hundredths of a second that it used in `seconds` seconds
/// after the first `settle` seconds.
fn serve_for(home: &Path, settle: u64, seconds: u64) -> u64 {
    let mut service = program(home, &["serve"]).stderr(Stdio::null()).spawn().expect("a service");
    std::thread::sleep(Duration::from_secs(settle));
    let before = cpu_ticks(service.id());
    std::thread::sleep(Duration::from_secs(seconds));
    let ticks = cpu_ticks(service.id()) - before;
    assert!(program(home, &["stop"]).status().expect("the program").success());
    service.wait().expect("a service");
    ticks
}

fn create(home: &Path, cron: &str) {
    fs::create_dir_all(home.join("source")).expect("a folder");
    fs::write(home.join("source/file"), "tiny").expect("a file");
    let create = ["create", "source", "--name", "s", "--cron", cron];
    assert!(program(home, &create).stderr(Stdio::null()).status().expect("the program").success());
}

/// Measures the milliseconds from due to claimed in a service that is otherwise idle.
fn due() {
    let scratch = scratch();
    create(scratch.path(), "* * * * * *");
    serve_for(scratch.path(), 0, 120);
    let connection = Connection::open(scratch.path().join("backup.db")).expect("the database");
    let mut statement = connection
        .prepare("SELECT started_at_ms - scheduled_for_ms FROM run WHERE trigger = 'schedule' AND state = 'succeeded'")
        .expect("a question");
    let mut late: Vec<i64> =
        statement.query_map([], |row| row.get(0)).expect("an answer").map(|row| row.expect("a number")).collect();
    late.sort_unstable();
    let at = |share: f64| late[((late.len() - 1) as f64 * share).round() as usize];
    println!("due to claimed, {} runs: median {} ms, p99 {} ms, longest {} ms", late.len(), at(0.5), at(0.99), at(1.0));
}

/// Measures a tick of the service with nothing due, with few and with many schedules.
fn tick() {
    let mut median = Vec::new();
    for count in [10, 100_000] {
        let scratch = scratch();
        add_schedules(&open(scratch.path()).1, count);
        let options = Options {
            workers: 1,
            grace: Duration::ZERO,
            zone: Tz::UTC,
            import: None,
            config: None,
            maintenance: Default::default(),
            scratch: None,
        };
        let mut service = Service::register(runner(scratch.path(), Role::Service), options, false).expect("a service");
        service.tick().expect("the first tick");
        let mut micros: Vec<f64> = (0..2_000)
            .map(|_| {
                let clock = SystemClock::new();
                assert_eq!(service.tick().expect("a tick").enqueued, 0);
                clock.monotonic().as_secs_f64() * 1e6
            })
            .collect();
        micros.sort_by(f64::total_cmp);
        median.push(micros[micros.len() / 2]);
    }
    println!(
        "a tick with nothing due: {:.0} us with 10 schedules, {:.0} us with 100,000, ratio {:.2}",
        median[0],
        median[1],
        median[1] / median[0]
    );
}

fn idle() {
    let scratch = scratch();
    create(scratch.path(), "0 3 1 1 *");
    let ticks = serve_for(scratch.path(), 3, 60);
    println!("an idle service: {} ms of processor time in a minute", ticks * 10);
}

fn cpu_ticks(process: u32) -> u64 {
    let stat = fs::read_to_string(PathBuf::from(format!("/proc/{process}/stat"))).unwrap_or_default();
    let fields: Vec<u64> = stat.rsplit(") ").next().unwrap_or("").split(' ').map(|f| f.parse().unwrap_or(0)).collect();
    fields.get(11).copied().unwrap_or(0) + fields.get(12).copied().unwrap_or(0)
}

/// Calls `step` this many times, [`ROUNDS`] times over, and returns the median microseconds of one call.
fn micros_of(calls: usize, mut step: impl FnMut(usize)) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|round| {
            let clock = SystemClock::new();
            (0..calls).for_each(|call| step(round * calls + call));
            clock.monotonic().as_secs_f64() * 1e6 / calls as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// Measures how long it takes to find the next occurrence, in a zone with summer time.
fn cadence() {
    let zone = Tz::Europe__Berlin;
    for (words, cadence) in [
        ("02:30,14:00", Cadence::parse_daily("02:30,14:00")),
        ("*/5 * * * *", Cadence::parse_cron("*/5 * * * *")),
        ("0 3 29 2 *", Cadence::parse_cron("0 3 29 2 *")),
    ] {
        let cadence = cadence.expect("a cadence");
        let mut after = Timestamp::from_millis(1_795_392_000_000);
        let micros = micros_of(100, |_| after = cadence.next_after(zone, after).expect("a next one"));
        println!("the next occurrence of {words:14} {micros:>8.1} us");
    }
}

/// Measures how long it takes to add a member to the catalog, in chunks of 100.
fn catalog() {
    const CHUNKS: usize = 200;
    const MEMBERS: usize = 100;
    let scratch = scratch();
    let runner = runner(scratch.path(), Role::Command);
    add_schedules(&runner.store, 1);
    let schedule = runner.store.schedules().expect("schedules")[0].id;
    let request = RunRequest { verify: true, reread: false };
    let claimed = runner.store.claim_now(schedule, request, &runner.row, runner.clock.now()).expect("a claim").0;
    let ClaimNow::Claimed(claim) = claimed else { panic!("{claimed:?}") };
    let micros = micros_of(1, |round| {
        let chunks: Vec<_> = (0..CHUNKS).map(|n| catalog_chunk(round * CHUNKS + n, MEMBERS)).collect();
        runner.store.add_chunks(&claim, &chunks).expect("room in the catalog");
    });
    println!("a member added to the catalog       {:>8.1} us", micros / (CHUNKS * MEMBERS) as f64);
}

fn catalog_chunk(sequence: usize, members: usize) -> CatalogChunk {
    let member = |n: usize| CatalogMember {
        member: Member {
            path: MemberPath::parse(format!("docs/{sequence:06}/a-name-of-usual-length-{n}.txt").as_bytes())
                .expect("a path"),
            kind: MemberKind::File,
            size: 10_000,
            mode: 0o644,
            uid: 1000,
            gid: 1000,
            user_name: Box::from(&b"user"[..]),
            group_name: Box::from(&b"user"[..]),
            modified: FileTime { seconds: 1_700_000_000, nanoseconds: 1 },
            link_target: None,
            device_number: None,
            xattrs: Xattrs::new(),
        },
        entry_bytes: 11_264,
        device: 1,
        inode: (sequence * members + n) as u64,
        changed: FileTime { seconds: 1_700_000_000, nanoseconds: 1 },
        content_digest: Some([7; 32]),
        xattr_digest: None,
        is_reusable: true,
    };
    CatalogChunk {
        chunk: Chunk {
            sequence: sequence as u64,
            offset: sequence as u64 * 300_000,
            stored_length: 300_000,
            stored_digest: [7; 32],
            content_length: members as u64 * 11_264,
            content_digest: Some([7; 32]),
        },
        place: None,
        read_started: Timestamp::from_millis(1_795_392_000_000),
        record: ChunkRecord::New { members: (0..members).map(|n| MemberRecord::New(member(n))).collect() },
    }
}

/// Measures how long it takes to encode a chunk of the size that each codec has, of text.
fn encode() {
    for (compression, bytes) in
        [(Compression::None, 128 << 10), (Compression::Gzip(4), 512 << 10), (Compression::Zstd(3), 3 << 19)]
    {
        let mut encoder = Encoder::new(compression, Padding::None).expect("an encoder");
        let text = text_of(bytes);
        let mut stored = 0;
        let micros = micros_of(50, |_| {
            let mut content = Buffer::new();
            content.extend(&text);
            stored = encoder.encode(content).expect("an encoded chunk").stored.len();
        });
        let rate = bytes as f64 / micros;
        println!(
            "a chunk of {:>4} KiB, {compression:7} {micros:>14.1} us, {rate:.0} MB/s, to {} %",
            bytes >> 10,
            stored * 100 / bytes
        );
    }
}

/// Returns words in an order that does not repeat, so many bytes.
fn text_of(bytes: usize) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "archive", "member", "chunk", "of", "the", "a", "is", "written", "read", "and", "then", "verified", "by",
        "run", "schedule", "file",
    ];
    let mut state = 1_u64;
    let mut text = Vec::with_capacity(bytes + 16);
    while text.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = state >> 33;
        text.extend_from_slice(WORDS[number as usize % WORDS.len()].as_bytes());
        text.push(if number.is_multiple_of(97) { b'\n' } else { b' ' });
    }
    text.truncate(bytes);
    text
}
