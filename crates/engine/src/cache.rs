//! Folders on this machine (*io*) that are made once, shared by processes, and bounded.
//!
//! Beside a folder `<name>` lies `<name>.lock`, which is never removed. Users of the folder share
//! the lock; a process that makes or removes the folder holds it exclusively. A lock ends with its process. The time at which the
//! file was changed last says when the folder was used last. A folder comes and goes whole, by renaming `<name>.part`.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const PART: &str = ".part";

/// A place for folders that have a digest for a name.
#[derive(Clone, Debug)]
pub struct Cache {
    pub dir: PathBuf,
    /// Limit of all folders together; exceeded only while they are in use.
    pub max_bytes: u64,
}

pub enum Slot {
    There(Held),
    Missing(Blank),
    /// Another process makes or removes it.
    Busy,
}

/// A folder that stays while this value does.
#[derive(Debug)]
pub struct Held {
    cache: Cache,
    name: String,
    lock: File,
}

/// An empty folder for one that is to be made; removed, unless it is kept.
#[derive(Debug)]
pub struct Blank {
    cache: Cache,
    name: String,
    _lock: File,
}

impl Cache {
    /// The folder `name`. Never waits for other processes.
    pub fn open(&self, name: &str) -> io::Result<Slot> {
        if !is_digest(name) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not a SHA-256")));
        }
        fs::create_dir_all(&self.dir)?;
        let lock = self.lock_file(name)?;
        loop {
            let there = self.dir.join(name).is_dir();
            if !taken(if there { lock.try_lock_shared() } else { lock.try_lock() })? {
                return Ok(Slot::Busy);
            }
            match (there, self.dir.join(name).is_dir()) {
                (true, true) => {
                    lock.set_modified(SystemTime::now())?;
                    return Ok(Slot::There(Held { cache: self.clone(), name: name.to_owned(), lock }));
                }
                (false, false) => {
                    // A killed process may have left one.
                    remove_all(&self.part(name))?;
                    fs::create_dir(self.part(name))?;
                    return Ok(Slot::Missing(Blank { cache: self.clone(), name: name.to_owned(), _lock: lock }));
                }
                // It came or went before this process had the lock.
                _ => lock.unlock()?,
            }
        }
    }

    /// Removes folders that are not in use, the longest unused first, until `bytes` more fit; returns whether they fit.
    pub fn make_room(&self, bytes: u64) -> io::Result<bool> {
        let mut entries = self.entries()?;
        entries.sort();
        let mut total = bytes + entries.iter().map(|(_, _, bytes)| bytes).sum::<u64>();
        for (_, name, bytes) in entries {
            if total <= self.max_bytes {
                break;
            }
            if self.remove(&self.lock_file(&name)?, &name)? {
                total -= bytes;
            }
        }
        Ok(total <= self.max_bytes)
    }

    /// When it was used last, name and bytes of each folder.
    fn entries(&self) -> io::Result<Vec<(SystemTime, String, u64)>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let of = name.strip_suffix(PART).unwrap_or(&name);
            if !is_digest(of) || !entry.file_type()?.is_dir() {
                continue;
            }
            let used = fs::metadata(self.dir.join(format!("{of}.lock"))).and_then(|m| m.modified());
            entries.push((used.unwrap_or(UNIX_EPOCH), of.to_owned(), size(&entry.path())?));
        }
        Ok(entries)
    }

    /// Removes a folder, unless a process uses or makes it.
    fn remove(&self, lock: &File, name: &str) -> io::Result<bool> {
        if !taken(lock.try_lock())? {
            return Ok(false);
        }
        let part = self.part(name);
        remove_all(&part)?;
        if self.dir.join(name).is_dir() {
            fs::rename(self.dir.join(name), &part)?;
            remove_all(&part)?;
        }
        Ok(true)
    }

    fn lock_file(&self, name: &str) -> io::Result<File> {
        File::options().create(true).truncate(false).write(true).open(self.dir.join(format!("{name}.lock")))
    }

    fn part(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}{PART}"))
    }
}

impl Held {
    pub fn dir(&self) -> PathBuf {
        self.cache.dir.join(&self.name)
    }

    /// Removes the folder, unless others use it.
    pub fn discard(self) -> io::Result<bool> {
        self.lock.unlock()?;
        self.cache.remove(&self.lock, &self.name)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Only the order of removal depends on it.
        let _ = self.lock.set_modified(SystemTime::now());
    }
}

impl Blank {
    pub fn dir(&self) -> PathBuf {
        self.cache.part(&self.name)
    }

    pub fn keep(self) -> io::Result<()> {
        fs::rename(self.dir(), self.cache.dir.join(&self.name))
    }
}

impl Drop for Blank {
    fn drop(&mut self) {
        // What is left is removed before the next try.
        let _ = remove_all(&self.dir());
    }
}

