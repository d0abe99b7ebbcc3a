//! Fetching, against a small server in this process that can be made to misbehave. No public network.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use proto::hex_sha256 as sha256;
use tempfile::TempDir;
use zoo::fetch::{DownloadError, DownloadProgress, Fetched, Patience, fetch};
use zoo::published::{Address, File, Hash, Size};

const NAME: &str = "net-0badf00d.pth";
const PATIENCE: Patience = Patience { first_pause: Duration::from_millis(1), attempts: 3, silence: Duration::from_secs(30) };

/// 300 kB, so that it comes in more than one piece.
fn content(seed: u32) -> Vec<u8> {
    (0..75_000u32).flat_map(|i| (i.wrapping_add(seed)).wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// A file with that content, by its whole hash.
fn file(content: &[u8]) -> File {
    File {
        name: NAME,
        address: Address::Nowhere("use a mirror"),
        hash: Hash::Stated(sha256(content).leak()),
        size: Size::Exactly(content.len() as u64),
    }
}

/// A content, and the empty folder that it is to be fetched into.
fn fixture() -> (Vec<u8>, TempDir) {
    (content(0), tempfile::tempdir().unwrap())
}

/// What the server has, and what it does to one request.
#[derive(Default)]
struct Answer {
    content: Vec<u8>,
    etag: &'static str,
    status: u16,
    ranges: bool,
    /// It obeys `If-Range`.
    if_range: bool,
    /// It states the length of the body.
    sized: bool,
    /// Most bytes of a range, and by how many bytes the range begins too early.
    odd: Option<(usize, usize)>,
    location: Option<&'static str>,
    /// Bytes of the body before the connection ends.
    cut: Option<usize>,
    /// Bytes of the body before nothing more comes.
    stall: Option<usize>,
    /// After half of the body the server waits for this.
    gate: Option<Receiver<()>>,
}

impl Answer {
    /// All of the content, from a server that behaves.
    fn new(content: &[u8]) -> Answer {
        let content = content.to_vec();
        Answer { content, etag: "\"one\"", status: 200, ranges: true, if_range: true, sized: true, ..Answer::default() }
    }
}

struct Server {
    base: String,
    /// The head of every request.
    heads: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Has the content, and behaves.
    fn start(content: &[u8]) -> Server {
        Server::with(content, |_, whole| whole)
    }

    /// Gives the n-th request `answer(n, whole)`, where `whole` is the content from a server that behaves.
    fn with(content: &[u8], mut answer: impl FnMut(usize, Answer) -> Answer + Send + 'static) -> Server {
        let content = content.to_vec();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}/models", listener.local_addr().unwrap());
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let stop = Arc::<AtomicBool>::default();
        let (seen, stopped) = (heads.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let mut silent = Vec::new();
            for (n, socket) in listener.incoming().enumerate() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let mut socket = socket.unwrap();
                let head: String = BufReader::new(socket.try_clone().unwrap())
                    .lines()
                    .map_while(|line| line.ok().filter(|line| !line.is_empty()).map(|line| line + "\n"))
                    .collect();
                seen.lock().unwrap().push(head.to_lowercase());
                // The client may be gone.
                if let Ok(true) = reply(&mut socket, &head.to_lowercase(), answer(n, Answer::new(&content))) {
                    silent.push(socket);
                }
            }
        });
        Server { base, heads, stop, thread: Some(thread) }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let address = self.base.trim_start_matches("http://").trim_end_matches("/models");
        TcpStream::connect(address).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Whether the connection is to stay open.
fn reply(socket: &mut TcpStream, head: &str, answer: Answer) -> std::io::Result<bool> {
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let begin = field("range").filter(|_| answer.ranges && (!answer.if_range || field("if-range") == Some(answer.etag)));
    let begin: usize = begin.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0);
    let length = answer.content.len();
    let (most, early) = answer.odd.filter(|_| begin > 0).unwrap_or((length, 0));
    let (begin, end) = (begin - early, (begin + most).min(length));
    let (status, range) = match begin {
        0 => (answer.status, String::new()),
        _ if begin >= length => (416, format!("Content-Range: bytes */{length}\r\n")),
        _ => (206, format!("Content-Range: bytes {begin}-{}/{length}\r\n", end - 1)),
    };
    let body = if begin >= length { &[] } else { &answer.content[begin..end] };
    let location = answer.location.map(|to| format!("Location: {to}\r\n")).unwrap_or_default();
    let size = if answer.sized { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
    let etag = answer.etag;
    write!(socket, "HTTP/1.1 {status} S\r\nETag: {etag}\r\n{range}{location}{size}Connection: close\r\n\r\n")?;
    let half = body.len() / 2;
    socket.write_all(&body[..answer.cut.or(answer.stall).unwrap_or(half)])?;
    if answer.cut.is_some() || answer.stall.is_some() {
        return Ok(answer.stall.is_some());
    }
    if let Some(gate) = answer.gate {
        gate.recv_timeout(Duration::from_secs(20)).expect("the gate opens");
    }
    socket.write_all(&body[half..])?;
    Ok(false)
}

fn get(file: &File, mirror: &str, into: &Path) -> Result<Fetched, DownloadError> {
    fetch(file, Some(mirror), into, &PATIENCE, &mut |_| ())
}

/// Fetches the file of that content, which must succeed.
fn fetch_whole(content: &[u8], mirror: &str, into: &Path) {
    assert!(get(&file(content), mirror, into).unwrap().verified);
    assert_whole(into, content);
}

/// The folder has the complete file, and nothing else.
fn assert_whole(into: &Path, content: &[u8]) {
    assert!(fs::read(into.join(NAME)).unwrap() == content, "another content");
    let names: Vec<_> = fs::read_dir(into).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [NAME]);
}

#[test]
fn a_file_comes_whole_with_its_hash_and_tells_how_far_it_is() {
    let content = content(0);
    let (file, folder) = (file(&content), tempfile::tempdir().unwrap());
    let into = folder.path().join("new/folder");
    let server = Server::start(&content);
    let mut seen = Vec::new();
    let base = format!("{}/", server.base);
    let fetched = fetch(&file, Some(&base), &into, &PATIENCE, &mut |p| {
        if let DownloadProgress::Received { received, total } = p {
            seen.push((received, total));
        }
    });
    let expected = Fetched { path: into.join(NAME), sha256: sha256(&content), verified: true };
    assert_eq!(fetched.unwrap(), expected);
    assert_whole(&into, &content);
    let total = Some(content.len() as u64);
    assert_eq!((seen[0], *seen.last().unwrap()), ((0, total), (content.len() as u64, total)));
    assert!(seen.is_sorted());
    assert!(server.heads()[0].starts_with(&format!("get /models/{NAME} http/1.1")), "{:?}", server.heads());
    // It is not fetched again.
    assert_eq!(get(&file, &server.base, &into).unwrap(), expected);
    assert_eq!(server.heads().len(), 1);
}

#[test]
fn a_publishers_own_address_is_used_without_a_mirror_and_the_name_is_the_registers() {
    let (content, folder) = fixture();
    let server = Server::start(&content);
    let address = Address::At(format!("{}/other%20name?x=1", server.base).leak());
    let file = File { address, hash: Hash::Begins(sha256(&content)[..8].to_owned().leak()), ..file(&content) };
    let fetched = fetch(&file, None, folder.path(), &PATIENCE, &mut |_| ()).unwrap();
    assert!(fetched.verified && fetched.sha256 == sha256(&content));
    assert_whole(folder.path(), &content);
    assert!(server.heads()[0].starts_with("get /models/other%20name?x=1 "), "{:?}", server.heads());
}

#[test]
fn a_connection_that_is_cut_goes_on_where_it_was() {
    let (content, folder) = fixture();
    let server = Server::with(&content, |n, whole| Answer { cut: [100_000, 0, 0, 50_000].get(n).copied(), ..whole });
    let mut pauses = Vec::new();
    let fetched = fetch(&file(&content), Some(&server.base), folder.path(), &PATIENCE, &mut |p| {
        if let DownloadProgress::Again { pause, .. } = p {
            pauses.push(pause.as_millis());
        }
    });
    assert!(fetched.unwrap().verified);
    assert_whole(folder.path(), &content);
    let heads = server.heads();
    assert_eq!(heads.len(), 5);
    assert!(!heads[0].contains("range:"), "{}", heads[0]);
    for (head, begin) in heads[1..].iter().zip([100_000, 100_000, 100_000, 150_000]) {
        assert!(head.contains(&format!("\nrange: bytes={begin}-\n")) && head.contains("\nif-range: \"one\"\n"), "{head}");
    }
    // Pauses grow as long as nothing comes.
    assert_eq!(pauses, [1, 1, 2, 1]);
}