/// Whether this process has the lock now.
fn taken(tried: Result<(), TryLockError>) -> io::Result<bool> {
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn remove_all(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Bytes of the files in `dir`.
fn size(dir: &Path) -> io::Result<u64> {
    let sum = || -> io::Result<u64> { fs::read_dir(dir)?.map(|file| Ok(file?.metadata()?.len())).sum() };
    match sum() {
        // Removed since.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        size => size,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn open(max_bytes: u64) -> (Cache, tempfile::TempDir) {
        let alive = tempfile::tempdir().unwrap();
        (Cache { dir: alive.path().join("cache"), max_bytes }, alive)
    }

    fn name(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn make(cache: &Cache, name: &str, bytes: usize) -> Held {
        loop {
            match cache.open(name).unwrap() {
                Slot::There(held) => return held,
                Slot::Missing(blank) => {
                    fs::write(blank.dir().join("file"), vec![0; bytes]).unwrap();
                    blank.keep().unwrap();
                }
                Slot::Busy => panic!("no other process is here"),
            }
        }
    }

    fn there(cache: &Cache) -> String {
        ('a'..='f').filter(|&digit| cache.dir.join(name(digit)).join("file").is_file()).collect()
    }

    /// As if each had been used an hour after the one before it.
    fn used_in_order(cache: &Cache, order: &str) {
        for (i, digit) in order.chars().enumerate() {
            let time = UNIX_EPOCH + Duration::from_secs(3600 * (1 + i as u64));
            cache.lock_file(&name(digit)).unwrap().set_modified(time).unwrap();
        }
    }

    #[test]
    fn of_all_who_come_at_once_one_makes_and_the_others_are_told_to_wait() {
        let (cache, _alive) = open(1000);
        let makers = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    loop {
                        match cache.open(&name('a')).unwrap() {
                            Slot::There(held) => {
                                assert_eq!(fs::read_to_string(held.dir().join("file")).unwrap(), "whole");
                                break;
                            }
                            Slot::Missing(blank) => {
                                makers.fetch_add(1, Ordering::SeqCst);
                                fs::write(blank.dir().join("file"), "wh").unwrap();
                                std::thread::yield_now();
                                fs::write(blank.dir().join("file"), "whole").unwrap();
                                blank.keep().unwrap();
                            }
                            Slot::Busy => std::thread::yield_now(),
                        }
                    }
                });
            }
        });
        assert_eq!(makers.into_inner(), 1);
    }

    #[test]
    fn who_gives_up_or_dies_leaves_the_place_to_the_next() {
        let (cache, _alive) = open(1000);
        let Slot::Missing(blank) = cache.open(&name('a')).unwrap() else { panic!("nothing is there") };
        fs::write(blank.dir().join("file"), "half").unwrap();
        drop(blank);
        assert!(!cache.part(&name('a')).exists());
        // As after a kill.
        fs::create_dir(cache.part(&name('a'))).unwrap();
        fs::write(cache.part(&name('a')).join("file"), "half").unwrap();
        let Slot::Missing(blank) = cache.open(&name('a')).unwrap() else { panic!("nothing is there") };
        assert_eq!(fs::read_dir(blank.dir()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_used_longest_ago_makes_room_and_what_is_in_use_stays() {
        let (cache, _alive) = open(100);
        for digit in "abcd".chars() {
            make(&cache, &name(digit), 25);
        }
        used_in_order(&cache, "bcad");
        assert!(cache.make_room(0).unwrap());
        assert_eq!(there(&cache), "abcd");
        let held = make(&cache, &name('b'), 25);
        used_in_order(&cache, "bcad");
        assert!(cache.make_room(26).unwrap());
        assert_eq!(there(&cache), "bd");
        assert!(!cache.make_room(100).unwrap());
        assert_eq!(there(&cache), "b");
        drop(held);
        assert!(cache.make_room(100).unwrap());
        assert_eq!(there(&cache), "");
    }

    #[test]
    fn a_use_is_remembered() {
        let (cache, _alive) = open(50);
        for digit in "ab".chars() {
            make(&cache, &name(digit), 25);
        }
        used_in_order(&cache, "ab");
        make(&cache, &name('a'), 25);
        assert!(cache.make_room(25).unwrap());
        assert_eq!(there(&cache), "a");
    }

    #[test]
    fn halves_of_killed_processes_make_room_and_what_is_not_ours_stays() {
        let (cache, _alive) = open(10);
        let blank = cache.open(&name('a')).unwrap();
        for other in [format!("{}.part", name('b')), "of-another".into()] {
            fs::create_dir(cache.dir.join(&other)).unwrap();
            fs::write(cache.dir.join(&other).join("file"), vec![0; 25]).unwrap();
        }
        assert!(cache.make_room(10).unwrap());
        assert!(cache.part(&name('a')).exists() && !cache.part(&name('b')).exists());
        assert!(cache.dir.join("of-another/file").exists());
        drop(blank);
        assert_eq!(cache.open("../of-another").err().unwrap().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn what_others_use_is_not_discarded() {
        let (cache, _alive) = open(1000);
        let (first, second) = (make(&cache, &name('a'), 25), make(&cache, &name('a'), 25));
        assert!(!first.discard().unwrap());
        assert_eq!(there(&cache), "a");
        assert!(second.discard().unwrap());
        assert_eq!(there(&cache), "");
    }
}