#[test]
fn a_server_that_always_cuts_is_given_up_and_the_next_try_goes_on() {
    let (content, folder) = fixture();
    let server = Server::with(&content, move |n, whole| Answer { cut: [70_000, 0, 0, 0].get(n).copied(), ..whole });
    let error = get(&file(&content), &server.base, folder.path()).unwrap_err();
    assert!(matches!(error, DownloadError::GaveUp { received: 70_000, .. }), "{error}");
    assert!(error.to_string().contains("fetch again to continue"), "{error}");
    fetch_whole(&content, &server.base, folder.path());
    assert!(server.heads()[4].contains("range: bytes=70000-"), "{:?}", server.heads());
}

#[test]
fn a_server_that_ignores_ranges_starts_again_and_one_that_never_gets_further_is_given_up() {
    let (content, folder) = fixture();
    let server = Server::with(&content, move |n, whole| Answer { cut: (n == 0).then_some(90_000), ranges: false, ..whole });
    fetch_whole(&content, &server.base, folder.path());

    let server = Server::with(&content, move |_, whole| Answer { cut: Some(90_000), ranges: false, ..whole });
    let folder = tempfile::tempdir().unwrap();
    let error = get(&file(&content), &server.base, folder.path()).unwrap_err();
    assert!(matches!(error, DownloadError::GaveUp { received: 90_000, .. }), "{error}");
}

#[test]
fn a_file_that_changed_between_its_halves_is_fetched_from_its_beginning() {
    for if_range in [true, false] {
        let (old, new) = (content(0), content(5));
        let server = Server::with(&new, move |n, whole| match n {
            0 => Answer { cut: Some(100_000), ..Answer::new(&old) },
            _ => Answer { etag: "\"two\"", if_range, ..whole },
        });
        let folder = tempfile::tempdir().unwrap();
        fetch_whole(&new, &server.base, folder.path());
        assert_eq!(server.heads().len(), if if_range { 2 } else { 3 });
    }
}

#[test]
fn what_came_from_one_address_is_not_mixed_with_another() {
    let (one, two) = (content(0), content(5));
    let bad = Server::with(&one, |n, whole| Answer { cut: Some(if n == 0 { 100_000 } else { 0 }), ..whole });
    let good = Server::start(&two);
    let folder = tempfile::tempdir().unwrap();
    let error = get(&file(&two), &bad.base, folder.path()).unwrap_err();
    assert!(matches!(error, DownloadError::GaveUp { received: 100_000, .. }), "{error}");
    assert!(get(&file(&two), &good.base, folder.path()).unwrap().verified);
    assert!(!good.heads()[0].contains("range:"), "{:?}", good.heads());
}

#[test]
fn a_file_with_another_hash_is_deleted_and_both_hashes_are_told() {
    let (wanted, other) = (content(0), content(5));
    let server = Server::start(&other);
    for hash in [Hash::Stated(sha256(&wanted).leak()), Hash::Begins("0badf00d")] {
        let folder = tempfile::tempdir().unwrap();
        let error = get(&File { hash, ..file(&wanted) }, &server.base, folder.path()).unwrap_err();
        assert!(matches!(error, DownloadError::WrongHash { .. }), "{error}");
        let text = error.to_string();
        assert!([&server.base, hash.digits().unwrap(), &sha256(&other)].iter().all(|part| text.contains(*part)), "{text}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_file_of_unknown_hash_is_taken_and_its_hash_is_told() {
    let (content, folder) = fixture();
    let server = Server::start(&content);
    let unknown = File { hash: Hash::Unknown, size: Size::About(1), ..file(&content) };
    for _ in 0..2 {
        let fetched = get(&unknown, &server.base, folder.path()).unwrap();
        assert_eq!((fetched.sha256, fetched.verified), (sha256(&content), false));
    }
    assert_eq!(server.heads().len(), 1);
}

#[test]
fn a_wrong_file_of_that_name_is_refused_and_left_alone() {
    let (content, folder) = fixture();
    fs::write(folder.path().join(NAME), "mine").unwrap();
    let error = get(&file(&content), "http://127.0.0.1:9", folder.path()).unwrap_err();
    assert!(matches!(error, DownloadError::Taken { .. }), "{error}");
    assert!(error.to_string().contains(NAME) && error.to_string().contains(&sha256(b"mine")), "{error}");
    assert_whole(folder.path(), b"mine");
}

#[test]
fn what_a_server_refuses_is_final_and_what_it_cannot_do_now_is_tried_again() {
    let (content, folder) = fixture();
    for (status, words) in [(404, "for its new address"), (403, "fetch the file by hand"), (451, "unexpected response")] {
        let server = Server::with(b"no", move |_, whole| Answer { status, ..whole });
        let error = get(&file(&content), &server.base, folder.path()).unwrap_err();
        assert!(matches!(error, DownloadError::Refused { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&status.to_string()) && text.contains(words) && text.contains(NAME), "{text}");
        assert_eq!(server.heads().len(), 1);
    }
    let server = Server::with(&content, move |n, whole| Answer { status: if n < 2 { 503 } else { 200 }, ..whole });
    assert!(get(&file(&content), &server.base, folder.path()).unwrap().verified);
    assert_eq!(server.heads().len(), 3);
}

#[test]
fn a_redirect_is_followed_with_its_range_and_a_circle_is_not() {
    let (content, folder) = fixture();
    let server = Server::with(&content, |n, whole| match n {
        0 | 2 => Answer { status: 302, location: Some("/elsewhere"), ranges: false, ..Answer::new(b"") },
        1 => Answer { cut: Some(100_000), ..whole },
        _ => whole,
    });
    fetch_whole(&content, &server.base, folder.path());
    let last = server.heads().pop().unwrap();
    assert!(last.starts_with("get /elsewhere ") && last.contains("range: bytes=100000-"), "{last}");

    let server = Server::with(b"", |_, whole| Answer { status: 302, location: Some("/round"), ..whole });
    let folder = tempfile::tempdir().unwrap();
    let error = get(&file(&content), &server.base, folder.path()).unwrap_err();
    assert!(matches!(error, DownloadError::Refused { .. }) && error.to_string().contains("redirect"), "{error}");
}

#[test]
fn a_server_that_falls_silent_is_left_and_asked_again() {
    let (content, folder) = fixture();
    let server = Server::with(&content, move |n, whole| Answer { stall: (n == 0).then_some(120_000), ..whole });
    let patience = Patience { silence: Duration::from_secs(1), ..PATIENCE };
    let began = Instant::now();
    assert!(fetch(&file(&content), Some(&server.base), folder.path(), &patience, &mut |_| ()).unwrap().verified);
    assert!(began.elapsed() >= patience.silence && began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(server.heads()[1].contains("range: bytes=120000-"), "{:?}", server.heads());
}

#[test]
fn an_address_where_nobody_answers_or_nothing_is_secure_is_refused_at_once() {
    let (content, folder) = fixture();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = Server::start(b"plain");
    let plain = server.base.replace("http://", "https://");
    for (mirror, words) in [(format!("http://{free}"), "no server responds"), (plain, "cannot make a secure connection")] {
        let mut again = 0;
        let error = fetch(&file(&content), Some(&mirror), folder.path(), &PATIENCE, &mut |p| {
            again += u32::from(matches!(p, DownloadProgress::Again { .. }));
        });
        let error = error.unwrap_err();
        assert!(matches!(error, DownloadError::Refused { .. }) && error.to_string().contains(words), "{error}");
        assert_eq!(again, 0);
    }
}

#[test]
fn a_file_that_is_larger_than_it_can_be_is_refused_and_not_kept() {
    let wanted = content(0);
    let larger = [&wanted[..], &wanted].concat();
    let server = Server::start(&larger);
    let folder = tempfile::tempdir().unwrap();
    let mirror = tempfile::tempdir().unwrap();
    fs::write(mirror.path().join(NAME), &larger).unwrap();
    for base in [&server.base, mirror.path().to_str().unwrap()] {
        let error = get(&file(&wanted), base, folder.path()).unwrap_err();
        assert!(matches!(error, DownloadError::TooLarge { bytes: 600_000, limit: 300_000, .. }), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
    // One that does not say it beforehand.
    let server = Server::with(&larger, |_, whole| Answer { sized: false, ..whole });
    let error = get(&file(&wanted), &server.base, folder.path()).unwrap_err();
    assert!(matches!(error, DownloadError::TooLarge { bytes: 300_001..600_000, limit: 300_000, .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_server_may_give_less_than_the_range_and_is_not_believed_if_it_gives_another() {
    let content = content(0);
    for (odd, begins) in [((80_000, 0), vec![100_000, 180_000, 260_000]), ((200_000, 10), vec![100_000])] {
        let server = Server::with(&content, move |n, whole| Answer { cut: (n == 0).then_some(100_000), odd: Some(odd), ..whole });
        let folder = tempfile::tempdir().unwrap();
        fetch_whole(&content, &server.base, folder.path());
        let heads = server.heads();
        let asked: Vec<_> =
            heads.iter().filter_map(|head| Some(head.split_once("range: bytes=")?.1.split_once('-')?.0)).collect();
        assert_eq!(asked, begins.iter().map(|begin| begin.to_string()).collect::<Vec<_>>());
    }
}

#[test]
fn a_folder_is_a_mirror_by_its_path_or_as_a_file_url() {
    let content = content(0);
    let mirror = tempfile::tempdir().unwrap();
    let path = mirror.path().to_str().unwrap();
    let empty = tempfile::tempdir().unwrap();
    let error = get(&file(&content), path, empty.path()).unwrap_err();
    assert!(matches!(error, DownloadError::Local { .. }) && error.to_string().contains(NAME), "{error}");
    fs::write(mirror.path().join(NAME), &content).unwrap();
    for base in [path.to_owned(), format!("file://{path}")] {
        let folder = tempfile::tempdir().unwrap();
        fetch_whole(&content, &base, folder.path());
    }
    for base in ["s3://bucket/x", "file://relative", ""] {
        let error = get(&file(&content), base, empty.path()).unwrap_err();
        assert!(matches!(error, DownloadError::Mirror { .. }), "{error}");
    }
    let error = fetch(&file(&content), None, empty.path(), &PATIENCE, &mut |_| ()).unwrap_err();
    assert!(matches!(error, DownloadError::NoAddress { .. }) && error.to_string().contains("use a mirror"), "{error}");
}

#[test]
fn a_process_that_is_killed_leaves_what_the_next_one_goes_on_with() {
    let (content, folder) = fixture();
    if let Ok(job) = std::env::var("FETCH_AS_A_CHILD") {
        let (base, into) = job.split_once(' ').unwrap();
        let _ = fetch(&file(&content), Some(base), Path::new(into), &PATIENCE, &mut |_| ());
        return;
    }
    let server = Server::with(&content, move |n, whole| Answer { stall: (n == 0).then_some(130_000), ..whole });
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_process_that_is_killed_leaves_what_the_next_one_goes_on_with"])
        .env("FETCH_AS_A_CHILD", format!("{} {}", server.base, folder.path().display()))
        .spawn()
        .unwrap();
    let part = folder.path().join(format!("{NAME}.part"));
    let until = Instant::now() + Duration::from_secs(20);
    while fs::metadata(&part).map_or(0, |part| part.len()) < 130_000 {
        assert!(Instant::now() < until, "the child does not get so far");
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    fetch_whole(&content, &server.base, folder.path());
    assert!(server.heads()[1].contains("range: bytes=130000-"), "{:?}", server.heads());
}

#[test]
fn a_part_that_was_complete_when_its_process_died_is_only_checked() {
    let (content, folder) = fixture();
    let server = Server::start(&content);
    fs::write(folder.path().join(format!("{NAME}.part")), &content).unwrap();
    fs::write(folder.path().join(format!("{NAME}.part.from")), format!("{}/{NAME}\n\"one\"\n", server.base)).unwrap();
    fetch_whole(&content, &server.base, folder.path());
    assert_eq!(server.heads().len(), 1);
    assert!(server.heads()[0].contains("range: bytes=300000-"), "{:?}", server.heads());
}

#[test]
fn of_two_that_fetch_the_same_file_one_waits_and_finds_it_done() {
    let (content, folder) = fixture();
    let (open, gate) = mpsc::channel();
    let mut gate = Some(gate);
    let server = Server::with(&content, move |_, whole| Answer { gate: gate.take(), ..whole });
    let (started, first) = mpsc::channel();
    thread::scope(|scope| {
        let one = scope.spawn(|| {
            fetch(&file(&content), Some(&server.base), folder.path(), &PATIENCE, &mut |_| {
                let _ = started.send(());
            })
        });
        first.recv_timeout(Duration::from_secs(20)).unwrap();
        let two = scope.spawn(|| {
            fetch(&file(&content), Some(&server.base), folder.path(), &PATIENCE, &mut |p| {
                if p == DownloadProgress::Waiting {
                    open.send(()).unwrap();
                }
            })
        });
        assert!(one.join().unwrap().unwrap().verified && two.join().unwrap().unwrap().verified);
    });
    assert_whole(folder.path(), &content);
    assert_eq!(server.heads().len(), 1);
}
